// Attention on WGSL kernels: what patterns put together, and GroupQueryAttention over past and present or over the
// cache of a decoder.
import { headUnit, isSpread, keyFactor, queryFactor, spreadWidth, type CacheKind } from "../../../kernels/wasm/nn/cache.ts";
import { APPEND_FIELDS, appendName, appendShader, perWord } from "../../../kernels/wgsl/nn/cache.ts";
import { hadamardGroups, hadamardPasses, hadamardShader, hadamardShaderName } from "../../../kernels/wgsl/hadamard.ts";
import { ATTENTION_FIELDS, attentionName, attentionShader, MOST_HEAD } from "../../../kernels/wgsl/nn/attention.ts";
import type { NodeProto } from "../../onnx/file/gen/onnx_pb.ts";
import { attributeFloat, attributeInt } from "../../onnx/graph/nodes.ts";
import type { CacheKinds } from "../decoder-kernels.ts";
import { attentionOf, isTable, maskOf, sizesOf, type Layout, type Sizes, type Spelled } from "../machine/fused-attention.ts";
import { groupedSizes, tokensBefore, type Grouped } from "../ops/attention.ts";
import type { Inputs } from "../ops/operator.ts";
import type { Value } from "../value.ts";
import { copyBetween } from "./copy.ts";
import { isFloat, isFull, type DeviceEmit, type HeldInputs } from "./emit.ts";
import { headStep } from "./kept.ts";
import { hollowInputs, turn, type Rotation, type Turned } from "./moves.ts";
import { countOf, isTensor, type Held, type Recorder, type Tensor } from "./recorder.ts";

/** Where the heads of a tensor lie, in elements. */
interface Strided {
  readonly tensor: Tensor;
  readonly start: number;
  readonly batch: number;
  readonly head: number;
  readonly token: number;
}

interface Attend {
  readonly batch: number;
  readonly heads: number;
  readonly group: number;
  readonly tokens: number;
  readonly size: number;
  /** Keys before the tokens, where a token sees those up to its own; else null: all see `keys`. */
  readonly past: (() => number) | null;
  readonly keys: number;
  readonly window: number;
  readonly scale: number;
  readonly cap: number;
  readonly sink?: Tensor | undefined;
  readonly mask?: Strided | undefined;
  /** Rows without a key are 0, else NaN. */
  readonly guarded: boolean;
  /** Where keys and values are a cache of fewer bits. */
  readonly coded?: DeviceCache | undefined;
  readonly q: Strided;
  readonly k: Strided;
  readonly v: Strided;
  readonly y: Strided;
}

const NAN_BITS = 0x7fc00000;

function attend(r: Recorder, of: Attend): void {
  const { batch, heads, group, tokens, size, past, keys, window, scale, cap, sink, mask, guarded, coded, q, k, v, y } = of;
  const spec = { head: size, mask: mask !== undefined, sink: sink !== undefined, softcap: cap > 0, ...(coded && { kinds: coded.kinds }) };
  const sides: Record<string, number> = {};
  for (const [name, side] of Object.entries({ q, k, v, y, m: mask })) {
    sides[`${name}b`] = side?.batch ?? 0;
    sides[`${name}h`] = side?.head ?? 0;
    sides[`${name}t`] = side?.token ?? 0;
    sides[`o${name}`] = side === undefined ? 0 : side.tensor.offset + side.start;
  }
  const rows = batch * heads * tokens;
  r.dispatch({ family: "attention", spec, name: attentionName(spec), code: () => attentionShader(spec) }, () => {
    const before = past === null ? 0 : past();
    return {
      fields: ATTENTION_FIELDS,
      params: {
        ...{
          heads,
          group,
          tokens,
          rows,
          scale,
          cap,
          window,
          empty: guarded ? 0 : NAN_BITS,
          ...sides,
          osink: sink?.offset ?? 0,
          capacity: coded?.capacity ?? 0,
        },
        ...{ past: before, causal: past === null ? 0 : 1, keys: past === null ? keys : before + tokens },
      },
      bound: {
        ...{ q: q.tensor, k: k.tensor, v: v.tensor, y: y.tensor },
        ...(coded?.words[0] && { k_words: coded.words[0] }),
        ...(coded?.words[1] && { v_words: coded.words[1] }),
        ...(mask && { mask: mask.tensor }),
        ...(sink && { sink }),
      },
      groups: rows,
    };
  });
}

function stridesOf(tensor: Tensor, layout: Layout, { heads, tokens, size }: Sizes): Strided {
  // of dimension 1; where batch and heads are one, that is the first
  const step = tensor.dims.length === 4 ? headStep(tensor) : tokens * size;
  return { tensor, start: 0, batch: heads * tokens * size, ...(layout === "head" ? { token: size, head: step } : { token: step, head: size }) }; // prettier-ignore
}

/** Attention that a pattern found, where its sizes agree. */
export const fusedAttention =
  (of: Spelled): DeviceEmit =>
  (r, inputs) => {
    const values = [of.q, of.k, of.v].map(({ at }) => inputs[at]);
    const given = of.mask < 0 ? undefined : inputs[of.mask];
    if (!values.every(isFull)) return undefined;
    const [q, k, v] = values as Held[];
    const found = attentionOf(of, inputs);
    if (found === undefined || found.sq.size > MOST_HEAD) return undefined;
    const { sq, sk, group, scale } = found;
    const mask = given === undefined ? undefined : maskOf(given, of.none, { ...sq, keys: sk.tokens });
    if (mask === null) return undefined;
    const { batch, heads, tokens, size } = sq;
    const y = r.tensor(found.dims);
    attend(r, {
      ...{ batch, heads, group, tokens, size, past: null, keys: sk.tokens, window: 0, scale, cap: 0, guarded: of.guarded },
      ...(mask && { mask: { tensor: r.place(mask.value), start: 0, batch: mask.batch / 4, head: mask.head / 4, token: mask.token / 4 } }),
      q: stridesOf(r.place(q), of.q.layout, sq),
      k: stridesOf(r.place(k), of.k.layout, sk),
      v: stridesOf(r.place(v), of.v.layout, sk),
      y: stridesOf(y, of.y, sq),
    });
    return [y];
  };

/** Rotary embedding of whole heads, by tables whose rows hold each half twice. */
export const fusedRotary =
  (layout: Layout, half: number, end: number): DeviceEmit =>
  (r, [x, cos, sin]) => {
    if (!isFull(x) || x.dims.length !== 4 || !isFloat(cos) || !isFloat(sin)) return undefined;
    const sizes = sizesOf(x, layout, 1)!;
    const { batch, heads, tokens, size } = sizes;
    if (size !== 2 * half || end < size || ![cos, sin].every((table) => isTable(table, sizes))) return undefined;
    const from = stridesOf(r.place(x), layout, sizes);
    const tables = [r.place(cos), r.place(sin)];
    const y = r.tensor([batch, heads, tokens, size]);
    const to = stridesOf(y, "head", sizes);
    for (let b = 0; b < batch; b++) {
      const [c, s] = tables.map((table) => r.view(table, [tokens, size], table.size === tokens * size ? 0 : b * tokens * size));
      const at = ({ tensor, batch: step, token, head }: Strided): Turned => ({ tensor, start: b * step, token, head });
      turn(r, { cos: c, sin: s, rotated: size, row: size, interleaved: false, at: () => 0 }, { tokens, heads, size }, at(from), at(to));
      r.free(c);
      r.free(s);
    }
    return [y];
  };

/** Keys and values [batch][kv head][capacity][size], of codes in words; `words`: their scales. */
export interface DeviceCache {
  readonly k: Tensor;
  readonly v: Tensor;
  readonly capacity: number;
  readonly kinds: CacheKinds;
  readonly words: readonly [Tensor?, Tensor?];
}

/** A cache, and tokens before in it. */
export interface Cached {
  readonly cache: DeviceCache;
  readonly past: () => number;
}

/** Query, key and value as they lie, packed or not; null where one is not float32. */
function projections(r: Recorder, inputs: HeldInputs, { tokens, heads, kvHeads, size, packed }: Grouped): Strided[] | null {
  const own = packed ? [inputs[0], inputs[0], inputs[0]] : inputs.slice(0, 3);
  if (!own.every(isFull)) return null;
  const starts = packed ? [0, heads * size, (heads + kvHeads) * size] : [0, 0, 0];
  const widths = packed ? [0, 0, 0].fill((heads + 2 * kvHeads) * size) : [heads * size, kvHeads * size, kvHeads * size];
  return own.map((value, i) => ({ tensor: r.place(value), start: starts[i], batch: tokens * widths[i], token: widths[i], head: size }));
}

function rotationOf(r: Recorder, inputs: HeldInputs, node: NodeProto, at: () => number): Rotation | null {
  const [cos, sin] = [inputs[7], inputs[8]];
  if (attributeInt(node, "do_rotary", 0) !== 1 || !isFloat(cos) || !isFloat(sin)) return null;
  const row = cos.dims[1];
  return {
    cos: r.place(cos),
    sin: r.place(sin),
    rotated: 2 * row,
    row,
    interleaved: attributeInt(node, "rotary_interleaved", 0) !== 0,
    at,
  };
}

const sinks = new WeakMap<Recorder, Map<number, Value>>();

/** A logit for each head that has no value. */
function sinkOf(r: Recorder, sink: Held | undefined, node: NodeProto, heads: number): Tensor | undefined {
  if (sink !== undefined) return r.place(sink);
  if (attributeInt(node, "smooth_softmax", 0) !== 1) return undefined;
  const known = sinks.get(r) ?? new Map<number, Value>();
  sinks.set(r, known);
  const value = known.get(heads) ?? { type: "float32", dims: [heads], data: new Float32Array(heads) };
  known.set(heads, value);
  r.constant(value);
  return r.place(value);
}

/** What the kernel does not take: added biases, positions of one's own, large heads. */
const outside = (inputs: HeldInputs, { size }: Grouped): boolean =>
  inputs[10] !== undefined || inputs[9] !== undefined || inputs[12] !== undefined || inputs[14] !== undefined || size > MOST_HEAD;

/** Rows of heads into a cache of codes. */
function append(
  r: Recorder,
  kind: Exclude<CacheKind, "float32">,
  from: Turned,
  { tokens, kvHeads, size }: Grouped,
  side: 0 | 1,
  to: Cached,
): void {
  const { cache, past } = to;
  const [y, words] = [side === 0 ? cache.k : cache.v, cache.words[side]];
  const rows = tokens * kvHeads;
  const ox = from.tensor.offset + (from.start as number);
  r.dispatch({ family: "append", spec: { kind }, name: appendName(kind), code: () => appendShader(kind) }, () => ({
    fields: APPEND_FIELDS,
    params: { rows, heads: kvHeads, width: size, first: past(), capacity: cache.capacity, xt: from.token, xh: from.head, ox },
    bound: { x: from.tensor, y, ...(words && { words }) },
    groups: rows,
  }));
}

/** Heads of a whole tensor spread in place (kernels/wasm/nn/cache.ts). */
function spread(r: Recorder, x: Tensor, size: number, factor: number): void {
  // one pass: a head is at most MOST_HEAD values
  const [{ spec, distance }] = hadamardPasses(spreadWidth(size));
  const shader = { family: "hadamard", spec, name: hadamardShaderName(spec), code: () => hadamardShader(spec) };
  const params = { count: x.size, distance, scale: factor };
  r.dispatch(shader, { fields: ["count", "distance", "scale$"], params, bound: { x }, groups: hadamardGroups(spec, x.size) });
}

/** Heads of tokens into others, turned where there is a rotation. */
function turnOrCopy(r: Recorder, rotation: Rotation | null, sizes: Parameters<typeof turn>[2], from: Turned, to: Turned): void {
  if (rotation !== null) return turn(r, rotation, sizes, from, to);
  const side = ({ tensor, start, token, head }: Turned) => ({ tensor, start, strides: [token, head, 1] });
  copyBetween(r, [sizes.tokens, sizes.heads, sizes.size], side(from), side(to));
}

/** Keys and values of these tokens, of row `b` of the batch, into a cache; their queries turned into `turned`. */
function store(
  r: Recorder,
  parts: readonly Strided[],
  rotation: Rotation | null,
  turned: Tensor | null,
  sizes: Grouped,
  b: number,
  to: Cached,
): void {
  const { tokens, heads, kvHeads, size } = sizes;
  const { cache, past } = to;
  const { capacity, kinds } = cache;
  const own = ({ tensor, start, batch, token, head }: Strided): Turned => ({ tensor, start: start + b * batch, token, head });
  const row = (tensor: Tensor): Turned => ({ tensor, start: () => past() * size, token: size, head: capacity * size });
  const [q, k, v] = parts.map(own);
  let keys = k;
  if (turned !== null) {
    const whole = { start: b * tokens * heads * size, token: heads * size, head: size };
    turnOrCopy(r, rotation, { tokens, heads, size }, q, { tensor: turned, ...whole });
    const fresh = kinds[0] === "float32" ? null : r.tensor([tokens, kvHeads, size]);
    keys = fresh === null ? row(cache.k) : { tensor: fresh, start: 0, token: kvHeads * size, head: size };
    turnOrCopy(r, rotation, { tokens, heads: kvHeads, size }, k, keys);
    if (isSpread(kinds[0])) spread(r, keys.tensor, size, keyFactor(size));
  }
  ([keys, v] as const).forEach((from, side) => {
    const kind = kinds[side];
    const tensor = side === 0 ? cache.k : cache.v;
    if (kind !== "float32") append(r, kind, from, sizes, side as 0 | 1, to);
    else if (from.tensor !== tensor)
      copyBetween(
        r,
        [tokens, kvHeads, size],
        { tensor: from.tensor, start: from.start, strides: [from.token, from.head, 1] },
        { tensor, start: row(tensor).start, strides: [size, capacity * size, 1] },
      );
  });
  if (keys !== k && kinds[0] !== "float32") r.free(keys.tensor);
}

/** Keys and values into caches after others, one for each row of the batch, then attention over them. */
function overCaches(r: Recorder, inputs: HeldInputs, node: NodeProto, sizes: Grouped, caches: readonly Cached[]): Tensor | null {
  const parts = projections(r, inputs, sizes);
  if (parts === null) return null;
  const { batch, tokens, heads, kvHeads, size } = sizes;
  const rotations = caches.map(({ past }) => rotationOf(r, inputs, node, past));
  const isSpreading = isSpread(caches[0].cache.kinds[0]);
  const turned = rotations[0] === null && !isSpreading ? null : r.tensor([batch, tokens, heads * size]);
  const y = r.tensor([batch, tokens, heads * size]);
  const whole = { start: 0, batch: tokens * heads * size, token: heads * size, head: size };
  const queries = turned === null ? parts[0] : { tensor: turned, ...whole };
  const scale = attributeFloat(node, "scale", 0);
  const sink = sinkOf(r, inputs[11], node, heads);
  caches.forEach((one, b) => store(r, parts, rotations[b], turned, sizes, b, one));
  if (isSpreading) spread(r, turned!, size, queryFactor(size));
  caches.forEach(({ cache, past }, b) => {
    const side = (tensor: Tensor, kind: CacheKind): Strided => {
      const width = size / perWord(kind);
      return { tensor, start: 0, batch: 0, head: cache.capacity * width, token: width };
    };
    const at = (of: Strided): Strided => ({ ...of, start: of.start + b * of.batch });
    attend(r, {
      ...{ batch: 1, heads, group: heads / kvHeads, tokens, size, past, keys: 0, guarded: true, sink },
      window: Math.max(0, attributeInt(node, "local_window_size", -1)),
      scale: scale === 0 ? 1 / Math.sqrt(size) : scale,
      cap: attributeFloat(node, "softcap", 0),
      coded: cache.kinds.every((kind) => kind === "float32") ? undefined : cache,
      q: at(queries),
      k: side(cache.k, cache.kinds[0]),
      v: side(cache.v, cache.kinds[1]),
      y: at({ tensor: y, ...whole }),
    });
  });
  if (turned !== null) r.free(turned);
  return y;
}

/** Sequences over a decoder's caches. */
export function decodeAttention(r: Recorder, inputs: HeldInputs, node: NodeProto, caches: readonly Cached[]): Tensor | null {
  const sizes = groupedSizes(hollowInputs(inputs) as Inputs, node);
  const fits = caches.every(({ cache }) => cache.kinds.every((kind) => kind === "float32" || sizes.size % headUnit(kind) === 0));
  return outside(inputs, sizes) || sizes.batch !== caches.length || !fits ? null : overCaches(r, inputs, node, sizes, caches);
}

/** A plain run: past and new tokens into present, then attention over it. */
export const groupQuery: DeviceEmit = (r, inputs, node) => {
  const sizes = groupedSizes(hollowInputs(inputs), node);
  const { batch, kvHeads, size } = sizes;
  if (outside(inputs, sizes) || isTensor(inputs[5]) || isTensor(inputs[6])) return undefined;
  const found = tokensBefore(hollowInputs(inputs), node, sizes);
  if (found === undefined) return undefined;
  const { before, room, capacity } = found;
  const present = [0, 1].map(() => r.tensor([batch, kvHeads, capacity, size]));
  present.forEach((tensor, i) => {
    const old = inputs[3 + i];
    if (old === undefined || countOf(old) === 0) return;
    const [from, to] = [r.place(old), tensor];
    const strides = (rows: number): number[] => [rows * size, 1];
    copyBetween(
      r,
      [batch * kvHeads, room * size],
      { tensor: from, start: 0, strides: strides(room) },
      { tensor: to, start: 0, strides: strides(capacity) },
    );
  });
  const kept = kvHeads * capacity * size;
  const caches = Array.from({ length: batch }, (_, b): Cached => {
    const [k, v] = present.map((tensor) => r.view(tensor, [kept], b * kept));
    return { cache: { k, v, capacity, kinds: ["float32", "float32"], words: [] }, past: () => before };
  });
  const y = overCaches(r, inputs, node, sizes, caches);
  for (const { cache } of caches) for (const view of [cache.k, cache.v]) r.free(view);
  return y === null ? undefined : [y, ...present];
};
