// Attention and rotary embedding against binary64 definitions: groups, caches with room behind the last key, windows,
// masks, caps, sinks, tiles of tokens, one thread and two.
import { create } from "@bufbuild/protobuf";
import * as ort from "onnxruntime-node";
import { describe, expect, it } from "vitest";
import type { Heads } from "../../../../kernels/wasm/nn/attention-job.ts";
import { attention, attentionJob } from "../../../../kernels/wasm/nn/attention.ts";
import { attentionTiles, attentionTilesJob } from "../../../../kernels/wasm/nn/attention-tiles.ts";
import { rotary, rotaryJob } from "../../../../kernels/wasm/nn/rotary.ts";
import { rowsAt } from "../../../../kernels/wasm/nn/rows.ts";
import type { EngineMemory } from "../../../../src/backends/wasm/memory.ts";
import { OperatorSetIdProtoSchema } from "../../../../src/onnx/file/gen/onnx_pb.ts";
import { random } from "../../../helpers/random.ts";
import * as build from "../../../onnx/build.ts";
import { FLT_MAX, memories, runOn } from "./bench.ts";

const all = memories();
const rng = random(17);
const normal = (n: number, size = 1): Float32Array => Float32Array.from({ length: n }, () => rng.normal() * size);

interface Case {
  readonly head: number;
  readonly kvHeads: number;
  readonly group: number;
  readonly tokens: number;
  readonly keys: number;
  readonly causal?: boolean;
  readonly window?: number;
  readonly cap?: number;
  /** Masks per query head, or one for all. */
  readonly mask?: "head" | "all";
  readonly sink?: boolean;
}

interface Data {
  readonly q: Float32Array;
  readonly k: Float32Array;
  readonly v: Float32Array;
  readonly mask: Float32Array;
  readonly sink: Float32Array;
  readonly capacity: number;
}

/** q [tokens, heads, head]; k, v [kv heads, capacity, head], NaN behind the last key. */
function draw(c: Case, size = 1): Data {
  const capacity = c.keys + 3;
  const heads = c.kvHeads * c.group;
  const cache = (): Float32Array =>
    normal(c.kvHeads * capacity * c.head).map((v, i) => (Math.floor(i / c.head) % capacity < c.keys ? v * size : NaN));
  const mask = normal((c.mask === "head" ? heads : 1) * c.tokens * c.keys).map((v) => (v > 0.6 ? -Infinity : v > 0.4 ? -FLT_MAX : v));
  return { q: normal(c.tokens * heads * c.head, size), k: cache(), v: cache(), mask, sink: normal(heads), capacity };
}

function oracle(c: Case, d: Data, scale: number): Float64Array {
  const heads = c.kvHeads * c.group;
  const out = new Float64Array(c.tokens * heads * c.head);
  for (let t = 0; t < c.tokens; t++)
    for (let n = 0; n < heads; n++) {
      const base = Math.floor(n / c.group) * d.capacity;
      const high = c.causal ? c.keys - c.tokens + t + 1 : c.keys;
      const low = c.window ? Math.max(0, c.keys - c.tokens + t + 1 - c.window) : 0;
      const at = (t * heads + n) * c.head;
      const scores: number[] = [];
      for (let j = low; j < high; j++) {
        let s = 0;
        for (let i = 0; i < c.head; i++) s += d.q[at + i] * d.k[(base + j) * c.head + i];
        s *= scale;
        if (c.cap) s = c.cap * Math.tanh(s / c.cap);
        // the sum with a mask is a float32: -FLT_MAX swallows any score
        if (c.mask) s = Math.fround(s + d.mask[((c.mask === "head" ? n : 0) * c.tokens + t) * c.keys + j]);
        scores.push(s);
      }
      const most = Math.max(...scores, c.sink ? d.sink[n] : -Infinity);
      if (most === -Infinity) continue;
      const weights = scores.map((s) => Math.exp(s - most));
      const sum = weights.reduce((a, b) => a + b, c.sink ? Math.exp(d.sink[n] - most) : 0);
      weights.forEach((w, j) => {
        if (w > 0) for (let i = 0; i < c.head; i++) out[at + i] += (w / sum) * d.v[(base + low + j) * c.head + i];
      });
    }
  return out;
}

function attend(memory: EngineMemory, c: Case, d: Data, scale: number, tiles = false): Float32Array {
  const heads = c.kvHeads * c.group;
  const spec = {
    head: c.head,
    softcap: c.cap !== undefined,
    mask: c.mask !== undefined,
    relaxed: memory.features.relaxed,
    shared: memory.shared,
  };
  const place = (address: number, token: number, head: number): Heads => ({ address, token: 4 * token, head: 4 * head });
  const job = tiles ? attentionTilesJob : attentionJob;
  const family = tiles ? attentionTiles : attention;
  return runOn(memory, family, spec, [d.q, d.k, d.v, d.mask, d.sink, new Float32Array(d.q.length).fill(NaN)], (at) =>
    job(
      {
        ...c,
        causal: c.causal ?? false,
        scale,
        q: place(at[0], heads * c.head, c.head),
        k: place(at[1], c.head, c.head * d.capacity),
        v: place(at[2], c.head, c.head * d.capacity),
        mask: place(at[3], c.keys, c.mask === "head" ? c.tokens * c.keys : 0),
        sink: c.sink ? at[4] : undefined,
        streams: 1 + (c.keys % 5),
        y: place(at[5], heads * c.head, c.head),
      },
      spec,
    ),
  )[5];
}

/** The largest difference, over the largest result. */
function difference(got: Float32Array, expected: Float64Array): number {
  let [worst, most] = [0, 1e-30];
  expected.forEach((e, i) => {
    const d = Math.abs(got[i] - e);
    worst = d <= worst ? worst : d;
    most = Math.max(most, Math.abs(e));
  });
  return worst / most;
}

/** The first output of the operator, a session of its own. */
async function groupQueryAttention(
  c: { heads: number; kvHeads: number; head: number; tokens: number; keys: number; interleaved: number; window: number },
  d: Record<"q" | "k" | "v" | "oldK" | "oldV" | "cos" | "sin", Float32Array>,
): Promise<Float32Array> {
  const half = c.head / 2;
  const cache = [1, c.kvHeads, c.keys - c.tokens, c.head];
  const dims = {
    q: [1, c.tokens, c.heads * c.head],
    k: [1, c.tokens, c.kvHeads * c.head],
    v: [1, c.tokens, c.kvHeads * c.head],
    oldK: cache,
    oldV: cache,
    cos: [d.cos.length / half, half],
    sin: [d.sin.length / half, half],
  };
  const names = Object.keys(dims) as (keyof typeof dims)[];
  const made = build.node("GroupQueryAttention", ["q", "k", "v", "oldK", "oldV", "seqlens", "total", "cos", "sin"], ["y", "newK", "newV"], {
    num_heads: BigInt(c.heads),
    kv_num_heads: BigInt(c.kvHeads),
    do_rotary: 1n,
    rotary_interleaved: BigInt(c.interleaved),
    local_window_size: BigInt(c.window),
  });
  made.domain = "com.microsoft";
  const F = build.T.FLOAT;
  const grown = [1, c.kvHeads, c.keys, c.head];
  const main = build.graph({
    input: [
      ...names.map((name) => build.value(name, F, dims[name])),
      build.value("seqlens", build.T.INT32, [1]),
      build.value("total", build.T.INT32, [1]),
    ],
    output: [build.value("y", F, dims.q), build.value("newK", F, grown), build.value("newV", F, grown)],
    initializer: [],
    node: [made],
  });
  const proto = build.model(main, { opset: 17, ir: 9 });
  proto.opsetImport.push(create(OperatorSetIdProtoSchema, { domain: "com.microsoft", version: 1n }));
  const session = await ort.InferenceSession.create(build.encode(proto), { logSeverityLevel: 4, intraOpNumThreads: 1 });
  const feeds: Record<string, ort.Tensor> = {
    seqlens: new ort.Tensor("int32", Int32Array.of(c.keys - 1), [1]),
    total: new ort.Tensor("int32", Int32Array.of(c.keys), [1]),
  };
  for (const name of names) feeds[name] = new ort.Tensor("float32", d[name], dims[name]);
  const { y } = await session.run(feeds);
  await session.release();
  return y.data as Float32Array;
}

const base = { head: 64, kvHeads: 2, group: 2, tokens: 1, keys: 100, causal: true };
const CASES: readonly (readonly [string, Case])[] = [
  ["a step", base],
  ["a step of one key", { ...base, keys: 1 }],
  ["block edges: 63", { ...base, keys: 63 }],
  ["block edges: 64", { ...base, keys: 64 }],
  ["block edges: 65", { ...base, keys: 65 }],
  ["no group", { ...base, group: 1 }],
  ["groups of three", { ...base, group: 3, keys: 70 }],
  ["one kv head of seven", { ...base, kvHeads: 1, group: 7, head: 80, keys: 90 }],
  ["more heads than a tile", { ...base, kvHeads: 1, group: 40, head: 8, tokens: 3, keys: 20 }],
  ["small heads", { ...base, head: 4, tokens: 9, keys: 30 }],
  ["heads of 20", { ...base, head: 20, tokens: 21, keys: 21 }],
  ["heads of 128", { ...base, head: 128, keys: 333 }],
  ["a prompt", { ...base, tokens: 75, keys: 75 }],
  ["a prompt after others", { ...base, tokens: 37, keys: 150, group: 3 }],
  ["no causality", { ...base, causal: false, tokens: 19, keys: 67 }],
  ["three blocks of keys, a mask", { ...base, head: 32, group: 1, causal: false, tokens: 70, keys: 300, mask: "all" }],
  ["tokens before the first key", { ...base, head: 16, group: 1, tokens: 140, keys: 10 }],
  ["fewer keys than tokens", { ...base, causal: false, tokens: 19, keys: 5 }],
  ["a window in a step", { ...base, window: 17 }],
  ["a window in a prompt", { ...base, tokens: 140, keys: 150, window: 20 }],
  ["a window of one", { ...base, tokens: 9, keys: 80, window: 1 }],
  ["a cap", { ...base, tokens: 5, cap: 2 }],
  ["a mask of all heads", { ...base, tokens: 7, keys: 71, mask: "all" }],
  ["a mask of each head, no causality", { ...base, causal: false, tokens: 6, keys: 66, mask: "head" }],
  ["a sink", { ...base, tokens: 5, sink: true }],
  ["a long prompt in tiles", { ...base, kvHeads: 1, group: 1, tokens: 203, keys: 203 }],
  ["a long prompt of heads of 12", { ...base, head: 12, group: 5, tokens: 61, keys: 189 }],
  ["an encoder", { ...base, head: 32, group: 1, causal: false, tokens: 128, keys: 128, mask: "all" }],
  ["everything", { ...base, tokens: 33, keys: 99, window: 30, cap: 3, mask: "head", sink: true, group: 3 }],
];

describe("attention", () => {
  it.each(CASES)("is its definition: %s", (_, c) => {
    const scale = Math.fround(1 / Math.sqrt(c.head));
    for (const size of [1, 6]) {
      const d = draw(c, size);
      const expected = oracle(c, d, scale);
      for (const memory of all)
        for (const tiles of [false, true])
          expect(difference(attend(memory, c, d, scale, tiles), expected), String(tiles)).toBeLessThan(size === 1 ? 2e-6 : 2e-5);
    }
  });

  it("gives NaN for a row of NaN, and leaves the others alone", () => {
    const c: Case = { ...base, kvHeads: 1, group: 1, tokens: 9, keys: 70 };
    const d = draw(c);
    d.q[2 * c.head + 5] = NaN;
    for (const [memory, tiles] of all.flatMap((memory) => [false, true].map((tiles) => [memory, tiles] as const)))
      attend(memory, c, d, 0.1, tiles).forEach((v, i) => expect(Number.isNaN(v), String(i)).toBe(Math.floor(i / c.head) === 2));
  });

  it("gives 0 for rows that are masked throughout with -infinity, the mean with -FLT_MAX", () => {
    const c: Case = { ...base, causal: false, tokens: 2, keys: 67, mask: "all" };
    const d = draw(c);
    d.mask.fill(-Infinity, 0, 67);
    d.mask.fill(-FLT_MAX, 67);
    for (const [memory, tiles] of all.flatMap((memory) => [false, true].map((tiles) => [memory, tiles] as const))) {
      const y = attend(memory, c, d, 0.1, tiles);
      expect(y.subarray(0, 256).every((v) => v === 0)).toBe(true);
      expect(difference(y, oracle(c, d, 0.1))).toBeLessThan(2e-6);
    }
  });

  it("equals GroupQueryAttention of onnxruntime, with rotary keys written into a cache", async () => {
    const [head, kvHeads, group, past, capacity] = [32, 2, 3, 40, 60];
    const heads = kvHeads * group;
    for (const tokens of [1, 11])
      for (const [interleaved, window] of [[0, -1], [1, 16]]) {
        const keys = tokens === 1 ? past + 1 : tokens;
        const from = keys - tokens;
        const [q, k, v] = [heads, kvHeads, kvHeads].map((n) => normal(tokens * n * head));
        const [oldK, oldV] = [normal(kvHeads * from * head), normal(kvHeads * from * head)];
        const angles = Float32Array.from({ length: capacity * (head / 2) }, (_, i) => Math.floor(i / (head / 2)) * 100 ** (-(i % (head / 2)) / (head / 2)));
        const [cos, sin] = [angles.map(Math.cos), angles.map(Math.sin)];
        const expected = await groupQueryAttention({ heads, kvHeads, head, tokens, keys, interleaved, window }, { q, k, v, oldK, oldV, cos, sin });
        for (const memory of all) {
          const cache = (old: Float32Array): Float32Array => {
            const whole = new Float32Array(kvHeads * capacity * head).fill(NaN);
            for (let h = 0; h < kvHeads; h++) whole.set(old.subarray(h * from * head, (h + 1) * from * head), h * capacity * head);
            return whole;
          };
          const turn = (x: Float32Array, n: number, into: Float32Array, outer: number, inner: number, at: number): Float32Array =>
            runOn(memory, rotary, { interleaved: interleaved === 1, shared: memory.shared }, [x, cos, sin, into], (places) =>
              rotaryJob({ tokens, heads: n, width: head, rotated: head, first: from, cos: places[1], sin: places[2],
                x: rowsAt(places[0], head, n), y: { address: places[3] + 4 * at, outer: 4 * outer, inner: 4 * inner } }),
            )[3]; // prettier-ignore
          const turnedQ = turn(q, heads, new Float32Array(q.length), heads * head, head, 0);
          const newK = turn(k, kvHeads, cache(oldK), head, head * capacity, from * head);
          const newV = cache(oldV);
          for (let t = 0; t < tokens; t++)
            for (let h = 0; h < kvHeads; h++)
              newV.set(v.subarray((t * kvHeads + h) * head, (t * kvHeads + h + 1) * head), (h * capacity + from + t) * head);
          const c: Case = { head, kvHeads, group, tokens, keys, causal: true, window: window < 0 ? undefined : window };
          const d: Data = { q: turnedQ, k: newK, v: newV, mask: normal(1), sink: normal(1), capacity };
          const y = attend(memory, c, d, Math.fround(1 / Math.sqrt(head)));
          expect(difference(y, Float64Array.from(expected))).toBeLessThan(2e-6);
        }
      } // prettier-ignore
  });
});

describe("rotary embedding", () => {
  it("turns any even part of a head, in place, by positions of any order, and copies the rest", () => {
    for (const memory of all)
      for (const interleaved of [false, true])
        for (const [width, rotated] of [[8, 8], [64, 64], [80, 20], [12, 6], [10, 10], [7, 4], [128, 126], [5, 2], [6, 0]])
          for (const given of [false, true]) {
            const [tokens, heads, positions] = [13, 3, 40];
            const x = normal(tokens * heads * width);
            const half = rotated / 2;
            const angles = normal(Math.max(1, positions * half));
            const [cos, sin] = [angles.map(Math.cos), angles.map(Math.sin)];
            const places = Int32Array.from({ length: tokens }, (_, t) => (given ? (t * 7) % positions : t + 5));
            const [y] = runOn(memory, rotary, { interleaved, shared: memory.shared }, [x, cos, sin, new Float32Array(places.buffer)], (at) =>
              rotaryJob({ tokens, heads, width, rotated, cos: at[1], sin: at[2], x: rowsAt(at[0], width, heads), y: rowsAt(at[0], width, heads),
                ...(given ? { positions: at[3] } : { first: 5 }) }),
            );
            let wrong = 0;
            for (let r = 0; r < tokens * heads; r++) {
              const expected = Array.from(x.subarray(r * width, (r + 1) * width));
              for (let i = 0; i < half; i++) {
                const [a, b] = interleaved ? [2 * i, 2 * i + 1] : [i, i + half];
                const at = places[Math.floor(r / heads)] * half + i;
                const [p, q] = [x[r * width + a], x[r * width + b]];
                expected[a] = Math.fround(Math.fround(p * cos[at]) - Math.fround(q * sin[at]));
                expected[b] = Math.fround(Math.fround(q * cos[at]) + Math.fround(p * sin[at]));
              }
              expected.forEach((e, i) => { if (y[r * width + i] !== e) wrong++; });
            }
            expect(wrong, `${width} ${rotated} ${interleaved}`).toBe(0);
          }
  }); // prettier-ignore

  it("refuses a part that no head has", () => {
    const place = rowsAt(64, 8);
    for (const rotated of [3, 10, -2])
      expect(() => rotaryJob({ tokens: 1, heads: 1, width: 8, rotated, x: place, y: place, cos: 0, sin: 0 })).toThrow(RangeError);
  });
});
