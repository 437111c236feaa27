// GroupQueryAttention on the attention kernel: over a cache of a decoder in place, or in a plain run over past and
// present of one sequence after the other.
import { hadamard } from "../../../kernels/wasm/convert/hadamard.ts";
import type { Kernel } from "../../../kernels/wasm/engine/engine.ts";
import type { AttentionJob, Heads } from "../../../kernels/wasm/nn/attention-job.ts";
import { attentionTiles, attentionTilesJob, TILE_TOKENS } from "../../../kernels/wasm/nn/attention-tiles.ts";
import { attention, attentionJob, type AttentionSpec } from "../../../kernels/wasm/nn/attention.ts";
import {
  append,
  appendJob,
  cacheRowBytes,
  hasScales,
  headUnit,
  isSpread,
  keyFactor,
  queryFactor,
  spreadWidth,
  type CacheKind,
  type ValueKind,
} from "../../../kernels/wasm/nn/cache.ts";
import { rotary, rotaryJob } from "../../../kernels/wasm/nn/rotary.ts";
import type { NodeProto } from "../../onnx/file/gen/onnx_pb.ts";
import { attributeFloat, attributeInt } from "../../onnx/graph/nodes.ts";
import type { Inputs } from "../ops/operator.ts";
import { groupedSizes, tokensBefore, type Grouped } from "../ops/attention.ts";
import { sizeOf, type Value } from "../value.ts";
import type { Job, Machine, Slot } from "./machine.ts";

/**
 * Keys or values of one layer [kv head][capacity][size], and where the kind has them the words beside its rows [kv
 * head][capacity].
 */
export interface CacheSide<Kind extends CacheKind = CacheKind> {
  readonly kind: Kind;
  readonly address: number;
  readonly words: number;
}

export interface LayerCache {
  readonly k: CacheSide;
  readonly v: CacheSide<ValueKind>;
  readonly capacity: number;
}

/** Bytes of keys or values, and of the words beside them. */
export const sideBytes = (
  kind: CacheKind,
  kvHeads: number,
  size: number,
  capacity: number,
): { readonly rows: number; readonly words: number } => ({
  rows: kvHeads * capacity * cacheRowBytes(kind, size),
  words: hasScales(kind) ? 4 * kvHeads * capacity : 0,
});

const plainSide = (address: number): CacheSide<"float32"> => ({ kind: "float32", address, words: 0 });

interface Placed {
  readonly address: number;
  /** Bytes from one token to the next. */
  readonly token: number;
}

/** Query, key and value of sequence `b`, packed or not; null where one is not float32. */
function projections(m: Machine, inputs: Inputs, { tokens, heads, kvHeads, size, packed }: Grouped, b: number): Placed[] | null {
  const own = packed ? [inputs[0]] : inputs.slice(0, 3);
  if (own.some((v) => v?.type !== "float32")) return null;
  const starts = packed ? [0, heads * size, (heads + kvHeads) * size] : [0, 0, 0];
  const widths = packed ? [0, 0, 0].fill((heads + 2 * kvHeads) * size) : [heads * size, kvHeads * size, kvHeads * size];
  return starts.map((start, i) => ({
    address: m.place((packed ? own[0] : own[i])!) + 4 * (b * tokens * widths[i] + start),
    token: 4 * widths[i],
  }));
}

interface Rotation {
  readonly cos: number;
  readonly sin: number;
  readonly rotated: number;
  readonly interleaved: boolean;
}

/** The rotation of the node; tables are not read where it has none: rows are copied. */
function rotationOf(m: Machine, inputs: Inputs, node: NodeProto): Rotation {
  const [cos, sin] = [inputs[7], inputs[8]];
  if (attributeInt(node, "do_rotary", 0) !== 1 || cos === undefined || sin === undefined)
    return { cos: 0, sin: 0, rotated: 0, interleaved: false };
  return {
    ...{ cos: m.place(cos), sin: m.place(sin), rotated: 2 * cos.dims[1] },
    interleaved: attributeInt(node, "rotary_interleaved", 0) !== 0,
  };
}

/** Rows of `heads` heads of each token turned (or copied) from x into y. */
function turn(
  m: Machine,
  r: Rotation,
  sizes: { tokens: number; heads: number; size: number },
  x: Placed,
  past: () => number,
  to: (past: number) => { address: number; outer: number; inner: number },
): void {
  const kernel = m.memory.kernel(rotary, { interleaved: r.interleaved, shared: m.memory.shared });
  m.moving(kernel, past, (at) =>
    rotaryJob({
      ...{ tokens: sizes.tokens, heads: sizes.heads, width: sizes.size, rotated: r.rotated, cos: r.cos, sin: r.sin },
      x: { address: x.address, outer: x.token, inner: 4 * sizes.size },
      y: to(at),
      first: at,
    }),
  );
}

/** Heads of a slot spread in place (kernels/wasm/nn/cache.ts). */
function spread(m: Machine, x: Slot, size: number, factor: number): void {
  const n = spreadWidth(size);
  const rows = sizeOf(x.dims) / n;
  const per = Math.ceil(4096 / n);
  const args = Int32Array.of(x.address, rows, per, new Int32Array(Float32Array.of(factor).buffer)[0]);
  m.job(m.memory.kernel(hadamard, { n, shared: m.memory.shared }), { items: Math.ceil(rows / per), args });
}

/**
 * Keys and values of these tokens into the cache, then attention over it. `past`: tokens in the cache before.
 * @returns y [1, tokens, heads * size] at `y`
 */
function overCache(
  m: Machine,
  inputs: Inputs,
  node: NodeProto,
  sizes: Grouped,
  cache: LayerCache,
  past: () => number,
  b: number,
  y: Placed,
): boolean {
  const parts = projections(m, inputs, sizes, b);
  if (parts === null) return false;
  const { tokens, heads, kvHeads, size } = sizes;
  const [q, k, v] = parts;
  const rotation = rotationOf(m, inputs, node);
  const row = 4 * size;
  /** Heads of each token turned, then spread by a factor, in a slot of their own; or as they are. */
  const turned = (x: Placed, count: number, r: Rotation, spreadBy?: number): [Slot | undefined, Placed] => {
    if (r.rotated === 0 && spreadBy === undefined) return [undefined, x];
    const own = m.slot([tokens, count * size]);
    const to = { address: own.address, token: count * row };
    turn(m, r, { tokens, heads: count, size }, x, past, () => ({ address: to.address, outer: to.token, inner: row }));
    if (spreadBy !== undefined) spread(m, own, size, spreadBy);
    return [own, to];
  };
  /** Rows of the kv heads into the cache. */
  const keep = (x: Placed, side: CacheSide, r: Rotation): void => {
    const bytes = cacheRowBytes(side.kind, size);
    const rows = (at: number) => ({ address: side.address + bytes * at, outer: bytes, inner: bytes * cache.capacity });
    if (side.kind === "float32") return turn(m, r, { tokens, heads: kvHeads, size }, x, past, rows);
    const [own, from] = turned(x, kvHeads, r, isSpread(side.kind) ? keyFactor(size) : undefined);
    const spec = { kind: side.kind, shared: m.memory.shared };
    m.moving(m.memory.kernel(append, spec), past, (at) =>
      appendJob(
        {
          ...{ tokens, heads: kvHeads, width: size, y: rows(at) },
          x: { address: from.address, outer: from.token, inner: row },
          scales: { address: side.words + 4 * at, outer: 4, inner: 4 * cache.capacity },
        },
        spec,
      ),
    );
    if (own !== undefined) m.free(own);
  };
  keep(k, cache.k, rotation);
  keep(v, cache.v, { ...rotation, rotated: 0 });
  const [own, query] = turned(q, heads, rotation, isSpread(cache.k.kind) ? queryFactor(size) : undefined);
  const cap = attributeFloat(node, "softcap", 0);
  const window = attributeInt(node, "local_window_size", -1);
  const scale = attributeFloat(node, "scale", 0);
  const sink = sinkOf(m, inputs[11], node, heads);
  const head = (at: Placed): Heads => ({ address: at.address, token: at.token, head: row });
  const kept = ({ kind, address }: CacheSide): Heads => {
    const bytes = cacheRowBytes(kind, size);
    return { address, token: bytes, head: bytes * cache.capacity };
  };
  const words = ({ words: address }: CacheSide) => ({ address, head: 4 * cache.capacity });
  const spec = { head: size, softcap: cap > 0, mask: false, k: cache.k.kind, v: cache.v.kind };
  const { kernel, job } = attentionKernel(m, spec, tokens);
  m.moving(kernel, past, (at) =>
    job({
      ...{ tokens, kvHeads, group: heads / kvHeads, keys: at + tokens, causal: true },
      ...(window > 0 ? { window } : {}),
      scale: scale === 0 ? 1 / Math.sqrt(size) : scale,
      ...(cap > 0 ? { cap } : {}),
      ...(sink === 0 ? {} : { sink }),
      streams: streamsOf(m),
      ...{ q: head(query), y: head(y), k: kept(cache.k), v: kept(cache.v) },
      ...(hasScales(cache.k.kind) ? { kScales: words(cache.k) } : {}),
      ...(hasScales(cache.v.kind) ? { vScales: words(cache.v) } : {}),
    }),
  );
  if (own !== undefined) m.free(own);
  return true;
}

type AttentionSpecOf = Omit<AttentionSpec, "shared" | "relaxed">;

/** The kernel of attention that suits a job, and what makes its words. */
export function attentionKernel(
  { memory }: Machine,
  of: AttentionSpecOf,
  tokens: number,
): { readonly kernel: Kernel; readonly job: (job: AttentionJob) => Job } {
  const { k = "float32", v = "float32" } = of;
  const engine = { relaxed: memory.features.relaxed, shared: memory.shared };
  if (tokens >= TILE_TOKENS && isFloat(k) && isFloat(v)) {
    const spec = { ...of, ...engine, k, v };
    return { kernel: memory.kernel(attentionTiles, spec), job: (job) => attentionTilesJob(job, spec) };
  }
  const spec = { ...of, ...engine };
  return { kernel: memory.kernel(attention, spec), job: (job) => attentionJob(job, spec) };
}

const isFloat = (kind: CacheKind): kind is "float32" | "float16" => !hasScales(kind);

/** Parts of keys, and of values, that are read side by side: each is a stream beside the other's. */
export const streamsOf = ({ memory }: Machine): number => (memory.streams === 2 ? 1 : 4);

const zeros = new WeakMap<Machine, Map<number, Value>>();

/** The address of a logit for each head that has no value; 0 for none. */
function sinkOf(m: Machine, sink: Value | undefined, node: NodeProto, heads: number): number {
  if (sink !== undefined) return m.place(sink);
  if (attributeInt(node, "smooth_softmax", 0) !== 1) return 0;
  const known = zeros.get(m) ?? new Map<number, Value>();
  zeros.set(m, known);
  const value = known.get(heads) ?? { type: "float32", dims: [heads], data: new Float32Array(heads) };
  known.set(heads, value);
  m.constant(value);
  return m.place(value);
}

/** What the kernel does not take: added biases, positions of one's own, heads that are no whole vectors. */
const outside = (inputs: Inputs, sizes: Grouped): boolean => inputs[10] !== undefined || sizes.size % 4 !== 0;

/** A sequence of a decoder: one layer's cache of it, and the tokens in it. */
export interface Decoded {
  readonly cache: LayerCache;
  readonly past: () => number;
}

/** Sequences over a decoder's caches, one for each row of the batch. */
export function decodeAttention(m: Machine, inputs: Inputs, node: NodeProto, sequences: readonly Decoded[]): Slot | undefined {
  const sizes = groupedSizes(inputs, node);
  const { batch, tokens, size } = sizes;
  if (outside(inputs, sizes) || batch !== sequences.length) return undefined;
  if (sequences.some(({ cache: { k, v } }) => [k, v].some(({ kind }) => size % headUnit(kind) !== 0))) return undefined;
  const width = sizes.heads * size;
  const y = m.slot([batch, tokens, width]);
  const isMade = sequences.every(({ cache, past }, b) =>
    overCache(m, inputs, node, sizes, cache, past, b, { address: y.address + 4 * b * tokens * width, token: 4 * width }),
  );
  return isMade ? y : undefined;
}

/** A plain run: past and new tokens into present, then attention over it. */
export function runAttention(m: Machine, inputs: Inputs, node: NodeProto): Slot[] | undefined {
  const sizes = groupedSizes(inputs, node);
  const { batch, tokens, heads, kvHeads, size } = sizes;
  if (outside(inputs, sizes) || inputs[9] !== undefined) return undefined;
  const found = tokensBefore(inputs, node, sizes);
  if (found === undefined) return undefined;
  const { before, room, capacity } = found;
  const present = [m.slot([batch, kvHeads, capacity, size]), m.slot([batch, kvHeads, capacity, size])];
  const width = heads * size;
  const y = m.slot([batch, tokens, width]);
  for (const [i, slot] of present.entries()) {
    const old = inputs[3 + i];
    if (old === undefined || room === 0) continue;
    const source = old;
    m.call(() => {
      const from = source.data as Float32Array;
      const to = m.memory.floats(slot.address, batch * kvHeads * capacity * size);
      for (let h = 0; h < batch * kvHeads; h++) to.set(from.subarray(h * room * size, (h + 1) * room * size), h * capacity * size);
    });
  }
  const bytes = sideBytes("float32", kvHeads, size, capacity).rows;
  for (let b = 0; b < batch; b++) {
    const cache = { k: plainSide(present[0].address + b * bytes), v: plainSide(present[1].address + b * bytes), capacity };
    const to = { address: y.address + 4 * b * tokens * width, token: 4 * width };
    if (!overCache(m, inputs, node, sizes, cache, () => before, b, to)) return undefined;
  }
  return [y, ...present];
}
