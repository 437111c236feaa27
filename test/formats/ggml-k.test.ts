// The k-quant encoders against the reference's rule: no block is worse, and every block that it stores is stored.
import { describe, expect, it, test } from "vitest";
import { format, type OpaqueFormat } from "../../formats/index.ts";
import { seededRandom } from "../../src/quantize/index.ts";
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
      // the reference in float32 and its oracle in float64 may part by the rounding of one value
      expect(squaredError(x, f.decodeBytes(f.encodeBytes(x)))).toBeLessThanOrEqual(squaredError(x, want) * (1 + 1e-6) + power * 1e-13);
    }
  });
});

test("stores what the reference stores: zeros with one -4e6", () => {
  const x = new Float32Array(256);
  x[77] = -4e6;
  const back = q4k.decodeBytes(q4k.encodeBytes(x));
  expect(Math.abs(back[77] / -4e6 - 1)).toBeLessThan(0.01);
});
