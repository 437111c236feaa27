// A packed tensor as kernels see it: codes, values, scales and offsets by row, no format name.
import { unpackInto } from "../../formats/core/pack.ts";
import { dequantizeRows, elementOf, innermostSpan, rowScales, type RowScales } from "../../formats/core/packed.ts";
import type { BlockFormat, NumberFormat, PackedTensor } from "../../formats/core/types.ts";
import { MOST_STEPS } from "../../kernels/plan.ts";
import type { DenseRows, WeightSource } from "../../kernels/weight.ts";

/**
 * See `WeightSource`: by the formats alone, so that no row is read for it. HQQ and others keep zero points as floats.
 */
function integerZeros({ table }: NumberFormat, zero: NumberFormat): boolean {
  if (table === null || zero.table === null || !zero.table.every(Number.isInteger)) return false;
  const range = (values: Float64Array): [number, number] => [
    values.reduce((a, b) => Math.min(a, b)),
    values.reduce((a, b) => Math.max(a, b)),
  ];
  const [[low, high], [least, largest]] = [range(table), range(zero.table)];
  return high - least <= MOST_STEPS && largest - low <= MOST_STEPS;
}

const PROBES = new Float32Array([2 ** -149, 1, -1.5, 3.4028234663852886e38]);
const PROBE_BITS = new Uint32Array(PROBES.buffer);

/** Reads rows of `width` elements. */
const rowsOf =
  <A extends Uint8Array | Float32Array>(all: () => A, width: number) =>
  (row: number, count: number, into: A): void =>
    into.set(all().subarray(row * width, (row + count) * width));

/**
 * Reads the scales of rows as they lie in memory, where they are one level of float32 codes and blocks are of a row.
 */
function plainScales(w: PackedTensor, format: BlockFormat, blocks: number): DenseRows["scales"] {
  const [level, outer] = format.scales;
  const { bits } = level.format;
  const bytes = w.scales!;
  if (outer !== undefined || format.offset?.role === "mean" || bits !== 32 || bytes.byteOffset % 4 !== 0) return undefined;
  if (bytes.length !== 4 * w.rows * blocks || !PROBES.every((v, i) => level.format.decode(PROBE_BITS[i]) === v)) return undefined;
  return rowsOf(() => new Float32Array(bytes.buffer, bytes.byteOffset, w.rows * blocks), blocks);
}

const readers = new WeakMap<PackedTensor, Omit<DenseRows, "rowBytes">>();

/** Bytes of rows that are read at once where they are asked for one by one. */
const WINDOW = 1 << 16;

/** What `readByRows` was told. */
export const rowsOfWeight = (w: PackedTensor): Omit<DenseRows, "rowBytes"> | undefined => readers.get(w);

/**
 * Makes known that the codes, and scales that are float32, of a packed tensor are better read by rows than all at once:
 * they lie in a file. Backends that copy what they prepare ask for no others.
 */
export const readByRows = (w: PackedTensor, rows: Omit<DenseRows, "rowBytes">): void => void readers.set(w, rows);

/** Codes of single rows of a weight that lies in a file: it is read in parts, some rows at once. */
function windowOf({ codes }: Omit<DenseRows, "rowBytes">, rows: number, rowBytes: number): (row: number) => Uint8Array {
  const most = Math.max(1, Math.min(rows, Math.floor(WINDOW / rowBytes)));
  let window: Uint8Array | undefined;
  let from = -most;
  return (row) => {
    window ??= new Uint8Array(most * rowBytes);
    if (row < from || row >= from + most) {
      from = Math.min(row, rows - most);
      codes(from, most, window);
    }
    return window.subarray((row - from) * rowBytes, (row - from + 1) * rowBytes);
  };
}

export function weightSource(w: PackedTensor): WeightSource {
  const { rows, k, format } = w;
  const element = elementOf(w);
  const reader = readers.get(w);
  /** The weight; of one in a file all that it has, read once. */
  let whole: PackedTensor | undefined;
  const decode = (r: number, out: Float64Array): void => dequantizeRows((whole ??= reader === undefined ? w : { ...w }), r, 1, out);
  const { planes } = format.kind === "opaque" ? format : { planes: undefined };
  if (format.kind === "opaque" && planes !== undefined) {
    const span = planes.scales[0].span as number;
    const own = new Uint8Array(k);
    const scale = new Float64Array(k / span);
    const min = new Float64Array(k / span);
    let last = -1;
    /** Reads row r once for its codes, scales and minima, which are asked for one after the other. */
    const row = (r: number): void => {
      if (r === last) return;
      format.readPlanes!(w.codes.subarray(r * w.rowBytes, (r + 1) * w.rowBytes), own, scale, min);
      last = r;
    };
    return {
      rows,
      k,
      bits: planes.element.bits,
      values: planes.element.table,
      span,
      role: planes.offset === undefined ? "none" : "add",
      integerZeros: false,
      codes: (r, out) => (row(r), out.set(own)),
      scales: (r, out) => (row(r), out.set(scale)),
      offsets: (r, out) => (row(r), out.set(min)),
      decode,
      note: `blocks read as ${planes.element.name} codes, a scale${planes.offset === undefined ? "" : " and a minimum"} for every ${span}`,
    };
  }
  if (element === null) {
    const refuse = (): never => {
      throw new TypeError(`${format.name} has no codes`);
    };
    return {
      rows,
      k,
      bits: 32,
      values: null,
      span: k,
      role: "none",
      integerZeros: false,
      codes: refuse,
      scales: refuse,
      offsets: refuse,
      decode,
    };
  }
  const rowCodes = reader && windowOf(reader, rows, w.rowBytes);
  const codes = (r: number, out: Uint32Array | Uint16Array | Uint8Array): void => {
    const [bytes, at] = rowCodes === undefined ? [w.codes, r * w.rowBytes] : [rowCodes(r), 0];
    unpackInto(bytes, at, element.bits, out as Uint8Array<ArrayBuffer>, 0, k);
  };
  const dense: DenseRows = { rowBytes: w.rowBytes, codes: reader?.codes ?? rowsOf(() => w.codes, w.rowBytes) };
  const common = { rows, k, bits: element.bits, values: element.table, codes, decode, dense };
  if (format.kind !== "block")
    return {
      ...common,
      span: k,
      role: "none",
      integerZeros: false,
      scales: (_r, out) => void out.fill(1),
      offsets: (_r, out) => void out.fill(0),
    };
  const span = innermostSpan(w, format);
  const blocks = Math.ceil(k / span);
  const [scale, offset] = [new Float64Array(blocks), new Float64Array(blocks)];
  // not before a row is asked for: scales may still be in a file
  let found: RowScales | undefined;
  const levels = (): RowScales => (found ??= rowScales(w, format));
  const role = format.offset === undefined ? "none" : format.offset.role === "zeroPoint" ? "zeroPoint" : "add";
  return {
    ...common,
    dense: { ...dense, scales: reader?.scales ?? plainScales(w, format, blocks) },
    span: Math.min(span, k),
    role,
    integerZeros: role === "zeroPoint" && integerZeros(element, format.offset!.levels[0].format),
    scales: (r, out) => levels().fill(r, out, offset),
    offsets: (r, out) => levels().fill(r, scale, out),
  };
}
