// Caches of fewer bits: rows written as documented, code for code; attention over them against binary64 on what the
// codes stand for, within bounds computed from the roundings that are documented (a query and a block's weights to 16
// bits); every kind of keys with every kind of values; extremes; one thread and two.
import { describe, expect, it } from "vitest";
import { float16 } from "../../../../formats/float16.ts";
import { attention, attentionJob } from "../../../../kernels/wasm/nn/attention.ts";
import { append, appendJob, cacheRowBytes, hasScales, type CacheKind, type ValueKind } from "../../../../kernels/wasm/nn/cache.ts";
import type { EngineMemory } from "../../../../src/backends/wasm/memory.ts";
import { random } from "../../../helpers/random.ts";
import { memories, runOn } from "./bench.ts";

const all = memories();
const rng = random(37);
const normal = (n: number, size = 1): Float32Array => Float32Array.from({ length: n }, () => rng.normal() * size);
const f = Math.fround;
/** Half to even. */
const round = (x: number): number => (Math.abs(x % 1) === 0.5 ? 2 * Math.round(x / 2) : Math.round(x));
const bits = (x: number): number => new Int32Array(Float32Array.of(x).buffer)[0];
const fromBits = (x: number): number => new Float32Array(Int32Array.of(x).buffer)[0];

interface Row {
  readonly codes: number[];
  readonly word: number;
  /** What the codes stand for. */
  readonly values: number[];
  readonly scale: number;
}

/** A row as cache.ts documents it. */
function encode(kind: CacheKind, x: readonly number[]): Row {
  if (kind === "float32") return { codes: [], word: 0, values: [...x], scale: 1 };
  if (kind === "float16") {
    const codes = x.map((v) => float16.encode(v, { overflow: "inf" }));
    return { codes, word: 0, values: codes.map((c) => float16.decode(c)), scale: 1 };
  }
  if (kind === "int8") {
    const scale = f(Math.max(...x.map(Math.abs)) / 127);
    const codes = x.map((v) => Math.max(-127, Math.min(127, round(f(v / scale)) || 0)));
    return { codes, word: bits(scale), values: codes.map((c) => c * scale), scale };
  }
  if (kind === "int4_halves") {
    const first = { 16: 16, 32: 16, 48: 32, 64: 32, 80: 48, 128: 64 }[x.length]!;
    const halves = [x.slice(0, first), x.slice(first)].map((half) => four(half, (scale) => scale & 0x7ff80000));
    const word = halves.reduce((all, { scale, zero }, i) => all | (((bits(scale) >>> 15) | zero) << (16 * i)), 0);
    return { codes: halves.flatMap(({ codes }) => codes), values: halves.flatMap(({ values }) => values), word, scale: NaN };
  }
  const { zero, ...row } = four(x, (scale) => (scale + 8) & -16);
  return { ...row, word: bits(row.scale) | zero };
}

/** Codes of 4 bits around a zero point; `kept`: the bits of the scale that are kept. */
function four(x: readonly number[], kept: (scale: number) => number): Omit<Row, "word"> & { readonly zero: number } {
  const [most, least] = [Math.max(0, ...x), Math.min(0, ...x)];
  const scale = fromBits(kept(bits(f(f(most * f(1 / 15)) - f(least * f(1 / 15))))));
  const zero = Math.min(15, round(f(-least / scale)) || 0);
  const codes = x.map((v) => Math.max(0, Math.min(15, (round(f(v / scale)) || 0) + zero)));
  return { codes, zero, values: codes.map((c) => (c - zero) * scale), scale };
}

/** The bytes of codes. */
function pack(kind: CacheKind, x: readonly number[], { codes }: Row): Uint8Array {
  if (kind === "float32") return new Uint8Array(Float32Array.from(x).buffer);
  if (kind === "float16") return new Uint8Array(Uint16Array.from(codes).buffer);
  if (kind === "int8") return new Uint8Array(Int8Array.from(codes).buffer);
  return Uint8Array.from(
    { length: codes.length / 2 },
    (_, i) => codes[16 * (i >> 3) + (i & 7)] | (codes[16 * (i >> 3) + (i & 7) + 8] << 4),
  );
}

const KINDS = ["float16", "int8", "int4"] as const;
const KEY_KINDS = [...KINDS, "int4_halves"] as const;

describe("append", () => {
  it.each(KEY_KINDS)("%s: codes and words are those documented, into a cache [head][token]", (kind) => {
    for (const memory of all)
      for (const width of [16, 48, 80, 128])
        for (const size of [1, 1e-6, 3e4]) {
          const [tokens, heads, capacity, first] = [5, 3, 9, 2];
          const x = normal(tokens * heads * width, size);
          x.fill(0, 0, width);
          x.fill(-2.5 * size, width, 2 * width);
          x[2 * width] = 40 * size;
          const bytes = cacheRowBytes(kind, width);
          const spec = { kind, shared: memory.shared };
          const [, codes, words] = runOn(memory, append, spec, [x, new Float32Array((heads * capacity * bytes) / 4).fill(7), new Float32Array(heads * capacity).fill(7)], (at) =>
            appendJob({ tokens, heads, width, x: { address: at[0], outer: 4 * heads * width, inner: 4 * width },
              y: { address: at[1] + first * bytes, outer: bytes, inner: capacity * bytes }, scales: { address: at[2] + 4 * first, outer: 4, inner: 4 * capacity } }, spec),
          );
          for (let h = 0; h < heads; h++)
            for (let t = 0; t < capacity; t++) {
              const got = new Uint8Array(codes.buffer, (h * capacity + t) * bytes, bytes);
              const word = new Int32Array(words.buffer)[h * capacity + t];
              if (t < first || t >= first + tokens) {
                expect([...new Float32Array(codes.buffer, (h * capacity + t) * bytes, bytes / 4)].every((v) => v === 7)).toBe(true);
                expect(word).toBe(bits(7));
                continue;
              }
              const at = ((t - first) * heads + h) * width;
              const row = [...x.subarray(at, at + width)];
              const expected = encode(kind, row);
              expect([...got], `${width} ${size} head ${h} token ${t}`).toEqual([...pack(kind, row, expected)]);
              expect(word).toBe(hasScales(kind) ? expected.word : bits(7));
            }
        }
  }); // prettier-ignore

  it("float16: every exponent, ties, subnormals, infinities and NaN", () => {
    const x = Float32Array.from({ length: 4096 }, (_, i) => {
      const value = fromBits(((i * 0x000ff801) ^ (i << 12)) | 0);
      return i % 64 === 0 ? [0, -0, Infinity, -Infinity, NaN, 65504, 65519.99, 65520, 2 ** -24, 2 ** -25, 3 * 2 ** -25, 2 ** -14, -(2 ** -26)][(i / 64) % 13] : value;
    });
    for (const memory of all) {
      const spec = { kind: "float16", shared: memory.shared } as const;
      const [, y] = runOn(memory, append, spec, [x, new Float32Array(2048)], (at) =>
        appendJob({ tokens: 64, heads: 1, width: 64, x: { address: at[0], outer: 256, inner: 0 }, y: { address: at[1], outer: 128, inner: 0 } }, spec),
      );
      const codes = new Uint16Array(y.buffer);
      x.forEach((v, i) => {
        if (Number.isNaN(v)) expect(codes[i] & 0x7fff).toBeGreaterThan(0x7c00);
        else expect(codes[i], String(v)).toBe(float16.encode(v, { overflow: "inf" }));
      });
    }
  }); // prettier-ignore

  it("refuses heads that it does not hold", () => {
    const rows = { address: 64, outer: 0, inner: 0 };
    expect(() => appendJob({ tokens: 1, heads: 1, width: 20, x: rows, y: rows }, { kind: "int8", shared: false })).toThrow(
      "multiple of 16",
    );
  });
});

interface Case {
  readonly k: CacheKind;
  readonly v: ValueKind;
  readonly head: number;
  readonly group: number;
  readonly tokens: number;
  readonly keys: number;
  readonly window?: number;
  readonly cap?: number;
  readonly mask?: boolean;
  readonly sink?: boolean;
}

/** Runs a case and compares it with binary64 on the cache's values. `spoil` changes queries, keys and values first. */
function check(memory: EngineMemory, c: Case, size: number, spoil?: (q: Float32Array, k: Float32Array, v: Float32Array) => void): Float32Array {
  const [kvHeads, capacity] = [2, c.keys + 1];
  const heads = kvHeads * c.group;
  const scale = f(1 / Math.sqrt(c.head));
  const [q, k, v] = [normal(c.tokens * heads * c.head, size), normal(kvHeads * capacity * c.head), normal(kvHeads * capacity * c.head)];
  spoil?.(q, k, v);
  const mask = normal(c.tokens * c.keys).map((m) => (m > 0.8 ? -Infinity : m));
  const sink = normal(heads);
  const side = (kind: CacheKind, x: Float32Array) => {
    const rows = Array.from({ length: kvHeads * capacity }, (_, i) => [...x.subarray(i * c.head, (i + 1) * c.head)]);
    const encoded = rows.map((row) => encode(kind, row));
    const bytes = Buffer.concat(rows.map((row, i) => pack(kind, row, encoded[i])));
    return { encoded, codes: new Float32Array(Uint8Array.from(bytes).buffer), words: new Float32Array(Int32Array.from(encoded, ({ word }) => word).buffer) };
  };
  const [ks, vs] = [side(c.k, k), side(c.v, v)];
  // the token behind the last is never read
  const spec = { head: c.head, softcap: c.cap !== undefined, mask: c.mask === true, k: c.k, v: c.v, relaxed: memory.features.relaxed, shared: memory.shared };
  const place = (address: number, kind: CacheKind) => ({ address, token: cacheRowBytes(kind, c.head), head: cacheRowBytes(kind, c.head) * capacity });
  const row = (address: number) => ({ address, token: 4 * heads * c.head, head: 4 * c.head });
  const got = runOn(memory, attention, spec, [q, ks.codes, ks.words, vs.codes, vs.words, mask, sink, new Float32Array(q.length).fill(NaN)], (at) =>
    attentionJob({ ...c, kvHeads, causal: true, scale, q: row(at[0]), y: row(at[7]), k: place(at[1], c.k), v: place(at[3], c.v),
      kScales: { address: at[2], head: 4 * capacity }, vScales: { address: at[4], head: 4 * capacity },
      mask: c.mask ? { address: at[5], token: 4 * c.keys, head: 0 } : undefined, sink: c.sink ? at[6] : undefined }, spec),
  )[7];
  if (spoil !== undefined) return got;
  for (let t = 0; t < c.tokens; t++)
    for (let n = 0; n < heads; n++) {
      const base = Math.floor(n / c.group) * capacity;
      const [high, low] = [c.keys - c.tokens + t + 1, c.window ? Math.max(0, c.keys - c.tokens + t + 1 - c.window) : 0];
      const query = [...q.subarray((t * heads + n) * c.head, (t * heads + n + 1) * c.head)];
      const unit = hasScales(c.k) ? Math.max(...query.map(Math.abs)) / 32767 : 0;
      let slack = 0;
      const scores: number[] = [];
      for (let j = low; j < high; j++) {
        const key = ks.encoded[base + j].values;
        const [sum, sizes] = key.reduce(([a, b], value, i) => [a + value * query[i], b + Math.abs(value)], [0, 0]);
        slack = Math.max(slack, scale * sizes * (0.51 * unit + 1e-6 * size));
        let s = sum * scale;
        if (c.cap) s = c.cap * Math.tanh(s / c.cap);
        if (c.mask) s = f(s + mask[t * c.keys + j]);
        scores.push(s);
      }
      const most = Math.max(...scores, c.sink ? sink[n] : -Infinity);
      const weights = scores.map((s) => (most === -Infinity ? 0 : Math.exp(s - most)));
      const total = weights.reduce((a, b) => a + b, c.sink ? Math.exp(sink[n] - most) : 0);
      const largest = Math.max(0, ...weights.map((w, j) => (w / (total || 1)) * (hasScales(c.v) ? vs.encoded[base + low + j].scale : 0)));
      const codes = c.v === "int8" ? 127 : 15;
      for (let i = 0; i < c.head; i++) {
        let [sum, size] = [0, 0];
        weights.forEach((w, j) => {
          const value = vs.encoded[base + low + j].values[i];
          if (w > 0) sum += (w / total) * value;
          size = Math.max(size, Math.abs(value));
        });
        const bound = (Math.exp(2 * slack) - 1 + 4e-6) * size + (c.keys * 0.51 * largest * codes * Math.exp(2 * slack)) / 32767;
        const y = got[(t * heads + n) * c.head + i];
        if (!(Math.abs(y - sum) <= bound)) throw new Error(`${JSON.stringify(c)} size ${size} token ${t} head ${n} at ${i}: expected ${sum} within ${bound}, got ${y}`);
      }
    }
  return got;
} // prettier-ignore

const PAIRS = (["float32", ...KEY_KINDS] as const).flatMap((k) => (["float32", ...KINDS] as const).map((v) => ({ k, v }))).slice(1);

describe("attention over a cache", () => {
  it.each(PAIRS)("keys $k, values $v", (kinds) => {
    for (const memory of all)
      for (const [head, group, tokens, keys, more] of [
        [16, 1, 1, 1, {}],
        [64, 2, 1, 63, {}],
        [48, 2, 1, 130, { window: 17 }],
        [80, 3, 1, 66, { cap: 2, sink: true }],
        [32, 2, 7, 71, { mask: true }],
        [16, 3, 20, 85, { window: 30, cap: 3, mask: true, sink: true }],
      ] as const)
        for (const size of tokens === 1 ? [1] : [5]) check(memory, { ...kinds, head, group, tokens, keys, ...more }, size);
  });

  it("extreme scores, a row of zeros, NaN where it was seen", () => {
    for (const memory of all)
      for (const kinds of PAIRS) {
        const c: Case = { ...kinds, head: 32, group: 2, tokens: 1, keys: 70 };
        // scores of some 1e4: one key takes all
        const one = check(memory, c, 1, (q, k) => {
          q.fill(300);
          k.fill(0);
          k.fill(8, 5 * 32, 6 * 32);
          k.fill(8, (71 + 5) * 32, (71 + 6) * 32);
        });
        expect(one.every(Number.isFinite)).toBe(true);
        // values of zeros, queries of zeros: means
        const zero = check(memory, c, 1, (q, _, v) => {
          q.fill(0);
          v.fill(0);
        });
        expect(zero.every((y) => y === 0)).toBe(true);
        const seen = check(memory, c, 1, (q) => q.fill(NaN, 0, 32));
        expect(seen.subarray(0, 32).every(Number.isNaN)).toBe(true);
        expect(seen.subarray(32).every(Number.isFinite)).toBe(true);
      }
  });
});
