// q4: the bytes of MatMulNBits against an oracle written apart, and what onnxruntime computes from them.
import { InferenceSession, Tensor } from "onnxruntime-node";
import { describe, expect, it } from "vitest";
import { encodeHalf, halfTable } from "../../src/onnx/file/half.ts";
import { attributeInt } from "../../src/onnx/graph/graph.ts";
import type { OnnxModel, QuantizeBytesOptions } from "../../src/onnx/index.ts";
import { readModelBytes } from "../../src/onnx/index.ts";
import type { ModelProto, TensorProto } from "../../src/onnx/file/gen/onnx_pb.ts";
import { matMulNBitsOracle } from "../oracle/matmulnbits.ts";
import { T, encode, external, graph, matmulModel, model, node, raw, typed, value, weights } from "./build.ts";
import { quantizeModelBytes } from "./kept.ts";

const q4 = (proto: ModelProto, options: Partial<QuantizeBytesOptions> = {}) =>
  quantizeModelBytes(encode(proto), { dtype: "q4", ...options });

/** The raw bytes of an initializer. */
function bytesOf(opened: OnnxModel, tensor: TensorProto): Uint8Array {
  const payload = opened.payloads.get(tensor.rawData);
  return payload === undefined ? tensor.rawData! : payload.source.read(payload.offset, payload.length);
}
const initializers = (opened: OnnxModel): Record<string, Uint8Array> =>
  Object.fromEntries(opened.proto.graph!.initializer.map((tensor) => [tensor.name, bytesOf(opened, tensor)]));

/** Runs a model on x [rows, k]; returns y. */
async function run(bytes: Uint8Array, x: Float32Array, k: number, feeds: Record<string, Tensor> = {}): Promise<Float32Array> {
  const session = await InferenceSession.create(bytes, { logSeverityLevel: 4, intraOpNumThreads: 1 });
  const result = await session.run({ x: new Tensor("float32", x, [x.length / k, k]), ...feeds });
  await session.release();
  return result.y.data as Float32Array;
}

/** x [rows, k] times w [k][n] as the oracle dequantizes it. */
function product(x: Float32Array, w: Float32Array, k: number, n: number, blockSize: number, symmetric: boolean): Float64Array {
  const oracle = matMulNBitsOracle(w, k, n, blockSize, symmetric);
  const rows = x.length / k;
  const out = new Float64Array(rows * n);
  for (let r = 0; r < rows; r++) {
    for (let j = 0; j < n; j++) {
      for (let i = 0; i < k; i++) {
        const block = Math.floor(i / blockSize);
        out[r * n + j] += x[r * k + i] * (oracle.codes[j][block][i % blockSize] - oracle.zeroPoints[j][block]) * oracle.scales[j][block];
      }
    }
  }
  return out;
}

function expectClose(got: Float32Array, want: ArrayLike<number>): void {
  expect(got.length).toBe(want.length);
  for (let i = 0; i < got.length; i++) expect(Math.abs(got[i] - want[i])).toBeLessThan(1e-4);
}

describe("bytes and results", () => {
  it.each([
    [64, 32, 32, true],
    [64, 32, 32, false],
    [250, 37, 32, true],
    [250, 37, 32, false],
    [241, 5, 16, false],
    [33, 3, 16, true],
    [200, 300, 128, false],
    [512, 8, 256, true],
    [128, 8, 64, false],
    [7, 2, 32, false],
  ])("k %i, n %i, block %i, symmetric %s", async (k, n, blockSize, symmetric) => {
    const w = weights(k * n, k);
    const { bytes, report } = await q4(matmulModel(raw("w", [k, n], w), k, n), { blockSize, symmetric });
    const opened = readModelBytes(bytes);
    const oracle = matMulNBitsOracle(w, k, n, blockSize, symmetric);
    const blocks = Math.ceil(k / blockSize);
    const tensors = initializers(opened);
    expect(Object.keys(tensors)).toEqual(symmetric ? ["w_Q4", "w_scales"] : ["w_Q4", "w_scales", "w_zero_points"]);
    expect(Buffer.compare(tensors.w_Q4, oracle.b)).toBe(0);
    expect(Buffer.compare(tensors.w_scales, new Uint8Array(Float32Array.from(oracle.scales.flat()).buffer))).toBe(0);
    if (!symmetric) expect(Buffer.compare(tensors.w_zero_points, oracle.zp)).toBe(0);
    const [made] = opened.proto.graph!.node;
    expect([made.domain, made.opType, made.name]).toEqual(["com.microsoft", "MatMulNBits", "mm_Q4"]);
    expect(["K", "N", "bits", "block_size"].map((name) => attributeInt(made, name, -1))).toEqual([k, n, 4, blockSize]);
    expect(made.attribute.some(({ name }) => name === "accuracy_level")).toBe(false);
    expect(report.layers).toMatchObject([
      { name: "mm", format: symmetric ? `int4_b${blockSize}` : `uint4_b${blockSize}_zp`, shape: [k, n], bytesBefore: 4 * k * n },
    ]);
    expect(report.layers[0].bytesAfter).toBe(n * blocks * (blockSize / 2 + 4) + (symmetric ? 0 : n * Math.ceil(blocks / 2)));
    const x = weights(3 * k, 7);
    expectClose(await run(bytes, x, k), product(x, w, k, n, blockSize, symmetric));
  });

  it("accuracy_level is written when asked for", async () => {
    const { bytes } = await q4(matmulModel(raw("w", [64, 8], weights(512)), 64, 8), { accuracyLevel: 4 });
    expect(attributeInt(readModelBytes(bytes).proto.graph!.node[0], "accuracy_level", -1)).toBe(4);
  });

  it("float16 weights keep float16 scales, and codes are found with them", async () => {
    const [k, n] = [64, 4];
    const halves = Uint16Array.from(weights(k * n), encodeHalf);
    const proto = matmulModel(raw("w", [k, n], halves, T.FLOAT16), k, n);
    proto.graph!.input = [value("x", T.FLOAT16, ["b", k])];
    proto.graph!.output = [value("y", T.FLOAT16, ["b", n])];
    const { bytes, report } = await q4(proto);
    expect(report.layers[0].format).toBe("int4_b32_float16");
    const opened = readModelBytes(bytes);
    expect(opened.proto.graph!.initializer[1].dataType).toBe(T.FLOAT16);
    const scales = new Uint16Array(initializers(opened).w_scales.slice().buffer);
    const table = halfTable();
    const w = Float32Array.from(halves, (code) => table[code]);
    const oracle = matMulNBitsOracle(w, k, n, 32, true);
    expect(Array.from(scales)).toEqual(oracle.scales.flat().map(encodeHalf));
    const session = await InferenceSession.create(bytes, { logSeverityLevel: 4, intraOpNumThreads: 1 });
    await session.release();
  });
});

describe("where weights live", () => {
  const [k, n] = [64, 8];
  const w = weights(k * n);
  const x = weights(2 * k, 5);
  const want = product(x, w, k, n, 32, true);
  it.each([
    ["typed", typed("w", [k, n], w)],
    ["raw", raw("w", [k, n], w)],
  ])("%s", async (_name, tensor) => expectClose(await run((await q4(matmulModel(tensor, k, n))).bytes, x, k), want));

  it("external data", async () => {
    const proto = matmulModel(external("w", [k, n], { location: "d", offset: "16" }), k, n);
    const data = new Uint8Array(16 + 4 * k * n);
    data.set(new Uint8Array(w.buffer), 16);
    expectClose(await run((await q4(proto, { external: { d: data } })).bytes, x, k), want);
  });

  it("a Constant node, read through Identity, is removed", async () => {
    const proto = model(
      graph({
        input: [value("x", T.FLOAT, ["b", k])],
        output: [value("y", T.FLOAT, ["b", n])],
        node: [
          node("Constant", [], ["c"], { value: raw("", [k, n], w) }),
          node("Identity", ["c"], ["i"]),
          node("MatMul", ["x", "i"], ["y"]),
        ],
      }),
    );
    const { bytes, report } = await q4(proto);
    expect(readModelBytes(bytes).proto.graph!.node.map(({ opType }) => opType)).toEqual(["MatMulNBits"]);
    expect(report.layers[0].weight).toBe("c");
    expectClose(await run(bytes, x, k), want);
  });

  it("an initializer that is an input too (IR 3): the input goes", async () => {
    const proto = matmulModel(raw("w", [k, n], w), k, n, { ir: 3, opset: 8 });
    proto.graph!.input.push(value("w", T.FLOAT, [k, n]));
    const { bytes, report } = await q4(proto);
    expect(readModelBytes(bytes).proto.graph!.input.map(({ name }) => name)).toEqual(["x"]);
    expect(report.notes.join()).toMatch(/IR version raised from 3 to 4/);
    expectClose(await run(bytes, x, k), want);
  });

  it("an initializer that callers could feed (IR 8): the input goes, and a note says so", async () => {
    const proto = matmulModel(raw("w", [k, n], w), k, n);
    proto.graph!.input.push(value("w", T.FLOAT, [k, n]));
    const { bytes, report } = await q4(proto);
    expect(readModelBytes(bytes).proto.graph!.input.map(({ name }) => name)).toEqual(["x"]);
    expect(report.notes).toEqual(["weights that were graph inputs with a default can no longer be fed: w"]);
  });

  it("If subgraphs: own weights, and one of the outer graph, quantized once", async () => {
    const own = weights(k * n, 9);
    const branch = (name: string, weight: TensorProto | null) =>
      graph({
        name,
        output: [value(`${name}_y`, T.FLOAT, ["b", n])],
        initializer: weight === null ? [] : [weight],
        node: [node("MatMul", ["x", weight === null ? "w" : "own"], [`${name}_y`], {}, `${name}_mm`)],
      });
    const proto = model(
      graph({
        input: [value("cond", T.BOOL, []), value("x", T.FLOAT, ["b", k])],
        output: [value("y", T.FLOAT, ["b", n]), value("z", T.FLOAT, ["b", n])],
        initializer: [raw("w", [k, n], w)],
        node: [
          node("If", ["cond"], ["y"], { then_branch: branch("then", null), else_branch: branch("else", raw("own", [k, n], own)) }, "if"),
          node("MatMul", ["x", "w"], ["z"], {}, "main_mm"),
        ],
      }),
    );
    const { bytes, report } = await q4(proto);
    expect(report.layers.map(({ name, sharedWith }) => [name, sharedWith])).toEqual([
      ["main_mm", undefined],
      ["then_mm", "main_mm"],
      ["else_mm", undefined],
    ]);
    expect(report.weightBytesBefore).toBe(2 * 4 * k * n);
    const opened = readModelBytes(bytes);
    expect(opened.proto.graph!.initializer.map(({ name }) => name)).toEqual(["w_Q4", "w_scales"]);
    const cond = (on: boolean) => ({ cond: new Tensor("bool", [on ? 1 : 0], []) });
    expectClose(await run(bytes, x, k, cond(true)), want);
    expectClose(await run(bytes, x, k, cond(false)), product(x, own, k, n, 32, true));
  });

  it("a weight that something else reads stays for it", async () => {
    const proto = matmulModel(raw("w", [k, n], w), k, n);
    proto.graph!.node.push(node("Transpose", ["w"], ["t"]));
    proto.graph!.output.push(value("t", T.FLOAT, [n, k]));
    const { bytes } = await q4(proto);
    expect(readModelBytes(bytes).proto.graph!.initializer.map(({ name }) => name)).toEqual(["w", "w_Q4", "w_scales"]);
    expectClose(await run(bytes, x, k), want);
  });
});

describe("Gemm", () => {
  const [k, n] = [40, 6];
  const w = weights(k * n);
  const transposed = Float32Array.from({ length: k * n }, (_, i) => w[(i % k) * n + Math.floor(i / k)]);
  const x = weights(3 * k, 5);
  const c = weights(n, 6);
  it.each([
    [0, 1, 1, true],
    [1, 1, 1, true],
    [1, 1, 1, false],
    [1, 0.5, 2, true],
    [0, -2, 0, true],
    [1, 1.5, 1, false],
  ])("transB %i, alpha %f, beta %f, C %s", async (transB, alpha, beta, hasC) => {
    const proto = model(
      graph({
        input: [value("x", T.FLOAT, ["b", k])],
        output: [value("y", T.FLOAT, ["b", n])],
        initializer: [transB ? raw("w", [n, k], transposed) : raw("w", [k, n], w), ...(hasC ? [raw("c", [n], c)] : [])],
        node: [node("Gemm", hasC ? ["x", "w", "c"] : ["x", "w"], ["y"], { transB: BigInt(transB), alpha, beta }, "fc")],
      }),
    );
    const { bytes, report } = await q4(proto, { symmetric: false });
    expect(report.quantized).toBe(1);
    const scaled = w.map((v) => v * Math.fround(alpha));
    const want = product(x, scaled, k, n, 32, false).map((v, i) => v + (hasC ? beta * c[i % n] : 0));
    expectClose(await run(bytes, x, k), want);
  });
});

describe("left alone, with the reason", () => {
  it("says why, layer by layer", async () => {
    const proto = model(
      graph({
        input: [value("x", T.FLOAT, [4, 4]), value("ids", T.INT64, [1])],
        output: [value("y", T.FLOAT, [4, 4])],
        initializer: [
          raw("w", [4, 4], weights(16)),
          raw("w3", [2, 4, 4], weights(32)),
          raw("table", [8, 4], weights(32)),
          raw("k", [1, 1, 3, 3], weights(9)),
          { ...typed("d", [4, 4], new Float32Array(0)), dataType: T.DOUBLE, doubleData: Array.from(weights(16)) },
        ],
        node: [
          node("MatMul", ["w", "x"], ["a"], {}, "left"),
          node("MatMul", ["x", "w3"], ["b"], {}, "batched"),
          node("MatMul", ["x", "x"], ["c"], {}, "attention"),
          node("Gemm", ["x", "w"], ["e"], { transA: 1n }, "transposed"),
          node("Gather", ["table", "ids"], ["f"], {}, "embed"),
          node("MatMul", ["x", "w"], ["y"], {}, "head"),
          node("Cast", ["x"], ["xd"], { to: 11n }),
          node("MatMul", ["xd", "d"], ["g"], {}, "double"),
        ],
      }),
    );
    const { report } = await q4(proto, { exclude: ["he*"] });
    expect(Object.fromEntries(report.layers.map(({ name, reason }) => [name, reason]))).toEqual({
      left: "the weight is the left operand",
      batched: "the weight has 3 dimensions, not 2",
      attention: "no operand is constant",
      transposed: undefined,
      embed: "Gather is not quantized unless opTypes (--op-types) names it",
      head: "excluded by he*",
      double: undefined,
    });
    expect(report).toMatchObject({ quantized: 2, leftAlone: 5 });
  });
  it("include and opTypes choose", async () => {
    const proto = model(
      graph({
        input: [value("x", T.FLOAT, [4, 32])],
        output: [value("y", T.FLOAT, [4, 32]), value("z", T.FLOAT, [4, 32])],
        initializer: [raw("w", [32, 32], weights(1024)), raw("v", [32, 32], weights(1024))],
        node: [node("MatMul", ["x", "w"], ["y"], {}, "layer.0/q"), node("Gemm", ["x", "v"], ["z"], {}, "layer.1/k")],
      }),
    );
    const chosen = async (options: Partial<QuantizeBytesOptions>) =>
      (await q4(proto, options)).report.layers.filter(({ format }) => format !== null).map(({ name }) => name);
    expect(await chosen({ include: ["*/q"] })).toEqual(["layer.0/q"]);
    expect(await chosen({ exclude: ["/^layer\\.0/"] })).toEqual(["layer.1/k"]);
    expect(await chosen({ include: [/LAYER/i], exclude: ["layer.?/k"] })).toEqual(["layer.0/q"]);
    expect(await chosen({ opTypes: ["Gemm"] })).toEqual(["layer.1/k"]);
  });
});
