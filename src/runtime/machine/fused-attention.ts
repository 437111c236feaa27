// Spelled-out attention and rotary embedding on their kernels: what a pattern leaves open (sizes, masks, numbers) is
// checked here, on the values of a run. Undefined: these are none that the kernel takes, the steps run one by one.
import type { Heads } from "../../../kernels/wasm/nn/attention-job.ts";
import { rotary, rotaryJob } from "../../../kernels/wasm/nn/rotary.ts";
import { product } from "../ops/operator.ts";
import { integers, type Value } from "../value.ts";
import { attentionKernel, streamsOf } from "./attention.ts";
import { isKept } from "./kept.ts";
import { elementsOf, isPlaceable, type Emit, type Machine } from "./machine.ts";

/** [batch, heads, tokens, size], or [batch, tokens, heads, size]. */
export type Layout = "head" | "token";

/** Heads repeated for their group: the inputs that are shapes of Expand and Reshape. */
export interface Repeat {
  readonly expand: number;
  readonly reshape: number;
}

interface Side {
  readonly at: number;
  readonly layout: Layout;
  readonly repeat?: Repeat;
}

/** Attention as a pattern found it: places among the inputs of its step. */
export interface Spelled {
  readonly q: Side;
  readonly k: Side;
  readonly v: Side;
  readonly y: Layout;
  readonly scales: readonly { readonly at: number; readonly divides: boolean }[];
  /** -1: none. */
  readonly mask: number;
  /** The mask is a condition: false is this number. */
  readonly none: number | undefined;
  /** Batch and heads are one dimension but for the mask. */
  readonly folds: boolean;
  /** Rows without a key are 0. */
  readonly guarded: boolean;
  readonly axis: number;
}

export interface Sizes {
  readonly batch: number;
  readonly heads: number;
  readonly tokens: number;
  readonly size: number;
}

export function sizesOf({ dims }: Pick<Value, "dims">, layout: Layout, batch: number): Sizes | undefined {
  if (dims.length === 3 && layout === "head") return { batch, heads: dims[0] / batch, tokens: dims[1], size: dims[2] };
  if (dims.length !== 4) return undefined;
  const [heads, tokens] = layout === "head" ? [dims[1], dims[2]] : [dims[2], dims[1]];
  return { batch: dims[0], heads, tokens, size: dims[3] };
}

/** Bytes from token to token and from head to head. */
const strides = (layout: Layout, { heads, tokens, size }: Sizes): { token: number; head: number } =>
  layout === "head" ? { token: 4 * size, head: 4 * tokens * size } : { token: 4 * heads * size, head: 4 * size };

/** Of batch `b` of a tensor at `address`. */
const batchOf = (address: number, layout: Layout, sizes: Sizes, b: number): Heads => ({
  address: address + 4 * b * sizes.heads * sizes.tokens * sizes.size,
  ...strides(layout, sizes),
});

/** A value of a run, in JavaScript or not. */
type Shaped = Pick<Value, "type" | "dims"> & Partial<Pick<Value, "data">>;

/** Whether Unsqueeze, Expand and Reshape make each head of [batch, heads, tokens, size] `group` heads, one by one. */
function repeats(inputs: readonly (Shaped | undefined)[], { expand, reshape }: Repeat, sizes: Sizes, group: number): boolean {
  const { batch, heads, tokens, size } = sizes;
  const [wide, flat] = [inputs[expand], inputs[reshape]].map((value) =>
    value !== undefined && "data" in value ? integers(value as Value) : [],
  );
  const plain = [batch, heads, group, tokens, size];
  const whole = [batch, heads * group, tokens, size];
  return (
    wide.length === 5 &&
    wide.every((d, i) => d === plain[i] || (d === 1 && i !== 2)) &&
    flat.length === 4 &&
    flat.every((d, i) => d === whole[i] || d === -1 || (d === 0 && i === 0))
  );
}

interface Mask<V = Value> {
  readonly value: V | Value;
  readonly batch: number;
  readonly head: number;
  readonly token: number;
}

/** The mask as float32 with its strides in bytes; null where it is none that the kernel reads. */
export function maskOf<V extends Shaped>(value: V, none: number | undefined, sizes: Sizes & { keys: number }): Mask<V> | null {
  const wanted = [sizes.batch, sizes.heads, sizes.tokens, sizes.keys];
  const dims = [...new Array<number>(Math.max(0, 4 - value.dims.length)).fill(1), ...value.dims];
  if (dims.length !== 4 || dims[3] !== sizes.keys || dims.some((d, i) => d !== wanted[i] && d !== 1)) return null;
  let mask: V | Value = value;
  if (none !== undefined) {
    if (value.type !== "bool") return null;
    const at = value.data as Uint8Array;
    mask = { type: "float32", dims: value.dims, data: Float32Array.from(at, (keep) => (keep === 0 ? none : 0)) };
  } else if (value.type !== "float32") return null;
  const [b, n, t, keys] = dims;
  const step = (d: number, bytes: number): number => (d === 1 ? 0 : bytes);
  return { value: mask, batch: step(b, 4 * n * t * keys), head: step(n, 4 * t * keys), token: step(t, 4 * keys) };
}

/** Whether a row of a mask leaves no key. */
function isEmpty(data: Float32Array, from: number, keys: number): boolean {
  let j = 0;
  while (j < keys && data[from + j] === -Infinity) j++;
  return j === keys;
}

/** Rows without a key as Softmax has them, where nothing guards it: NaN. The kernel leaves 0. */
function spoilEmpty(m: Machine, mask: Mask, keys: number, { batch, heads, tokens, size }: Sizes, y: (b: number) => Heads): void {
  m.call(() => {
    const data = mask.value.data as Float32Array;
    let some = false;
    for (let from = 0; from < data.length && !some; from += keys) some = isEmpty(data, from, keys);
    if (!some) return;
    for (let b = 0; b < batch; b++)
      for (let h = 0; h < heads; h++)
        for (let t = 0; t < tokens; t++) {
          if (!isEmpty(data, (b * mask.batch + h * mask.head + t * mask.token) / 4, keys)) continue;
          const { address, head, token } = y(b);
          m.memory.floats(address + h * head + t * token, size).fill(NaN);
        }
  });
}

/** Batches that queries [batch * heads, ..] hold, by their mask. */
export function foldedBatch(rows: number, mask: Pick<Value, "dims"> | undefined): number {
  const [b = 1, n = 1] = mask?.dims.length === 4 ? mask.dims : [];
  return b > 1 ? b : n > 1 ? rows / n : 1;
}

/** What the values of a run make of a pattern; undefined where they do not agree, or a scale is no number. */
export function attentionOf(
  of: Spelled,
  inputs: readonly (Shaped | undefined)[],
): { sq: Sizes; sk: Sizes; group: number; scale: number; dims: number[] } | undefined {
  const values = [of.q, of.k, of.v].map(({ at }) => inputs[at]!);
  const [q, k, v] = values;
  const rank = q.dims.length;
  if ((of.axis !== -1 && of.axis !== rank - 1) || k.dims.length !== rank || v.dims.length !== rank || (of.folds && rank !== 3))
    return undefined;
  const folded = of.folds ? foldedBatch(q.dims[0], of.mask < 0 ? undefined : inputs[of.mask]) : 1;
  const [sq, sk, sv] = [of.q, of.k, of.v].map(({ layout }, i) => sizesOf(values[i], layout, folded));
  if (sq === undefined || sk === undefined || sv === undefined) return undefined;
  const group = sq.heads / sk.heads;
  const agree = [sk, sv].every((s) => s.batch === sq.batch && s.size === sq.size && s.tokens === sk.tokens && s.heads === sk.heads);
  if (!agree || !Number.isInteger(group) || !Number.isInteger(sq.heads)) return undefined;
  const repeated = [of.k.repeat, of.v.repeat].filter((repeat) => repeat !== undefined);
  // heads that nothing repeats broadcast only from one
  if (group > 1 && repeated.length !== 2 && !(repeated.length === 0 && sk.heads === 1 && rank === 4)) return undefined;
  if (repeated.some((repeat) => !repeats(inputs, repeat, sk, group))) return undefined;
  let scale = 1;
  for (const { at, divides } of of.scales) {
    const value = inputs[at];
    if (value?.type !== "float32" || product(value.dims) !== 1 || !("data" in value)) return undefined;
    const number = Number(value.data![0]);
    scale = divides ? scale / number : scale * number;
  }
  const { batch, heads, tokens, size } = sq;
  const dims = of.y === "token" ? [batch, tokens, heads, size] : rank === 3 ? [batch * heads, tokens, size] : [batch, heads, tokens, size];
  return { sq, sk, group, scale, dims };
}

export const fusedAttention =
  (of: Spelled): Emit =>
  (m, inputs) => {
    const values = [of.q, of.k, of.v].map(({ at }) => inputs[at]);
    const given = of.mask < 0 ? undefined : inputs[of.mask];
    if (values.some((value) => value?.type !== "float32" || product(value.dims) === 0) || !values.some(isPlaceable)) return undefined;
    const [q, k, v] = values as Value[];
    const found = attentionOf(of, inputs);
    if (found === undefined || found.sq.size % 4 !== 0) return undefined;
    const { sq, sk, group, scale } = found;
    const mask = given === undefined ? undefined : maskOf(given, of.none, { ...sq, keys: sk.tokens });
    if (mask === null) return undefined;
    const { batch, tokens, size } = sq;
    const y = m.slot(found.dims);
    const aq = m.place(q);
    const [pk, pv] = [
      { value: k, side: of.k, sizes: sk },
      { value: v, side: of.v, sizes: sk },
    ].map(({ value, side, sizes }) => {
      // a cache is one batch of whole heads
      if (isKept(value) && side.layout === "head")
        return (): Heads => ({ address: value.cache.address, token: 4 * sizes.size, head: 4 * value.cache.room! * sizes.size });
      const address = m.place(value);
      return (b: number): Heads => batchOf(address, side.layout, sizes, b);
    });
    const am = mask === undefined ? 0 : m.place(mask.value);
    const { kernel, job } = attentionKernel(m, { head: size, softcap: false, mask: mask !== undefined }, tokens);
    for (let b = 0; b < batch; b++)
      m.job(
        kernel,
        job({
          ...{ tokens, kvHeads: sk.heads, group, keys: sk.tokens, causal: false, scale },
          ...{ q: batchOf(aq, of.q.layout, sq, b), y: batchOf(y.address, of.y, sq, b) },
          ...{ k: pk(b), v: pv(b), streams: streamsOf(m) },
          ...(mask === undefined ? {} : { mask: { address: am + b * mask.batch, token: mask.token, head: mask.head } }),
        }),
      );
    if (mask !== undefined && !of.guarded) spoilEmpty(m, mask, sk.tokens, sq, (b) => batchOf(y.address, of.y, sq, b));
    return [y];
  };

/**
 * Rotary embedding of whole heads. `half`: where the slices meet; `end`: where the upper one ends. Rows of the tables
 * hold each half twice: of row r the kernel reads the first as row 2 r of tables of halves.
 */
export const fusedRotary =
  (layout: Layout, half: number, end: number): Emit =>
  (m, [x, cos, sin]) => {
    if (!isPlaceable(x) || elementsOf(x) === 0 || x.dims.length !== 4) return undefined;
    const sizes = sizesOf(x, layout, 1)!;
    const { batch, heads, tokens, size } = sizes;
    if (size !== 2 * half || end < size) return undefined;
    const tables = [cos, sin];
    if (!tables.every((table) => isTable(table, sizes))) return undefined;
    const [c, s] = tables;
    const [ac, as] = [m.place(c), m.place(s)];
    const from = m.place(x);
    const at = m.slot([tokens]);
    m.call(() => {
      const rows = new Int32Array(m.memory.buffer, at.address, tokens);
      for (let t = 0; t < tokens; t++) rows[t] = 2 * t;
    });
    const y = m.slot([batch, heads, tokens, size]);
    const rows = ({ address, token, head }: Heads) => ({ address, outer: token, inner: head });
    const step = (table: Value, b: number): number => (elementsOf(table) === tokens * size ? 0 : 4 * b * tokens * size);
    for (let b = 0; b < batch; b++)
      m.job(
        m.memory.kernel(rotary, { interleaved: false, shared: m.memory.shared }),
        rotaryJob({
          ...{ tokens, heads, width: size, rotated: size, cos: ac + step(c, b), sin: as + step(s, b), positions: at.address },
          ...{ x: rows(batchOf(from, layout, sizes, b)), y: rows(batchOf(y.address, "head", sizes, b)) },
        }),
      );
    m.free(at);
    return [y];
  };

/** A table in JavaScript with a row for each token, of one batch or of each, each row the same half twice. */
export function isTable(table: Shaped | undefined, { batch, tokens, size }: Sizes): table is Value {
  if (table?.type !== "float32" || table.dims.length < 2 || table.dims.length > 4 || !("data" in table)) return false;
  const [b, n, rows, width] = [1, 1, 1, 1, ...table.dims].slice(-4);
  if (n !== 1 || rows !== tokens || width !== size || (b !== 1 && b !== batch) || product(table.dims) === 0) return false;
  const half = size / 2;
  const data = table.data as Float32Array;
  for (let from = 0; from < data.length; from += size)
    for (let i = from; i < from + half; i++) if (data[i] !== data[i + half]) return false;
  return true;
}
