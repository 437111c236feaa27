// Blocks known by their bytes: each by itself, signs and trits by their formulas, ends of the range.
import { expect, test } from "vitest";
import { midpoints, nearest16 } from "../../formats/define/ggml-search.ts";
import { allFormats, float16, format, type OpaqueFormat } from "../../formats/index.ts";
import { random } from "../helpers/random.ts";

const opaque = (name: string) => format(name) as OpaqueFormat;
const relative = (x: Float32Array, dq: Float32Array) => x.reduce((s, v, i) => s + (v - dq[i]) ** 2, 0) / x.reduce((s, v) => s + v * v, 0);

test("blocks side by side do not see each other", () => {
  const rng = random(21);
  for (const f of allFormats) {
    if (f.kind !== "opaque") continue;
    const small = Float32Array.from({ length: f.blockSize }, () => rng.normal());
    const large = small.map((v, j) => (j === 0 ? 1000 : 30 * v));
    const both = f.encodeBytes(Float32Array.of(...small, ...large, ...small));
    const alone = [small, large, small].map((x) => [...f.encodeBytes(x)]);
    expect([...both], f.name).toEqual(alone.flat());
  }
});

test("signs and trits by their formulas: q1_0, q2_0", () => {
  const rng = random(22);
  for (let round = 0; round < 40; round++) {
    const x = Float32Array.from({ length: 128 }, (_, j) => (j % 9 === 4 ? (round % 2 ? 0 : -0) : rng.normal()));
    let sum = 0;
    for (const v of x) sum = Math.fround(sum + Math.abs(v));
    const mean = float16.decode(float16.encode(Math.fround(sum / 128)));
    expect([...opaque("ggml_q1_0").decodeBytes(opaque("ggml_q1_0").encodeBytes(x))]).toEqual([...x].map((v) => (v >= 0 ? mean : -mean)));
    const pairs = x.subarray(0, 64);
    const top = pairs.reduce((m, v) => Math.max(m, Math.abs(v)), 0);
    const id = Math.fround(1 / top);
    const trits = [...pairs].map((v) => Math.sign(v) * Math.floor(Math.abs(Math.fround(v * id)) + 0.5));
    const d = float16.decode(float16.encode(top));
    expect([...opaque("ggml_q2_0").decodeBytes(opaque("ggml_q2_0").encodeBytes(pairs))].map((v) => v + 0)).toEqual(
      trits.map((t) => t * d + 0),
    );
  }
});

test("the nearest of 16 levels, halves upwards", () => {
  const levels = Float64Array.from({ length: 16 }, (_, i) => i ** 2 - 60);
  const bounds = midpoints(levels);
  bounds.forEach((bound, i) => {
    for (const [v, want] of [
      [bound, i + 1],
      [bound - 1e-9, i],
      [levels[i], i],
    ])
      expect([v, nearest16(bounds, v)]).toEqual([v, want]);
  });
  expect([nearest16(bounds, -1e9), nearest16(bounds, 1e9)]).toEqual([0, 15]);
});

test("ends of the range: blocks whose largest value is one, and values near the largest float32", () => {
  for (const name of ["olive4_b16", "olive8_b16"]) {
    const fmt = opaque(name);
    const ones = Float32Array.from({ length: 16 }, (_, i) => (i % 3) - 1);
    const dq = fmt.decodeBytes(fmt.encodeBytes(ones));
    expect(relative(ones, dq), name).toBeLessThan(0.02);
    const most = 3.4028234663852886e38;
    for (const x of [new Float32Array(16).fill(most), ones.map((v) => v * most), ones.map((v, i) => (i === 4 ? -most : v))]) {
      const back = fmt.decodeBytes(fmt.encodeBytes(x));
      expect([...back].every(Number.isFinite), name).toBe(true);
      expect(Math.abs(back[4] - x[4]) / most, name).toBeLessThan(0.3);
    }
  }
});
