// int8, uint8 and q8: weights against an oracle, integer results bit for bit, graphs of every operator run beside the
// original.
import { InferenceSession, Tensor } from "onnxruntime-node";
import { describe, expect, it } from "vitest";
import type { ModelProto, NodeProto, TensorProto } from "../../src/onnx/file/gen/onnx_pb.ts";
import type { OnnxDtype, QuantizeBytesOptions } from "../../src/onnx/index.ts";
import { readModelBytes, verifyModels } from "../../src/onnx/index.ts";
import { readBytes } from "../../src/onnx/file/values.ts";
import { int8Oracle } from "../oracle/int8.ts";
import type { AttributeValue } from "./build.ts";
import { T, encode, graph, matmulModel, model, node, raw, value, weights } from "./build.ts";
import { quantizeModelBytes } from "./kept.ts";

const quantized = (proto: ModelProto, dtype: OnnxDtype, options: Partial<QuantizeBytesOptions> = {}) =>
  quantizeModelBytes(encode(proto), { dtype, ...options });
const ops = (bytes: Uint8Array): string[] => readModelBytes(bytes).proto.graph!.node.map(({ opType }) => opType);

async function expectAgrees(proto: ModelProto, bytes: Uint8Array, minSqnrDb = 25): Promise<void> {
  const verdict = await verifyModels(encode(proto), bytes, { samples: 3, minSqnrDb });
  expect(verdict.outputs.map(({ sqnrDb }) => Math.round(sqnrDb))).toSatisfy((all: number[]) => all.every((db) => db >= minSqnrDb));
}

describe("codes, scales and zero points", () => {
  const edge = Float32Array.of(0, -0, 1e-40, -1e-40, 3e38, -3e38, 0.5, -0.5, 127, -127, 1, 2, 3, -4);
  const sets: Record<string, Float32Array> = {
    normal: weights(300),
    positive: weights(300).map(Math.abs),
    negative: weights(300).map((v) => -Math.abs(v)),
    zero: new Float32Array(30),
    tiny: weights(30).map((v) => v * 1e-38),
    ties: Float32Array.from({ length: 511 }, (_, i) => (i - 255) / 2),
    edge,
    wide: edge.subarray(6),
  };
  /** Codes, scales and zero points as the file has them, of a MatMul weight [k, n]. */
  const stored = async (w: Float32Array, n: number, signed: boolean, symmetric: boolean, perChannel: boolean) => {
    const k = w.length / n;
    const { bytes } = await quantized(matmulModel(raw("w", [k, n], w), k, n), signed ? "int8" : "uint8", { symmetric, perChannel });
    const opened = readModelBytes(bytes);
    const read = (name: string): Uint8Array =>
      readBytes(
        opened,
        opened.proto.graph!.initializer.find((tensor) => tensor.name === name)!,
      ).slice();
    return { codes: read("w_quantized"), scales: new Float32Array(read("w_scale").buffer), zeroPoints: read("w_zero_point") };
  };
  it.each(Object.keys(sets))("%s", async (name) => {
    const values = sets[name];
    for (const signed of [true, false]) {
      for (const symmetric of [true, false]) {
        const got = await stored(values, 1, signed, symmetric, false);
        const want = int8Oracle(Array.from(values), signed, symmetric);
        // the tool's float32 range overflows here and its scale is infinite; ours is finite, as finite weights deserve
        if (want.scale === Infinity) {
          expect(got.scales[0]).toBeGreaterThan(1e36);
          continue;
        }
        expect(got.scales[0]).toBe(want.scale);
        expect(got.zeroPoints[0]).toBe(want.zeroPoint & 255);
        expect(Array.from(got.codes)).toEqual(want.codes.map((code) => code & 255));
      }
    }
  });
  it("per channel", async () => {
    const values = weights(24 * 5);
    for (const signed of [true, false])
      for (const symmetric of [true, false]) {
        const got = await stored(values, 5, signed, symmetric, true);
        for (let c = 0; c < 5; c++) {
          const mine = Array.from(values).filter((_, i) => i % 5 === c);
          const want = int8Oracle(mine, signed, symmetric);
          expect([got.scales[c], got.zeroPoints[c]]).toEqual([want.scale, want.zeroPoint & 255]);
          expect(Array.from(got.codes).filter((_, i) => i % 5 === c)).toEqual(want.codes.map((code) => code & 255));
        }
      }
  });
});

describe("MatMul", () => {
  it("is DynamicQuantizeLinear, MatMulInteger, Cast, Mul; one activation for all its readers; exact in integers", async () => {
    const [k, n] = [16, 4];
    const w = weights(k * n);
    const proto = matmulModel(raw("w", [k, n], w), k, n);
    proto.graph!.initializer.push(raw("v", [k, n], weights(k * n, 3)));
    proto.graph!.node.push(node("MatMul", ["x", "v"], ["z"], {}, "mm2"));
    proto.graph!.output.push(value("z", T.FLOAT, ["batch", n]));
    const { bytes } = await quantized(proto, "int8");
    expect(ops(bytes)).toEqual(["DynamicQuantizeLinear", "MatMulInteger", "Cast", "Mul", "Mul", "MatMulInteger", "Cast", "Mul", "Mul"]);
    const x = weights(3 * k, 5).map((v) => v * 10);
    const session = await InferenceSession.create(bytes, { logSeverityLevel: 4, intraOpNumThreads: 1, graphOptimizationLevel: "disabled" });
    const got = (await session.run({ x: new Tensor("float32", x, [3, k]) })).y.data as Float32Array;
    await session.release();
    // The operator's definition: range with zero, 255 steps, half to even; then an exact integer product.
    const act = int8Oracle(Array.from(x), false, false);
    const weight = int8Oracle(Array.from(w), true, true);
    const scale = Math.fround(act.scale * weight.scale);
    for (let r = 0; r < 3; r++) {
      for (let j = 0; j < n; j++) {
        let sum = 0;
        for (let i = 0; i < k; i++) sum += (act.codes[r * k + i] - act.zeroPoint) * weight.codes[i * n + j];
        expect(got[r * n + j]).toBe(Math.fround(sum * scale));
      }
    }
  });
  it.each([
    ["int8", true],
    ["int8", false],
    ["uint8", true],
    ["uint8", false],
  ] as const)("%s per channel %s agrees", async (dtype, perChannel) => {
    const proto = matmulModel(raw("w", [64, 24], weights(64 * 24)), 64, 24);
    for (const symmetric of [true, false, undefined]) {
      const { bytes, report } = await quantized(proto, dtype, { perChannel, symmetric });
      // x86 processors without VNNI add products of two bytes in 16 bits, which saturate: signed weights are judged by
      // 7 bits
      await expectAgrees(
        proto,
        dtype === "int8" ? (await quantized(proto, dtype, { perChannel, symmetric, reduceRange: true })).bytes : bytes,
      );
      expect(report.layers[0].sqnrDb).toBeGreaterThan(35);
      const sign = dtype === "int8" ? "" : "_zp";
      expect(report.layers[0].format).toBe(
        `${dtype}_${perChannel ? "row" : "tensor"}${dtype === "int8" && symmetric === false ? "_zp" : sign}`,
      );
    }
  });
});

describe("q8 chooses the sign as transformers.js does", () => {
  const k = 3;
  const conv = (): ModelProto =>
    model(
      graph({
        input: [value("x", T.FLOAT, [1, 2, 8, 8])],
        output: [value("y", T.FLOAT, [1, 4, 6, 6])],
        initializer: [raw("w", [4, 2, k, k], weights(72))],
        node: [node("Conv", ["x", "w"], ["y"])],
      }),
    );
  const typeOf = async (proto: ModelProto): Promise<number> => {
    const { bytes } = await quantized(proto, "q8");
    return readModelBytes(bytes).proto.graph!.initializer.find(({ name }) => name === "w_quantized")!.dataType;
  };
  it("int8 without Conv, uint8 with", async () => {
    expect(await typeOf(matmulModel(raw("w", [8, 8], weights(64)), 8, 8))).toBe(T.INT8);
    expect(await typeOf(conv())).toBe(T.UINT8);
  });
});

describe("Conv", () => {
  const make = (
    dims: number[],
    x: number[],
    attributes: Record<string, AttributeValue>,
    bias: "constant" | "computed" | "none",
  ): ModelProto => {
    const initializer: TensorProto[] = [raw("w", dims, weights(dims.reduce((a, b) => a * b)))];
    const nodes: NodeProto[] = [];
    if (bias !== "none") initializer.push(raw("b", [dims[0]], weights(dims[0], 4)));
    if (bias === "computed") nodes.push(node("Neg", ["b"], ["nb"]));
    nodes.push(node("Conv", bias === "none" ? ["x", "w"] : ["x", "w", bias === "constant" ? "b" : "nb"], ["y"], attributes, "conv"));
    return model(
      graph({
        input: [value("x", T.FLOAT, x)],
        output: [value("y", T.FLOAT, ["a", "b", ...x.slice(2).map((_, i) => `c${i}`)])],
        initializer,
        node: nodes,
      }),
    );
  };
  it.each([
    ["2-D", [8, 4, 3, 3], [2, 4, 9, 9], { pads: { ints: [1, 1, 1, 1] } }],
    ["strided, dilated", [8, 4, 3, 3], [1, 4, 12, 12], { strides: { ints: [2, 2] }, dilations: { ints: [2, 2] } }],
    ["auto_pad", [8, 4, 3, 3], [1, 4, 9, 9], { auto_pad: "SAME_UPPER" }],
    ["depthwise", [6, 1, 3, 3], [1, 6, 9, 9], { group: 6n }],
    ["1-D", [8, 4, 5], [2, 4, 20], {}],
    ["3-D", [4, 2, 2, 2, 2], [1, 2, 5, 5, 5], {}],
  ] as [string, number[], number[], Record<string, AttributeValue>][])("%s", async (_name, dims, x, attributes) => {
    for (const bias of ["constant", "computed", "none"] as const) {
      const proto = make(dims, x, attributes, bias);
      for (const dtype of ["int8", "uint8"] as const) {
        for (const perChannel of [false, true]) {
          const { bytes, report } = await quantized(proto, dtype, { perChannel, include: ["conv"] });
          expect(report.quantized).toBe(1);
          await expectAgrees(proto, bytes);
        }
      }
    }
  });
  it("a scale per channel where one for all would lose too much, unless told otherwise", async () => {
    const uneven = make([32, 4, 3, 3], [1, 4, 9, 9], {}, "none");
    const w = weights(32 * 36).map((v, i) => v * 1.5 ** -Math.floor(i / 36));
    uneven.graph!.initializer = [raw("w", [32, 4, 3, 3], w)];
    for (const dtype of ["int8", "uint8"] as const) {
      const even = await quantized(make([8, 4, 3, 3], [1, 4, 9, 9], {}, "none"), dtype);
      expect(even.report.layers[0].format).toMatch(/tensor/);
      const byChannel = await quantized(uneven, dtype);
      expect(byChannel.report.layers[0].format).toMatch(/row/);
      expect(byChannel.report.layers[0].sqnrDb).toBeGreaterThan(38);
      await expectAgrees(uneven, byChannel.bytes, 30);
      expect((await quantized(uneven, dtype, { perChannel: false })).report.layers[0].format).toMatch(/tensor/);
    }
  });
  it("depthwise ones stay, with the reason, unless they are asked for", async () => {
    const proto = make([6, 1, 3, 3], [1, 6, 9, 9], { group: 6n }, "none");
    const { report } = await quantized(proto, "q8", { allowUnchanged: true });
    expect(report.layers[0].reason).toMatch(/depthwise convolution.*name it with include/);
    for (const asked of [{ include: ["conv"] }, { opTypes: ["Conv"] }, { rules: [{ match: "conv", dtype: "int8" }] }] as const)
      expect((await quantized(proto, "q8", asked)).report.quantized).toBe(1);
  });
});

describe("LSTM", () => {
  const [hidden, size, steps] = [16, 20, 5];
  /**
   * Signed weights of 8 bits saturate in the runtime's sums on processors without VNNI: 16 dB instead of 40. q8 has
   * unsigned ones here.
   */
  const lstmOf = (dtype: OnnxDtype) => ({ include: ["lstm*"], reduceRange: dtype === "int8" });
  /** x [steps, 1, size] -> LSTM -> y; `state` is where the initial state comes from. */
  const lstm = (directions: number, state: "none" | "shape" | "input", bias = true, scale = (_row: number) => 1): ModelProto => {
    const shaped = (k: number, seed: number): Float32Array =>
      weights(directions * 4 * hidden * k, seed).map((v, i) => 2 * v * scale(Math.floor(i / k)));
    const initializer = [
      raw("w", [directions, 4 * hidden, size], shaped(size, 1)),
      raw("r", [directions, 4 * hidden, hidden], shaped(hidden, 2)),
    ];
    if (bias) initializer.push(raw("b", [directions, 8 * hidden], weights(directions * 8 * hidden, 3)));
    const nodes: NodeProto[] = [];
    if (state === "shape") {
      initializer.push(raw("dims", [2], BigInt64Array.of(BigInt(directions), BigInt(hidden)), T.INT64));
      initializer.push(raw("one", [1], BigInt64Array.of(1n), T.INT64), raw("zero", [1], BigInt64Array.of(0n), T.INT64));
      initializer.push(raw("two", [1], BigInt64Array.of(2n), T.INT64), raw("hid", [1], BigInt64Array.of(BigInt(hidden)), T.INT64));
      initializer.push(raw("dirs", [1], BigInt64Array.of(BigInt(directions)), T.INT64));
      nodes.push(node("Shape", ["z"], ["shape"]), node("Slice", ["shape", "one", "two"], ["batch"]));
      nodes.push(node("Concat", ["dirs", "batch", "hid"], ["wanted"], { axis: 0n }), node("ConstantOfShape", ["wanted"], ["h0"]));
    }
    const h0 = state === "none" ? "" : "h0";
    nodes.push(
      node("Conv", ["x", "c"], ["conv_out"], {}, "conv"),
      node("Transpose", ["conv_out"], ["z"], { perm: { ints: [2, 0, 1] } }),
      node(
        "LSTM",
        ["z", "w", "r", bias ? "b" : "", "", h0, h0],
        ["y", "last"],
        { hidden_size: BigInt(hidden), ...(directions === 2 ? { direction: "bidirectional" } : {}) },
        "lstm",
      ),
    );
    initializer.push(
      raw(
        "c",
        [size, 3, 1],
        weights(size * 3, 5).map((v) => 8 * v),
      ),
    );
    const input = [value("x", T.FLOAT, [1, 3, steps])];
    if (state === "input") input.push(value("h0", T.FLOAT, [directions, 1, hidden]));
    return model(
      graph({
        input,
        output: [value("y", T.FLOAT, [steps, directions, 1, hidden]), value("last", T.FLOAT, [directions, 1, hidden])],
        initializer,
        node: nodes,
      }),
    );
  };
  it.each([1, 2])("both weights as DynamicQuantizeLSTM, %i direction(s)", async (directions) => {
    for (const dtype of ["int8", "uint8", "q8"] as const)
      for (const perChannel of [undefined, false])
        for (const bias of [true, false]) {
          const proto = lstm(directions, "none", bias);
          const { bytes, report } = await quantized(proto, dtype, {
            ...lstmOf(dtype),
            ...(perChannel === undefined ? {} : { perChannel }),
          });
          expect(report.quantized).toBe(2);
          expect(ops(bytes)).toContain("DynamicQuantizeLSTM");
          expect(readModelBytes(bytes).proto.graph!.initializer.some(({ name }) => name === "w" || name === "r")).toBe(false);
          await expectAgrees(proto, bytes);
        }
  });
  it("rows of different size, one of them zero, keep their own scales and the one zero point", async () => {
    const proto = lstm(1, "none", true, (row) => (row === 3 ? 0 : 4 ** -(row % 4)));
    for (const dtype of ["int8", "uint8"] as const) {
      const { bytes, report } = await quantized(proto, dtype, lstmOf(dtype));
      for (const layer of report.layers.filter(({ opType }) => opType === "LSTM"))
        expect(layer.sqnrDb).toBeGreaterThan(dtype === "int8" ? 34 : 40);
      await expectAgrees(proto, bytes, 30);
    }
  });
  it("one weight alone stays, and float16", async () => {
    const { report } = await quantized(lstm(1, "none"), "int8", { rules: [{ match: "lstm.R", keep: true }] });
    expect(report.layers.find(({ name }) => name === "lstm.W")!.reason).toMatch(/both weights in 8 bits/);
  });
  it("a state that is carried from call to call: it and the convolution before stay; zeros of the batch's shape are none", async () => {
    const streamed = await quantized(lstm(1, "input"), "q8", { allowUnchanged: true });
    expect(streamed.report.layers.map(({ reason }) => /carried from call to call/.test(reason ?? ""))).toEqual([true, true, true]);
    const whole = await quantized(lstm(1, "shape"), "q8");
    expect(whole.report.quantized).toBe(3);
    await expectAgrees(lstm(1, "shape"), whole.bytes);
    expect((await quantized(lstm(1, "input"), "q8", { include: ["*"] })).report.quantized).toBe(3);
  });
});

it("Gemm: transposed weights, alpha, beta and bias", async () => {
  for (const [transB, alpha, beta] of [
    [0n, 1, 1],
    [1n, 0.5, 2],
    [1n, 1, 0],
  ] as const) {
    const proto = model(
      graph({
        input: [value("x", T.FLOAT, ["b", 32])],
        output: [value("y", T.FLOAT, ["b", 10])],
        initializer: [raw("w", transB === 1n ? [10, 32] : [32, 10], weights(320)), raw("c", [10], weights(10, 2))],
        node: [node("Gemm", ["x", "w", "c"], ["y"], { transB, alpha, beta })],
      }),
    );
    for (const perChannel of [false, true])
      await expectAgrees(proto, (await quantized(proto, "int8", { perChannel, reduceRange: true })).bytes);
  }
});

it("Gather: a table with a scale per row, or as onnxruntime's tool has it", async () => {
  const proto = model(
    graph({
      input: [value("ids", T.INT64, ["b", "s"])],
      output: [value("y", T.FLOAT, ["b", "s", 16])],
      initializer: [raw("table", [50, 16], weights(800)), raw("w", [16, 16], weights(256))],
      node: [node("Gather", ["table", "ids"], ["e"], {}, "embed"), node("MatMul", ["e", "w"], ["y"], {}, "mm")],
    }),
  );
  const { bytes, report } = await quantized(proto, "int8", { reduceRange: true });
  expect(report.layers.map(({ format }) => format)).toEqual(["int8_row", "int8_tensor"]);
  expect(ops(bytes).slice(0, 4)).toEqual(["Gather", "Cast", "Gather", "Mul"]);
  await expectAgrees(proto, bytes);
  const tool = await quantized(proto, "int8", { reduceRange: true, perChannel: false });
  expect(tool.report.layers.map(({ format }) => format)).toEqual(["uint8_tensor_zp", "int8_tensor"]);
  expect(ops(tool.bytes).slice(0, 2)).toEqual(["Gather", "DequantizeLinear"]);
  await expectAgrees(proto, tool.bytes);
});

it("an outlier row of a table costs that row only", async () => {
  const table = weights(50 * 16).map((v, i) => (i < 16 ? v * 1e4 : v));
  const proto = model(
    graph({
      input: [value("ids", T.INT64, ["b"])],
      output: [value("y", T.FLOAT, ["b", 16])],
      initializer: [raw("table", [50, 16], table)],
      node: [node("Gather", ["table", "ids"], ["y"], {}, "embed")],
    }),
  );
  const { bytes } = await quantized(proto, "q8");
  const session = await InferenceSession.create(bytes, { logSeverityLevel: 4, intraOpNumThreads: 1 });
  const ids = BigInt64Array.from({ length: 49 }, (_, i) => BigInt(i + 1));
  const y = (await session.run({ ids: new Tensor("int64", ids, [49]) })).y.data as Float32Array;
  await session.release();
  y.forEach((v, i) => expect(Math.abs(v - table[16 + i])).toBeLessThan(0.0015));
});

it("a table with -Infinity (a mask) stays as it is, with the reason", async () => {
  const mask = Float32Array.from({ length: 64 * 32 }, (_, i) => (i % 3 === 0 ? -Infinity : 0));
  const proto = model(
    graph({
      input: [value("ids", T.INT64, ["b"]), value("x", T.FLOAT, ["b", 32])],
      output: [value("y", T.FLOAT, ["b", 32])],
      initializer: [raw("mask", [64, 32], mask), raw("w", [32, 32], weights(1024))],
      node: [
        node("Gather", ["mask", "ids"], ["m"], {}, "table"),
        node("MatMul", ["x", "w"], ["h"], {}, "mm"),
        node("Add", ["h", "m"], ["y"], {}, "masked"),
      ],
    }),
  );
  for (const dtype of ["q8", "int8", "uint8", "q4", "q8-block"] as const) {
    const { report } = await quantized(proto, dtype, { opTypes: ["MatMul", "Gather"] });
    expect(report.layers.map(({ name, format, reason }) => [name, format === null, reason ?? ""])).toEqual([
      ["table", true, expect.stringMatching(/-Infinity, as masks have/)],
      ["mm", false, ""],
    ]);
  }
});

it("Conv per channel with a channel of zeros has one zero point, right for all", async () => {
  const w = weights(4 * 2 * 9).map((v, i) => (i >= 18 && i < 36 ? 0 : v));
  const proto = model(
    graph({
      input: [value("x", T.FLOAT, [1, 2, 8, 8])],
      output: [value("y", T.FLOAT, [1, 4, 6, 6])],
      initializer: [raw("w", [4, 2, 3, 3], w)],
      node: [node("Conv", ["x", "w"], ["y"], {}, "conv")],
    }),
  );
  for (const dtype of ["q8", "uint8", "int8"] as const)
    await expectAgrees(proto, (await quantized(proto, dtype, { perChannel: true, reduceRange: dtype === "int8" })).bytes);
  const first = model({
    ...proto.graph!,
    initializer: [
      raw(
        "w",
        [4, 2, 3, 3],
        weights(72).map((v, i) => (i < 18 ? 0 : v)),
      ),
    ],
  });
  await expectAgrees(first, (await quantized(first, "q8", { perChannel: true })).bytes);
});

it("a [K, 1] weight that MatMul and Gemm read in two layouts is two weights", async () => {
  const proto = model(
    graph({
      input: [value("x", T.FLOAT, ["b", 32]), value("z", T.FLOAT, ["b", 1])],
      output: [value("y", T.FLOAT, ["b", 1]), value("v", T.FLOAT, ["b", 32])],
      initializer: [raw("w", [32, 1], weights(32))],
      node: [node("MatMul", ["x", "w"], ["y"], {}, "mm"), node("Gemm", ["z", "w"], ["v"], { transB: 1n }, "g")],
    }),
  );
  for (const dtype of ["q4", "q8", "uint8"] as const) {
    const { bytes } = await quantized(proto, dtype);
    await (await InferenceSession.create(bytes, { logSeverityLevel: 4, intraOpNumThreads: 1 })).release();
  }
});

it("a table that a Gather and a MatMul read is one weight before and two after", async () => {
  const proto = model(
    graph({
      input: [value("ids", T.INT64, ["b"]), value("x", T.FLOAT, ["b", 32])],
      output: [value("e", T.FLOAT, ["b", 64]), value("y", T.FLOAT, ["b", 64])],
      initializer: [raw("table", [32, 64], weights(2048))],
      node: [node("Gather", ["table", "ids"], ["e"], {}, "embed"), node("MatMul", ["x", "table"], ["y"], {}, "mm")],
    }),
  );
  const { bytes, report } = await quantized(proto, "int8");
  expect(report.layers.map(({ sharedWith }) => sharedWith)).toEqual([undefined, undefined]);
  expect(report.weightBytesBefore).toBe(4 * 2048);
  // a scale per row; a scale and a zero point
  expect(report.weightBytesAfter).toBe(2048 + 4 * 32 + 2048 + 4 + 1);
  await expectAgrees(proto, bytes, 18);
});

describe("old opsets", () => {
  const pooled = (nodes: NodeProto[], initializer: TensorProto[], opset: number, x: (number | string)[] = [1, 2, 8, 8]): ModelProto =>
    model(
      graph({
        input: [value("x", T.FLOAT, x)],
        output: [value("y", T.FLOAT, [])].map((v) => ({
          ...v,
          type: {
            ...v.type!,
            value: { case: "tensorType" as const, value: { ...(v.type!.value.value as object), shape: undefined } as never },
          },
        })),
        initializer: [raw("w", [2, 2, 1, 1], weights(4)), ...initializer],
        node: [node("Conv", ["x", "w"], ["c"], {}, "conv"), ...nodes],
      }),
      { opset },
    );
  it.each([
    ["Slice", 9, [node("Slice", ["c"], ["y"], { starts: { ints: [1, 0] }, ends: { ints: [7, -1] }, axes: { ints: [2, 3] } })]],
    ["Slice without axes", 7, [node("Slice", ["c"], ["y"], { starts: { ints: [0, 1] }, ends: { ints: [1, 2] } })]],
    ["Clip", 10, [node("Clip", ["c"], ["y"], { min: -0.1, max: 0.2 })]],
    ["Clip with one bound", 7, [node("Clip", ["c"], ["y"], { max: 0.1 })]],
    ["Pad", 10, [node("Pad", ["c"], ["y"], { pads: { ints: [0, 0, 1, 1, 0, 0, 1, 1] }, value: 0.5 })]],
    ["Pad, reflected", 9, [node("Pad", ["c"], ["y"], { pads: { ints: [0, 0, 1, 1, 0, 0, 1, 1] }, mode: "reflect" })]],
    ["Upsample", 7, [node("Upsample", ["c"], ["y"], { scales: { floats: [1, 1, 2, 3] }, mode: "nearest" })]],
    ["Upsample by input", 9, [node("Upsample", ["c", "s"], ["y"], { mode: "linear" })]],
    ["Resize", 10, [node("Resize", ["c", "s"], ["y"], { mode: "nearest" })]],
    [
      "Dropout, pools, softmax",
      8,
      [node("Dropout", ["c"], ["d"]), node("MaxPool", ["d"], ["p"], { kernel_shape: { ints: [2, 2] } }), node("Softmax", ["p"], ["y"])],
    ],
    [
      "Squeeze and Unsqueeze",
      9,
      [node("Unsqueeze", ["c"], ["u"], { axes: { ints: [0] } }), node("Squeeze", ["u"], ["y"], { axes: { ints: [0] } })],
    ],
  ] as [string, number, NodeProto[]][])("%s of opset %i", async (_name, opset, nodes) => {
    const proto = pooled(nodes, nodes.some(({ input }) => input.includes("s")) ? [raw("s", [4], Float32Array.of(1, 1, 2, 2))] : [], opset);
    const { bytes, report } = await quantized(proto, "int8");
    expect(report.notes.join()).toMatch(/opset raised/);
    expect(report.quantized).toBe(1);
    await expectAgrees(proto, bytes);
  });
  it("TopK", async () => {
    const proto = pooled([node("TopK", ["c"], ["y", "i"], { k: 3n })], [], 9);
    await expectAgrees(proto, (await quantized(proto, "uint8")).bytes);
  });
  it("what cannot be raised leaves every layer alone, with the reason", async () => {
    const proto = pooled(
      [node("BatchNormalization", ["c", "s", "s", "s", "s"], ["y"], { spatial: 0n }, "bn")],
      [raw("s", [2, 8, 8], new Float32Array(128).fill(1))],
      8,
    );
    const { bytes, report } = await quantized(proto, "int8");
    expect(report.layers.find(({ name }) => name === "conv")!.reason).toMatch(
      /needs opset 11, the model has 8, and BatchNormalization with spatial=0 \(bn\)/,
    );
    expect(Buffer.compare(bytes, encode(proto))).toBe(0);
  });
});
