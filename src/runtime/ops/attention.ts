// Attention operators and rotary embedding as plain loops. Source: onnxruntime docs/ContribOperators.md
// (GroupQueryAttention, MultiHeadAttention, RotaryEmbedding) and the ONNX operator RotaryEmbedding-23.
import { attributeFloat, attributeInt } from "../../onnx/graph/nodes.ts";
import type { NodeProto } from "../../onnx/file/gen/onnx_pb.ts";
import type { Value } from "../value.ts";
import { floatData, floats, integers } from "../value.ts";
import { broadcastDims } from "./elementwise.ts";
import type { Inputs, Operators } from "./operator.ts";
import { fail, need, text } from "./operator.ts";

/** A tensor [batch, head, token, values] wherever its values lie: strides in elements, values side by side. */
export interface Heads {
  readonly data: Float32Array;
  readonly batch: number;
  readonly head: number;
  readonly token: number;
}

/** [B, S, N * H] */
const byToken = (data: Float32Array, tokens: number, width: number, size: number, start = 0): Heads => ({
  data: start === 0 ? data : data.subarray(start),
  batch: tokens * width,
  head: size,
  token: width,
});

/** [B, N, S, H] */
const byHead = (data: Float32Array, heads: number, tokens: number, size: number): Heads => ({
  data,
  batch: heads * tokens * size,
  head: tokens * size,
  token: size,
});

interface Attention {
  readonly q: Heads;
  readonly k: Heads;
  readonly v: Heads;
  readonly y: Heads;
  readonly batch: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly tokens: number;
  readonly size: number;
  readonly valueSize: number;
  /** Keys of sequence b. */
  readonly keys: (b: number) => number;
  readonly scale: number;
  readonly softcap: number;
  /** Token t of sequence b sees keys [low, high). */
  readonly sees: (b: number, t: number) => readonly [number, number];
  readonly bias: ((b: number, n: number, t: number, j: number) => number) | null;
  /** One more logit of head n, without a value. */
  readonly sink: ((n: number) => number) | null;
}

function attend(a: Attention): void {
  for (let b = 0; b < a.batch; b++) {
    const scores = new Float64Array(a.keys(b));
    for (let n = 0; n < a.heads; n++) {
      const kv = Math.floor((n * a.kvHeads) / a.heads);
      for (let t = 0; t < a.tokens; t++) attendRow(a, scores, { b, n, kv, t });
    }
  }
}

function attendRow(a: Attention, scores: Float64Array, at: { b: number; n: number; kv: number; t: number }): void {
  const { q, k, v, y } = a;
  const { b, n, kv, t } = at;
  const [low, high] = a.sees(b, t);
  const from = b * q.batch + n * q.head + t * q.token;
  let top = a.sink === null ? -Infinity : a.sink(n);
  for (let j = low; j < high; j++) {
    const key = b * k.batch + kv * k.head + j * k.token;
    let s = 0;
    for (let i = 0; i < a.size; i++) s += q.data[from + i] * k.data[key + i];
    s *= a.scale;
    if (a.softcap > 0) s = a.softcap * Math.tanh(s / a.softcap);
    if (a.bias !== null) s += a.bias(b, n, t, j);
    scores[j] = s;
    top = Math.max(top, s);
  }
  let sum = a.sink === null ? 0 : Math.exp(a.sink(n) - top);
  for (let j = low; j < high; j++) sum += scores[j] = top === -Infinity ? 0 : Math.exp(scores[j] - top);
  const to = b * y.batch + n * y.head + t * y.token;
  const row = new Float64Array(a.valueSize);
  for (let j = low; j < high; j++) {
    const value = b * v.batch + kv * v.head + j * v.token;
    const p = scores[j] / sum;
    if (p > 0) for (let i = 0; i < a.valueSize; i++) row[i] += p * v.data[value + i];
  }
  y.data.set(row, to);
}

export interface Rotation {
  readonly cos: Float32Array;
  readonly sin: Float32Array;
  /** Values of a head that turn. */
  readonly rotated: number;
  readonly interleaved: boolean;
  /** The row of the tables for token t of sequence b. */
  readonly position: (b: number, t: number) => number;
}

interface Sizes {
  readonly batch: number;
  readonly heads: number;
  readonly tokens: number;
  readonly size: number;
}

/** Turns x into y. */
function rotate(x: Heads, y: Heads, { batch, heads, tokens, size }: Sizes, r: Rotation, node: NodeProto): void {
  const half = r.rotated / 2;
  for (let b = 0; b < batch; b++)
    for (let t = 0; t < tokens; t++) {
      const table = r.position(b, t) * half;
      if (!(table >= 0 && table + half <= r.cos.length))
        throw fail(node, `positions below ${Math.floor(r.cos.length / half)}`, String(table / half));
      for (let n = 0; n < heads; n++) {
        const from = b * x.batch + n * x.head + t * x.token;
        const to = b * y.batch + n * y.head + t * y.token;
        for (let i = 0; i < half; i++) {
          const [i1, i2] = r.interleaved ? [2 * i, 2 * i + 1] : [i, i + half];
          const [x1, x2, c, s] = [x.data[from + i1], x.data[from + i2], r.cos[table + i], r.sin[table + i]];
          y.data[to + i1] = x1 * c - x2 * s;
          y.data[to + i2] = x2 * c + x1 * s;
        }
        for (let i = r.rotated; i < size; i++) y.data[to + i] = x.data[from + i];
      }
    }
}

function copyHeads(x: Heads, y: Heads, { batch, heads, tokens, size }: Sizes, offset = 0): void {
  for (let b = 0; b < batch; b++)
    for (let n = 0; n < heads; n++)
      for (let t = 0; t < tokens; t++) {
        const from = b * x.batch + n * x.head + t * x.token;
        y.data.set(x.data.subarray(from, from + size), b * y.batch + n * y.head + (t + offset) * y.token);
      }
}

/** An additive mask [1 or B, 1 or N, S, T]. */
function biasOf(bias: Value | undefined, sizes: Sizes, keys: number, node: NodeProto): Attention["bias"] {
  if (bias === undefined) return null;
  const data = floatData(bias, node.opType);
  const [b, n, s, t] = bias.dims;
  const wanted = [sizes.batch, sizes.heads, sizes.tokens, keys];
  if (bias.dims.length !== 4 || broadcastDims(bias.dims, wanted)?.join() !== wanted.join())
    throw fail(node, `a bias for [${wanted.join(", ")}]`, `[${bias.dims.join(", ")}]`);
  return (ib, head, token, j) =>
    data[(((b === 1 ? 0 : ib) * n + (n === 1 ? 0 : head)) * s + (s === 1 ? 0 : token)) * t + (t === 1 ? 0 : j)];
}

const scaleOf = (node: NodeProto, size: number): number => {
  const scale = attributeFloat(node, "scale", 0);
  return scale === 0 ? 1 / Math.sqrt(size) : scale;
};

/** @throws LowbitError E_SHAPE for a value of other dimensions */
function shaped(node: NodeProto, value: Value | undefined, what: string, dims: readonly number[]): void {
  if (value !== undefined && value.dims.join() !== dims.join())
    throw fail(node, `${what} [${dims.join(", ")}]`, `[${value.dims.join(", ")}]`);
}

/** Values of a head of `size` that tables of a rotary embedding turn. @throws LowbitError E_SHAPE */
function tabled(node: NodeProto, cos: Value | undefined, sin: Value | undefined, size: number): number {
  const rotated = 2 * (cos?.dims.at(-1) ?? 0);
  if (rotated > size) throw fail(node, `tables of at most ${size / 2} columns`, `[${cos!.dims.join(", ")}]`);
  if (cos !== undefined) shaped(node, sin, "tables of sines", cos.dims);
  return rotated;
}

/** Heads and sizes of GroupQueryAttention. */
export interface Grouped {
  readonly batch: number;
  readonly tokens: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly size: number;
  readonly packed: boolean;
}

/** Whether GroupQueryAttention turns queries and keys itself. */
const turns = (node: NodeProto): boolean => attributeInt(node, "do_rotary", 0) === 1;

/** @throws LowbitError E_SHAPE */
export function groupedSizes(inputs: Inputs, node: NodeProto): Grouped {
  const { dims } = need(inputs, 0, node);
  const heads = attributeInt(node, "num_heads", 0);
  const kvHeads = attributeInt(node, "kv_num_heads", 0);
  const packed = inputs[1] === undefined;
  const size = dims[2] / (packed ? heads + 2 * kvHeads : heads);
  if (dims.length !== 3 || !Number.isInteger(size) || size < 1 || kvHeads < 1 || heads % kvHeads !== 0)
    throw fail(node, `a query [B, S, heads * size] of ${heads} and ${kvHeads} heads`, `[${dims.join(", ")}]`);
  if (!packed) for (const i of [1, 2]) shaped(node, inputs[i], "keys and values", [dims[0], dims[1], kvHeads * size]);
  for (const i of [3, 4]) shaped(node, inputs[i], "a past", [dims[0], kvHeads, inputs[3]?.dims[2] ?? 0, size]);
  if (turns(node)) tabled(node, inputs[7], inputs[8], size);
  return { batch: dims[0], tokens: dims[1], heads, kvHeads, size, packed };
}

/**
 * Tokens before those of a run, which room they lie in, and the room of present; undefined for what only the loops
 * take, or say to be wrong: right padding, rows of several lengths.
 */
export function tokensBefore(
  inputs: Inputs,
  node: NodeProto,
  { batch, tokens }: Grouped,
): { readonly before: number; readonly room: number; readonly capacity: number } | undefined {
  const [past, lengths, total] = [inputs[3], inputs[5], inputs[6]];
  if (lengths === undefined || total === undefined || batch * tokens === 0) return undefined;
  const all = integers(total)[0];
  const valid = integers(lengths).map((n) => n + 1);
  const room = past?.dims[2] ?? 0;
  const isOdd = (n: number): boolean => n !== valid[0] || n > all || (tokens === all ? n !== all : n < tokens || n - tokens > room);
  if (valid.length !== batch || valid.some(isOdd)) return undefined;
  const before = tokens === all ? 0 : valid[0] - tokens;
  const table = turns(node) ? (inputs[7]?.dims[0] ?? 0) : Infinity;
  return before + tokens > table ? undefined : { before, room, capacity: Math.max(room, all) };
}

function groupQuery(inputs: Inputs, node: NodeProto): Value[] {
  const { batch, tokens, heads, kvHeads, size, packed } = groupedSizes(inputs, node);
  const width = (packed ? heads + 2 * kvHeads : heads) * size;
  const query = floatData(inputs[0], node.opType);
  const sizes = { batch, tokens, size };
  const q = byToken(query, tokens, width, size);
  const own = (i: 1 | 2): Heads =>
    packed
      ? byToken(query, tokens, width, size, (heads + (i - 1) * kvHeads) * size)
      : byToken(floatData(need(inputs, i, node), node.opType), tokens, kvHeads * size, size);
  const total = integers(need(inputs, 6, node))[0];
  const lengths = integers(need(inputs, 5, node)).map((n) => n + 1);
  const room = inputs[3]?.dims[2] ?? 0;
  if (lengths.length !== batch || lengths.some((n) => n < 1 || n > total) || inputs[3]?.dims[3] === 0)
    throw fail(node, `${batch} lengths of at most ${total}`, lengths.join(", "));
  // a prompt may be padded on its right: its past is empty
  const past = lengths.map((n) => (tokens === total ? 0 : n - tokens));
  if (past.some((p) => p < 0 || p > room)) throw fail(node, `a past of at most ${room} tokens`, past.join(", "));
  const rows = Math.max(room, total);
  const present = [floats([batch, kvHeads, rows, size]), floats([batch, kvHeads, rows, size])];
  const caches = present.map(({ data }) => byHead(data, kvHeads, rows, size));
  [3, 4].forEach((i, c) => {
    const before = inputs[i];
    if (before !== undefined)
      copyHeads(byHead(floatData(before, node.opType), kvHeads, room, size), caches[c], { ...sizes, heads: kvHeads, tokens: room });
  });
  const turned = floats([batch, tokens, heads * size]);
  const turnedQ = byToken(turned.data, tokens, heads * size, size);
  const at = (heads_: Heads, b: number, shift: number): Heads => ({ ...heads_, data: heads_.data.subarray(b * heads_.batch + shift) });
  const rotation = rotationOf(inputs, node, past);
  for (let b = 0; b < batch; b++) {
    const one = { ...sizes, batch: 1 };
    const keys = at(caches[0], b, past[b] * size);
    if (rotation === null) {
      copyHeads(at(q, b, 0), at(turnedQ, b, 0), { ...one, heads });
      copyHeads(at(own(1), b, 0), keys, { ...one, heads: kvHeads });
    } else {
      const here = { ...rotation, position: (_: number, t: number) => rotation.position(b, t) };
      rotate(at(q, b, 0), at(turnedQ, b, 0), { ...one, heads }, here, node);
      rotate(at(own(1), b, 0), keys, { ...one, heads: kvHeads }, here, node);
    }
    copyHeads(at(own(2), b, 0), at(caches[1], b, past[b] * size), { ...one, heads: kvHeads });
  }
  const out = floats([batch, tokens, heads * size]);
  const window = attributeInt(node, "local_window_size", -1);
  const sink = inputs[11] === undefined ? null : floatData(inputs[11], node.opType);
  const smooth = attributeInt(node, "smooth_softmax", 0) === 1;
  attend({
    q: turnedQ,
    k: caches[0],
    v: caches[1],
    y: byToken(out.data, tokens, heads * size, size),
    ...{ batch, heads, kvHeads, tokens, size, valueSize: size },
    keys: () => rows,
    scale: scaleOf(node, size),
    softcap: attributeFloat(node, "softcap", 0),
    sees(b, t) {
      const high = past[b] + t + 1;
      return [window > 0 ? Math.max(0, high - window) : 0, high];
    },
    bias: biasOf(inputs[10], { ...sizes, heads }, total, node),
    sink: sink !== null ? (n) => sink[n] : smooth ? () => 0 : null,
  });
  return [out, ...present];
}

/** The rotation that GroupQueryAttention does itself. */
function rotationOf(inputs: Inputs, node: NodeProto, past: readonly number[]): Rotation | null {
  if (!turns(node)) return null;
  const [cos, sin] = [need(inputs, 7, node), need(inputs, 8, node)];
  const positions = inputs[9] === undefined ? null : integers(inputs[9]);
  const tokens = inputs[0]!.dims[1];
  return {
    cos: floatData(cos, node.opType),
    sin: floatData(sin, node.opType),
    rotated: 2 * cos.dims.at(-1)!,
    interleaved: attributeInt(node, "rotary_interleaved", 0) !== 0,
    position: positions === null ? (b, t) => past[b] + t : (b, t) => positions[b * tokens + t],
  };
}

/** A query, key or value of MultiHeadAttention: [B, S, D] or [B, N, S, H], with its bias added. */
function projected(
  value: Value,
  heads: number,
  bias: Float32Array | null,
  node: NodeProto,
): Pick<Sizes, "batch" | "tokens" | "size"> & { at: Heads } {
  const data = floatData(value, node.opType);
  if (value.dims.length === 4) {
    const [batch, n, tokens, size] = value.dims;
    if (n !== heads) throw fail(node, `${heads} heads`, `[${value.dims.join(", ")}]`);
    return { at: byHead(data, heads, tokens, size), batch, tokens, size };
  }
  const [batch, tokens, width] = value.dims;
  if (value.dims.length !== 3 || width % heads !== 0) throw fail(node, `[B, S, ${heads} * size]`, `[${value.dims.join(", ")}]`);
  const sums = bias === null ? data : data.map((v, i) => v + bias[i % width]);
  return { at: byToken(sums, tokens, width, width / heads), batch, tokens, size: width / heads };
}

/** Which keys a mask leaves: [B] lengths, or [B, T] of 0 and 1. */
function paddingOf(mask: Value | undefined, node: NodeProto, batch: number, keys: number): ((b: number, j: number) => boolean) | null {
  if (mask === undefined) return null;
  const values = integers(mask);
  if (mask.dims.length === 1 && values.length === batch) return (b, j) => j < values[b];
  if (mask.dims.length !== 2 || mask.dims[0] !== batch || mask.dims[1] !== keys)
    throw fail(node, `a mask [${batch}] or [${batch}, ${keys}]`, `[${mask.dims.join(", ")}]`);
  return (b, j) => values[b * keys + j] > 0;
}

function multiHead(inputs: Inputs, node: NodeProto): Value[] {
  const heads = attributeInt(node, "num_heads", 0);
  const query = need(inputs, 0, node);
  if (heads < 1 || query.dims.length !== 3) throw fail(node, "a query [B, S, D], key and value", `[${query.dims.join(", ")}]`);
  const bias = inputs[3] === undefined ? null : floatData(inputs[3], node.opType);
  const width = query.dims[2];
  const batch = query.dims[0];
  const q = projected(query, heads, bias?.subarray(0, width) ?? null, node);
  const k = projected(need(inputs, 1, node), heads, bias?.subarray(width, 2 * width) ?? null, node);
  const v = projected(need(inputs, 2, node), heads, bias?.subarray(2 * width) ?? null, node);
  if (k.batch !== batch || k.size !== q.size)
    throw fail(node, `keys of ${batch} sequences, heads of ${q.size}`, `[${inputs[1]!.dims.join(", ")}]`);
  if (v.batch !== batch || v.tokens !== k.tokens)
    throw fail(node, `values of ${batch} sequences of ${k.tokens} tokens`, `[${inputs[2]!.dims.join(", ")}]`);
  const past = inputs[6]?.dims[2] ?? 0;
  const keys = past + k.tokens;
  shaped(node, inputs[6], "past keys", [batch, heads, past, k.size]);
  shaped(node, inputs[7], "past values", [batch, heads, past, v.size]);
  const join = (own: typeof k, before: Value | undefined): { value: Value; at: Heads } => {
    const value = floats([batch, heads, keys, own.size]);
    const at = byHead(value.data, heads, keys, own.size);
    const sizes = { batch, heads, size: own.size };
    if (before !== undefined) copyHeads(byHead(floatData(before, node.opType), heads, past, own.size), at, { ...sizes, tokens: past });
    copyHeads(own.at, at, { ...sizes, tokens: own.tokens }, past);
    return { value, at };
  };
  const key = join(k, inputs[6]);
  const value = join(v, inputs[7]);
  const out = floats([batch, q.tokens, heads * v.size]);
  const causal = attributeInt(node, "unidirectional", 0) !== 0;
  const added = biasOf(inputs[5], { batch, heads, tokens: q.tokens, size: q.size }, keys, node);
  const kept = paddingOf(inputs[4], node, batch, keys);
  const filter = attributeFloat(node, "mask_filter_value", -10000);
  attend({
    q: q.at,
    k: key.at,
    v: value.at,
    y: byToken(out.data, q.tokens, heads * v.size, v.size),
    ...{ batch, heads, kvHeads: heads, tokens: q.tokens, size: q.size, valueSize: v.size },
    keys: () => keys,
    scale: scaleOf(node, q.size),
    softcap: 0,
    sees: (_, t) => [0, causal ? Math.min(keys, keys - q.tokens + t + 1) : keys],
    bias: kept === null ? added : (b, n, t, j) => (added === null ? 0 : added(b, n, t, j)) + (kept(b, j) ? 0 : filter),
    sink: null,
  });
  return [out, key.value, value.value];
}

/** Values of a head of x [B, S, heads * size], `rotated` of which turn; undefined for others. */
export function headOf({ dims }: Pick<Value, "dims">, node: NodeProto, rotated: number): number | undefined {
  const heads = attributeInt(node, "num_heads", 0);
  const size = heads > 0 ? dims[2] / heads : rotated;
  return dims.length === 3 && Number.isInteger(size) && Number.isInteger(dims[2] / size) ? size : undefined;
}

/** Rows of the tables for each token of com.microsoft.RotaryEmbedding; undefined where there is something wrong. */
export function rotaryRows(positions: Value, [batch, tokens]: readonly number[], rows: number): Int32Array<ArrayBuffer> | undefined {
  const given = integers(positions);
  const isOffset = positions.dims.length <= 1;
  if (given.length !== batch * tokens && !(isOffset && given.length === 1)) return undefined;
  const list = Int32Array.from({ length: batch * tokens }, (_, i) => (isOffset ? given[0] + (i % tokens) : given[i]));
  return list.every((p) => p >= 0 && p < rows) ? list : undefined;
}

/** x [B, S, D] or [B, N, S, H] as heads. */
function rotarySizes(x: Value, rotated: number, node: NodeProto): Sizes & { at: (data: Float32Array) => Heads } {
  if (x.dims.length === 4) {
    const [batch, n, tokens, size] = x.dims;
    return { batch, heads: n, tokens, size, at: (data) => byHead(data, n, tokens, size) };
  }
  const [batch, tokens, width] = x.dims;
  const size = headOf(x, node, rotated);
  if (size === undefined) throw fail(node, "[B, S, heads * size]", `[${x.dims.join(", ")}]`);
  return { batch, heads: width / size, tokens, size, at: (data) => byToken(data, tokens, width, size) };
}

/**
 * com.microsoft: positions before the tables, an offset or [B, S]. ONNX: after them, and tables [B, S, R / 2] without
 * any.
 */
const rotary =
  (microsoft: boolean) =>
  (inputs: Inputs, node: NodeProto): Value => {
    const x = need(inputs, 0, node);
    const [cos, sin] = (microsoft ? [2, 3] : [1, 2]).map((i) => need(inputs, i, node));
    const given = microsoft ? need(inputs, 1, node) : inputs[3];
    const sizes = rotarySizes(x, 2 * cos.dims.at(-1)!, node);
    const rotated = tabled(node, cos, sin, sizes.size);
    const positions = given === undefined ? null : integers(given);
    if (positions !== null && positions.length !== 1 && positions.length !== sizes.batch * sizes.tokens)
      throw fail(node, `[${sizes.batch}, ${sizes.tokens}] positions`, `[${given!.dims.join(", ")}]`);
    const offset = microsoft && given!.dims.length <= 1;
    const out = floats(x.dims);
    const rotation = {
      cos: floatData(cos, node.opType),
      sin: floatData(sin, node.opType),
      rotated,
      interleaved: attributeInt(node, "interleaved", 0) !== 0,
      position: (b: number, t: number): number =>
        positions === null ? b * sizes.tokens + t : offset ? positions[0] + t : positions[b * sizes.tokens + t],
    };
    rotate(sizes.at(floatData(x, node.opType)), sizes.at(out.data), sizes, rotation, node);
    return out;
  };

const present = (node: NodeProto, i: number): boolean => (node.input[i] ?? "") !== "";

function groupedMissing(node: NodeProto): string | undefined {
  if (present(node, 12) || present(node, 13) || text(node, "k_quant_type", "NONE") !== "NONE") return "with a quantized cache";
  if (present(node, 14) || present(node, 15)) return "with norms of queries and keys";
  return (node.output[3] ?? "") !== "" ? "with an output of scores" : undefined;
}

function multiHeadMissing(node: NodeProto): string | undefined {
  if (!present(node, 1) || !present(node, 2)) return "with packed projections";
  if (present(node, 8) || present(node, 9)) return "with buffers that past and present share";
  return (node.output[3] ?? "") !== "" ? "with an output of scores" : undefined;
}

export const attention: Operators = {
  "com.microsoft.GroupQueryAttention": { run: groupQuery, missing: groupedMissing },
  "com.microsoft.MultiHeadAttention": { run: multiHead, missing: multiHeadMissing },
  "com.microsoft.RotaryEmbedding": {
    run: rotary(true),
    missing: (node) => (attributeInt(node, "is_packed_batching", 0) !== 0 ? "with packed batches" : undefined),
  },
  RotaryEmbedding: { run: rotary(false) },
};
