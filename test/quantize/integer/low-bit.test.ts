// Low-bit activations and products without multiplications: splits are exact, logarithmic codes round in the logarithm,
// packed products of the same formats give the references' integers.
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { decodeArray, encodeArray, format } from "../../../formats/index.ts";
import { prepareMatmul, quantize, tensor, wasm } from "../../../src/index.ts";
import {
  absmeanTernary,
  gaussian,
  hammingScores,
  log2Format,
  outlierSplit,
  packSigns,
  planMixture,
  quantizeTokens,
  seededRandom,
  shiftProduct,
  splitOutliers,
  ternaryProduct,
} from "../../../src/quantize/index.ts";

const multiply = (x: ArrayLike<number>, w: ArrayLike<number>, m: number, n: number, k: number): number[] =>
  Array.from({ length: m * n }, (_, at) => {
    const [r, j] = [Math.floor(at / n), at % n];
    let sum = 0;
    for (let i = 0; i < k; i++) sum += x[r * k + i] * w[j * k + i];
    return sum;
  });

const int8s = (count: number): fc.Arbitrary<Int8Array> => fc.int8Array({ minLength: count, maxLength: count, min: -127, max: 127 });

describe("outliers and blocks", () => {
  test("the two products of a split add up to the whole one", () => {
    const [m, n, k] = [3, 4, 20];
    fc.assert(
      fc.property(int8s(m * k), int8s(n * k), fc.integer({ min: 1, max: 127 }), (x, w, limit) => {
        const { inliers, channels, outliers } = splitOutliers(x, k, limit);
        expect(inliers.every((code) => Math.abs(code) <= limit)).toBe(true);
        const some = Array.from({ length: n }, (_, j) => Array.from(channels, (c) => w[j * k + c])).flat();
        const rest = multiply(outliers, some, m, n, channels.length);
        expect(multiply(inliers, w, m, n, k).map((v, i) => v + rest[i])).toEqual(multiply(x, w, m, n, k));
      }),
      { seed: 12, numRuns: 60 },
    );
    expect(splitOutliers(Int8Array.of(1, -7, 7, 0), 2).channels).toHaveLength(0);
    expect(() => splitOutliers(new Int8Array(3), 2)).toThrow(/rows of 2/);
    expect(() => splitOutliers(new Int8Array(2), 2, 0)).toThrow(/1 to 127/);
  });

  test("8 outlier channels of 4096 lie in one of 32 blocks: 97 % of them have 4 bits", () => {
    const random = seededRandom(8);
    const magnitudes = Float64Array.from({ length: 4096 }, (_, i) => (i % 512 === 77 ? 60 : 1) * (1 + random()));
    const blocks = outlierSplit(magnitudes);
    expect(blocks).toMatchObject({ block: 128, wideBlocks: 1, wide: 128 });
    expect([...blocks.order].sort((a, b) => a - b)).toEqual(Array.from({ length: 4096 }, (_, i) => i));
    expect([...blocks.order.subarray(0, 8)].every((channel) => channel % 512 === 77)).toBe(true);
  });
});

describe("codes of activations", () => {
  test("a token's largest magnitude is the last code", () => {
    const { codes, scales } = quantizeTokens(Float32Array.of(0.5, -2, 1, 0, 0, 0), 3, 4);
    expect([...codes]).toEqual([2, -7, 3, 0, 0, 0]);
    expect([...scales]).toEqual([Math.fround(2 / 7), 0]);
    expect(() => quantizeTokens(Float32Array.of(1, NaN), 2)).toThrow(/row 0/);
    expect(() => quantizeTokens(Float32Array.of(1), 1, 9)).toThrow(/2 to 8/);
  });

  test.each([2, 3, 4] as const)("log2 of %d bits rounds the logarithm", (bits) => {
    const log2 = log2Format(bits);
    const x = Float32Array.from({ length: 5000 }, (_, i) => (i + 0.5) / 5000);
    const values = decodeArray(log2, encodeArray(log2, x), new Float64Array(x.length));
    for (let i = 0; i < x.length; i++) {
      const q = Math.min(2 ** bits - 1, Math.max(0, Math.round(-Math.log2(x[i]))));
      if (values[i] !== 2 ** -q) throw new Error(`${x[i]}: expected 2^-${q}, got ${values[i]}`);
    }
    expect(() => log2Format(5 as 4)).toThrow(/2 to 4/);
  });

  test("products with int4 and int6 activations are the reference's, W4A4, W6A6, W6A8", async () => {
    const random = gaussian(seededRandom(6));
    const backend = await wasm();
    const [m, n, k] = [5, 19, 96];
    const x = Float32Array.from({ length: m * k }, random);
    for (const [name, activations] of [
      ["int4_b32", "int4"],
      ["int6_b32", "int6"],
      ["int6_b32", "int8"],
    ] as const) {
      const w = quantize(tensor(Float32Array.from({ length: n * k }, random), [n, k]), format(name));
      const layer = prepareMatmul(w, { backend, activations });
      const [got, want] = [layer.run(x, m), prepareMatmul(w, { backend: "reference", activations }).run(x, m)];
      got.forEach((v, i) => expect(Math.abs(v - want[i])).toBeLessThan(1e-4 * (1 + Math.abs(want[i]))));
      expect(layer.explain().activations).toBe(activations);
      const exact = prepareMatmul(w, { backend: "reference" }).run(x, m);
      // 7 codes on each side are seen
      expect(Math.max(...exact.map((v, i) => Math.abs(v - want[i])))).toBeGreaterThan(activations === "int4" ? 0.1 : 1e-3);
    }
    backend.dispose();
  });
});

describe("rotation of activations on the way", () => {
  test("is that of fwht before the product, bit for bit, and leaves rotated weights their product", async () => {
    const random = gaussian(seededRandom(11));
    const backend = await wasm();
    const [m, n, k, size] = [5, 18, 256, 64];
    const x = Float32Array.from({ length: m * k }, (_, i) => random() * (i % 64 === 9 ? 40 : 1));
    const w = Float32Array.from({ length: n * k }, random);
    const turned = quantize(tensor(backend.fwht(w.slice(), size), [n, k]), format("int8_b64"));
    for (const activations of ["int4", "int8"] as const) {
      const layer = prepareMatmul(turned, { backend, activations, hadamard: size });
      const y = layer.run(x, m);
      expect(y).toEqual(prepareMatmul(turned, { backend, activations }).run(backend.fwht(x.slice(), size), m));
      const reference = prepareMatmul(turned, { backend: "reference", activations, hadamard: size }).run(x, m);
      const exact = multiply(x, w, m, n, k);
      const error = (of: Float32Array): number =>
        Math.sqrt(of.reduce((sum, v, i) => sum + (v - exact[i]) ** 2, 0) / exact.reduce((sum, v) => sum + v * v, 0));
      const plain = prepareMatmul(quantize(tensor(w, [n, k]), format("int8_b64")), { backend, activations }).run(x, m);
      expect(error(reference)).toBeCloseTo(error(y), 2);
      if (activations === "int4") expect(error(y)).toBeLessThan(error(plain) / 1.2);
    }
    expect(() => prepareMatmul(turned, { backend, activations: "int8", hadamard: 96 })).toThrow(/power of two/);
    expect(() => prepareMatmul(turned, { backend, hadamard: 64 })).toThrow(/integer activations/);
    backend.dispose();
  });
});

describe("without multiplications", () => {
  const integers = (count: number, seed: number, most = 127): Int8Array => {
    const random = seededRandom(seed);
    return Int8Array.from({ length: count }, () => Math.floor(random() * (2 * most + 1)) - most);
  };
  const [m, n, k] = [6, 21, 64];
  /** Rows with a code of 127 in every block of 32: their activation scale is 1. */
  const rows = (): Int8Array => integers(m * k, 3).map((code, i) => (i % 32 === 0 ? 127 : code));

  test("powers of two: shifts, and the packed product of float4_e3m0, bit for bit", async () => {
    const x = rows();
    const codes = integers(n * k, 4, 7);
    const w = { n, k, signs: codes.map(Math.sign), exponents: Uint8Array.from(codes, (code) => Math.max(0, Math.abs(code) - 1)) };
    // 2^0 to 2^6 over a scale of 4: the values of float4_e3m0 are 2^-2 to 2^4
    const values = Float32Array.from(codes, (_, i) => w.signs[i] * 2 ** w.exponents[i]);
    const packed = quantize(tensor(values.map((v) => v / 4), [n, k]), format("float4_e3m0")); // prettier-ignore
    const want = shiftProduct(x, m, w);
    expect([...want]).toEqual(multiply(x, values, m, n, k));
    const backend = await wasm();
    const layer = prepareMatmul(packed, { backend, activations: "int8" });
    expect([...layer.run(Float32Array.from(x), m)].map((v) => 4 * v)).toEqual([...want]);
    backend.dispose();
    expect(() => shiftProduct(x, m + 1, w)).toThrow(/expected \[7, 64\]/);
    expect(() => shiftProduct(x, m, { ...w, exponents: w.exponents.map(() => 16) })).toThrow(/0 to 15/);
  });

  test("ternary: additions, and the packed product, bit for bit", async () => {
    const x = rows();
    const random = gaussian(seededRandom(5));
    const floats = Float32Array.from({ length: n * k }, random);
    const packed = absmeanTernary(tensor(floats, [n, k]));
    const gamma = floats.reduce((sum, v) => sum + Math.abs(v), 0) / floats.length;
    const scale = new Float32Array(packed.scales!.slice().buffer)[0];
    expect(scale).toBeCloseTo(gamma, 5);
    const codes = Int8Array.from(floats, (v) => Math.max(-1, Math.min(1, Math.round(v / scale))));
    const want = ternaryProduct(x, m, codes, n, k);
    expect([...want]).toEqual(multiply(x, codes, m, n, k));
    const backend = await wasm();
    const got = prepareMatmul(packed, { backend, activations: "int8" }).run(Float32Array.from(x), m);
    got.forEach((v, i) => expect(Math.round(v / scale)).toBe(want[i]));
    backend.dispose();
  });

  test("Hamming scores are products of signs", () => {
    const random = gaussian(seededRandom(9));
    const d = 70;
    const [q, keys] = [4, 5].map((count) => Float32Array.from({ length: count * d }, random));
    const sign = (v: number): number => (v < 0 ? -1 : 1);
    expect([...hammingScores(packSigns(q, d), packSigns(keys, d), d)]).toEqual(multiply(q.map(sign), keys.map(sign), 4, 5, d));
    expect(() => packSigns(q, 71)).toThrow(/rows of 71/);
    expect(() => hammingScores(new Uint32Array(4), new Uint32Array(3), d)).toThrow(/rows of 3 words/);
  });

  test("a mixture is the fastest within its loss", () => {
    const of = (...list: [string, number, number][]) => list.map(([name, ms, loss]) => ({ name, ms, loss }));
    const layers = new Map([
      ["a", of(["multiply", 4, 0], ["shift", 2, 0.1], ["add", 1, 0.5])],
      ["b", of(["multiply", 8, 0], ["shift", 7, 0.1])],
    ]);
    const names = (maxLoss?: number) =>
      [...planMixture(layers, maxLoss === undefined ? {} : { maxLoss }).chosen.values()].map(({ name }) => name);
    expect(names()).toEqual(["add", "shift"]);
    expect(names(0.1)).toEqual(["shift", "multiply"]);
    expect(names(0.2)).toEqual(["shift", "shift"]);
    expect(names(0)).toEqual(["multiply", "multiply"]);
    expect(() => planMixture(new Map([["a", of(["add", 1, 2])]]), { layerLoss: 1 })).toThrow(/Raise layerLoss/);
    expect(() => planMixture(new Map([["a", []]]))).toThrow(/a latency and a loss/);
  });
});
