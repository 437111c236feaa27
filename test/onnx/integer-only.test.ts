// integerOnly: encoders in several spellings, run by onnxruntime; the integer functions against those of
// lowbit/quantize, bit for bit.
import * as ort from "onnxruntime-node";
import { describe, expect, test } from "vitest";
import { floatOperators, integerOnly, readModelBytes } from "../../src/onnx/index.ts";
import { INTEGER_DOMAIN, integerFunctions } from "../../src/onnx/integer/functions.ts";
import { dyadic, gaussian, integerLayerNorm, integerNorm, requantize, seededRandom, shiftmax } from "../../src/quantize/index.ts";
import { encode, graph, model, node, raw, T, value, weights } from "./build.ts";
import { encoderFeeds, encoderModel, FORMS } from "./encoder.ts";
import { keepForm } from "./kept.ts";

type Feeds = Readonly<Record<string, { type: string; data: unknown; dims: readonly number[] }>>;

async function run(bytes: Uint8Array, feeds: Feeds): Promise<ort.InferenceSession.OnnxValueMapType> {
  const session = await ort.InferenceSession.create(bytes, {
    logSeverityLevel: 3,
    intraOpNumThreads: 1,
    graphOptimizationLevel: "disabled",
  });
  const tensors = Object.entries(feeds).map(([name, { type, data, dims }]) => [
    name,
    new ort.Tensor(type as "int32", data as Int32Array, dims),
  ]);
  return session.run(Object.fromEntries(tensors));
}

/** SQNR of the first output over all feeds, dB. */
async function sqnr(float: Uint8Array, integer: Uint8Array, feeds: readonly Feeds[]): Promise<number> {
  let [signal, noise] = [0, 0];
  for (const batch of feeds) {
    const [a, b] = await Promise.all([float, integer].map(async (bytes) => Object.values(await run(bytes, batch))[0].data as Float32Array));
    a.forEach((v, i) => {
      signal += v * v;
      noise += (v - b[i]) ** 2;
    });
  }
  return 10 * Math.log10(signal / noise);
}

describe("encoders", () => {
  test.each([
    [FORMS[0], "table", 34],
    [FORMS[2], "shift", 29],
    [FORMS[3], "table", 33],
  ] as const)("%j by %s: integers only, and near the float model", async (form, functions, bound) => {
    const float = encoderModel(form);
    const { bytes, report } = await integerOnly(float, { calibration: encoderFeeds(4), functions });
    keepForm(bytes, JSON.stringify([...report.operators]), report.boundary.join());
    expect(floatOperators(readModelBytes(bytes)).floats).toEqual([]);
    expect(report.boundary).toHaveLength(1);
    expect(report.operators.get("DequantizeLinear")).toBe(1);
    expect(await sqnr(float, bytes, encoderFeeds(2, 2, 9))).toBeGreaterThan(bound);
  });

  test("the check finds floats", () => {
    expect(floatOperators(readModelBytes(encoderModel())).floats.join()).toMatch(/LayerNormalization/);
  });
});

/** Attention over 6 values with a mask, as exporters of BERT write it; or Where; x float [1, 6, 16]. */
function masked(form: "add" | "where"): Uint8Array {
  const lin = (name: string, seed: number) =>
    raw(
      name,
      [16, 16],
      weights(256, seed).map((v) => 4 * v),
    );
  return encode(
    model(
      graph({
        input: [value("x", T.FLOAT, [1, 6, 16]), value("mask", T.INT64, [1, 6])],
        output: [value("y", T.FLOAT, [1, 6, 16])],
        initializer: [
          lin("wq", 1),
          lin("wk", 2),
          lin("wv", 3),
          raw("one", [], Float32Array.of(1)),
          raw("low", [], Float32Array.of(-3.4028235e38)),
          raw("root", [], Float32Array.of(4)),
          raw("axes", [1], BigInt64Array.of(1n), T.INT64),
        ],
        node: [
          node("MatMul", ["x", "wq"], ["q"]),
          node("MatMul", ["x", "wk"], ["k"]),
          node("MatMul", ["x", "wv"], ["v"]),
          node("Transpose", ["k"], ["kt"], { perm: { ints: [0, 2, 1] } }),
          node("MatMul", ["q", "kt"], ["qk"]),
          node("Div", ["qk", "root"], ["scores"]),
          node("Unsqueeze", ["mask", "axes"], ["m1"]),
          ...(form === "add"
            ? [
                node("Cast", ["m1"], ["mf"], { to: 1n }),
                node("Sub", ["one", "mf"], ["away"]),
                node("Mul", ["away", "low"], ["bias"]),
                node("Add", ["scores", "bias"], ["sum"]),
              ]
            : [node("Cast", ["m1"], ["mb"], { to: 9n }), node("Where", ["mb", "scores", "low"], ["sum"])]),
          node("Softmax", ["sum"], ["p"], { axis: -1n }),
          node("MatMul", ["p", "v"], ["y"]),
        ],
      }),
    ),
  );
}

const maskedFeeds = (seed: number): Feeds => ({
  x: { type: "float32", data: weights(96, seed).map((v) => 4 * v), dims: [1, 6, 16] },
  mask: { type: "int64", data: BigInt64Array.of(1n, 1n, 1n, BigInt(seed % 2), 0n, 0n), dims: [1, 6] },
});

test.each(["add", "where"] as const)(
  "masks by %s forbid, float inputs are quantized where they enter",

  async (form) => {
    const float = masked(form);
    for (const functions of ["table", "shift"] as const) {
      const { bytes, report } = await integerOnly(float, { calibration: [1, 2, 3, 4].map(maskedFeeds) as never, functions });
      keepForm(bytes, JSON.stringify([...report.operators]), report.boundary.join());
      expect(report.boundary).toHaveLength(2);
      expect(await sqnr(float, bytes, [maskedFeeds(7), maskedFeeds(8)])).toBeGreaterThan(functions === "table" ? 30 : 20);
      // what is forbidden is not seen at all
      const [near, far] = [0, 3].map((v) => {
        const feeds = maskedFeeds(8);
        return { ...feeds, x: { ...feeds.x, data: (feeds.x.data as Float32Array).map((old, i) => (i >= 64 ? v / 10 : old)) } };
      });
      const [a, b] = await Promise.all([near, far].map(async (feeds) => (await run(bytes, feeds)).y.data as Float32Array));
      expect(a.slice(0, 64)).toEqual(b.slice(0, 64));
    }
  },
);

describe("functions are those of lowbit/quantize", () => {
  const random = gaussian(seededRandom(4));
  const x = Int32Array.from({ length: 64 }, () => Math.round(random() * 9000));
  const types = { int64: T.INT64, int32: T.INT32, uint8: T.UINT8 } as const;
  const i64 = (values: ArrayLike<number>, dims: number[] = []) => ({
    type: "int64",
    data: BigInt64Array.from(values as number[], BigInt),
    dims,
  });
  const codes = (data: Int32Array, dims: number[]) => ({ type: "int32", data, dims });

  async function call(name: string, feeds: Feeds, type: number): Promise<number[]> {
    const made = integerFunctions(18).get(name)!;
    const own = model(
      graph({
        input: made.input.map((input) => value(input, types[feeds[input].type as "int32"], [...feeds[input].dims])),
        output: [value("y", type, [])],
        node: [{ ...node(name, made.input, ["y"]), domain: INTEGER_DOMAIN }],
      }),
    );
    own.functions.push(made);
    own.opsetImport = [
      { ...own.opsetImport[0], version: 18n },
      { ...own.opsetImport[0], domain: INTEGER_DOMAIN, version: 1n },
    ];
    return Array.from((await run(encode(own), feeds)).y.data as Int32Array);
  }

  test("Requantize", async () => {
    const factor = dyadic(0.0137);
    const feeds = {
      x: codes(x, [4, 16]),
      multiplier: i64([factor.multiplier]),
      shift: i64([factor.shift]),
      low: i64([-127]),
      high: i64([127]),
    };
    const want = [...requantize(x, factor, { low: -127, high: 127 })];
    expect(await call("Requantize", feeds, T.INT32)).toEqual(want);
    expect(await call("RequantizeUint8", feeds, T.UINT8)).toEqual(want.map((code) => code + 128));
  });

  test.each(["layer", "rms"] as const)("%s normalisation", async (kind) => {
    const gain = Array.from({ length: 16 }, () => 1 + random() / 3);
    const norm = integerNorm({ kind, gain, bias: gain.map(() => random()), epsilon: 1e-5, scale: 1e-4, outputScale: 1e-3 });
    const rows = x.map((code, i) => (i < 16 ? Math.round(code / 1000) : code));
    const feeds = {
      x: codes(rows, [4, 16]),
      epsilon: i64([norm.epsilon]),
      multiplier: i64(norm.gain.multipliers, [16]),
      bias: i64(norm.bias.map((v) => v * 65536), [16]), // prettier-ignore
      shift: i64([norm.gain.shift]),
      low: i64([-32767]),
      high: i64([32767]),
    };
    expect(await call(kind === "layer" ? "LayerNorm" : "RmsNorm", feeds, T.INT32)).toEqual([
      ...integerLayerNorm(rows, norm, { low: -32767, high: 32767 }),
    ]);
  });

  test("Shiftmax", async () => {
    const rows = x.map((code) => Math.round(code / 200));
    const one = dyadic(1);
    const feeds = { x: codes(rows, [4, 16]), multiplier: i64([one.multiplier]), shift: i64([one.shift]), unit: i64([16]) };
    const want = shiftmax(rows, { columns: 16, scale: 1 / 16, bits: 9 }).map((code) => Math.min(255, code));
    expect(await call("Shiftmax", feeds, T.UINT8)).toEqual([...want]);
  });
});

test("what has no integer form, and missing data, is said", async () => {
  const lonely = encode(
    model(
      graph({
        input: [value("x", T.FLOAT, [1, 4])],
        output: [value("y", T.FLOAT, [])],
        node: [node("InstanceNormalization", ["x", "s", "s"], ["y"], {})],
        initializer: [raw("s", [4], new Float32Array(4))],
      }),
    ),
  );
  await expect(integerOnly(lonely, { calibration: [] })).rejects.toThrow(/InstanceNormalization .*Export the model unfused/);
  await expect(integerOnly(lonely, {} as never)).rejects.toThrow(/expected calibration data/);
  await expect(integerOnly(lonely, { calibration: [], functions: "exact" as never })).rejects.toThrow(/"table" or "shift"/);
  await expect(integerOnly(lonely, { calibration: [], headroom: 0 })).rejects.toThrow(/1 to 100/);
});
