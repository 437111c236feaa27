// Every target on every operator that it takes: the file loads at the optimisation levels "all" and "disabled", and
// computes what a model with the dequantized weights computes; formats are found again in the file.
import { InferenceSession, Tensor } from "onnxruntime-node";
import { describe, expect, it } from "vitest";
import { dequantize } from "../../formats/core/packed.ts";
import type { Format } from "../../formats/core/types.ts";
import { allFormats, format } from "../../formats/index.ts";
import { dequantizedModel } from "../helpers/dequantized.ts";
import type { Feeds, QuantizeBytesOptions } from "../../src/onnx/index.ts";
import { TARGET_NAMES } from "../../src/onnx/dtypes.ts";
import { readModelBytes } from "../../src/onnx/index.ts";
import type { ModelProto } from "../../src/onnx/file/gen/onnx_pb.ts";
import { readStored } from "../../src/onnx/targets/record.ts";
import type { NodeProto, TensorProto, ValueInfoProto } from "../../src/onnx/file/gen/onnx_pb.ts";
import { T, encode, graph as graphOf, matmulModel, model, node, raw, value, weights } from "./build.ts";
import { quantizeModelBytes } from "./kept.ts";

const graph = (nodes: NodeProto[], input: ValueInfoProto[], output: ValueInfoProto[], initializer: TensorProto[]) =>
  graphOf({ node: nodes, input, output, initializer });

async function run(bytes: Uint8Array, feeds: Record<string, Tensor>, level: "all" | "disabled"): Promise<Float32Array> {
  const session = await InferenceSession.create(bytes, { logSeverityLevel: 4, intraOpNumThreads: 1, graphOptimizationLevel: level });
  const result = await session.run(feeds);
  await session.release();
  return result.y.data as Float32Array;
}

/** The largest difference over the largest magnitude. */
function distance(got: Float32Array, want: Float32Array): number {
  let most = 0;
  let off = 0;
  got.forEach((v, i) => {
    most = Math.max(most, Math.abs(want[i]));
    off = Math.max(off, Math.abs(v - want[i]));
  });
  return off / (most || 1);
}

/** Quantizes, runs at both levels, and compares with the model of the decoded weights. */
async function expectExact(proto: ModelProto, feeds: Record<string, Tensor>, options: QuantizeBytesOptions): Promise<Uint8Array> {
  const { bytes, report } = await quantizeModelBytes(encode(proto), options);
  expect(report.layers.filter((layer) => layer.format === null)).toEqual([]);
  const want = await run(await dequantizedModel(proto, options), feeds, "all");
  for (const level of ["all", "disabled"] as const) expect(distance(await run(bytes, feeds, level), want), level).toBeLessThan(2e-6);
  return bytes;
}

const x = (...dims: number[]) =>
  new Tensor(
    "float32",
    weights(
      dims.reduce((a, b) => a * b, 1),
      7,
    ),
    dims,
  );
const small = (f: Format): boolean => {
  if (f.kind === "opaque") return f.planes !== undefined;
  const levels = f.kind === "block" ? [f.element, ...f.scales.map((s) => s.format), ...(f.offset?.levels ?? []).map((s) => s.format)] : [f];
  return (f.kind === "block" ? f.element : f).bits <= 8 && levels.every((level) => level.bits <= 32);
};
const isSigned = (f: Format): boolean =>
  f.kind === "opaque" || (f.kind === "block" ? f.offset !== undefined || f.element.limits.min < 0 : f.limits.min < 0);

describe("stored: every format", () => {
  it.each(allFormats.filter(small).map((f) => f.name))("%s", async (name) => {
    const k = 256;
    const n = 12;
    const signed = isSigned(format(name));
    const w = weights(k * n, 3).map((v) => 4 * (signed ? v : Math.abs(v)));
    const proto = matmulModel(raw("w", [k, n], w), k, n);
    const bytes = await expectExact(proto, { x: x(3, k) }, { format: name, target: "stored" });
    // the packed tensor is in the file again, with the values that nodes decode
    const [packed] = [...readStored(readModelBytes(bytes)).values()].map((make) => make());
    expect([packed.rows, packed.k]).toEqual([n, k]);
    const { bytes: again } = await quantizeModelBytes(encode(proto), { format: name, target: "stored" });
    expect(Buffer.compare(bytes, again)).toBe(0);
    expect(dequantize(packed).every(Number.isFinite)).toBe(true);
  });

  it("codes take no more bytes than the format", async () => {
    for (const name of ["int3_b32", "int2_b32", "mxfp4", "nvfp4", "float6_e2m3fn_b32", "int5_b64_float16"]) {
      const k = 4096;
      const n = 64;
      const proto = matmulModel(raw("w", [k, n], weights(k * n)), k, n);
      const { report } = await quantizeModelBytes(encode(proto), { format: name });
      const f = format(name);
      if (f.kind !== "block") throw new Error(name);
      expect(report.weightBytesAfter / ((f.bitsPerValue(n, k) * n * k) / 8)).toBeLessThan(1.001);
    }
  });

  it("negative weights stay where a format has neither sign nor zero points, whatever the target and algorithm", async () => {
    const [k, n] = [64, 8];
    const matrix = (w: Float32Array) => encode(matmulModel(raw("w", [k, n], w), k, n));
    const signed = matrix(weights(k * n));
    for (const options of [
      { format: "uint8_row", target: "qdq" },
      { format: "uint4_b32", target: "matmulnbits" },
      { format: "uint4_b32", target: "stored", algorithm: "mse" },
      { format: "uint8", target: "stored" },
    ] as const) {
      const { report } = await quantizeModelBytes(signed, { ...options, allowUnchanged: true });
      expect(report.layers[0].reason).toMatch(/has no negative values and no zero points, and the weight has -0\.\d/);
    }
    // every such format, wherever it is asked for; and the activations of a layer that stays are left alone too
    const unsigned = allFormats.filter((f) => !isSigned(f));
    expect(unsigned.length).toBeGreaterThan(5);
    for (const { name } of unsigned)
      for (const target of TARGET_NAMES) {
        const { report } = await quantizeModelBytes(signed, { format: name, target, allowUnchanged: true });
        expect(
          report.layers.map((layer) => layer.format),
          `${name} ${target}`,
        ).toEqual([null]);
        expect(report.layers[0].reason, `${name} ${target}`).toMatch(/no negative values and no zero points|hold|has|needs|have/);
      }
    const calibration = [{ x: { type: "float32", data: weights(4 * k, 5), dims: [4, k] } }] as Feeds[];
    const made = await quantizeModelBytes(signed, { activations: "uint8", format: "uint8_row", calibration, allowUnchanged: true });
    expect(made.report.layers[0].reason).toMatch(/no negative values and no zero points/);
    expect(readModelBytes(made.bytes).proto.graph!.node.map(({ opType }) => opType)).toEqual(["MatMul"]);
    const positive = matrix(weights(k * n).map(Math.abs));
    const { report } = await quantizeModelBytes(positive, { format: "uint8_row", target: "qdq" });
    expect(report.layers[0].sqnrDb).toBeGreaterThan(35);
  });

  it("rows that are no whole bytes or blocks", async () => {
    for (const name of ["int3_b32", "int5_b32", "mxfp4", "nf4_b64", "uint7_b16_zp", "int6_row", "int2_tensor"])
      for (const [k, n] of [
        [37, 5],
        [33, 7],
        [1, 3],
        [100, 1],
      ])
        await expectExact(matmulModel(raw("w", [k, n], weights(k * n)), k, n), { x: x(2, k) }, { format: name, target: "stored" });
  });
});

describe("operators", () => {
  const conv = (shape: number[], attributes = {}) =>
    model(
      graph(
        [node("Conv", ["x", "w", "b"], ["y"], attributes, "conv")],
        [value("x", T.FLOAT, [1, 8, 9, 9])],
        [value("y", T.FLOAT, ["n", "c", "h", "w"])],
        [raw("w", shape, weights(shape.reduce((a, b) => a * b, 1))), raw("b", [shape[0]], weights(shape[0]))],
      ),
    );
  it("Conv: stored, and by DequantizeLinear", async () => {
    for (const name of ["int3_b32", "mxfp4", "int4_row"])
      await expectExact(conv([6, 8, 3, 3]), { x: x(1, 8, 9, 9) }, { format: name, target: "stored" });
    await expectExact(conv([6, 8, 3, 3]), { x: x(1, 8, 9, 9) }, { format: "int8_row", target: "qdq" });
  });
  it("ConvTranspose, grouped: stored", async () => {
    const proto = model(
      graph(
        [node("ConvTranspose", ["x", "w"], ["y"], { group: 2n }, "up")],
        [value("x", T.FLOAT, [1, 8, 5, 5])],
        [value("y", T.FLOAT, ["n", "c", "h", "w"])],
        [raw("w", [8, 3, 3, 3], weights(8 * 27))],
      ),
    );
    await expectExact(proto, { x: x(1, 8, 5, 5) }, { format: "int4_b4", target: "stored" });
  });
  it("batched MatMul, a left operand, Gemm in all its forms: stored", async () => {
    const batched = model(
      graph(
        [node("MatMul", ["x", "w"], ["y"], {}, "mm")],
        [value("x", T.FLOAT, [3, 4, 20])],
        [value("y", T.FLOAT, [3, 4, 6])],
        [raw("w", [3, 20, 6], weights(360))],
      ),
    );
    await expectExact(batched, { x: x(3, 4, 20) }, { format: "int4_b4", target: "stored" });
    const left = model(
      graph(
        [node("MatMul", ["w", "x"], ["y"], {}, "mm")],
        [value("x", T.FLOAT, [20, 4])],
        [value("y", T.FLOAT, [6, 4])],
        [raw("w", [6, 20], weights(120))],
      ),
    );
    await expectExact(left, { x: x(20, 4) }, { format: "int4_b4", target: "stored" });
  });
  it("Gemm with alpha, beta, transA, transB, weights on either side: MatMulNBits", async () => {
    for (const side of [0, 1])
      for (const transA of [0n, 1n])
        for (const transB of [0n, 1n]) {
          const [m, k, n] = [6, 64, 10];
          const a = transA ? [k, m] : [m, k];
          const b = transB ? [n, k] : [k, n];
          const proto = model(
            graph(
              [node("Gemm", side === 1 ? ["x", "w", "c"] : ["w", "x", "c"], ["y"], { transA, transB, alpha: 0.5, beta: 2 }, "g")],
              [value("x", T.FLOAT, side === 1 ? a : b)],
              [value("y", T.FLOAT, [m, n])],
              [raw("w", side === 1 ? b : a, weights(side === 1 ? k * n : m * k)), raw("c", [n], weights(n, 5))],
            ),
          );
          await expectExact(proto, { x: x(...(side === 1 ? a : b)) }, { dtype: "q4" });
        }
  });
  it("an embedding and a tied head share one table: GatherBlockQuantized and MatMulNBits", async () => {
    const [v, d] = [50, 64];
    const proto = model(
      graph(
        [
          node("Gather", ["table", "ids"], ["e"], {}, "embed"),
          node("Transpose", ["table"], ["head_w"], { perm: { ints: [1, 0] } }, "turn"),
          node("MatMul", ["e", "head_w"], ["y"], {}, "head"),
        ],
        [value("ids", T.INT64, [3])],
        [value("y", T.FLOAT, [3, v])],
        [raw("table", [v, d], weights(v * d))],
      ),
    );
    const ids = new Tensor("int64", BigInt64Array.of(0n, 7n, 49n), [3]);
    for (const dtype of ["q4", "q8-block"] as const) {
      const options = { dtype, opTypes: ["Gather", "MatMul"], accuracyLevel: 0 };
      const bytes = await expectExact(proto, { ids }, options);
      const { report } = await quantizeModelBytes(encode(proto), options);
      expect(report.layers.map((layer) => layer.sharedWith)).toEqual([undefined, "embed"]);
      expect(readModelBytes(bytes).proto.graph!.initializer.some((tensor) => tensor.name === "table")).toBe(false);
    }
    await expectExact(proto, { ids }, { format: "nf4_b64", target: "stored", opTypes: ["Gather", "MatMul"] });
  });
  const GATES = { LSTM: 4, GRU: 3, RNN: 1 };
  type Recurrent = keyof typeof GATES;
  /** x -> a recurrent layer -> its last state y; both weights constant, or W put together by a node. */
  const recurrent = (type: Recurrent, directions: number, together = false): ModelProto => {
    const [h, i] = [16, 20];
    const rows = GATES[type] * h;
    const w = raw("w", [directions, rows, i], weights(directions * rows * i));
    const half = (name: string) => raw(name, [1, rows, i], weights(rows * i));
    const attributes = { hidden_size: BigInt(h), ...(directions === 2 ? { direction: "bidirectional" } : {}) };
    return model(
      graph(
        [
          ...(together ? [node("Concat", ["w0", "w1"], ["w"], { axis: 0n }, "join")] : []),
          node(type, ["x", "w", "r"], ["", "y"], attributes, "layer"),
        ],
        [value("x", T.FLOAT, [4, 1, i])],
        [value("y", T.FLOAT, [directions, 1, h])],
        [...(together ? [half("w0"), half("w1")] : [w]), raw("r", [directions, rows, h], weights(directions * rows * h))],
      ),
    );
  };
  it.each([
    ["LSTM", 1],
    ["LSTM", 2],
    ["GRU", 1],
    ["GRU", 2],
    ["RNN", 2],
  ] as [Recurrent, number][])("%s of %i direction(s): stored, both weights", async (type, directions) => {
    for (const name of ["int4_b4", "uint3_b16_zp"])
      await expectExact(recurrent(type, directions), { x: x(4, 1, 20) }, { format: name, target: "stored" });
  });
  it("recurrent layers that stay say why", async () => {
    const reasons = async (proto: ModelProto, options: QuantizeBytesOptions) =>
      (await quantizeModelBytes(encode(proto), { allowUnchanged: true, ...options })).report.layers.map(({ reason }) => reason);
    for (const dtype of ["q4", "q8"] as const) {
      const stay = `${dtype} has no form of GRU: the target stored holds its weights, e.g. in int8_row`;
      expect(await reasons(recurrent("GRU", 1), { dtype })).toEqual([stay, stay]);
    }
    const [w] = await reasons(recurrent("GRU", 2, true), { format: "int8_row", target: "stored" });
    expect(w).toMatch(/put together by Concat \(join\) when the model runs; fold constants first/);
  });
  it("blocked DequantizeLinear, opset 21", async () => {
    const proto = matmulModel(raw("w", [64, 12], weights(768)), 64, 12);
    proto.opsetImport[0].version = 21n;
    proto.irVersion = 10n;
    for (const name of ["int4_b32", "uint4_b32_zp", "int8_b16", "uint8_b64_zp", "int4_row", "int8_tensor"]) {
      const { bytes } = await quantizeModelBytes(encode(proto), { format: name, target: "qdq" });
      const want = await run(await dequantizedModel(proto, { format: name, target: "qdq" }), { x: x(3, 64) }, "all");
      // fused into MatMulNBits with int8 activations where optimised
      expect(distance(await run(bytes, { x: x(3, 64) }, "disabled"), want)).toBeLessThan(2e-6);
      expect(distance(await run(bytes, { x: x(3, 64) }, "all"), want)).toBeLessThan(0.03);
    }
  });
  it("formats on an even grid go exactly into MatMulNBits", async () => {
    const proto = matmulModel(raw("w", [128, 16], weights(2048)), 128, 16);
    for (const name of [
      "mxfp4",
      "nvfp4",
      "int3_b32",
      "float4_e2m1fn_b32",
      "mxint8",
      "int6_row",
      "ternary_b64",
      "bipolar4_b32",
      "int5_b32_float16",
    ])
      await expectExact(proto, { x: x(3, 128) }, { format: name, target: "matmulnbits", accuracyLevel: 0 });
  });
  it("float16 and bfloat16 models in every dtype", async () => {
    for (const dtype of ["q4", "q2", "q8-block", "bnb4", "q8", "int8", "uint8"] as const) {
      const half = matmulModel(
        raw(
          "w",
          [64, 8],
          Uint16Array.from(weights(512), (v) =>
            format("float16").kind === "float" ? (format("float16") as never as { encode(v: number): number }).encode(v) : 0,
          ),
          T.FLOAT16,
        ),
        64,
        8,
      );
      half.graph!.input[0] = value("x", T.FLOAT16, ["m", 64]);
      half.graph!.output[0] = value("y", T.FLOAT16, ["m", 8]);
      const { bytes, report } = await quantizeModelBytes(encode(half), { dtype });
      expect(report.quantized, dtype).toBe(1);
      const session = await InferenceSession.create(bytes, { logSeverityLevel: 4, intraOpNumThreads: 1 });
      await session.release();
    }
  });
  it("a format that a target cannot hold: the reason, and the target that can", async () => {
    const bytes = encode(matmulModel(raw("w", [64, 8], weights(512)), 64, 8));
    for (const [format, target] of [
      ["posit16_es1", "matmulnbits"],
      ["float8_e4m3fn", "qdq"],
    ] as const) {
      const { report } = await quantizeModelBytes(bytes, { format, target, allowUnchanged: true });
      expect(report.layers[0].reason, `${format} ${target}`).toMatch(/holds? .*\(target stored can\)$/);
    }
  });
});
