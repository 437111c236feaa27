// The scales of a block format while a quantizer works: one cell per innermost block, chosen by the format's own rules (through `quantize`),
// searched, or replaced, and always held as the values that will be stored. Columns are then rounded with them and packed at the end.
// Works on every scalar and block format; opaque formats have no columns.
import { encodeArray } from "../../formats/core/bulk.ts";
import { LowbitError } from "../../formats/core/errors.ts";
import { codeArray, packInto, packedBytes, type Codes } from "../../formats/core/pack.ts";
import { levelCodes, levelValues, packedSizes } from "../../formats/core/packed.ts";
import { spanGrid, type SpanGrid } from "../../formats/core/span.ts";
import type { BlockFormat, Format, NumberFormat, PackedTensor, QuantConfig, RangeRule, ScaleRule } from "../../formats/core/types.ts";
import { quantize } from "../tensor/quantize.ts";
import { matrixView, readRows, type Tensor, type TensorData } from "../tensor/tensor.ts";

export interface ScaleOptions {
  /** Default: the format's. */
  readonly scaleRule?: ScaleRule;
  /** Default: the format's. */
  readonly rangeRule?: RangeRule;
}

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
      `${what}: expected a scalar or block format, got the opaque ${format.name}, whose codes cannot be chosen column by column. Use rtn().`,
    );
  if (format.kind === "block" && format.offset && format.offset.role !== "zeroPoint")
    throw new LowbitError(
      "E_UNSUPPORTED",
      `${what}: expected a format with zero points or none, got ${format.name} with offsets of role "${format.offset.role}". Use rtn().`,
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
  /** Per cell, row-major over `cells`: the product of the stored scale levels, what codes are decided with, the zero point. */
  readonly stored: Float64Array;
  readonly decide: Float64Array;
  readonly zero: Float64Array;
  /** Codes of the innermost scale level and of the zero points. */
  readonly scaleCodes: Codes | null;
  readonly offsetCodes: Codes | null;
  /** Value of the outer level over each cell; 1 without one. */
  readonly outer: Float64Array;
  readonly integer: boolean;
  readonly qmin: number;
  readonly qmax: number;
  #superScales: Uint8Array | null = null;
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
    this.scaleCodes = block ? codeArray(block.scales[0].format.bits, n) : null;
    this.offsetCodes = block?.offset ? codeArray(block.offset.levels[0].format.bits, n) : null;
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
    if (block.offset) this.offsetCodes!.set(levelCodes(block.offset.levels[0], p.offsets!, rows, k));
    if (block.scales.length > 1) {
      this.#superScales = p.superScales;
      const grid = spanGrid(block.scales[1].span, rows, k);
      const values = levelValues(block.scales[1], p.superScales!, rows, k);
      for (let c = 0; c < this.outer.length; c++) {
        const row = Math.floor(c / this.cells.gridK) * this.cells.rows;
        const j = (c % this.cells.gridK) * this.cells.k;
        this.outer[c] = values[Math.floor(row / grid.rows) * grid.gridK + Math.floor(j / grid.k)];
      }
    }
    this.#refresh(0, this.stored.length);
    this.#unrounded(weights, k, 0);
  }

  /**
   * The scales of one group of columns from `weights` [rows, width], with the outer level as it is.
   * A second level must have been filled before.
   */
  fillGroup(group: number, weights: Float64Array, width: number): void {
    const { block, rows } = this;
    if (block === null) return;
    const { gridK, gridRows } = this.cells;
    if (block.scales.length === 1) {
      const p = quantize({ data: weights, shape: [rows, width], stride: [width, 1], offset: 0 }, shortTail(block), this.options);
      const scales = levelCodes(block.scales[0], p.scales!, rows, width);
      const offsets = block.offset ? levelCodes(block.offset.levels[0], p.offsets!, rows, width) : null;
      for (let r = 0; r < gridRows; r++) {
        this.scaleCodes![r * gridK + group] = scales[r];
        if (offsets) this.offsetCodes![r * gridK + group] = offsets[r];
        this.#refresh(r * gridK + group, r * gridK + group + 1);
      }
      this.#unrounded(weights, width, group);
      return;
    }
    const largest = Math.max(this.element.limits.max, -this.element.limits.min);
    for (let r = 0; r < gridRows; r++) {
      let amax = 0;
      const end = Math.min(rows, (r + 1) * this.cells.rows) * width;
      for (let i = r * this.cells.rows * width; i < end; i++) amax = Math.max(amax, Math.abs(weights[i]));
      this.setScale(r * gridK + group, amax / largest);
    }
  }

  /** Stores the scale of a cell, rounded to its format within the outer level as it is: saturating, and never to zero. */
  setScale(cell: number, scale: number): void {
    const { format } = this.block!.scales[0];
    this.setScaleCode(cell, scaleCode(format, scale / this.outer[cell]));
  }

  setScaleCode(cell: number, code: number): void {
    this.scaleCodes![cell] = code;
    this.#refresh(cell, cell + 1);
  }

  setZero(cell: number, zero: number): void {
    const { format } = this.block!.offset!.levels[0];
    this.offsetCodes![cell] = format.encode(zero, { overflow: "saturate" });
    this.zero[cell] = format.decode(this.offsetCodes![cell]);
  }

  #refresh(from: number, to: number): void {
    const block = this.block!;
    const inner = block.scales[0].format;
    for (let c = from; c < to; c++) {
      this.stored[c] = inner.decode(this.scaleCodes![c]) * this.outer[c];
      this.decide[c] = this.stored[c];
      if (block.offset) this.zero[c] = block.offset.levels[0].format.decode(this.offsetCodes![c]);
    }
  }

  /** The "gptq" range puts the largest magnitude exactly on a tie (half a step beyond the codes), so which code it gets must not hang on
   * the rounding of the scale to float32: codes are decided with the scale before that rounding. */
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
    if (this.integer) {
      const mask = this.#mask;
      const negative = element.limits.min < 0 ? qmax + 1 : Infinity;
      for (let r = 0; r < rows; r++) {
        const c = (cells.rows === 1 ? r : Math.floor(r / cells.rows)) * cells.gridK + group;
        const z = zero[c];
        const t = x[xAt + r] / decide[c];
        // Whole zero points are added after rounding, so that ties do not depend on their parity; fractional ones (HQQ) are part of the value.
        const q = z === Math.floor(z) ? clamp(t, qmin - z, qmax - z) + MAGIC - MAGIC + z : clamp(t + z, qmin, qmax) + MAGIC - MAGIC;
        const code = q & mask;
        codes[r] = code;
        values[r] = ((code >= negative ? code - mask - 1 : code) - z) * stored[c];
      }
      return;
    }
    const scratch = this.#scratch;
    for (let r = 0; r < rows; r++) {
      const c = Math.floor(r / cells.rows) * cells.gridK + group;
      scratch[r] = x[xAt + r] / decide[c] + zero[c];
    }
    encodeArray(element, scratch, codes, { overflow: "saturate" });
    const { table } = element;
    for (let r = 0; r < rows; r++) {
      const c = Math.floor(r / cells.rows) * cells.gridK + group;
      values[r] = ((table ? table[codes[r]] : element.decode(codes[r])) - zero[c]) * stored[c];
    }
  }

  /** All columns of a row-major matrix: codes [rows * k]. */
  quantizeAll(weights: TensorData, values?: Float64Array): Codes {
    const { rows, k } = this;
    const codes = codeArray(this.element.bits, rows * k);
    const column = new Float64Array(rows);
    const columnCodes = codeArray(this.element.bits, rows);
    const columnValues = new Float64Array(rows);
    for (let j = 0; j < k; j++) {
      for (let r = 0; r < rows; r++) column[r] = weights[r * k + j];
      this.quantizeColumn(j, column, 0, columnCodes, columnValues);
      for (let r = 0; r < rows; r++) codes[r * k + j] = columnCodes[r];
      if (values) for (let r = 0; r < rows; r++) values[r * k + j] = columnValues[r];
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
      offsets: level(this.offsetCodes, block?.offset?.levels[0].format.bits),
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
