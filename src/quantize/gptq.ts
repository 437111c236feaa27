// GPTQ: rounds the columns of a weight one by one and spreads each error over the columns still to come, so that the
// output error on calibration inputs, not the weight error, is small. Source: Frantar et al., arXiv 2210.17323; code
// IST-DASLab/gptq; static activation order from FP-Quant (arXiv 2509.23202). Works on every scalar and block format,
// and on ggml blocks (opaque.ts). Not here: rotation (mrgptq.ts), g_idx (act-order uses static groups).
import { LowbitError } from "../../formats/core/errors.ts";
import { codeArray, type Codes } from "../../formats/core/pack.ts";
import type { Format, OpaqueFormat, PackedTensor, QuantConfig } from "../../formats/core/types.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { BlockGrid, columnFormat, FLT_MAX, weightMatrix, type ScaleOptions, type WeightMatrix } from "./grid.ts";
import { gptqWorkspace, type GptqWorkspace } from "./gptq-workspace.ts";
import { factorize, hessianOf, prepare } from "./hessian.ts";
import type { Algebra } from "./linalg.ts";
import { algebraFor, threadsOf, type AlgebraOptions } from "./simd.ts";
import { OpaqueColumns } from "./opaque.ts";
import { polish } from "./polish.ts";
import { scaleRecipe } from "./rtn.ts";
import { resolveSearch, searchScales, searchSteps, type ScaleSearch } from "./search.ts";
import type { LayerStatistics } from "./statistics.ts";
import { chooseMask, maskWidth, resolveSparsity, zeroCode, type Sparsity } from "./sparsity.ts";
import { runSteps, type RunOptions, type SteppedQuantizer, type Steps } from "./steps.ts";

/** The layer's Hessian, and the order, damping and scales of GPTQ. */
export interface GptqOptions extends ScaleOptions, RunOptions, AlgebraOptions {
  /**
   * sum x x^T of the layer's inputs, up to a factor: the statistics of calibration, or the [k * k] matrix row-major.
   * Not modified.
   */
  readonly hessian: LayerStatistics | Float64Array;
  /**
   * Added to the diagonal, as a share of its mean; default 0.01. Raised tenfold while the matrix is not positive
   * definite.
   */
  readonly damp?: number;
  /** How often damp may be raised; default 3. */
  readonly dampRetries?: number;
  /** Columns per block of deferred updates; changes rounding errors only. Default 128. */
  readonly blockSize?: number;
  /** Columns in order of falling diagonal; default false. */
  readonly actOrder?: boolean;
  /** All scales from the original weights before the first column; default: actOrder. */
  readonly staticGroups?: boolean;
  /** Scales by search instead of by rule, see rtn. Columns count equally. */
  readonly search?: ScaleSearch;
  /**
   * Dynamic groups: scales from weights with every update so far (`current`, default), or as the authors' code,
   * without those of the block at work (`blockStart`).
   */
  readonly groupScales?: "current" | "blockStart";
  /** Fewest calibration tokens accepted; default k / 8 rounded up. Only known with statistics. */
  readonly minRows?: number;
  /**
   * Afterwards codes and scales are improved in turn on the same objective, in this many passes (true: 4); default
   * none. Opaque formats have none.
   */
  readonly polish?: boolean | number;
  /**
   * SparseGPT: weights become zero in a pattern on the way, and their error is carried on as that of rounding is.
   * Masks are chosen in blocks of `blockSize` columns, before these are rounded. Natural order, no polish.
   */
  readonly prune?: Sparsity;
  /** Layer name for messages. */
  readonly name?: string;
}

interface Resolved {
  readonly polish: number;
  readonly damp: number;
  readonly dampRetries: number;
  readonly blockSize: number;
  readonly actOrder: boolean;
  readonly staticGroups: boolean;
  readonly groupScales: "current" | "blockStart";
  readonly prune: Required<Sparsity> | null;
}

function resolve(o: GptqOptions): Resolved {
  const r = {
    damp: o.damp ?? 0.01,
    dampRetries: o.dampRetries ?? 3,
    blockSize: o.blockSize ?? 128,
    actOrder: o.actOrder ?? false,
    staticGroups: o.staticGroups ?? o.actOrder ?? false,
    groupScales: o.groupScales ?? "current",
    polish: o.polish === true ? 4 : Number(o.polish ?? 0),
    prune: o.prune === undefined ? null : resolveSparsity(o.prune),
  } as const;
  const bad = (what: string, expected: string, got: unknown) => new RangeError(`gptq ${what}: expected ${expected}, got ${String(got)}.`);
  if (!(r.damp >= 0 && r.damp < Infinity)) throw bad("damp", "a number >= 0", r.damp);
  if (!(Number.isInteger(r.dampRetries) && r.dampRetries >= 0 && r.dampRetries <= 10)) throw bad("dampRetries", "0..10", r.dampRetries);
  if (!(Number.isInteger(r.blockSize) && r.blockSize >= 1)) throw bad("blockSize", "a positive integer", r.blockSize);
  if (r.groupScales !== "current" && r.groupScales !== "blockStart") throw bad("groupScales", `"current" or "blockStart"`, r.groupScales);
  if (!(Number.isInteger(r.polish) && r.polish >= 0 && r.polish <= 100)) throw bad("polish", "true, or passes 0..100", o.polish);
  if (o.search) resolveSearch(o.search);
  if (r.prune !== null && (r.actOrder || r.polish > 0))
    throw new TypeError("gptq prune: expected natural order and no polish, got actOrder or polish. Leave them out.");
  if (r.prune !== null && r.blockSize % 16 !== 0) throw bad("blockSize", "a multiple of 16 with prune", r.blockSize);
  return r;
}

/**
 * GPTQ as a quantizer.
 * @throws TypeError, RangeError for options; at use LowbitError E_CALIBRATION (statistics that do not fit, too few
 * tokens, constant or dead inputs, a Hessian that is not positive definite after all retries: never a silent
 * round-to-nearest), E_UNSUPPORTED, E_VALUE, E_SHAPE, E_ABORTED
 * @example quantize(w, format("int4_b32"), gptq({ hessian: stats, actOrder: true }))
 */
export function gptq(options: GptqOptions): SteppedQuantizer {
  return gptqIn(undefined, options);
}

/**
 * GPTQ in a workspace that the caller closes: for several weights of at most as many rows as the first, with the same
 * options and statistics, which do not change meanwhile. The factor is made once. Same codes as without.
 */
export function gptqIn(workspace: GptqWorkspace | undefined, options: GptqOptions): SteppedQuantizer {
  if (options?.hessian === undefined || options.hessian === null)
    throw new TypeError(`gptq: expected options.hessian, got none. Collect it with layerStatistics(k) or calibrate(...).`);
  const resolved = resolve(options);
  threadsOf(options, "gptq");
  return {
    algorithm: "gptq",
    quantizeWeight: (weight, format) => runSteps(gptqSteps(weight, format, options, resolved, workspace), options),
    steps: (weight, format) => gptqSteps(weight, format, options, resolved, workspace),
  };
}

/** Columns whose errors are spread one by one; between strips and between blocks it is a matrix product. */
const STRIP = 16;

function* gptqSteps(weight: Tensor, format: Format, o: GptqOptions, r: Resolved, given?: GptqWorkspace): Steps<PackedTensor> {
  const at = o.name === undefined ? "" : ` of layer "${o.name}"`;
  let w: WeightMatrix | null = weightMatrix(weight, `gptq${at}`);
  const { rows, k, shape } = w;
  const zero = r.prune === null ? 0 : zeroCode(format);
  const source = hessianOf(o.hessian, k, at, o.minRows);
  const { diagonal, dead, order } = prepare(source, w, r.actOrder, at);
  const columns = format.kind === "opaque" ? opaqueColumns(format, rows, k, o, r) : yield* blockColumns(format, w, o, r);
  const workspace = given ?? gptqWorkspace();
  try {
    const held = workspace.open(rows, k, r.blockSize, o, `gptq${at}`);
    const { algebra, scratch } = held;
    const wt = held.wt.subarray(0, rows * k);
    turn(w, order, wt);
    w = null; // half a gigabyte for a layer of 8192 x 8192: not to be held while the factor is made
    const { factor, damp } = (held.factored ??= yield* factorize(source, diagonal, order, k, r, at, held, o.name));
    const { codes, loss } = yield* spread({ rows, k, columns, order, wt, factor, errors: scratch, algebra, zero }, o, r);
    if (!Number.isFinite(loss))
      throw new LowbitError("E_CALIBRATION", `gptq${at}: expected a finite error, got ${loss}. Is the Hessian's range beyond float64?`);
    const { polish: passes, prune: pruned, ...resolved } = r;
    let polished: { before: number; after: number } | null = null;
    if (passes > 0 && columns.grid !== null) {
      // The weight once more: its columns were changed on the way. Dead inputs stay 0.
      const original = weightMatrix(weight, `gptq${at}`);
      const { diagonal: d } = prepare(source, original, false, at);
      const mean = d.reduce((sum, v) => sum + v, 0) / k;
      const { product } = algebraFor(o, `gptq${at}`);
      polished = yield* polish({
        grid: columns.grid,
        codes,
        weight: original.data,
        hessian: source,
        damp: damp * mean,
        product,
        passes,
        name: o.name,
      });
    }
    return columns.pack(codes, shape, {
      version: 1,
      algorithm: "gptq",
      ...scaleRecipe(format, o),
      ...resolved,
      ...(polished === null ? {} : { polish: { passes, errorKept: polished.before > 0 ? polished.after / polished.before : 1 } }),
      ...(pruned === null ? {} : { prune: { ...pruned, by: "sparsegpt" } }),
      ...(o.search ? { search: resolveSearch(o.search) } : {}),
      dampUsed: damp,
      deadInputs: dead,
      ...(o.hessian instanceof Float64Array ? {} : { calibrationRows: o.hessian.rows }),
      // sum over columns of (w - q)^2 / (2 U_ii^2), as in the paper; in the units of the Hessian given
      loss: loss / 2,
    });
  } finally {
    if (given === undefined) workspace.close();
  }
}

/** The columns of a format: how they are rounded, and packed at the end. */
interface Columns {
  readonly bits: number;
  /** The scales, where the format has columns of its own. */
  readonly grid: BlockGrid | null;
  /** Columns of a group whose scales are taken from the weights when it is reached; 0 where they are known before. */
  readonly dynamic: number;
  /** Scales of the group that starts with column i. */
  fill(wt: Float64Array, i: number): void;
  quantizeColumn(j: number, x: Float64Array, xAt: number, codes: Codes, values: Float64Array): void;
  pack(codes: Codes, shape: readonly number[], recipe: QuantConfig): PackedTensor;
}

function* blockColumns(format: Format, w: WeightMatrix, o: GptqOptions, r: Resolved): Steps<Columns> {
  const target = columnFormat(format, "gptq");
  const grid = new BlockGrid(target, w.rows, w.k, { scaleRule: o.scaleRule, rangeRule: o.rangeRule });
  const grouped = target.kind === "block" && grid.cells.gridK > 1;
  if (r.actOrder && grouped && !r.staticGroups)
    throw new LowbitError(
      "E_UNSUPPORTED",
      `gptq: expected static groups with actOrder, got staticGroups: false. Dynamic groups in another order need an index per column (g_idx), which packed tensors do not hold.`,
    );
  const dynamic = grouped && !r.staticGroups;
  grid.fill(w.data);
  if (o.search && !dynamic) yield* searchSteps(grid, w.data, 0, w.k, o.search, null, o.name);
  return {
    bits: grid.element.bits,
    grid,
    dynamic: dynamic ? grid.cells.k : 0,
    fill: (wt, i) => fillGroup(grid, wt, i, o.search),
    quantizeColumn: (j, x, xAt, codes, values) => grid.quantizeColumn(j, x, xAt, codes, values),
    pack: (codes, shape, recipe) => grid.pack(codes, shape, recipe),
  };
}

/** Blocks of an opaque format are encoded, scales and all, when they are reached. */
function opaqueColumns(format: OpaqueFormat, rows: number, k: number, o: GptqOptions, r: Resolved): Columns {
  const given = Object.entries({
    actOrder: r.actOrder,
    staticGroups: r.staticGroups,
    search: o.search,
    scaleRule: o.scaleRule,
    rangeRule: o.rangeRule,
  });
  const refused = given.find(([, v]) => v);
  if (refused)
    throw new LowbitError(
      "E_UNSUPPORTED",
      `gptq ${refused[0]}: expected none for the opaque ${format.name}, whose encoder chooses scales block by block in natural order, got ${JSON.stringify(refused[1])}. Leave it out.`,
    );
  const own = new OpaqueColumns(format, rows, k);
  return {
    bits: own.bits,
    grid: null,
    dynamic: own.span,
    fill: (wt, i) => own.fill(wt, i),
    quantizeColumn: (j, x, xAt, codes, values) => own.quantizeColumn(j, x, xAt, codes, values),
    pack: (codes, shape, recipe) => own.pack(codes, shape, recipe),
  };
}

/** Columns become rows, in the order of work, so that every update runs along memory. */
function turn({ data, rows, k }: WeightMatrix, order: Int32Array, wt: Float64Array): void {
  for (let r0 = 0; r0 < rows; r0 += 32)
    for (let i = 0; i < k; i++) {
      const j = order[i];
      for (let row = r0; row < Math.min(rows, r0 + 32); row++) wt[i * rows + row] = data[row * k + j];
    }
}

interface Work {
  readonly rows: number;
  readonly k: number;
  readonly columns: Columns;
  readonly order: Int32Array;
  /** Columns of the weight as rows, in the order of work. */
  readonly wt: Float64Array;
  readonly factor: Float64Array;
  /** blockSize rows. */
  readonly errors: Float64Array;
  readonly algebra: Algebra;
  /** Code of a weight that is pruned. */
  readonly zero: number;
}

/** Rounds the columns in order and spreads their errors. */
function* spread(
  { rows, k, columns, order, wt, factor, errors, algebra, zero }: Work,
  o: GptqOptions,
  r: Resolved,
): Steps<{ codes: Codes; loss: number }> {
  const { product } = algebra;
  const { bits, dynamic: span } = columns;
  const dynamic = span > 0;
  yield { stage: "gptq", done: 0, total: k, layer: o.name };
  const codes = codeArray(bits, rows * k);
  const columnCodes = codeArray(bits, rows);
  const q = new Float64Array(rows);
  const mask = new Uint8Array(r.prune === null ? 0 : r.blockSize * rows);
  let loss = 0;
  let i1 = 0;
  while (i1 < k) {
    let i2 = Math.min(k, i1 + r.blockSize);
    if (dynamic) {
      // A group that reaches beyond the block starts a block of its own: its scales then see every update.
      const last = Math.floor((i2 - 1) / span) * span;
      if (last > i1 && Math.min(k, last + span) > i2) i2 = last;
      if (r.groupScales === "blockStart") for (let i = Math.ceil(i1 / span) * span; i < i2; i += span) columns.fill(wt, i);
    }
    let s1 = i1;
    let s2 = i1;
    for (let i = i1; i < i2; i++) {
      if (i === s2) {
        // A strip ends: its errors go to the rest of the block in one product. Strips end before a group starts.
        if (s2 > s1) product(wt, s2 * rows, rows, i2 - s2, rows, factor, s1 * k + s2, k, errors, (s1 - i1) * rows, rows, s2 - s1, -1);
        s1 = i;
        s2 = Math.min(i + STRIP, i2);
        if (dynamic) s2 = Math.min(s2, (Math.floor(i / span) + 1) * span);
      }
      if (dynamic && r.groupScales === "current" && i % span === 0) columns.fill(wt, i);
      const column = i * rows;
      columns.quantizeColumn(order[i], wt, column, columnCodes, q);
      const j = order[i];
      if (r.prune !== null) {
        // every column of the block is up to date at its start, those of a strip while it is at work
        const width = maskWidth(r.prune.pattern, i2 - i1);
        const within = (i - i1) % width;
        if (within === 0) {
          const weight = (c: number): number => factor[c * k + c] ** -2;
          chooseMask(r.prune, wt, rows, { from: i, width: Math.min(width, i2 - i), weight }, mask);
        }
        for (let row = 0; row < rows; row++)
          if (mask[within * rows + row] === 1) {
            q[row] = 0;
            columnCodes[row] = zero;
          }
      }
      const d = factor[i * k + i];
      const e = (i - i1) * rows;
      for (let row = 0; row < rows; row++) {
        codes[row * k + j] = columnCodes[row];
        const error = (wt[column + row] - q[row]) / d;
        errors[e + row] = error;
        loss += error * error;
      }
      for (let c = i + 1; c < s2; c++) {
        const f = factor[i * k + c];
        if (f === 0) continue;
        const to = c * rows;
        for (let row = 0; row < rows; row++) wt[to + row] -= f * errors[e + row];
      }
    }
    if (i2 < k) product(wt, i2 * rows, rows, k - i2, rows, factor, i1 * k + i2, k, errors, 0, rows, i2 - i1, -1);
    i1 = i2;
    yield { stage: "gptq", done: i2, total: k, layer: o.name };
  }
  return { codes, loss };
}

/** Scales of the group that starts with column i from the weights as they are now. */
function fillGroup(grid: BlockGrid, wt: Float64Array, i: number, search: ScaleSearch | undefined): void {
  const { rows, k, cells } = grid;
  const width = Math.min(cells.k, k - i);
  const block = new Float64Array(rows * width);
  // errors carried on may go beyond float32, scales must not
  for (let j = 0; j < width; j++)
    for (let row = 0; row < rows; row++) block[row * width + j] = Math.max(-FLT_MAX, Math.min(FLT_MAX, wt[(i + j) * rows + row]));
  grid.fillGroup(grid.groupOf(i), block, width);
  if (search) searchScales(grid, block, i, width, search);
}
