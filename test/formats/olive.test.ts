// Outlier-victim pairs: every pair of codes against the wording, errors bounded, better than plain clipping, files and
// names.
import { describe, expect, test } from "vitest";
import { defineOlive, format, type OpaqueFormat } from "../../formats/index.ts";
import { dequantize, fromBytes, quantize, tensor, toBytes } from "../../src/index.ts";
import { awkwardBlock, random } from "../helpers/random.ts";

const opaque = (name: string) => format(name) as OpaqueFormat;
const relative = (x: Float32Array, dq: Float32Array) => x.reduce((s, v, i) => s + (v - dq[i]) ** 2, 0) / x.reduce((s, v) => s + v * v, 0);

/** The oracle: one slot of a pair, as the paper words it. */
function slot(code: number, other: number, bits: number): number {
  const identifier = 2 ** (bits - 1);
  if (code === identifier) return 0; // a victim
  if (other === identifier) {
    const m = bits === 4 ? 1 : 3;
    const magnitude = code % identifier;
    if (magnitude === 0) return 0;
    const exponent = Math.floor(magnitude / 2 ** m) + (bits === 4 ? 2 : 4);
    return (code >= identifier ? -1 : 1) * (2 ** m + (magnitude % 2 ** m)) * 2 ** exponent;
  }
  return code > identifier ? code - 2 * identifier : code;
}

describe.each([4, 8] as const)("olive%d", (bits) => {
  test("decodes every pair of codes", () => {
    const pairs = defineOlive({ name: `olive_pair${bits}`, bits, blockSize: 2 });
    const bytes = new Uint8Array(pairs.blockBytes);
    new DataView(bytes.buffer).setFloat32(0, 0.5, true);
    const n = 2 ** bits;
    let checked = 0;
    for (let a = 0; a < n; a++)
      for (let b = 0; b < n; b++) {
        if (bits === 4) bytes[4] = a | (b << 4);
        else bytes.set([a, b], 4);
        const [x, y] = pairs.decodeBytes(bytes);
        if (x + 0 !== slot(a, b, bits) / 2 + 0 || y + 0 !== slot(b, a, bits) / 2 + 0)
          throw new Error(`codes ${a}, ${b}: expected ${slot(a, b, bits) / 2}, ${slot(b, a, bits) / 2}, got ${x}, ${y}`);
        checked++;
      }
    expect(checked).toBe(n * n);
  });

  test("every pair is coded as well as its scale allows", () => {
    const fmt = opaque(`olive${bits}_b16`);
    const rng = random(bits);
    const values = Array.from({ length: 2 ** bits }, (_, c) => c);
    const normals = values.filter((c) => c !== 2 ** (bits - 1)).map((c) => slot(c, 0, bits));
    const outliers = values.map((c) => slot(c, 2 ** (bits - 1), bits)).filter((v) => Math.abs(v) < 2 ** 15);
    const nearest = (t: number, grid: number[]) => grid.reduce((m, g) => Math.min(m, (g - t) ** 2), Infinity);
    for (let i = 0; i < 300; i++) {
      const x = awkwardBlock(rng, 16, i);
      for (let n = i % 4; n > 0; n--) x[rng.integer(16)] *= 3 + rng.integer(30);
      const bytes = fmt.encodeBytes(x);
      const s = new DataView(bytes.buffer).getFloat32(0, true);
      const dq = fmt.decodeBytes(bytes);
      if (s === 0) expect([...dq].every((v) => v === 0)).toBe(true);
      else
        for (let j = 0; j < 16; j += 2) {
          const [a, b] = [x[j] / s, x[j + 1] / s];
          const best = Math.min(nearest(a, normals) + nearest(b, normals), nearest(a, outliers) + b * b, nearest(b, outliers) + a * a);
          const own = (dq[j] / s - a) ** 2 + (dq[j + 1] / s - b) ** 2;
          expect(own).toBeLessThanOrEqual(best * (1 + 1e-4) + 1e-6);
        }
    }
  });

  test("is a packed tensor, found by name, and survives its file", () => {
    const fmt = opaque(`olive${bits}`);
    expect([fmt.blockSize, fmt.blockBytes]).toEqual([128, 4 + 16 * bits]);
    expect(format(`olive${bits}_b128`)).toBe(fmt);
    expect(() => format(`olive${bits}_b63`)).toThrow(expect.objectContaining({ code: "E_FORMAT_UNKNOWN" }));
    const rng = random(2);
    const x = Float32Array.from({ length: 512 }, () => rng.normal());
    for (const f of [fmt, opaque(`olive${bits}_b32`)]) {
      const w = quantize(tensor(x, [2, 256]), f);
      expect(dequantize(fromBytes(toBytes(w)))).toEqual(dequantize(w));
    }
    expect(() => defineOlive({ bits, blockSize: 3 })).toThrow(expect.objectContaining({ code: "E_FORMAT" }));
    expect(() => fmt.decodeBytes(new Uint8Array(7))).toThrow(expect.objectContaining({ code: "E_SHAPE" }));
  });
});

test("Gaussian with 0.11 % outliers twelve times as large: 1.35e-2 with one scale per tensor, where clipped integers lose 0.102", () => {
  const rng = random(17);
  const n = 1 << 16;
  const x = Float32Array.from({ length: n }, () => rng.normal() * (rng.next() < 0.0011 ? 12 : 1));
  const perTensor = defineOlive({ name: "olive4_tensor", bits: 4, blockSize: n });
  const e = relative(x, perTensor.decodeBytes(perTensor.encodeBytes(x)));
  expect(e).toBeGreaterThan(1.35e-2 * 0.9);
  expect(e).toBeLessThan(1.35e-2 * 1.1);
  const clipped = Math.min(
    ...[2.5, 3, 4, 5, 6, 8].map((c) => {
      const s = c / 7;
      return relative(
        x,
        x.map((v) => Math.max(-7, Math.min(7, Math.round(v / s))) * s),
      );
    }),
  );
  expect(clipped).toBeGreaterThan(5 * e);
});
