// Lossless bfloat16 tensors: every decoder gives the bits back, whatever they are, and products equal those of the
// decoded weight bit for bit. The oracle reads streams by a tree of its own.
import { describe, expect, it } from "vitest";
import fc from "fast-check";
import {
  losslessBits,
  losslessTensor,
  prepareLossless,
  prepareMatmul,
  unpackLossless,
  wasm,
  type LosslessTensor,
} from "../../src/index.ts";
import { gaussian } from "../../src/quantize/random.ts";
import { seededRandom } from "../../src/quantize/index.ts";

const bits = (n: number, seed: number, sigma = 0.02): Uint16Array => {
  const x = new Float32Array(n);
  const draw = gaussian(seededRandom(seed));
  for (let i = 0; i < n; i++) x[i] = sigma * draw();
  return Uint16Array.from(new Uint32Array(x.buffer), (v) => v >>> 16);
};

/** Decodes by a tree made of the lengths alone: leaves from left to right, short ones first (canonical order). */
function oracle(w: LosslessTensor): number[] {
  type Node = { symbol?: number; next: (Node | undefined)[] };
  const root: Node = { next: [] };
  const order = [...w.lengths.entries()].filter(([, l]) => l > 0).sort(([a, l], [b, m]) => l - m || a - b);
  const insert = (node: Node, depth: number, symbol: number): boolean => {
    if (node.symbol !== undefined) return false;
    if (depth === 0) {
      if (node.next.length > 0) return false;
      node.symbol = symbol;
      return true;
    }
    for (const side of [0, 1]) if (insert((node.next[side] ??= { next: [] }), depth - 1, symbol)) return true;
    return false;
  };
  for (const [symbol, length] of order) expect(insert(root, length, symbol)).toBe(true);
  const out: number[] = [];
  for (let r = 0; r < w.rows; r++) {
    let bit = w.starts[r] * 8;
    for (let j = 0; j < w.k; j++) {
      let node = root;
      while (node.symbol === undefined) node = node.next[(w.exponents[bit >> 3] >> (bit++ & 7)) & 1]!;
      const plain = w.signMantissa[r * w.k + j];
      out.push((plain >= 128 ? 32768 : 0) + node.symbol * 128 + (plain % 128));
    }
  }
  return out;
}

const shapes = [
  [1, 1],
  [3, 5],
  [2, 64],
  [17, 33],
  [16, 256],
  [40, 300],
  [5, 1030],
] as const;

describe("lossless tensors", () => {
  it("give every bit pattern back: all 65536, in any order, and few", async () => {
    const backend = await wasm();
    const all = Uint16Array.from({ length: 65536 }, (_, i) => (i * 40503) & 0xffff);
    for (const shape of [[65536], [256, 256], [16, 4096], [4096, 4, 4]]) {
      const w = losslessTensor(all, shape);
      expect(losslessBits(w)).toEqual(all);
      expect(losslessBits(w, { backend })).toEqual(all);
    }
    for (const list of [[7], [0x3f80, 0x3f80, 0x3f80], [0x8000, 0, 0xffff, 0x7f80]]) {
      const w = losslessTensor(Uint16Array.from(list), [list.length]);
      expect([...losslessBits(w)]).toEqual(list);
      expect([...losslessBits(w, { backend })]).toEqual(list);
    }
    backend.dispose();
  });

  it("decode codes longer than a look-up: exponents with counts in powers of two", async () => {
    const backend = await wasm({ threads: 2 });
    const list: number[] = [];
    for (let s = 0; s < 16; s++) for (let i = 0; i < 2 ** s; i++) list.push((100 + s) << 7);
    const random = seededRandom(3);
    list.push(0);
    for (let i = list.length - 1; i > 0; i--) {
      const j = Math.floor(random() * (i + 1));
      [list[i], list[j]] = [list[j], list[i]];
    }
    const w = losslessTensor(Uint16Array.from(list), [16, list.length / 16]);
    expect(Math.max(...w.lengths)).toBeGreaterThan(11);
    expect(losslessBits(w, { backend })).toEqual(Uint16Array.from(list));
    expect(oracle(w)).toEqual(list);
    backend.dispose();
  });

  it("any words, any shape (property), by the kernel, the loop and the tree", async () => {
    const backend = await wasm();
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 9 }), fc.integer({ min: 1, max: 80 }), fc.infiniteStream(fc.nat(65535)), (rows, k, stream) => {
        const words = Uint16Array.from([...stream.take(rows * k)]);
        const w = losslessTensor(words, [rows, k]);
        expect(losslessBits(w)).toEqual(words);
        expect(losslessBits(w, { backend })).toEqual(words);
        expect(oracle(w)).toEqual([...words]);
      }),
      { numRuns: 40, seed: 5 },
    );
    backend.dispose();
  });

  it("take at most 0.70 of bfloat16's bytes on weights like trained ones", () => {
    for (const sigma of [1, 0.02, 1e-4]) {
      const values = bits(256 * 1024, 7, sigma);
      expect(losslessTensor(values, [256, 1024]).byteLength / (2 * values.length)).toBeLessThan(0.68);
    }
  });

  it("take just their parts: lengths, streams of whole bytes by row, room behind the last, starts, signs", () => {
    for (const [n, k] of shapes) {
      const words = bits(n * k, 3 * n + k, 1);
      const w = losslessTensor(words, [n, k]);
      const length = (i: number): number => w.lengths[(words[i] >> 7) & 255];
      const rows = Array.from({ length: n }, (_, r) => Math.ceil(Array.from({ length: k }, (_, j) => length(r * k + j)).reduce((a, b) => a + b, 0) / 8)); // prettier-ignore
      const total = rows.reduce((a, b) => a + b, 0);
      expect([...w.starts]).toEqual(rows.map((_, r) => rows.slice(0, r).reduce((a, b) => a + b, 0)));
      expect(w.exponents.length).toBe(total + 16);
      expect([...w.exponents.subarray(total)]).toEqual(new Array(16).fill(0));
      expect(w.byteLength).toBe(256 + total + 16 + 4 * n + n * k);
      expect([...w.signMantissa]).toEqual(Array.from(words, (v) => (v >> 15) * 128 + (v & 127)));
      expect({ ...w, lengths: 0, exponents: 0, starts: 0, signMantissa: 0, byteLength: 0 }).toEqual({ kind: "lossless", shape: [n, k], rows: n, k, lengths: 0, exponents: 0, starts: 0, signMantissa: 0, byteLength: 0 }); // prettier-ignore
      // every length that is used, and no other: those of a complete code, no longer than plain Huffman's
      const used = new Set(Array.from(words, (v) => (v >> 7) & 255));
      expect([...w.lengths.keys()].filter((s) => w.lengths[s] > 0)).toEqual([...used].sort((a, b) => a - b));
      expect([...used].reduce((sum, s) => sum + 2 ** -w.lengths[s], 0)).toBe(used.size === 1 ? 0.5 : 1);
      const { format: f, recipe, rowBytes, codes, scales, superScales, offsets } = unpackLossless(w);
      expect([f.name, recipe, rowBytes, scales, superScales, offsets]).toEqual(["bfloat16", { version: 1, algorithm: "lossless" }, 2 * k, null, null, null]); // prettier-ignore
      expect(codes).toEqual(new Uint8Array(words.buffer));
    }
    expect(losslessTensor(new Uint16Array(6), [6])).toMatchObject({ rows: 1, k: 6, shape: [6] });
    expect(losslessTensor(new Uint16Array(24), [2, 3, 4])).toMatchObject({ rows: 2, k: 12, shape: [2, 3, 4] });
    for (const shape of [[], [3], [0, 4], [2, 1.5], [-2, -2]]) expect(() => losslessTensor(new Uint16Array(4), shape)).toThrow(expect.objectContaining({ code: "E_SHAPE", message: `losslessTensor: expected sizes with product 4, got [${shape.join(", ")}].` })); // prettier-ignore
  });

  it("multiply as the decoded weight does, bit for bit, on one thread and two", async () => {
    for (const threads of [1, 2]) {
      const backend = await wasm({ threads });
      for (const [n, k] of shapes) {
        const w = losslessTensor(bits(n * k, n + k), [n, k]);
        const [layer, plain] = [prepareLossless(w, { backend }), prepareMatmul(unpackLossless(w), { backend })];
        for (const m of [1, 2, 7, 20]) {
          const x = Float32Array.from({ length: m * k }, (_, i) => Math.sin(i));
          expect(layer.run(x, m), `${n} x ${k}, ${m} rows`).toEqual(plain.run(x, m));
        }
        layer.dispose();
        plain.dispose();
      }
      backend.dispose();
    }
  });

  it("multiply in pieces where records of all rows would not fit the chunk", async () => {
    const backend = await wasm();
    const [n, k] = [700, 512];
    const w = losslessTensor(bits(n * k, 2), [n, k]);
    const x = Float32Array.from({ length: 3 * k }, (_, i) => Math.cos(i));
    const [layer, plain] = [prepareLossless(w, { backend }), prepareMatmul(unpackLossless(w), { backend })];
    expect(layer.explain().reasons.join()).toMatch(/Huffman codes \(6\d\.\d % of bfloat16\), decoded 496 rows/);
    for (const m of [1, 3]) expect(layer.run(x.subarray(0, m * k), m)).toEqual(plain.run(x.subarray(0, m * k), m));
    const ref = prepareLossless(w).run(x, 3);
    layer.run(x, 3).forEach((v, i) => expect(Math.abs(v - ref[i])).toBeLessThan(1e-4));
    backend.dispose();
    expect(() => layer.run(x, 3)).toThrow(/dispose/);
  });

  it("refuse what is none", async () => {
    const backend = await wasm();
    expect(() => losslessTensor(new Float32Array(4) as never, [4])).toThrow(TypeError);
    expect(() => losslessTensor(new Uint16Array(4), [3])).toThrow(/product 4/);
    expect(() => backend.prepareLossless({} as never)).toThrow(/losslessTensor/);
    expect(() => prepareLossless(losslessTensor(new Uint16Array(4), [4]), { backend: "wasm" as never })).toThrow(/backend object/);
    const damaged = { ...losslessTensor(new Uint16Array(4), [4]), lengths: new Uint8Array(256) };
    expect(() => losslessBits(damaged)).toThrow(/24 bits/);
    backend.dispose();
  });
});
