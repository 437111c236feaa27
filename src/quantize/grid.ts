// The scales of a block format while a quantizer works: one cell per innermost block, chosen by the format's own rules
// (through `quantize`), searched, or replaced, and always held as the values that will be stored. Columns are then
// rounded with them and packed at the end. Works on every scalar and block format; opaque formats have no columns.
import { encodeArray } from "../../formats/core/bulk.ts";
import { LowbitError } from "../../formats/core/errors.ts";
import { codeArray, packInto, packedBytes, type Codes } from "../../formats/core/pack.ts";
import { levelCodes, levelValues, packedSizes } from "../../formats/core/packed.ts";
import { spanGrid, type SpanGrid } from "../../formats/core/span.ts";
import type {
  BlockFormat,
  Format,
  NumberFormat,
  PackedTensor,
  QuantConfig,
  RangeRule,
  ScaleLevel,
  ScaleRule,
} from "../../formats/core/types.ts";
import { finiteCode } from "../tensor/quantize/finite.ts";
import { quantize } from "../tensor/quantize/index.ts";
import { scaleRule } from "../tensor/quantize/scale-rules.ts";
import { matrixView, readRows, type Tensor, type TensorData } from "../tensor/tensor.ts";

/** Rules by which a quantizer chooses scales; what is left out is the format's own. */
export interface ScaleOptions {
  /** Default: the format's. */
  readonly scaleRule?: ScaleRule;
  /** Default: the format's. */
  readonly rangeRule?: RangeRule;
}

/** The largest float32: values of packed weights are float32. */
export const FLT_MAX = 2 ** 128 - 2 ** 104;

/** A weight as the quantizers use it. */
export interface WeightMatrix {
  readonly data: Float64Array<ArrayBuffer>;
  readonly rows: number;
  readonly k: number;
  readonly shape: readonly number[];
}

/** Copies a weight into a float64 matrix. @throws LowbitError E_VALUE for NaN or infinities */
export function weightMatrix(weight: Tensor, what: string): WeightMatrix {
  const view = matrixView(weight);
  const data = new Float64Array(view.rows * view.k);
  readRows(view, 0, view.rows, data);
  for (let i = 0; i < data.length; i++)
    if (!Number.isFinite(data[i]))
      throw new LowbitError(
        "E_VALUE",
        `${what} weight: expected finite numbers, got ${data[i]} at [${Math.floor(i / view.k)}, ${i % view.k}]. Clean the tensor.`,
      );
  return { data, rows: view.rows, k: view.k, shape: weight.shape.slice() };
}

/** @throws LowbitError E_UNSUPPORTED for opaque formats and offsets other than zero points */
export function columnFormat(format: Format, what: string): NumberFormat | BlockFormat {
  if (format.kind === "opaque")
    throw new LowbitError(
      "E_UNSUPPORTED",
      `${what}: expected a scalar or block format, got the opaque ${format.name}, whose scales its own encoder chooses. Use rtn(), or gptq() where data is at hand.`,
    );
  if (format.kind === "block" && format.offset?.role === "min")
    throw new LowbitError(
      "E_UNSUPPORTED",
      `${what}: expected a format with zero points or symmetric, got ${format.name} with offsets of role "${format.offset.role}", which is only read. Take one with zero points.`,
    );
  return format;
}

export class BlockGrid {
  readonly format: NumberFormat | BlockFormat;
  readonly element: NumberFormat;
  readonly rows: number;
  readonly k: number;
  readonly cells: SpanGrid;
  readonly options: ScaleOptions;
  /**
   * Per cell, row-major over `cells`: the product of the stored scale levels, what codes are decided with, the zero
   * point.
   */
  readonly stored: Float64Array;
  readonly decide: Float64Array;
  readonly zero: Float64Array;
  /** Codes of the innermost scale level and of the zero points. */
  readonly scaleCodes: Codes | null;
  readonly offsetCodes: Codes | null;
  /** Value of the outer level over each cell; 1 without one. Mean that scales are stored around; 0 without one. */
  readonly outer: Float64Array;
  readonly mean: Float64Array;
  readonly integer: boolean;
  readonly qmin: number;
  readonly qmax: number;
  /**
   * Rules defined by float32 steps decide with float32(x * factor) or float32(x / divisor); NaN where a scale was
   * changed since.
   */
  #factor: Float64Array | null = null;
  #divisor: Float64Array | null = null;
  #positiveZero = false;
  /** Under some scale there are codes of values that no float32 holds: they are never chosen. */
  #isTight = false;
  #superScales: Uint8Array | null = null;
  #means: Uint8Array | null = null;
  /** Largest magnitude under each entry of the outer level. */
  #top = new Float64Array(0);
  #outerOf: (cell: number) => number = () => 0;
  readonly #scratch: Float64Array;
  readonly #mask: number;

  constructor(format: NumberFormat | BlockFormat, rows: number, k: number, options: ScaleOptions = {}) {
    packedSizes(format, [rows, k]); // throws where k does not fit the blocks
    this.format = format;
    this.rows = rows;
    this.k = k;
    this.options = options;
    const block = format.kind === "block" ? format : null;
    this.element = block ? block.element : (format as NumberFormat);
    this.cells = spanGrid(block ? block.scales[0].span : "tensor", rows, k);
    const n = this.cells.gridRows * this.cells.gridK;
    this.stored = new Float64Array(n).fill(1);
    this.decide = new Float64Array(n).fill(1);
    this.zero = new Float64Array(n);
    this.outer = new Float64Array(n).fill(1);
    this.mean = new Float64Array(n);
    this.scaleCodes = block ? codeArray(block.scales[0].format.bits, n) : null;
    this.offsetCodes = block?.offset?.role === "zeroPoint" ? codeArray(block.offset.levels[0].format.bits, n) : null;
    const { limits, kind, bits } = this.element;
    this.integer = kind === "int" && bits <= 16;
    const rangeRule = options.rangeRule ?? block?.rangeRule;
    this.qmax = limits.max;
    this.qmin = rangeRule === "narrow" && limits.min < 0 && kind === "int" ? -limits.max : limits.min;
    this.#mask = 2 ** bits - 1;
    this.#scratch = new Float64Array(rows);
  }

  get block(): BlockFormat | null {
    return this.format.kind === "block" ? this.format : null;
  }

  /** Innermost block along k of column j. */
  groupOf(j: number): number {
    return Math.floor(j / this.cells.k);
  }

  cellOf(row: number, j: number): number {
    return Math.floor(row / this.cells.rows) * this.cells.gridK + Math.floor(j / this.cells.k);
  }

  /** All scales and zero points from the weights, by the format's rules. */
  fill(weights: TensorData): void {
    const { block } = this;
    if (block === null) return;
    const { rows, k } = this;
    const p = quantize({ data: weights, shape: [rows, k], stride: [k, 1], offset: 0 }, block, this.options);
    this.scaleCodes!.set(levelCodes(block.scales[0], p.scales!, rows, k));
    if (this.offsetCodes) this.offsetCodes.set(levelCodes(block.offset!.levels[0], p.offsets!, rows, k));
    if (block.offset?.role === "mean") {
      this.#means = p.offsets;
      this.#spread(block.offset.levels[0], p.offsets!, this.mean);
    }
    if (block.scales.length > 1) {
      this.#superScales = p.superScales;
      this.#outerOf = this.#spread(block.scales[1], p.superScales!, this.outer);
      this.#applyRule(weights);
    }
    this.#refresh(0, this.stored.length);
    this.#unrounded(weights, k, 0);
  }

  /** Values of a coarser level over each cell; returns which entry a cell belongs to. */
  #spread(level: ScaleLevel, bytes: Uint8Array, to: Float64Array): (cell: number) => number {
    const { rows, k, cells } = this;
    const grid = spanGrid(level.span, rows, k);
    const values = levelValues(level, bytes, rows, k);
    const entry = (c: number) =>
      Math.floor((Math.floor(c / cells.gridK) * cells.rows) / grid.rows) * grid.gridK + Math.floor(((c % cells.gridK) * cells.k) / grid.k);
    for (let c = 0; c < to.length; c++) to[c] = values[entry(c)];
    return entry;
  }

  /** What the rule of a two-level format says beyond its scales: in which float32 steps codes are decided. */
  #applyRule(weights: TensorData): void {
    const { k, cells } = this;
    const amax = new Float64Array(this.stored.length);
    const each = (visit: (values: TensorData, start: number, end: number, cell: number) => void) => {
      for (let r = 0; r < this.rows; r++)
        for (let g = 0; g < cells.gridK; g++) {
          const cell = Math.floor(r / cells.rows) * cells.gridK + g;
          visit(weights, r * k + g * cells.k, Math.min(r * k + (g + 1) * cells.k, (r + 1) * k), cell);
        }
    };
    each((v, start, end, cell) => {
      for (let i = start; i < end; i++) amax[cell] = Math.max(amax[cell], Math.abs(v[i]));
    });
    let outers = 0;
    for (let c = 0; c < amax.length; c++) outers = Math.max(outers, this.#outerOf(c) + 1);
    this.#top = new Float64Array(outers);
    for (let c = 0; c < amax.length; c++) this.#top[this.#outerOf(c)] = Math.max(this.#top[this.#outerOf(c)], amax[c]);
    const out = this.#rule?.({ format: this.block!, amax, outers, outerOf: this.#outerOf, forRuns: each, together: cells.rows === 1 });
    this.#factor = out?.factor ?? null;
    this.#divisor = out?.divisor ?? null;
    this.#positiveZero = out?.positiveZero ?? false;
  }

  get #rule(): ReturnType<typeof scaleRule> {
    return scaleRule(this.options.scaleRule ?? this.block!.scaleRule, this.block!);
  }

  /**
   * The scales of one group of columns from `weights` [rows, width], with the outer level as it is.
   * A second level must have been filled before; magnitudes beyond its range saturate.
   */
  fillGroup(group: number, weights: Float64Array, width: number): void {
    const { block, rows, cells } = this;
    if (block === null) return;
    const { gridK, gridRows } = cells;
    const coarse = block.scales.length > 1;
    if (!coarse && block.offset?.role !== "mean") {
      const p = quantize({ data: weights, shape: [rows, width], stride: [width, 1], offset: 0 }, shortTail(block), this.options);
      const scales = levelCodes(block.scales[0], p.scales!, rows, width);
      const offsets = this.offsetCodes ? levelCodes(block.offset!.levels[0], p.offsets!, rows, width) : null;
      for (let r = 0; r < gridRows; r++) {
        this.scaleCodes![r * gridK + group] = scales[r];
        if (offsets) this.offsetCodes![r * gridK + group] = offsets[r];
        this.#refresh(r * gridK + group, r * gridK + group + 1);
      }
      this.#unrounded(weights, width, group);
      return;
    }
    const amax = new Float64Array(gridRows + this.#top.length);
    for (let row = 0; row < rows; row++) {
      const r = Math.floor(row / cells.rows);
      for (let i = row * width; i < (row + 1) * width; i++) amax[r] = Math.max(amax[r], Math.abs(weights[i]));
    }
    const rule = coarse ? this.#rule : undefined;
    if (rule === undefined) {
      const largest = Math.max(this.element.limits.max, -this.element.limits.min);
      for (let r = 0; r < gridRows; r++) this.setScale(r * gridK + group, amax[r] / largest);
      return;
    }
    // The extremes of the whole ride along as cells without data, so that the rule comes to the outer scales that are
    // stored already.
    const outerOf = (c: number) => (c < gridRows ? this.#outerOf(c * gridK + group) : c - gridRows);
    for (let r = 0; r < gridRows; r++) amax[r] = Math.min(amax[r], this.#top[outerOf(r)]);
    amax.set(this.#top, gridRows);
    const out = rule({
      format: block,
      amax,
      outers: this.#top.length,
      outerOf,
      forRuns: (visit) => {
        for (let row = 0; row < rows; row++) visit(weights, row * width, (row + 1) * width, Math.floor(row / cells.rows));
      },
      together: cells.rows === 1,
    });
    for (let r = 0; r < gridRows; r++) {
      const cell = r * gridK + group;
      this.setScaleCode(cell, scaleCode(block.scales[0].format, out.inner[r]));
      if (this.#factor && out.factor) this.#factor[cell] = out.factor[r];
      if (this.#divisor && out.divisor) this.#divisor[cell] = out.divisor[r];
    }
  }

  /** The code that a scale is stored as within the coarser levels, saturating, and the scale that a code stands for. */
  codeOf(cell: number, scale: number): number {
    const { format } = this.block!.scales[0];
    const inner = (scale - this.mean[cell]) / this.outer[cell];
    return this.mean[cell] === 0 ? scaleCode(format, inner) : format.encode(inner, { overflow: "saturate" });
  }

  scaleOf(cell: number, code: number): number {
    const inner = this.block!.scales[0].format.decode(code);
    // Products and sums of levels are float32, as everywhere (formats/core/packed.ts).
    const product = this.block!.scales.length > 1 ? Math.fround(inner * this.outer[cell]) : inner;
    return this.mean[cell] === 0 ? product : Math.fround(product + this.mean[cell]);
  }

  /** Are there values under a scale that no float32 holds? */
  overflows(scale: number, zero: number): boolean {
    return Math.fround(Math.max(this.qmax - zero, zero - this.qmin) * Math.abs(scale)) === Infinity;
  }

  /** Is a scale above nothing, and are all values under it float32 numbers? */
  holds(scale: number, zero: number): boolean {
    return Math.abs(scale) > 0 && !this.overflows(scale, zero);
  }

  setScale(cell: number, scale: number): void {
    this.setScaleCode(cell, this.codeOf(cell, scale));
  }

  setScaleCode(cell: number, code: number): void {
    if (code !== this.scaleCodes![cell]) {
      if (this.#factor) this.#factor[cell] = NaN;
      if (this.#divisor) this.#divisor[cell] = NaN;
    }
    this.scaleCodes![cell] = code;
    this.#refresh(cell, cell + 1);
  }

  setZero(cell: number, zero: number): void {
    const { format } = this.block!.offset!.levels[0];
    this.offsetCodes![cell] = format.encode(zero, { overflow: "saturate" });
    this.zero[cell] = format.decode(this.offsetCodes![cell]);
    this.#isTight ||= this.overflows(this.stored[cell], this.zero[cell]);
  }

  #refresh(from: number, to: number): void {
    for (let c = from; c < to; c++) {
      this.stored[c] = this.scaleOf(c, this.scaleCodes![c]);
      // a block of zeros of an element without a zero has scale 0: whatever comes counts as zero
      this.decide[c] = this.stored[c] || Infinity;
      if (this.offsetCodes) this.zero[c] = this.block!.offset!.levels[0].format.decode(this.offsetCodes[c]);
      this.#isTight ||= this.overflows(this.stored[c], this.zero[c]);
    }
  }

  /**
   * The "gptq" range puts the largest magnitude exactly on a tie (half a step beyond the codes), so which code it gets
   * must not hang on the rounding of the scale to float32: codes are decided with the scale before that rounding.
   */
  #unrounded(weights: TensorData, width: number, firstGroup: number): void {
    const block = this.block!;
    const { limits } = this.element;
    if ((this.options.rangeRule ?? block.rangeRule) !== "gptq" || block.offset || !this.integer) return;
    if (block.scales.length > 1 || block.scales[0].format.bits !== 32) return;
    const { gridK, gridRows } = this.cells;
    const groups = Math.ceil(width / this.cells.k);
    for (let r = 0; r < gridRows; r++)
      for (let g = 0; g < groups; g++) {
        let amax = 0;
        const end = Math.min(width, (g + 1) * this.cells.k);
        for (let row = r * this.cells.rows; row < Math.min(this.rows, (r + 1) * this.cells.rows); row++)
          for (let j = g * this.cells.k; j < end; j++) amax = Math.max(amax, Math.abs(weights[row * width + j]));
        if (amax > 0) this.decide[r * gridK + firstGroup + g] = (2 * amax) / (limits.max - limits.min);
      }
  }

  /** Rounds x [rows], the entries of column j, to codes and the values that those codes stand for. */
  quantizeColumn(j: number, x: Float64Array, xAt: number, codes: Codes, values: Float64Array): void {
    const { rows, cells, stored, decide, zero, qmin, qmax, element } = this;
    const group = this.groupOf(j);
    const steps = this.#factor !== null || this.#divisor !== null;
    if (this.integer) {
      const mask = this.#mask;
      const negative = element.limits.min < 0 ? qmax + 1 : Infinity;
      for (let r = 0; r < rows; r++) {
        const c = (cells.rows === 1 ? r : Math.floor(r / cells.rows)) * cells.gridK + group;
        const z = zero[c];
        const t = steps ? this.#steps(x[xAt + r], c) : x[xAt + r] / decide[c];
        // Whole zero points are added after rounding, so that ties do not depend on their parity; fractional ones (HQQ)
        // are part of the value.
        const q = z === Math.floor(z) ? clamp(t, qmin - z, qmax - z) + MAGIC - MAGIC + z : clamp(t + z, qmin, qmax) + MAGIC - MAGIC;
        const code = q & mask;
        codes[r] = code;
        values[r] = ((code >= negative ? code - mask - 1 : code) - z) * stored[c];
      }
      return this.#keepFinite(j, codes, values);
    }
    const scratch = this.#scratch;
    for (let r = 0; r < rows; r++) {
      const c = Math.floor(r / cells.rows) * cells.gridK + group;
      scratch[r] = steps ? this.#steps(x[xAt + r], c) : x[xAt + r] / decide[c] + zero[c];
    }
    encodeArray(element, scratch, codes, { overflow: "saturate" });
    const { table } = element;
    for (let r = 0; r < rows; r++) {
      const c = Math.floor(r / cells.rows) * cells.gridK + group;
      values[r] = ((table ? table[codes[r]] : element.decode(codes[r])) - zero[c]) * stored[c];
    }
    this.#keepFinite(j, codes, values);
  }

  /** Values that no float32 holds become the nearest one that does. */
  #keepFinite(j: number, codes: Codes, values: Float64Array): void {
    if (!this.#isTight) return;
    for (let r = 0; r < this.rows; r++) {
      const c = this.cellOf(r, j);
      codes[r] = finiteCode(this.element, codes[r], this.zero[c], this.stored[c]);
      values[r] = (this.element.decode(codes[r]) - this.zero[c]) * this.stored[c];
    }
  }

  #steps(x: number, cell: number): number {
    const v = Math.fround(x);
    if (v === 0 && this.#positiveZero) return 0;
    const f = this.#factor ? this.#factor[cell] : this.#divisor![cell];
    const steps = Math.fround(this.#factor ? v * f : v / f);
    // zero times the infinite inverse of a scale near nothing is no number either
    return Number.isNaN(steps) ? x / this.decide[cell] : steps;
  }

  /** All columns of a row-major matrix: codes [rows * k]. */
  quantizeAll(weights: TensorData): Codes {
    const { rows, k } = this;
    const codes = codeArray(this.element.bits, rows * k);
    const column = new Float64Array(rows);
    const columnCodes = codeArray(this.element.bits, rows);
    const columnValues = new Float64Array(rows);
    for (let j = 0; j < k; j++) {
      for (let r = 0; r < rows; r++) column[r] = weights[r * k + j];
      this.quantizeColumn(j, column, 0, columnCodes, columnValues);
      for (let r = 0; r < rows; r++) codes[r * k + j] = columnCodes[r];
    }
    return codes;
  }

  pack(codes: Codes, shape: readonly number[], recipe: QuantConfig): PackedTensor {
    const { format, rows, k, block } = this;
    const { rowBytes } = packedSizes(format, [rows, k]);
    const { bits } = this.element;
    const bytes = new Uint8Array(rows * rowBytes);
    for (let r = 0; r < rows; r++) packInto(codes, r * k, k, bits, bytes, r * rowBytes);
    const level = (source: Codes | null, width: number | undefined) => {
      if (source === null || width === undefined) return null;
      const { gridRows, gridK } = this.cells;
      const rowSize = packedBytes(gridK, width);
      const out = new Uint8Array(gridRows * rowSize);
      for (let r = 0; r < gridRows; r++) packInto(source, r * gridK, gridK, width, out, r * rowSize);
      return out;
    };
    return {
      format,
      shape: [...shape],
      rows,
      k,
      rowBytes,
      codes: bytes,
      scales: level(this.scaleCodes, block?.scales[0].format.bits),
      superScales: this.#superScales,
      offsets: this.#means ?? level(this.offsetCodes, block?.offset?.levels[0].format.bits),
      recipe,
    };
  }
}

/** Adding and taking away 1.5 * 2^52 rounds a double below 2^51 to an integer, half to even. */
const MAGIC = 6755399441055744;
const clamp = (x: number, lo: number, hi: number) => (x > hi ? hi : x < lo ? lo : x);

/** Nearest code of a scale, saturating; a scale that would vanish becomes the smallest one. */
export function scaleCode(format: NumberFormat, scale: number): number {
  const code = format.encode(scale, { overflow: "saturate" });
  return scale !== 0 && format.decode(code) === 0 ? format.encode(Math.sign(scale) * format.limits.minPositive) : code;
}

/** A group of a format that takes whole blocks only may be looked at alone. */
function shortTail(format: BlockFormat): BlockFormat {
  return format.tail === "short" ? format : { ...format, tail: "short" };
}
