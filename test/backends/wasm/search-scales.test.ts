// Encoders that search scales on kernels: the bytes of the plain loops, for every such format, with and without
// importance, on blocks of every kind.
import { describe, expect, test } from "vitest";
import { allFormats, type OpaqueFormat } from "../../../formats/index.ts";
import { wasm, quantize, tensor } from "../../../src/index.ts";
import { gaussian, seededRandom } from "../../../src/quantize/random.ts";

const backend = await wasm();
const { codec } = backend;
const formats = allFormats.filter((f): f is OpaqueFormat => f.kind === "opaque" && f.search !== undefined);

/** Blocks of normal values of many sizes, sparse, constant, of one sign, zero, with one far value, tiny. */
function blocks(): Float32Array {
  const normal = gaussian(seededRandom(3));
  const random = seededRandom(4);
  const kinds: ((i: number) => number)[] = [
    ...[1e-9, 1e-4, 0.02, 1, 300, 1e5].map((size) => () => size * normal()),
    () => (random() < 0.05 ? normal() : 0),
    (i) => (i >> 5) - 2.5,
    () => 1 + random(),
    () => -1 - random(),
    () => 0,
    () => -0,
    (i) => (i === 77 ? -4e5 : 0),
    (i) => (i < 16 ? 1e-30 : normal()),
    (i) => Math.fround(normal() * 10 ** ((i >> 4) - 12)),
    () => Math.round(4 * normal()),
  ];
  return Float32Array.from({ length: 256 * kinds.length }, (_, i) => kinds[i >> 8](i & 255));
}

describe.each(formats)("$name", (format) => {
  const x = blocks();
  const random = seededRandom(9);
  const importance = x.map((v, i) => (i % 50 === 0 ? 0 : random() * (1 + Math.min(1e6, v * v))));

  test("the same bytes as the plain loops", () => {
    expect(codec.encodeBlocks(format, x)).toEqual(format.encodeBytes(x));
    expect(codec.encodeBlocks(format, x, importance)).toEqual(format.encodeBytes(x, importance));
    expect(codec.encodeBlocks(format, x, new Float32Array(x.length))).toEqual(format.encodeBytes(x, new Float32Array(x.length)));
  });

  test("the same refusals", () => {
    const huge = new Float32Array(256).fill(3e38, 7, 9);
    for (const bad of [x.subarray(1), x.map((v, i) => (i === 300 ? NaN : v)), huge]) {
      const words = (encode: () => unknown): string => {
        try {
          encode();
        } catch (error) {
          return (error as Error).message;
        }
        return "none";
      };
      expect(words(() => codec.encodeBlocks(format, bad))).toBe(words(() => format.encodeBytes(bad)));
    }
  });
});

test("quantize takes the codec of its backend, rows of several blocks", () => {
  const normal = gaussian(seededRandom(8));
  const w = tensor(Float32Array.from({ length: 3 * 512 }, normal), [3, 512]);
  for (const format of allFormats)
    if (format.kind === "opaque" && 512 % format.blockSize === 0)
      expect(quantize(w, format, { backend }).codes, format.name).toEqual(quantize(w, format).codes);
});
