// Weights past 2 GiB are read in bands of rows. Here the limits are lowered, so that small weights are: the models are
// byte for byte those of whole weights, for every dtype and target, storage and operator.
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, expect, test } from "vitest";
import { BANDS } from "../../src/onnx/bands.ts";
import {
  decideWeights,
  modelLayers,
  quantizeModel,
  readModel,
  readModelBytes,
  writeModelBytes,
  type Feeds,
  type QuantizeModelOptions,
  type ConvertOptions as QuantizeOptions,
} from "../../src/onnx/index.ts";
import type { AlgorithmInput } from "../../src/onnx/algorithm-types.ts";
import { format } from "../../formats/index.ts";
import { awq, rtn } from "../../src/quantize/index.ts";
import type { WeightQuantizer } from "../../src/tensor/quantize/index.ts";
import { replaceCalls } from "../../src/files/calls.ts";
import { DECIDE_BANDS } from "../../src/onnx/layer-weight.ts";
import { encodeHalf } from "../../src/onnx/file/half.ts";
import { T, encode, external, graph, model, node, raw, value, weights } from "./build.ts";
import { quantizeModelBytes } from "./kept.ts";

const folder = mkdtempSync(join(tmpdir(), "lowbit-bands-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const limits = { ...BANDS };
const decided = { ...DECIDE_BANDS };
afterEach(() => {
  Object.assign(BANDS, limits);
  Object.assign(DECIDE_BANDS, decided);
});

/** Runs work with weights above 1 KB in bands of 16 to 32 rows. */
async function inBands<R>(work: () => Promise<R>): Promise<R> {
  Object.assign(BANDS, { above: 1000, bytes: 4096 });
  Object.assign(DECIDE_BANDS, { elements: 1024, byRows: 512, rows: 16 });
  try {
    return await work();
  } finally {
    Object.assign(BANDS, limits);
    Object.assign(DECIDE_BANDS, decided);
  }
}

const K = 40;
const N = 72;
const half = (values: Float32Array): Uint16Array => Uint16Array.from(values, (v) => encodeHalf(v));
const bfloat = (values: Float32Array): Uint16Array => Uint16Array.from(new Uint32Array(values.buffer), (bits) => bits >>> 16);

/** A product (two of one weight), both forms of Gemm, a batched product, a convolution, a table. */
const proto = (type: number = T.FLOAT) => {
  const data = (count: number, seed: number) => {
    const values = weights(count, seed);
    return type === T.FLOAT16
      ? half(values)
      : type === T.BFLOAT16
        ? bfloat(values)
        : type === T.DOUBLE
          ? Float64Array.from(values)
          : values;
  };
  const tensor = (name: string, dims: number[], seed: number) =>
    raw(
      name,
      dims,
      data(
        dims.reduce((a, b) => a * b, 1),
        seed,
      ),
      type,
    );
  return model(
    graph({
      input: [value("x", type, ["b", K]), value("image", type, [1, 4, 6, 6]), value("ids", T.INT64, ["n"]), value("s", type, [3, 2, K])],
      output: ["y", "y2", "g", "t", "c", "e", "m"].map((name) => value(name, type, [])),
      initializer: [
        tensor("w", [K, N], 1),
        tensor("wg", [K, N], 2),
        tensor("wt", [N, K], 3),
        tensor("wc", [48, 4, 3, 3], 4),
        tensor("we", [60, 64], 5),
        tensor("wm", [3, K, 20], 6),
      ],
      node: [
        node("MatMul", ["x", "w"], ["y"], {}, "mm"),
        node("MatMul", ["x", "w"], ["y2"], {}, "mm2"),
        node("Gemm", ["x", "wg"], ["g"], { alpha: 0.5 }, "gemm"),
        node("Gemm", ["x", "wt"], ["t"], { transB: 1n }, "gemm_t"),
        node("Conv", ["image", "wc"], ["c"], {}, "conv"),
        node("Gather", ["we", "ids"], ["e"], {}, "embed"),
        node("MatMul", ["s", "wm"], ["m"], {}, "batched"),
      ],
    }),
  );
};
const all = ["MatMul", "Gemm", "Conv", "Gather"];

const OPTIONS: readonly QuantizeOptions[] = [
  { dtype: "q4", opTypes: ["MatMul", "Gemm", "Gather"] },
  { dtype: "q4", symmetric: false },
  { dtype: "q2" },
  { dtype: "q8-block" },
  { dtype: "q4f16" },
  { dtype: "bnb4" }, // K is no multiple of 64: blocks go on from row to row
  { dtype: "int8" },
  { dtype: "uint8", perChannel: true, include: ["*"] },
  { dtype: "q8" },
  { dtype: "fp16" },
  { format: "mxfp4", target: "stored", opTypes: all },
  { format: "nvfp4", target: "stored", opTypes: all }, // a scale for all rows
  { format: "float8_e4m3fn", target: "stored", opTypes: all },
  { format: "uint4_b32_zp", target: "stored", opTypes: all, algorithm: "hqq" },
  { format: "int4_row", target: "qdq", opTypes: all },
];

test("every dtype and target makes the same file", async () => {
  const bytes = encode(proto());
  for (const options of OPTIONS) {
    const whole = await quantizeModelBytes(bytes, options);
    const banded = await inBands(() => quantizeModelBytes(bytes, options));
    expect(banded.report.quantized, JSON.stringify(options)).toBe(whole.report.quantized);
    expect(Buffer.compare(banded.bytes, whole.bytes), JSON.stringify(options)).toBe(0);
    banded.report.layers.forEach((layer, i) => expect(layer.sqnrDb ?? 0).toBeCloseTo(whole.report.layers[i].sqnrDb ?? 0, 6));
  }
});

test("weights of 16 bits and doubles too", async () => {
  for (const type of [T.FLOAT16, T.BFLOAT16, T.DOUBLE])
    for (const options of [OPTIONS[0], OPTIONS[6], OPTIONS[10]]) {
      const bytes = encode(proto(type));
      const whole = await quantizeModelBytes(bytes, options);
      const banded = await inBands(() => quantizeModelBytes(bytes, options));
      expect(whole.report.quantized).toBeGreaterThan(2);
      expect(Buffer.compare(banded.bytes, whole.bytes), `${type} ${JSON.stringify(options)}`).toBe(0);
    }
});

test("from a data file, into data files of a chosen size, with a journal", async () => {
  const w = weights(K * N);
  writeFileSync(join(folder, "data.bin"), new Uint8Array(w.buffer));
  const path = join(folder, "model.onnx");
  const nodes = [
    node("MatMul", ["x", "w"], ["y"], {}, "a"),
    node("Constant", [], ["c"], { value: raw("", [K, N], w) }),
    node("MatMul", ["x", "c"], ["z"], {}, "b"),
  ];
  const io = { input: [value("x", T.FLOAT, ["b", K])], output: ["y", "z"].map((name) => value(name, T.FLOAT, ["b", N])) };
  writeFileSync(path, encode(model(graph({ ...io, initializer: [external("w", [K, N], { location: "data.bin" })], node: nodes }))));
  const options = { dtype: "q4", externalData: true, dataFileBytes: 1700, force: true } as const;
  const made = async (resume: boolean) => {
    const report = await quantizeModel(path, join(folder, "out.onnx"), { ...options, resume });
    expect(report.outputs.length).toBeGreaterThan(2);
    using opened = readModel(join(folder, "out.onnx"));
    return writeModelBytes(opened);
  };
  const whole = await made(false);
  expect(Buffer.compare(await inBands(() => made(false)), whole)).toBe(0);
  expect(Buffer.compare(await inBands(() => made(true)), whole)).toBe(0);
});

const feeds: Feeds[] = [7, 8].map((seed) => ({
  x: { type: "float32", data: weights(96 * K, seed), dims: [96, K] },
  image: { type: "float32", data: weights(144, seed), dims: [1, 4, 6, 6] },
  ids: { type: "int64", data: BigInt64Array.of(1n, 2n), dims: [2] },
  s: { type: "float32", data: weights(6 * K, seed), dims: [3, 2, K] },
}));

test("GPTQ in bands is GPTQ of the whole; what is open is chosen once, on rows of all bands", async () => {
  const bytes = encode(proto());
  const options: QuantizeOptions = {
    dtype: "q4",
    include: ["mm", "gemm_t"],
    calibration: feeds,
    calibrate: { holdOut: 0 },
    algorithm: { name: "gptq", damp: 0.05, actOrder: true, polish: false },
  };
  const whole = await quantizeModelBytes(bytes, options);
  const banded = await inBands(() => quantizeModelBytes(bytes, options));
  expect(Buffer.compare(banded.bytes, whole.bytes)).toBe(0);
  const open = await inBands(() => quantizeModelBytes(bytes, { ...options, calibrate: { holdOut: 0.5 }, algorithm: "gptq" }));
  for (const name of ["mm", "gemm_t"]) {
    const of = (report: typeof whole.report) => report.layers.find((layer) => layer.name === name)!.outputSqnrDb!;
    expect(of(open.report)).toBeGreaterThan(of(whole.report) - 6);
  }
});

test("what cannot be read in bands says so; what is not finite is named by row and column", async () => {
  const io = { input: [value("x", T.FLOAT, ["b", K])], output: [value("y", T.FLOAT, ["b", N])] };
  const typed = raw("w", [K, N], weights(K * N), T.FLOAT16);
  delete (typed as { rawData?: unknown }).rawData;
  typed.int32Data = Array.from(half(weights(K * N)));
  const make = (tensor: ReturnType<typeof raw>, op = "MatMul") =>
    encode(model(graph({ ...io, initializer: [tensor], node: [node(op, ["x", "w"], ["y"], {}, "mm")] })));
  const { report } = await inBands(() => quantizeModelBytes(make(typed), { dtype: "q4", allowUnchanged: true }));
  expect(report.layers[0].reason).toMatch(/2 GiB and is not stored as raw or external data/);
  const bad = weights(K * N);
  bad[7 * N + 50] = NaN; // row 50, column 7 of [N, K]
  await expect(inBands(() => quantizeModelBytes(make(raw("w", [K, N], bad)), { dtype: "q4" }))).rejects.toThrow(
    /layer mm: .*got NaN at \[50, 7\]/,
  );
  await expect(inBands(() => quantizeModelBytes(make(raw("w", [K, N], bad)), { dtype: "q4", algorithm: "mse" }))).rejects.toThrow(
    /layer mm: .*got NaN in row 50/,
  );
  const whole = { format: "nvfp4", target: "stored", algorithm: "mse" } as const;
  await expect(inBands(() => quantizeModelBytes(make(raw("w", [K, N], weights(K * N))), whole))).resolves.toBeDefined();
});

const [TALL_K, TALL] = [64, 768];
/** One product of many rows, so that what is open is chosen on a sample of them. */
const tall = (seed: number, rows = TALL): Uint8Array => {
  const io = { input: [value("x", T.FLOAT, ["b", TALL_K])], output: [value("y", T.FLOAT, ["b", rows])] };
  const w = weights(TALL_K * rows, seed);
  for (let i = 0; i < w.length; i++) w[i] *= 1 + Math.floor(i / rows); // channels of their own sizes
  return encode(model(graph({ ...io, initializer: [raw("w", [TALL_K, rows], w)], node: [node("MatMul", ["x", "w"], ["y"], {}, "mm")] })));
};
const inputs: Feeds[] = [7, 8].map((seed) => ({ x: { type: "float32", data: weights(96 * TALL_K, seed), dims: [96, TALL_K] } }));

test("algorithms that work row by row take small bands of weights of any size: the same weights", async () => {
  const read = readModelBytes(tall(1));
  for (const [algorithm, name] of [
    ["gptq", "int4_b16"],
    [{ name: "gptq", damp: 0.05, actOrder: true, polish: true }, "int4_b16"],
    ["mrgptq", "int4_b16"],
    ["mse", "int4_b16"],
    ["hqq", "uint4_b32_zp"],
  ] as const) {
    const made = () =>
      decideWeights(read, modelLayers(read), () => ({ format: format(name), algorithm }), inputs, { holdOut: 0.5, undoes: ["rotation"] });
    const [[, whole]] = await made();
    DECIDE_BANDS.byRows = 2 ** 15; // 512 rows: of fewer some products are summed in another order
    const [[, banded]] = await made();
    Object.assign(DECIDE_BANDS, decided);
    for (const plane of ["codes", "scales", "offsets"] as const)
      expect(
        Buffer.compare(banded.packed[plane] ?? Buffer.of(), whole.packed[plane] ?? Buffer.of()),
        `${JSON.stringify(algorithm)} ${plane}`,
      ).toBe(0);
    expect(banded.noise / whole.noise).toBeCloseTo(1, 9);
    expect(banded.outputSqnr ?? 0).toBeCloseTo(whole.outputSqnr ?? 0, 6);
    expect(Number(banded.packed.recipe.loss ?? 0)).toBeCloseTo(Number(whole.packed.recipe.loss ?? 0), 5);
  }
});

test("what is open is chosen on a sample of all rows, where there are twice as many", async () => {
  DECIDE_BANDS.elements = TALL_K * 256;
  const sampleOf = async (rows: number): Promise<number[] | undefined> => {
    let shape: number[] | undefined;
    const algorithm = ({ sample }: AlgorithmInput): WeightQuantizer => {
      shape = sample?.shape.slice();
      return rtn();
    };
    const read = readModelBytes(tall(1, rows));
    await decideWeights(read, modelLayers(read), () => ({ format: format("int4_b16"), algorithm }), inputs);
    return shape;
  };
  expect([await sampleOf(496), await sampleOf(512), await sampleOf(640)]).toEqual([undefined, [256, TALL_K], [256, TALL_K]]);
});

test("rows that an algorithm takes at a time may be several bands of the file, the last one short", async () => {
  const options: QuantizeOptions = { format: "int4_row", target: "stored", algorithm: "mse", opTypes: all };
  const whole = await quantizeModelBytes(encode(proto()), options);
  Object.assign(BANDS, { above: 1000, bytes: 4096 });
  for (const rows of [48, 32]) {
    Object.assign(DECIDE_BANDS, { elements: K * rows, byRows: K * rows, rows: 16 });
    const banded = await quantizeModelBytes(encode(proto()), options);
    expect(Buffer.compare(banded.bytes, whole.bytes)).toBe(0);
  }
});

test("a weight that is computed is read whole, its sample too: the same codes", async () => {
  DECIDE_BANDS.byRows = 2 ** 15;
  const codes = Int8Array.from(weights(TALL_K * TALL, 1), (v) => 200 * v);
  const dims = [TALL_K, TALL];
  const made = async (tensor: ReturnType<typeof raw>, nodes = [node("Identity", ["w"], ["v"])]) => {
    const io = { input: [value("x", T.FLOAT, ["b", TALL_K])], output: [value("y", T.FLOAT, ["b", TALL])] };
    const main = graph({ ...io, initializer: [tensor], node: [...nodes, node("MatMul", ["x", "v"], ["y"], {}, "mm")] });
    const read = readModelBytes(encode(model(main)));
    const [[, { packed }]] = await decideWeights(read, modelLayers(read), () => ({ format: format("int4_b16"), algorithm: "gptq" }), inputs, { holdOut: 0.5 }); // prettier-ignore
    return packed;
  };
  const stored = await made(raw("w", dims, Float32Array.from(codes)));
  const computed = await made(raw("w", dims, codes, T.INT8), [node("Cast", ["w"], ["v"], { to: 1n })]);
  expect(Buffer.compare(stored.codes, computed.codes)).toBe(0);
  expect(computed.recipe).toEqual(stored.recipe);
});

test("of a file only the bands at work are read, and contents are hashed in parts", async () => {
  const [k, n] = [64, 8192];
  const w = weights(k * n, 3);
  writeFileSync(join(folder, "tall.bin"), new Uint8Array(w.buffer));
  const path = join(folder, "tall.onnx");
  const io = { input: [value("x", T.FLOAT, ["b", k])], output: [value("y", T.FLOAT, ["b", n])] };
  const tensor = external("w", [k, n], { location: "tall.bin" });
  writeFileSync(path, encode(model(graph({ ...io, initializer: [tensor], node: [node("MatMul", ["x", "w"], ["y"], {}, "mm")] }))));
  const options: QuantizeModelOptions = { dtype: "q4", algorithm: "mse", force: true };
  const made = async (resume: boolean): Promise<{ bytes: Uint8Array; most: number }> => {
    let most = 0;
    replaceCalls((calls) => ({
      ...calls,
      read: (fd, into, at, length, position) => {
        most = Math.max(most, length);
        return calls.read(fd, into, at, length, position);
      },
    }));
    try {
      await quantizeModel(path, join(folder, "tall_q4.onnx"), { ...options, resume });
    } finally {
      replaceCalls();
    }
    using opened = readModel(join(folder, "tall_q4.onnx"));
    return { bytes: writeModelBytes(opened), most };
  };
  DECIDE_BANDS.elements = DECIDE_BANDS.byRows = k * n;
  const whole = await made(false);
  expect(whole.most).toBe(4 * k * n);
  Object.assign(DECIDE_BANDS, { elements: k * 2048, byRows: k * 1024 });
  for (const resume of [false, true]) {
    const banded = await made(resume);
    expect(Buffer.compare(banded.bytes, whole.bytes)).toBe(0);
    // with a journal the content is hashed, a MiB at a time
    expect(banded.most).toBeLessThanOrEqual(resume ? 2 ** 20 : 4 * k * 1024);
  }
});

test("AWQ of a weight in bands has one set of channel scales; quantizers with a basis for each band are refused", async () => {
  const options: QuantizeOptions = { format: "int4_b16", target: "stored", algorithm: { name: "awq", grid: 4 }, calibration: inputs };
  const whole = await quantizeModelBytes(tall(2), options);
  DECIDE_BANDS.elements = 2 ** 15;
  const banded = await quantizeModelBytes(tall(2), options);
  const of = ({ report }: typeof whole): number => report.layers[0].outputSqnrDb!;
  expect(of(banded)).toBeGreaterThan(of(whole) - 0.3);
  // read back with the scales that it says: what is lost is what was measured
  expect(banded.report.layers[0].sqnrDb!).toBeGreaterThan(whole.report.layers[0].sqnrDb! - 1);
  const own = ({ statistics }: AlgorithmInput): WeightQuantizer => {
    const scaled = awq({ statistics: statistics! });
    let band = 0;
    return {
      algorithm: "own",
      quantizeWeight(weight, to) {
        const packed = scaled.quantizeWeight(weight, to);
        const channelScales = new Array<number>(TALL_K).fill(++band);
        return { ...packed, recipe: { ...packed.recipe, channelScales } };
      },
    };
  };
  await expect(quantizeModelBytes(tall(2), { ...options, algorithm: own })).rejects.toThrow(
    /mm: expected one basis for all of its \d+ groups or bands/,
  );
});
