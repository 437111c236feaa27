// Spelled-out attention and rotary embedding on their kernels: what a pattern leaves open (sizes, masks, numbers) is
// checked here, on the values of a run. Undefined: these are none that the kernel takes, the steps run one by one.
import type { Heads } from "../../../kernels/wasm/nn/attention-job.ts";
import { rotary, rotaryJob } from "../../../kernels/wasm/nn/rotary.ts";
import type { Inputs } from "../ops/operator.ts";
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

/** Whether Unsqueeze, Expand and Reshape make each head of [batch, heads, tokens, size] `group` heads, one by one. */
export function repeats(inputs: Inputs, { expand, reshape }: Repeat, sizes: Sizes, group: number): boolean {
  const { batch, heads, tokens, size } = sizes;
  const [wide, flat] = [inputs[expand], inputs[reshape]].map((value) => (value === undefined ? [] : integers(value)));
  const plain = [batch, heads, group, tokens, size];
  const whole = [batch, heads * group, tokens, size];
  return (
    wide.length === 5 &&
    wide.every((d, i) => d === plain[i] || (d === 1 && i !== 2)) &&
    flat.length === 4 &&
    flat.every((d, i) => d === whole[i] || d === -1 || (d === 0 && i === 0))
  );
}

interface Mask {
  readonly value: Value;
  readonly batch: number;
  readonly head: number;
  readonly token: number;
}

/** The mask as float32 with its strides in bytes; null where it is none that the kernel reads. */
function maskOf(value: Value, none: number | undefined, sizes: Sizes & { keys: number }): Mask | null {
  const wanted = [sizes.batch, sizes.heads, sizes.tokens, sizes.keys];
  const dims = [...new Array<number>(Math.max(0, 4 - value.dims.length)).fill(1), ...value.dims];
  if (dims.length !== 4 || dims[3] !== sizes.keys || dims.some((d, i) => d !== wanted[i] && d !== 1)) return null;
  let mask = value;
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

/** The factor of the scores; undefined where one of them is no number. */
function scaleOf(inputs: Inputs, scales: Spelled["scales"]): number | undefined {
  let scale = 1;
  for (const { at, divides } of scales) {
    const value = inputs[at];
    if (value?.type !== "float32" || elementsOf(value) !== 1) return undefined;
    const number = Number(value.data[0]);
    scale = divides ? scale / number : scale * number;
  }
  return scale;
}

/** Batches that queries [batch * heads, ..] hold, by their mask. */
export function foldedBatch(rows: number, mask: Pick<Value, "dims"> | undefined): number {
  const [b = 1, n = 1] = mask?.dims.length === 4 ? mask.dims : [];
  return b > 1 ? b : n > 1 ? rows / n : 1;
}

export const fusedAttention =
  (of: Spelled): Emit =>
  (m, inputs) => {
    const values = [of.q, of.k, of.v].map(({ at }) => inputs[at]);
    const given = of.mask < 0 ? undefined : inputs[of.mask];
    if (values.some((value) => value?.type !== "float32" || product(value.dims) === 0) || !values.some(isPlaceable)) return undefined;
    const [q, k, v] = values as Value[];
    const rank = q.dims.length;
    if ((of.axis !== -1 && of.axis !== rank - 1) || k.dims.length !== rank || v.dims.length !== rank || (of.folds && rank !== 3))
      return undefined;
    const folded = of.folds ? foldedBatch(q.dims[0], given) : 1;
    const [sq, sk, sv] = [of.q, of.k, of.v].map(({ layout }, i) => sizesOf(values[i]!, layout, folded));
    if (sq === undefined || sk === undefined || sv === undefined) return undefined;
    const group = sq.heads / sk.heads;
    const agree = [sk, sv].every((s) => s.batch === sq.batch && s.size === sq.size && s.tokens === sk.tokens && s.heads === sk.heads);
    if (!agree || !Number.isInteger(group) || !Number.isInteger(sq.heads) || sq.size % 4 !== 0) return undefined;
    const repeated = [of.k.repeat, of.v.repeat].filter((repeat) => repeat !== undefined);
    // heads that nothing repeats broadcast only from one
    if (group > 1 && repeated.length !== 2 && !(repeated.length === 0 && sk.heads === 1 && rank === 4)) return undefined;
    if (repeated.some((repeat) => !repeats(inputs, repeat, sk, group))) return undefined;
    const scale = scaleOf(inputs, of.scales);
    const mask = given === undefined ? undefined : maskOf(given, of.none, { ...sq, keys: sk.tokens });
    if (scale === undefined || mask === null) return undefined;
    const { batch, heads, tokens, size } = sq;
    const y = m.slot(of.y === "token" ? [batch, tokens, heads, size] : rank === 3 ? [batch * heads, tokens, size] : [batch, heads, tokens, size]); // prettier-ignore
    const aq = m.place(q);
    const [pk, pv] = [
      { value: k, side: of.k, sizes: sk },
      { value: v, side: of.v, sizes: sv },
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

/** Whether each row of `size` values is the same half twice, as cosines and sines of rotary embedding are. */
function isTwice(data: Float32Array, size: number): boolean {
  const half = size / 2;
  for (let from = 0; from < data.length; from += size)
    for (let i = from; i < from + half; i++) if (data[i] !== data[i + half]) return false;
  return true;
}

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
    if (tables.some((table) => !isTable(table, sizes))) return undefined;
    const [c, s] = tables as Value[];
    if (![c, s].every(({ data }) => isTwice(data as Float32Array, size))) return undefined;
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

/** A row for each token, of one batch or of each. */
function isTable(table: Value | undefined, { batch, tokens, size }: Sizes): boolean {
  if (table?.type !== "float32" || table.dims.length < 2) return false;
  const [b = 1, n = 1, rows, width] = [1, 1, 1, 1, ...table.dims].slice(-4);
  return table.dims.length <= 4 && n === 1 && rows === tokens && width === size && (b === 1 || b === batch) && product(table.dims) > 0;
}
