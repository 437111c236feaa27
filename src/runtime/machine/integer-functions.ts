// The integer functions of models that `integerOnly` makes (domain lowbit.integer) on kernels: products of codes, codes
// from one scale to another, normalisations, tables. Numbers that a model may compute (factors, sums of softmax) are
// read by calls between the jobs. The loops of src/runtime/ops/integer-only.ts give the same bits.
import { codes, CODES_ARGUMENTS, codesConstants, type CodesSpec } from "../../../kernels/wasm/nn/codes.ts";
import { moments, momentsJob } from "../../../kernels/wasm/nn/moments.ts";
import { codesProduct, type IntegerSums } from "../../backends/wasm/nn/integer.ts";
import type { NodeProto } from "../../onnx/file/gen/onnx_pb.ts";
import { INTEGER_DOMAIN } from "../../onnx/integer/functions.ts";
import { broadcastDims } from "../ops/elementwise.ts";
import { momentOf } from "../ops/integer-only.ts";
import { ZERO, factorsOf, limitsOf, scalar, scaleInto, share, split, type Codes } from "../ops/integer-scaling.ts";
import { fail, need, product, type CodeUnit, type Inputs } from "../ops/operator.ts";
import type { Value } from "../value.ts";
import { copyWords } from "./moves.ts";
import { isSlot, type Emit, type Machine, type Slot } from "./machine.ts";

type Limits = Pick<ReturnType<typeof limitsOf>, "shift" | "low" | "high">;
type Pointers = Partial<Record<(typeof CODES_ARGUMENTS)[number], number>>;

/** Words that a call writes before the jobs that read them. */
function words(m: Machine, length: number, write: (into: Int32Array) => void): Slot {
  const slot = m.slot([length], "int32");
  m.call(() => write(slot.data as Int32Array));
  return slot;
}

const wordsOf = (data: BigInt64Array): Int32Array => new Int32Array(data.buffer, data.byteOffset, 2 * data.length);

/** 2^62 and 2^54: what is added before, and taken off behind, the shift of a normalisation's first product. */
const NORM_WORDS = BigInt64Array.of(1n << 62n, 1n << 54n);

function constantsOf(m: Machine, { shift, low, high }: Limits): Slot {
  const data = wordsOf(BigInt64Array.of(...codesConstants(shift, low, high), ...NORM_WORDS));
  return words(m, data.length, (into) => into.set(data));
}

/** Codes of `rows` rows of `width` codes. `jobs`: pointers of each job, with its rows. */
function codesJobs(
  m: Machine,
  spec: Omit<CodesSpec, "shared">,
  width: number,
  limits: Limits,
  jobs: readonly { readonly rows: number; readonly at: Pointers }[],
): void {
  const constants = constantsOf(m, limits);
  const kernel = m.memory.kernel(codes, { ...spec, shared: m.memory.shared });
  for (const { rows, at } of jobs) {
    const given: Pointers = { xStride: 4 * width, bStride: 4 * width, ...at, width, constants: constants.address, shift: limits.shift };
    m.job(kernel, { items: rows, args: Int32Array.from(CODES_ARGUMENTS, (name) => given[name] ?? 0) });
  }
  m.free(constants);
}

const PLAIN = { value: "x", sum: false, columns: false, addend: false } as const;
const resultOf = (isNarrow: boolean): "int32" | "uint8" => (isNarrow ? "uint8" : "int32");

/** Rows that threads share, where codes have no columns of their own. */
const ROW = 4096;
const cut = (count: number): { rows: number; width: number } =>
  count % ROW === 0 ? { rows: count / ROW, width: ROW } : { rows: 1, width: count };

/** Words for kernels: in the arena, or worth a copy. */
const isWords = (value: Value | undefined): value is Value =>
  value?.type === "int32" && value.data.length > 0 && (isSlot(value) || value.data.length >= 256);
const isBytes = (value: Value | undefined): value is Value => value?.type === "uint8" && value.data.length > 0;

/** How factors lie over rows of n: one for all, one a column, one a row; undefined otherwise. */
function layOut(value: Value, dims: readonly number[]): "one" | "columns" | "rows" | undefined {
  const { length } = value.data;
  if (length === 1) return "one";
  const n = dims.at(-1);
  if (length === n && value.dims.at(-1) === n) return "columns";
  return value.dims.at(-1) === 1 && value.dims.slice(0, -1).join() === dims.slice(0, -1).join() ? "rows" : undefined;
}

const requantize =
  (isNarrow: boolean): Emit =>
  (m, inputs, node) => {
    const [x, multiplier] = inputs;
    if (!isWords(x) || multiplier === undefined) return undefined;
    const factors = factorsOf(multiplier);
    const lay = layOut(multiplier, x.dims);
    const n = x.dims.at(-1) ?? 1;
    const { rows, width } = lay === "one" ? cut(x.data.length) : { rows: x.data.length / n, width: n };
    if (factors.words === null || lay === undefined || width % 4 !== 0) return undefined;
    const own = factors.words;
    const c = words(m, own.length, (into) => into.set(own));
    const y = m.slot(x.dims, resultOf(isNarrow));
    const at = { x: m.place(x), y: y.address, factors: c.address, factorStride: lay === "rows" ? 4 : 0 };
    const spec = { ...PLAIN, columns: lay === "columns", result: resultOf(isNarrow) };
    codesJobs(m, spec, width, limitsOf(inputs, 2, node), [{ rows, at }]);
    m.free(c);
    return [y];
  };

/** The sums of a product, row by row. */
function sumsOf(m: Machine, { c, cStep }: IntegerSums, rows: number, n: number): Int32Array {
  const of = new Int32Array(rows * n);
  for (let r = 0; r < rows; r++) of.set(new Int32Array(m.memory.buffer, c + r * cStep, n), r * n);
  return of;
}

type ProductUnit = Extract<CodeUnit, { kind: "product" }>;
const MOST_PLANS = 16;

/** Linear: codes by a constant weight, a bias, another scale. */
export function emitLinear(
  m: Machine,
  { matrix, plans }: ProductUnit,
  isNarrow: boolean,
  inputs: Inputs,
  node: NodeProto,
): Slot | undefined {
  const [x, , bias] = inputs;
  const multiplier = need(inputs, 3, node);
  const { k, n } = matrix;
  if (x?.dims.at(-1) !== k || x.type !== "uint8") throw fail(node, `[.., ${k}] of uint8`, `${x?.type} [${x?.dims.join(", ") ?? ""}]`);
  if (bias?.type !== "int32" || bias.data.length !== n) throw fail(node, `a bias of ${n} int32`, `${bias?.type} of ${bias?.data.length}`);
  const dims = [...x.dims.slice(0, -1), n];
  const y = m.slot(dims, resultOf(isNarrow));
  if (y.data.length === 0) return y;
  const rows = x.data.length / k;
  const plan = plans.get(rows) ?? matrix.product(rows);
  if (plans.size >= MOST_PLANS) plans.clear();
  plans.set(rows, plan);
  const from = m.place(x);
  const scratch = m.slot([plan.scratchBytes], "uint8");
  const added = words(m, n, (into) => {
    into.set(bias.data as Int32Array);
    plan.zeroOffsets(ZERO, into);
  });
  const sums = plan.sums({ x: from, scratch: scratch.address }, true);
  sums.setZero(ZERO);
  for (const job of sums.jobs) m.job(job.kernel, job);
  const limits = limitsOf(inputs, 4, node);
  const factors = factorsOf(multiplier);
  const lay = layOut(multiplier, dims);
  if (factors.words !== null && (lay === "one" || lay === "columns") && n % 4 === 0) {
    const own = factors.words;
    const c = words(m, own.length, (into) => into.set(own));
    const spec = { ...PLAIN, value: "biased", columns: lay === "columns", result: resultOf(isNarrow) } as const;
    const at = { x: sums.c, xStride: sums.cStep, bias: added.address, factors: c.address, y: y.address };
    codesJobs(m, spec, n, limits, [{ rows, at }]);
    m.free(c);
  } else
    m.call(() => {
      scaleInto(
        sumsOf(m, sums, rows, n),
        { factors, dims, limits, node, bias: added.data as Int32Array },
        y.data as Codes,
        isNarrow ? ZERO : 0,
      );
    });
  for (const slot of [added, scratch]) m.free(slot);
  return y;
}

/** Bytes that packing may read behind a matrix. */
const SLACK = 16;

/** Products of two computed matrices; factors are inputs, or (`shares`) a factor over the sums of softmax. */
const products =
  (isNarrow: boolean, zero: number, isShare: boolean): Emit =>
  (m, inputs, node) => {
    const [a, b] = [inputs[0], inputs[isShare ? 2 : 1]];
    if (!isBytes(a) || !isBytes(b) || a.dims.length < 2 || !(isSlot(a) || isSlot(b))) return undefined;
    const [rows, k] = a.dims.slice(-2);
    const [kb, n] = b.dims.slice(-2);
    const batch = a.dims.slice(0, -2);
    if (k !== kb || batch.join() !== b.dims.slice(0, -2).join() || n % 4 !== 0) return undefined;
    const factors = isShare ? undefined : factorsOf(need(inputs, 2, node)).words;
    const sum = inputs[1];
    if (isShare ? sum?.data.length !== product(batch) * rows : factors?.length !== 1) return undefined;
    const count = product(batch);
    const y = m.slot([...batch, rows, n], resultOf(isNarrow));
    const [from, given] = [m.place(a), m.place(b)];
    let copy: Slot | undefined;
    if (n % 16 !== 0) {
      copy = m.slot([b.data.length + SLACK], "uint8");
      copyWords(m, [b.data.length], { address: given, strides: [1] }, { address: copy.address, strides: [1] }, 1);
    }
    const weights = copy?.address ?? given;
    // factors of 32 bits are for the kernel, others for the loops
    let isWide = false;
    const c = isShare
      ? words(m, count * rows, (into) => {
          const multiplier = scalar(inputs, 3, node);
          isWide = false;
          for (let i = 0; i < into.length; i++) {
            const factor = share(multiplier, sum!.data[i]);
            isWide ||= !(factor < 2 ** 31);
            into[i] = factor;
          }
        })
      : words(m, 1, (into) => into.set(factors!));
    const plan = codesProduct(m.memory, rows, k, n);
    const scratch = m.slot([plan.scratchBytes], "uint8");
    const limits = limitsOf(inputs, isShare ? 4 : 3, node);
    const spec = { ...PLAIN, result: resultOf(isNarrow) };
    for (let i = 0; i < count; i++) {
      const sums: IntegerSums = plan.place({ x: from + i * rows * k, w: weights + i * k * n, scratch: scratch.address }, zero);
      for (const job of sums.jobs) m.job(job.kernel, job);
      const at = {
        ...{ x: sums.c, xStride: sums.cStep, y: y.address + (isNarrow ? 1 : 4) * i * rows * n },
        ...{ factors: c.address + (isShare ? 4 * i * rows : 0), factorStride: isShare ? 4 : 0 },
      };
      codesJobs(m, spec, n, limits, [{ rows, at }]);
      if (!isShare) continue;
      m.call(() => {
        if (!isWide) return;
        const of = sumsOf(m, sums, rows, n);
        const own = Float64Array.from({ length: rows }, (_, r) => share(scalar(inputs, 3, node), sum!.data[i * rows + r]));
        const scaling = { factors: split([rows, 1], own), dims: [rows, n], limits: limitsOf(inputs, 4, node), node };
        scaleInto(of, scaling, (y.data as Codes).subarray(i * rows * n, (i + 1) * rows * n), isNarrow ? ZERO : 0);
      });
    }
    for (const slot of [scratch, c, copy]) if (slot !== undefined) m.free(slot);
    return [y];
  };

/** Sums and products of two values as codes of a third scale. */
const two =
  (isNarrow: boolean, isSum: boolean): Emit =>
  (m, inputs, node) => {
    const [a, b] = [inputs[0], inputs[isSum ? 2 : 1]];
    if (!isWords(a) || b?.type !== "int32" || b.data.length === 0) return undefined;
    const n = a.dims.at(-1) ?? 1;
    // a row for all rows (masks of keys) stays one
    const isRow = b.data.length === n && b.dims.at(-1) === n;
    if (broadcastDims(a.dims, b.dims)?.join() !== a.dims.join() || !(isRow || b.data.length === a.data.length)) return undefined;
    const f = factorsOf(need(inputs, isSum ? 1 : 2, node)).words;
    const g = isSum ? factorsOf(need(inputs, 3, node)).words : f;
    const { rows, width } = isRow ? { rows: a.data.length / n, width: n } : cut(a.data.length);
    if (f?.length !== 1 || g?.length !== 1 || width % 4 !== 0) return undefined;
    const both = words(m, 2, (into) => into.set([f[0], g[0]]));
    const y = m.slot(a.dims, resultOf(isNarrow));
    const at = {
      ...{ x: m.place(a), b: m.place(b), bStride: isRow ? 0 : 4 * width, y: y.address },
      ...{ factors: both.address, other: both.address + 4 },
    };
    const spec = { ...PLAIN, value: isSum ? "x" : "product", sum: isSum, result: resultOf(isNarrow) } as const;
    codesJobs(m, spec, width, limitsOf(inputs, isSum ? 4 : 3, node), [{ rows, at }]);
    m.free(both);
    return [y];
  };

const normalize =
  (isNarrow: boolean, isLayer: boolean): Emit =>
  (m, inputs, node) => {
    const [x, , multiplier, bias] = inputs;
    if (!isWords(x) || multiplier === undefined || !(bias?.data instanceof BigInt64Array)) return undefined;
    const epsilon = scalar(inputs, 1, node);
    const n = x.dims.at(-1) ?? 0;
    const factors = factorsOf(multiplier).words;
    if (factors?.length !== n || bias.data.length !== n || n % 4 !== 0) return undefined;
    const rows = x.data.length / n;
    const from = m.place(x);
    const y = m.slot(x.dims, resultOf(isNarrow));
    const found = m.slot([4 * rows], "int32");
    m.job(m.memory.kernel(moments, { shared: m.memory.shared }), momentsJob({ rows, width: n, x: from, y: found.address }));
    const terms = words(m, 2 * rows, (into) => {
      const sums = new BigInt64Array(m.memory.buffer, found.address, 2 * rows);
      for (let r = 0; r < rows; r++) {
        const { mean, reciprocal } = momentOf(Number(sums[2 * r]), Number(sums[2 * r + 1]), n, epsilon, isLayer);
        into[r] = mean;
        into[rows + r] = reciprocal;
      }
    });
    const c = words(m, n, (into) => into.set(factors));
    const addend = words(m, 2 * n, (into) => into.set(wordsOf(bias.data as BigInt64Array)));
    const at = {
      ...{ x: from, y: y.address, factors: c.address, addend: addend.address },
      ...{ means: terms.address, reciprocals: terms.address + 4 * rows },
    };
    const spec = { ...PLAIN, value: "normalized", columns: true, addend: true, result: resultOf(isNarrow) } as const;
    codesJobs(m, spec, n, limitsOf(inputs, 4, node), [{ rows, at }]);
    for (const slot of [found, terms, c, addend]) m.free(slot);
    return [y];
  };

const lookup: Emit = (m, inputs, node) => {
  const [x, multiplier] = inputs;
  const table = inputs[5];
  if (!isWords(x) || multiplier === undefined || (table?.type !== "uint8" && table?.type !== "int32")) return undefined;
  const limits = limitsOf(inputs, 2, node);
  const own = factorsOf(multiplier).words;
  const { rows, width } = cut(x.data.length);
  if (table.data.length !== limits.high - limits.low + 1) throw fail(node, `${limits.high - limits.low + 1} entries`, String(table.data.length)); // prettier-ignore
  if (own?.length !== 1 || width % 4 !== 0) return undefined;
  const bytes = table.type === "uint8" ? 1 : 4;
  const y = m.slot(x.dims, table.type);
  const c = words(m, 1, (into) => into.set(own));
  const at = { x: m.place(x), y: y.address, factors: c.address, table: m.place(table) - bytes * limits.low };
  codesJobs(m, { ...PLAIN, result: bytes === 1 ? "table8" : "table32" }, width, limits, [{ rows, at }]);
  m.free(c);
  return [y];
};

/** e^(x - max) of rows, and the sums of rows, which stay int64. */
const exp: Emit = (m, inputs, node) => {
  const [x, multiplier] = inputs;
  const table = inputs[4];
  if (!isWords(x) || multiplier === undefined || table?.type !== "uint8") return undefined;
  const n = x.dims.at(-1) ?? 0;
  const own = factorsOf(multiplier).words;
  if (n % 4 !== 0 || own?.length !== 1) return undefined;
  const rows = x.data.length / n;
  const limits = { shift: scalar(inputs, 2, node), low: 0, high: Math.min(scalar(inputs, 3, node), table.data.length - 1) };
  const y = m.slot(x.dims, "uint8");
  const totals = m.slot([rows], "int32");
  const c = words(m, 1, (into) => into.set(own));
  const at = { x: m.place(x), y: y.address, factors: c.address, table: m.place(table), sums: totals.address };
  codesJobs(m, { ...PLAIN, value: "distance", result: "summed8" }, n, limits, [{ rows, at }]);
  const sums = new BigInt64Array(rows);
  m.call(() => {
    const from = totals.data as Int32Array;
    for (let r = 0; r < rows; r++) sums[r] = BigInt(from[r]);
  });
  m.free(c);
  m.free(totals);
  return [y, { type: "int64", dims: [...x.dims.slice(0, -1), 1], data: sums }];
};

const typed = (name: string, make: (isNarrow: boolean) => Emit): [string, Emit][] => [
  [`${INTEGER_DOMAIN}.${name}`, make(false)],
  [`${INTEGER_DOMAIN}.${name}Uint8`, make(true)],
];

export const INTEGER_FUNCTIONS: readonly (readonly [string, Emit])[] = [
  ...typed("Requantize", requantize),
  ...typed("Product", (isNarrow) => products(isNarrow, ZERO, false)),
  ...typed("Weigh", (isNarrow) => products(isNarrow, 0, false)),
  ...typed("Attend", (isNarrow) => products(isNarrow, 0, true)),
  ...typed("Add", (isNarrow) => two(isNarrow, true)),
  ...typed("Multiply", (isNarrow) => two(isNarrow, false)),
  ...typed("LayerNorm", (isNarrow) => normalize(isNarrow, true)),
  ...typed("RmsNorm", (isNarrow) => normalize(isNarrow, false)),
  [`${INTEGER_DOMAIN}.Lookup`, lookup],
  [`${INTEGER_DOMAIN}.Exp`, exp],
];
