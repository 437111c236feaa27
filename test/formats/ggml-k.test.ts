// The k-quant encoders against the reference's rule: no block is worse, and every block that it stores is stored.
import { readFileSync } from "node:fs";
import { describe, expect, it, test } from "vitest";
import { half } from "../../formats/define/ggml-k.ts";
import { format, type NumberFormat, type OpaqueFormat } from "../../formats/index.ts";
import { gaussian, seededRandom } from "../../src/quantize/index.ts";
import { referenceQ4K, referenceQ6K } from "../oracle/ggml-k.ts";

const q4k = format("ggml_q4_k") as OpaqueFormat;
const q6k = format("ggml_q6_k") as OpaqueFormat;
const squaredError = (x: Float32Array, y: ArrayLike<number>) => x.reduce((s, v, i) => s + (v - y[i]) ** 2, 0);

/** Blocks of one sign, far from zero, of runs of very different size, sparse, constant, tiny and huge. */
const kinds: Record<string, (i: number, random: () => number) => number> = {
  "below zero, far": (i) => -100 - (i % 16),
  "above zero, far": (i) => 100 + (i % 16),
  "negative noise": (_, random) => -1 - random(),
  "positive noise": (_, random) => 1 + random(),
  normal: (_, random) => random() + random() + random() - 1.5,
  "runs of different size": (i, random) => (random() - 0.5) * 10 ** (i >> 5),
  "one far run": (i, random) => (i < 32 ? -1000 + random() : random() - 0.5),
  "signs by run": (i, random) => ((i >> 5) % 2 ? 1 : -1) * (3 + random()),
  sparse: (_, random) => (random() < 0.05 ? random() * 8 - 4 : 0),
  constant: (i) => -((i >> 5) + 1),
  tiny: (_, random) => (random() - 0.5) * 1e-6,
  huge: (_, random) => (random() - 0.5) * 4e6,
};

describe.each([
  ["ggml_q4_k", q4k, referenceQ4K],
  ["ggml_q6_k", q6k, referenceQ6K],
] as const)("%s", (_, f, reference) => {
  it.each(Object.keys(kinds))("%s: never worse than the reference's rule", (kind) => {
    const random = seededRandom(11);
    for (let n = 0; n < 8; n++) {
      const x = Float32Array.from({ length: 256 }, (_, i) => kinds[kind](i, random));
      const want = reference(x);
      if (want === null) {
        expect(() => f.encodeBytes(x)).toThrow(expect.objectContaining({ code: "E_VALUE" }));
        continue;
      }
      const power = x.reduce((s, v) => s + v * v, 0);
      // the oracle's values are not rounded to float32
      expect(squaredError(x, f.decodeBytes(f.encodeBytes(x)))).toBeLessThanOrEqual(squaredError(x, want) * (1 + 1e-6) + power * 1e-13);
    }
  });
});

test.each([
  ["ggml_q4_k", q4k, referenceQ4K],
  ["ggml_q6_k", q6k, referenceQ6K],
] as const)("%s: no block of weights is worse, whatever their size", (_, f, reference) => {
  const random = seededRandom(5);
  const normal = gaussian(seededRandom(6));
  for (let n = 0; n < 100; n++) {
    const size = 10 ** (random() * 6 - 4);
    const x = Float32Array.from({ length: 256 }, () => size * normal());
    const [own, want] = [f.decodeBytes(f.encodeBytes(x)), Float32Array.from(reference(x)!)];
    expect(squaredError(x, own)).toBeLessThanOrEqual(squaredError(x, want) * (1 + 1e-7));
  }
});

test("half is the float16 format's, and never zero", () => {
  const float16 = format("float16") as NumberFormat;
  const random = seededRandom(7);
  const values = Array.from({ length: 4000 }, () => (random() - 0.5) * 2 ** (60 * random() - 40));
  for (let code = 1; code < 0x7bff; code += 7) values.push((float16.decode(code) + float16.decode(code + 1)) / 2, float16.decode(code));
  for (const v of values) {
    const want = float16.decode(float16.encode(v, { overflow: "saturate" }));
    expect(half(v)).toBe(want === 0 ? Math.sign(v) * 2 ** -24 : want);
  }
  expect(half(0)).toBe(0);
});

test("stores what the reference stores: zeros with one -4e6", () => {
  const x = new Float32Array(256);
  x[77] = -4e6;
  const back = q4k.decodeBytes(q4k.encodeBytes(x));
  expect(Math.abs(back[77] / -4e6 - 1)).toBeLessThan(0.01);
});

describe("against what ggml's quantizers wrote", () => {
  // values, an importance for each, and the bytes of quantize_* without and with it (ggml-quants.c, August 2026)
  const fixture = JSON.parse(readFileSync(new URL("../fixtures/ggml/encode.json", import.meta.url), "utf8")) as {
    x: string;
    importance: string;
  } & Record<string, { plain: string; weighted: string }>;
  const bytes = (text: string) => new Uint8Array(Buffer.from(text, "base64"));
  const floats = (text: string) => new Float32Array(bytes(text).buffer);
  const [x, importance] = [floats(fixture.x), floats(fixture.importance)];
  const weighted = (y: ArrayLike<number>, w?: Float32Array) => x.reduce((s, v, i) => s + (w?.[i] ?? 1) * (v - y[i]) ** 2, 0);

  test.each(["q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_xs"])("%s: less error, with and without importance", (name) => {
    const f = format(`ggml_${name}`) as OpaqueFormat;
    const [plain, given] = [f.encodeBytes(x), f.encodeBytes(x, importance)].map((b) => f.decodeBytes(b));
    expect(weighted(plain)).toBeLessThanOrEqual(weighted(f.decodeBytes(bytes(fixture[name].plain))));
    expect(weighted(given, importance)).toBeLessThanOrEqual(weighted(f.decodeBytes(bytes(fixture[name].weighted)), importance));
    expect(weighted(given, importance)).toBeLessThan(weighted(plain, importance));
  });

  test("an importance that fits no data is refused", () => {
    expect(() => q4k.encodeBytes(x, importance.subarray(1))).toThrow(expect.objectContaining({ code: "E_SHAPE" }));
    expect(() =>
      q4k.encodeBytes(
        x,
        importance.map((v, i) => (i === 9 ? -v : v)),
      ),
    ).toThrow(expect.objectContaining({ code: "E_VALUE" }));
    expect(() => q4k.encodeBytes(x, [...importance] as never)).toThrow(TypeError);
  });
});
