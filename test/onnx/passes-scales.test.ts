// Passes that look at data or at pairs of layers: SmoothQuant, AWQ, equalisation, folding of batch norms, bias
// correction. The function stays, and what the pass is for is true afterwards.
import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { format } from "../../formats/index.ts";
import { dequantize, quantize, type Tensor } from "../../src/index.ts";
import {
  applyPasses,
  calibrationFrom,
  modelLayers,
  quantizeModelBytes,
  readModelBytes,
  readWeight,
  writeModelBytes,
  writeWeight,
  type OnnxModel,
} from "../../src/onnx/index.ts";
import type { NodeProto, TensorProto } from "../../src/onnx/file/gen/onnx_pb.ts";
import { differenceFrom, referenceRun } from "../../src/onnx/passes/check.ts";
import { encode, graph, model, node, raw, T, value, weights } from "./build.ts";
import { changed, encoderFeeds, encoderModel, FORMS } from "./encoder.ts";
import { calibrationOn } from "./statistics.ts";
import { keep } from "./kept.ts";

const calibration = calibrationOn(encoderFeeds(3));

/** Largest magnitude of each channel of what a product reads. */
async function channels(model: OnnxModel, name: string): Promise<number[]> {
  const stats = await calibration(model, [name], { hessian: false });
  const { min, max } = stats.get(name)!;
  return Array.from(max, (m, j) => Math.max(m, -min[j]));
}
const spread = (values: readonly number[]): number => Math.max(...values) / values.toSorted((a, b) => a - b)[values.length >> 1];

describe("smooth", () => {
  test.each(FORMS)("%o: scales go into norms, layers and attention, outputs stay", async (init) => {
    const bytes = encoderModel({ ...init, outlier: 12 });
    const name = modelLayers(readModelBytes(bytes)).find((l) => l.name.startsWith("l0.q/"))!.name;
    const before = spread(await channels(readModelBytes(bytes), name));
    const { model, notes, difference } = await changed(bytes, ["smooth"], { calibration });
    expect(difference).toBeLessThan(1e-5);
    expect(spread(await channels(model, name))).toBeLessThan(0.6 * before);
    // q, k, v (and gate) share a group; the head, o and what is behind ReLU or a gated unit have one each.
    const groups = { relu: 9, swiglu: 9, gelu: 7 }[init.activation ?? "gelu"];
    expect(notes[0]).toMatch(new RegExp(`in ${groups} groups folded into what is before them`));
    if (init.activation === "relu" || init.activation === "swiglu") expect(notes).toHaveLength(1);
    else expect(notes[1]).toContain("2 products stay, nothing before them can take scales");
  });

  test("alpha by search, and after fold-norm", async () => {
    const { notes, difference } = await changed(encoderModel({ outlier: 12 }), ["fold-norm", { name: "smooth", alpha: "search" }], {
      calibration,
    });
    expect(difference).toBeLessThan(1e-5);
    expect(notes.join("\n")).toMatch(/alpha by search: 0\.\d+ to 0\.\d+/);
  });

  test("calibration data as the calibration of models takes it give the same", async () => {
    const bytes = encoderModel({ outlier: 12 });
    const own = await changed(bytes, ["smooth"], { calibration });
    const given = await changed(bytes, ["smooth"], { calibration: calibrationFrom(encoderFeeds(3)) });
    expect(given.notes).toEqual(own.notes);
    expect(Buffer.compare(writeModelBytes(given.model), writeModelBytes(own.model))).toBe(0);
  });

  test("needs calibration, and says so", async () => {
    await expect(applyPasses(readModelBytes(encoderModel()), ["smooth"])).rejects.toThrow(
      /pass smooth: expected calibration data, got none/,
    );
    await expect(applyPasses(readModelBytes(encoderModel()), [{ name: "smooth", alpha: 2 }])).rejects.toThrow(
      /alpha: expected a number in 0..1/,
    );
  });
});

describe("awq", () => {
  test.each(FORMS.slice(1, 3))("%o: less output error in the format, outputs of the float model stay", async (init) => {
    const bytes = encoderModel({ ...init, outlier: 12 });
    const { model, notes, difference } = await changed(bytes, [{ name: "awq", format: "int3_b32", grid: 8 }], { calibration });
    expect(difference).toBeLessThan(1e-5);
    expect(notes[0]).toMatch(/scales for int3_b32 of \d+ products in \d groups/);
    const error = async (m: OnnxModel): Promise<number> => {
      const reference = await referenceRun(m, encoderFeeds(2, 2, 9));
      const copy = readModelBytes(writeModelBytes(m));
      for (const layer of modelLayers(copy))
        if (layer.opType !== "Gather" && layer.k % 32 === 0)
          writeWeight(copy, layer, quantize(readWeight(copy, layer), format("int3_b32")));
      return noise(reference.outputs, (await referenceRun(copy, encoderFeeds(2, 2, 9))).outputs);
    };
    expect(await error(model)).toBeLessThan(0.9 * (await error(readModelBytes(bytes))));
  });
});

/** Noise over signal of the first output. */
function noise(want: readonly ReadonlyMap<string, { data: ArrayLike<number> }>[], got: typeof want): number {
  let [signal, error] = [0, 0];
  want.forEach((outputs, f) => {
    const [[name, { data }]] = outputs;
    for (let i = 0; i < data.length; i++) [signal, error] = [signal + data[i] ** 2, error + (data[i] - got[f].get(name)!.data[i]) ** 2];
  });
  return error / signal;
}

/** Conv, depthwise Conv and Gemm with ReLU and pooling between, and what exporters leave behind convolutions. */
function convModel(between: "relu" | "batchnorm"): Uint8Array {
  const uneven = (count: number, channels: number, seed: number): Float32Array =>
    weights(count, seed).map((v, i) => v * 10 ** ((Math.floor(i / (count / channels)) % 5) - 2));
  const positive = (count: number, seed: number): Float32Array => weights(count, seed).map((v) => 1 + v);
  const nodes: NodeProto[] = [];
  const initializer: TensorProto[] = [];
  const behind = (x: string, c: number, seed: number): string => {
    if (between === "relu") {
      nodes.push(node("Relu", [x], [`${x}r`]));
      return `${x}r`;
    }
    const names = ["g", "b", "m", "v"].map((s) => `${x}${s}`);
    initializer.push(...names.map((name, i) => raw(name, [c], positive(c, seed + i))));
    if (seed === 20) {
      initializer.push(raw(`${x}f`, [1, c, 1, 1], positive(c, 70)), raw(`${x}s`, [c, 1, 1], weights(c, 71)));
      nodes.push(node("Mul", [x, `${x}f`], [`${x}1`]), node("Add", [`${x}s`, `${x}1`], [`${x}n`]));
    } else nodes.push(node("BatchNormalization", [x, ...names], [`${x}n`], { epsilon: 1e-3 }, `${x}/bn`));
    nodes.push(node("Relu", [`${x}n`], [`${x}r`]));
    return `${x}r`;
  };
  initializer.push(
    raw("w1", [8, 3, 3, 3], uneven(216, 8, 1)),
    raw("b1", [8], weights(8, 2)),
    raw("w2", [8, 1, 3, 3], uneven(72, 8, 3)),
    raw("w3", [8, 6, 2, 2], uneven(192, 8, 4)),
    raw("w4", [6 * 16, 5], uneven(480, 4, 5)),
    raw("b4", [5], weights(5, 6)),
  );
  nodes.push(node("Conv", ["x", "w1", "b1"], ["a"], { pads: { ints: [1, 1, 1, 1] } }, "c1"));
  const a = behind("a", 8, 20);
  nodes.push(node("Conv", [a, "w2"], ["d"], { group: 8n, pads: { ints: [1, 1, 1, 1] } }, "c2"));
  const d = behind("d", 8, 30);
  nodes.push(node("MaxPool", [d], ["p"], { kernel_shape: { ints: [2, 2] }, strides: { ints: [2, 2] } }));
  nodes.push(node("ConvTranspose", ["p", "w3"], ["t"], { strides: { ints: [2, 2] } }, "c3"));
  const t = behind("t", 6, 40);
  nodes.push(node("AveragePool", [t], ["q"], { kernel_shape: { ints: [2, 2] }, strides: { ints: [2, 2] } }));
  nodes.push(node("Flatten", ["q"], ["f"]), node("Gemm", ["f", "w4", "b4"], ["g"], {}, "c4"));
  if (between === "batchnorm") {
    initializer.push(...["g", "b", "m", "v"].map((s, i) => raw(`g${s}`, [5], positive(5, 60 + i))));
    nodes.push(node("BatchNormalization", ["g", "gg", "gb", "gm", "gv"], ["y"]));
  } else nodes.push(node("Identity", ["g"], ["y"]));
  return encode(
    model(graph({ input: [value("x", T.FLOAT, ["n", 3, 8, 8])], output: [value("y", T.FLOAT, [])], initializer, node: nodes })),
  );
}

const convFeeds = [0, 1].map((seed) => ({ x: { type: "float32", data: weights(2 * 192, seed + 50), dims: [2, 3, 8, 8] } }));

describe("equalize", () => {
  test("ranges of channels meet, through depthwise layers, pooling and Flatten", async () => {
    const m = readModelBytes(convModel("relu"));
    const reference = await referenceRun(m, convFeeds);
    const notes = await applyPasses(m, ["equalize"], { verify: false });
    keep(m, ...notes);
    expect(notes[0]).toMatch(/^equalize: 3 pairs of layers equalised/);
    expect((await differenceFrom(reference, m)).relative).toBeLessThan(1e-5);
    const [c1, c2] = modelLayers(m);
    const amax = (layer: typeof c1): number[] => {
      const { data } = readWeight(m, layer);
      return Array.from({ length: layer.rows }, (_, r) => Math.max(...data.slice(r * layer.k, (r + 1) * layer.k).map(Math.abs)));
    };
    amax(c1).forEach((v, c) => expect(v / amax(c2)[c]).toBeCloseTo(1, 3));
  });

  test("fashion-cnn: int8 with one scale per tensor gets better", async () => {
    const bytes = new Uint8Array(readFileSync("test/fixtures/fashion-cnn/fashion_cnn.onnx"));
    const m = readModelBytes(bytes);
    const notes = await applyPasses(m, ["equalize"]);
    expect(notes[0]).toMatch(/^equalize: 4 pairs/);
    const images = readFileSync("test/fixtures/fashion-cnn/test-images.u8").subarray(0, 784 * 64);
    const feeds = [{ image: { type: "float32", data: Float32Array.from(images, (v) => v / 255), dims: [64, 1, 28, 28] } }];
    const { outputs } = await referenceRun(m, feeds);
    const error = async (from: Uint8Array): Promise<number> =>
      noise(outputs, (await referenceRun(readModelBytes((await quantizeModelBytes(from, { dtype: "int8" })).bytes), feeds)).outputs);
    expect(await error(writeModelBytes(m))).toBeLessThan(await error(bytes));
  });

  test.each<[string, NodeProto, string]>([
    ["a weight on the left", node("MatMul", ["w", "x"], ["a"], {}, "left"), ""],
    ["a sum with a matrix", node("Add", ["x", "w"], ["a"], {}, "sum"), ""],
    ["a product that something is added to", node("MatMul", ["x", "w"], ["b"], {}, "m"), "b"],
  ])("%s is no layer of channels", async (_, first, added) => {
    const nodes = [first, ...(added === "" ? [] : [node("Add", [added, "x"], ["a"])]), node("Relu", ["a"], ["r"]), node("MatMul", ["r", "v"], ["y"], {}, "last")]; // prettier-ignore
    const initializer = [raw("w", [32, 32], weights(1024).map((v, i) => v * (1 + (i >> 5)))), raw("v", [32, 5], weights(160, 2))]; // prettier-ignore
    const m = readModelBytes(encode(model(graph({ input: [value("x", T.FLOAT, [32, 32])], output: [value("y", T.FLOAT, [])], initializer, node: nodes })))); // prettier-ignore
    const reference = await referenceRun(m, [{ x: { type: "float32", data: weights(1024, 3), dims: [32, 32] } }]);
    expect((await applyPasses(m, ["equalize"], { verify: false }))[0]).toMatch(/no pairs of layers.*nothing changed/);
    expect((await differenceFrom(reference, m)).relative).toBe(0);
  });
  const S = (...dims: number[]) => raw("s", [dims.length], BigInt64Array.from(dims, BigInt), T.INT64);
  const pool = node("GlobalAveragePool", ["r"], ["p"]);
  test.each<[string, NodeProto[], TensorProto[], number, boolean]>([
    ["pixels as rows", [node("Reshape", ["r", "s"], ["f"])], [S(-1, 8)], 8, false],
    ["the width", [node("Identity", ["r"], ["f"])], [], 8, false],
    ["Flatten behind the channels", [node("Flatten", ["r"], ["f"], { axis: 2n })], [], 64, false],
    ["Flatten", [node("Flatten", ["r"], ["f"])], [], 512, true],
    ["Reshape of all", [node("Reshape", ["r", "s"], ["f"])], [S(-1, 512)], 512, true],
    ["means, Reshape", [pool, node("Reshape", ["p", "s"], ["f"])], [S(-1, 8)], 8, true],
    ["means, Squeeze", [pool, node("Squeeze", ["p", "s"], ["f"])], [S(2, 3)], 8, true],
    ["means, Flatten", [pool, node("Flatten", ["p"], ["f"])], [], 8, true],
  ])("a product behind a convolution reads %s: are they channels?", async (_, between, init, k, are) => {
    const uneven = weights(24).map((v, i) => v * (1 + Math.floor(i / 3)) ** 2);
    const last = node("Gemm", ["f", "v"], ["y"], {}, "last");
    if (k === 8 && !are) last.opType = "MatMul";
    const nodes = [node("Conv", ["x", "w"], ["a"], {}, "c"), node("Relu", ["a"], ["r"]), ...between, last];
    const initializer = [raw("w", [8, 3, 1, 1], uneven), raw("v", [k, 5], weights(5 * k, 2)), ...init];
    const m = readModelBytes(encode(model(graph({ input: [value("x", T.FLOAT, ["n", 3, 8, 8])], output: [value("y", T.FLOAT, [])], initializer, node: nodes })))); // prettier-ignore
    const reference = await referenceRun(m, [{ x: { type: "float32", data: weights(384, 3), dims: [2, 3, 8, 8] } }]);
    const notes = await applyPasses(m, ["equalize"], { verify: false });
    expect(notes[0]).toMatch(are ? /1 pairs of layers equalised/ : /nothing changed/);
    keep(m, ...notes);
    expect((await differenceFrom(reference, m)).relative).toBeLessThan(1e-5);
  });
  test("says why where there are no pairs", async () => {
    const m = readModelBytes(encoderModel());
    expect((await applyPasses(m, ["equalize"], { feeds: encoderFeeds(1) }))[0]).toMatch(/no pairs of layers with ReLU.*nothing changed/);
  });
});

describe("fold-batchnorm", () => {
  test("BatchNormalization and products and sums by channel disappear into the layers before them", async () => {
    const m = readModelBytes(convModel("batchnorm"));
    const reference = await referenceRun(m, convFeeds);
    const notes = await applyPasses(m, ["fold-batchnorm"], { verify: false });
    keep(m, ...notes);
    expect(notes[0]).toBe("fold-batchnorm: 5 nodes folded into 4 layers, 3 of 3 BatchNormalizations among them");
    expect((await differenceFrom(reference, m)).relative).toBeLessThan(1e-5);
    const left = m.proto.graph!.node.map((n) => n.opType);
    for (const gone of ["BatchNormalization", "Mul", "Add"]) expect(left).not.toContain(gone);
  });

  test("nothing to fold: nothing changes", async () => {
    const bytes = convModel("relu");
    const m = readModelBytes(bytes);
    expect(await applyPasses(m, ["fold-batchnorm"], { feeds: convFeeds })).toEqual([
      "fold-batchnorm: no BatchNormalization was found; nothing changed",
    ]);
    expect(Buffer.compare(writeModelBytes(m), bytes)).toBe(0);
  });
});

describe("bias-correction", () => {
  test("the mean of the outputs of the quantized model comes back", async () => {
    const bytes = encoderModel({ activation: "relu" });
    const target = "int2_b32";
    const means = async (m: OnnxModel): Promise<number[]> => {
      const { outputs } = await referenceRun(m, encoderFeeds(3));
      const sums = new Array<number>(40).fill(0);
      for (const o of outputs) Array.from(o.get("head")!.data).forEach((v, i) => (sums[i % 40] += v));
      return sums;
    };
    const rounded = (m: OnnxModel): OnnxModel => {
      const copy = readModelBytes(writeModelBytes(m));
      const head = modelLayers(copy).find((l) => l.name.startsWith("head"))!;
      writeWeight(copy, head, quantize(readWeight(copy, head), format(target)));
      return copy;
    };
    const original = readModelBytes(bytes);
    const corrected = readModelBytes(bytes);
    // The head alone is quantized here, so it alone is corrected.
    const notes = await applyPasses(
      corrected,
      [
        {
          name: "bias-correction",
          values: (layer: { name: string }, w: Tensor) => (layer.name.startsWith("head") ? dequantize(quantize(w, format(target))) : null),
        },
      ],
      { calibration },
    );
    expect(notes[0]).toMatch(/^bias-correction: 1 of 13 biases corrected/);
    const want = await means(original);
    const off = (got: readonly number[]): number => Math.hypot(...got.map((v, i) => v - want[i]));
    expect(off(await means(rounded(corrected)))).toBeLessThan(1e-3 * off(await means(rounded(original))));
  });
});
