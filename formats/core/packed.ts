// What the bytes of a PackedTensor mean: sizes, codes, scales and values. Kernels and their packers read packed tensors
// through this file; making one is src/tensor/quantize/index.ts, saving one src/tensor/container.ts.
import { decodeArray } from "./bulk.ts";
import { LowbitError } from "./errors.ts";
import { codeArray, packedBytes, unpackInto, type Codes } from "./pack.ts";
import { levelBytes, spanGrid } from "./span.ts";
import type { BlockFormat, NumberFormat, PackedTensor, ScaleLevel } from "./types.ts";

/** The scalar format of a packed tensor's codes, or null for opaque blocks. */
export function elementOf(w: PackedTensor): NumberFormat | null {
  return w.format.kind === "opaque" ? null : w.format.kind === "block" ? w.format.element : w.format;
}

/** Sizes that follow from format and shape, in bytes. */
export interface PackedSizes {
  readonly rows: number;
  readonly k: number;
  readonly rowBytes: number;
  readonly codes: number;
  readonly scales: number | null;
  readonly superScales: number | null;
  readonly offsets: number | null;
}

/** @throws LowbitError E_SHAPE when k does not fit the blocks of a format that takes no short tail */
export function packedSizes(format: PackedTensor["format"], shape: readonly number[]): PackedSizes {
  const rows = shape.length === 1 ? 1 : shape[0];
  const k = shape.length === 1 ? shape[0] : shape.slice(1).reduce((n, d) => n * d, 1);
  const noTail = (size: number) => {
    if (k % size !== 0)
      throw new LowbitError(
        "E_SHAPE",
        `${format.name}: expected k to be a multiple of ${size}, got ${k}. Pad the rows, or choose a format with short tails.`,
      );
  };
  if (format.kind === "opaque") {
    noTail(format.blockSize);
    const rowBytes = (k / format.blockSize) * format.blockBytes;
    return { rows, k, rowBytes, codes: rows * rowBytes, scales: null, superScales: null, offsets: null };
  }
  if (format.kind !== "block") {
    const rowBytes = packedBytes(k, format.bits);
    return { rows, k, rowBytes, codes: rows * rowBytes, scales: null, superScales: null, offsets: null };
  }
  const [inner, outer] = format.scales;
  if (format.tail === "error" && typeof inner.span === "number") noTail(inner.span);
  const rowBytes = packedBytes(k, format.element.bits);
  return {
    rows,
    k,
    rowBytes,
    codes: rows * rowBytes,
    scales: levelBytes(inner, rows, k),
    superScales: outer ? levelBytes(outer, rows, k) : null,
    offsets: format.offset ? levelBytes(format.offset.levels[0], rows, k) : null,
  };
}

/** The codes of one level of scales or offsets, [gridRows * gridK], without row padding. */
export function levelCodes(level: ScaleLevel, bytes: Uint8Array, rows: number, k: number): Codes {
  const grid = spanGrid(level.span, rows, k);
  const out = codeArray(level.format.bits, grid.gridRows * grid.gridK);
  const rowBytes = packedBytes(grid.gridK, level.format.bits);
  for (let r = 0; r < grid.gridRows; r++) unpackInto(bytes, r * rowBytes, level.format.bits, out, r * grid.gridK, grid.gridK);
  return out;
}

/** The values of one level, float64. */
export function levelValues(level: ScaleLevel, bytes: Uint8Array, rows: number, k: number): Float64Array {
  const codes = levelCodes(level, bytes, rows, k);
  return decodeArray(level.format, codes, new Float64Array(codes.length));
}

/**
 * All codes of the elements, row-major [rows * k], without row padding.
 * @throws LowbitError E_UNSUPPORTED for opaque formats, whose bytes are no codes
 * @example
 * unpack(quantize(tensor(Float32Array.of(1, -7, 3, 7), [1, 4]), format("int4_row"))) // [1, 9, 3, 7]: -7 is 0x9
 */
export function unpack(w: PackedTensor): Codes {
  const element = elementOf(w);
  if (element === null)
    throw new LowbitError(
      "E_UNSUPPORTED",
      `unpack: expected a format with codes, got the opaque ${w.format.name}. Use dequantize, or read w.codes as its blocks.`,
    );
  const out = codeArray(element.bits, w.rows * w.k);
  for (let r = 0; r < w.rows; r++) unpackInto(w.codes, r * w.rowBytes, element.bits, out, r * w.k, w.k);
  return out;
}

/**
 * Product of the scale levels (plus their mean, where that is the role of the offset) for every innermost block of a
 * row, and the other offsets.
 */
export interface RowScales {
  /** Innermost grid. */
  readonly span: number;
  readonly blocks: number;
  /** Fills scale[b] (the product of all levels) and offset[b] (in the units of its role) for one row. */
  fill(row: number, scale: Float64Array, offset: Float64Array): void;
  /** Forgets what it has read: the bytes may have been written to since. */
  forget(): void;
}

/** Elements of a row that share the innermost scale or offset. */
export function innermostSpan({ rows, k }: { readonly rows: number; readonly k: number }, { scales, offset }: BlockFormat): number {
  const levels = offset === undefined ? scales : [...scales, offset.levels[0]];
  return Math.min(...levels.map(({ span }) => spanGrid(span, rows, k).k));
}

/** Reads the scales and offsets of a block-format tensor row by row; what it holds is one row of each level. */
export function rowScales(w: PackedTensor, format: BlockFormat): RowScales {
  const { rows, k } = w;
  const reader = (level: ScaleLevel, bytes: Uint8Array) => {
    const grid = spanGrid(level.span, rows, k);
    const { bits } = level.format;
    const rowBytes = packedBytes(grid.gridK, bits);
    const codes = codeArray(bits, grid.gridK);
    const values = new Float64Array(grid.gridK);
    let current = -1;
    return {
      k: grid.k,
      values,
      forget(): void {
        current = -1;
      },
      /** The values of the grid's row that holds row `row` of the matrix. */
      at(row: number): Float64Array {
        const r = Math.floor(row / grid.rows);
        if (r !== current) {
          unpackInto(bytes, r * rowBytes, bits, codes, 0, grid.gridK);
          decodeArray(level.format, codes, values);
          current = r;
        }
        return values;
      },
    };
  };
  const levels = format.scales.map((level, i) => reader(level, (i === 0 ? w.scales : w.superScales)!));
  const offsetLevel = format.offset?.levels[0];
  const mean = format.offset?.role === "mean";
  const offsets = offsetLevel ? reader(offsetLevel, w.offsets!) : null;
  const span = innermostSpan(w, format);
  const blocks = Math.ceil(k / span);
  return {
    span,
    blocks,
    fill(row, scale, offset) {
      for (const level of levels) level.at(row);
      const inner = levels[0];
      const zero = offsets?.at(row);
      for (let b = 0; b < blocks; b++) {
        // Several levels multiply to one float32, as torchao and the hardware have it; one level is taken as it is.
        let s = inner.values[Math.floor((b * span) / inner.k)];
        for (let l = 1; l < levels.length; l++) s = Math.fround(s * levels[l].values[Math.floor((b * span) / levels[l].k)]);
        const o = zero === undefined ? 0 : zero[Math.floor((b * span) / offsets!.k)];
        scale[b] = mean ? Math.fround(s + o) : s;
        offset[b] = mean ? 0 : o;
      }
    },
    forget() {
      for (const level of levels) level.forget();
      offsets?.forget();
    },
  };
}

interface RowReader {
  readonly scales: RowScales;
  readonly scale: Float64Array;
  readonly offset: Float64Array;
}

const readers = new WeakMap<PackedTensor, RowReader>();

/** The reader of a tensor's scales, made once: an embedding is asked for a row at a time. */
function readerOf(w: PackedTensor, format: BlockFormat): RowReader {
  const known = readers.get(w);
  if (known !== undefined) {
    known.scales.forget();
    return known;
  }
  const scales = rowScales(w, format);
  const made = { scales, scale: new Float64Array(scales.blocks), offset: new Float64Array(scales.blocks) };
  readers.set(w, made);
  return made;
}

let scratch: { readonly bits: number; readonly codes: Codes; readonly values: Float64Array } | null = null;

/**
 * Arrays for one row of codes and values, kept for the next call: readers ask row by row, and garbage of every row
 * would pile up.
 */
function rowScratch(bits: number, k: number): NonNullable<typeof scratch> {
  if (scratch === null || scratch.bits !== bits || scratch.values.length !== k)
    scratch = { bits, codes: codeArray(bits, k), values: new Float64Array(k) };
  return scratch;
}

/** Decodes rows [row, row + count) as values [count, k] into out. */
export function dequantizeRows(w: PackedTensor, row: number, count: number, out: Float32Array | Float64Array): void {
  const { format, k, rowBytes } = w;
  if (format.kind === "opaque") {
    for (let r = 0; r < count; r++) out.set(format.decodeBytes(w.codes.subarray((row + r) * rowBytes, (row + r + 1) * rowBytes)), r * k);
    return;
  }
  const element = elementOf(w)!;
  const { codes, values } = rowScratch(element.bits, k);
  if (format.kind !== "block") {
    for (let r = 0; r < count; r++) {
      unpackInto(w.codes, (row + r) * rowBytes, element.bits, codes, 0, k);
      out.set(decodeArray(element, codes, values), r * k);
    }
    return;
  }
  const { scales, scale, offset } = readerOf(w, format);
  const zeroPoint = format.offset?.role === "zeroPoint";
  for (let r = 0; r < count; r++) {
    unpackInto(w.codes, (row + r) * rowBytes, element.bits, codes, 0, k);
    decodeArray(element, codes, values);
    scales.fill(row + r, scale, offset);
    for (let b = 0; b < scales.blocks; b++) {
      const end = Math.min(k, (b + 1) * scales.span);
      const s = scale[b];
      const o = offset[b];
      // In binary64 the product is exact for elements and scales of at most 24 bits each; storing to float32 is the one
      // rounding.
      if (zeroPoint) for (let j = b * scales.span; j < end; j++) out[r * k + j] = (values[j] - o) * s;
      else if (o === 0) for (let j = b * scales.span; j < end; j++) out[r * k + j] = values[j] * s;
      else for (let j = b * scales.span; j < end; j++) out[r * k + j] = values[j] * s + o;
    }
  }
}

/**
 * The values of a packed tensor, row-major [rows * k] (in the order of its shape). Computed in binary64 and rounded
 * once.
 * @param options dtype "float64" where float32 cannot hold the values (wide posits)
 */
export function dequantize(w: PackedTensor, options?: { readonly dtype?: "float32" }): Float32Array<ArrayBuffer>;
export function dequantize(w: PackedTensor, options: { readonly dtype: "float64" }): Float64Array<ArrayBuffer>;
export function dequantize(
  w: PackedTensor,
  options: { readonly dtype?: "float32" | "float64" } = {},
): Float32Array<ArrayBuffer> | Float64Array<ArrayBuffer> {
  const dtype = options.dtype ?? "float32";
  if (dtype !== "float32" && dtype !== "float64")
    throw new TypeError(`dequantize dtype: expected "float32" or "float64", got ${String(dtype)}.`);
  const out = dtype === "float64" ? new Float64Array(w.rows * w.k) : new Float32Array(w.rows * w.k);
  const step = Math.max(1, Math.floor(65536 / w.k));
  for (let r = 0; r < w.rows; r += step) {
    const n = Math.min(step, w.rows - r);
    dequantizeRows(w, r, n, out.subarray(r * w.k, (r + n) * w.k));
  }
  return out;
}
