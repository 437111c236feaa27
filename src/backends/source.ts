// A packed tensor as kernels see it: codes, values, scales and offsets by row, no format name.
import { unpackInto } from "../../formats/core/pack.ts";
import { dequantizeRows, elementOf, rowScales } from "../../formats/core/packed.ts";
import type { NumberFormat, PackedTensor } from "../../formats/core/types.ts";
import { MOST_STEPS } from "../../kernels/plan.ts";
import type { WeightSource } from "../../kernels/weight.ts";

/** See `WeightSource`: by the formats alone, so that no row is read for it. HQQ and others keep zero points as floats. */
function integerZeros({ table }: NumberFormat, zero: NumberFormat): boolean {
  if (table === null || zero.table === null || !zero.table.every(Number.isInteger)) return false;
  const range = (values: Float64Array): [number, number] => [
    values.reduce((a, b) => Math.min(a, b)),
    values.reduce((a, b) => Math.max(a, b)),
  ];
  const [[low, high], [least, largest]] = [range(table), range(zero.table)];
  return high - least <= MOST_STEPS && largest - low <= MOST_STEPS;
}

export function weightSource(w: PackedTensor): WeightSource {
  const { rows, k, format } = w;
  const element = elementOf(w);
  const decode = (r: number, out: Float64Array): void => dequantizeRows(w, r, 1, out);
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
  const codes = (r: number, out: Uint32Array | Uint16Array | Uint8Array): void =>
    unpackInto(w.codes, r * w.rowBytes, element.bits, out as Uint8Array<ArrayBuffer>, 0, k);
  const common = { rows, k, bits: element.bits, values: element.table, codes, decode };
  if (format.kind !== "block")
    return {
      ...common,
      span: k,
      role: "none",
      integerZeros: false,
      scales: (_r, out) => void out.fill(1),
      offsets: (_r, out) => void out.fill(0),
    };
  const levels = rowScales(w, format);
  const scale = new Float64Array(levels.blocks);
  const offset = new Float64Array(levels.blocks);
  const role = format.offset === undefined ? "none" : format.offset.role === "zeroPoint" ? "zeroPoint" : "add";
  return {
    ...common,
    span: Math.min(levels.span, k),
    role,
    integerZeros: role === "zeroPoint" && integerZeros(element, format.offset!.levels[0].format),
    scales: (r, out) => levels.fill(r, out, offset),
    offsets: (r, out) => levels.fill(r, scale, out),
  };
}
