// Rows of float32 packed in the memory of a backend: by the packing kernel where it has the format, else by `quantize`.
import { LowbitError } from "../../formats/core/errors.ts";
import type { Format, PackedTensor } from "../../formats/core/types.ts";
import { kernel } from "../../kernels/wasm/engine/family.ts";
import { PACK_ARGUMENTS, pack, packStep, type PackSpec } from "../../kernels/wasm/search/pack.ts";
import { wasmSync } from "../backends/wasm/backend.ts";
import type { EngineMemory } from "../backends/wasm/memory.ts";
import { quantize } from "../tensor/quantize/index.ts";
import { tensor } from "../tensor/tensor.ts";
import type { Operands } from "./operands.ts";

const roundUp = (n: number, step: number): number => step * Math.ceil(n / step);

/** The packing kernel for a format, or null. */
export function fastPack(format: Format, operands: Operands, shared: boolean, centred: boolean): PackSpec | null {
  const { element, bits, integers, flip } = operands;
  if (bits === 1) {
    // zero is positive, as the encoder of the format has it
    const plain = operands.signs && integers[1] > 0 && element.encode(0) === 1 && element.encode(-1e-30) === 0;
    return plain ? { bits, max: 1, flip: 0, centred, shared } : null;
  }
  if (bits === 2 || format.kind !== "block" || format.scaleRule !== "max" || format.rangeRule !== "narrow") return null;
  const half = 2 ** (bits - 1);
  const twos = element.kind === "int" && integers.every((value, code) => value === (code < half ? code : code - 2 * half));
  return twos ? { bits, max: half - 1, flip, centred: false, shared } : null;
}

export interface PackPlace {
  readonly codes: number;
  readonly stride: number;
  readonly scales: number;
  readonly sums: number;
}

/** Rows of floats, [rows, dims]; `staged`: where they lie in engine memory, rows a multiple of 32 floats long, or 0. */
export interface Panel {
  readonly x: Float32Array;
  readonly dims: number;
  readonly rows: number;
  readonly staged: number;
}

/** Floats that are packed at once, in scratch space. */
const PANEL = 1 << 20;

export const panelRows = (dims: number): number => Math.max(1, Math.floor(PANEL / roundUp(dims, 32)));

/** Puts a panel in engine memory, for several stores; 0 where rows are not as all of them read them. */
export function stagePanel(memory: EngineMemory, x: Float32Array, dims: number): number {
  if (dims % 32 !== 0) return 0;
  const address = memory.scratch("search panel of floats", x.byteLength);
  memory.floats(address, x.length).set(x);
  return address;
}

/**
 * Packs rows in place; returns the sums of squares of their integers, or null where the general way is needed. `scales`
 * and `centre` where a store has them.
 * @throws nothing: values that are not finite are refused there
 */
export function packPanel(
  memory: EngineMemory,
  spec: PackSpec,
  { x, dims, rows, staged: given }: Panel,
  to: PackPlace,
  { scales, centre }: { readonly scales: Float32Array | null; readonly centre: Float32Array | null },
): ArrayLike<number> | null {
  const width = roundUp(dims, packStep(spec));
  const own = given === 0 ? rows * width : 0;
  const words = memory.scratch("search pack", 4 * (own + 3 * rows + 16 + width));
  const staged = given === 0 ? words : given;
  if (given === 0) {
    const floats = memory.floats(words, own);
    if (width === dims) floats.set(x);
    else {
      floats.fill(spec.bits === 1 && centre === null ? -1 : 0);
      for (let r = 0; r < rows; r++) floats.set(x.subarray(r * dims, (r + 1) * dims), r * width);
    }
  }
  const squares = words + 4 * own;
  const spare = squares + 4 * rows;
  const refused = squares + 12 * rows;
  new Int32Array(memory.buffer, refused, 1)[0] = 0;
  const middle = refused + 64;
  // beyond the row zeros lie below it, bits that no query has
  if (centre !== null) memory.floats(middle, width).fill(1e30).set(centre);
  const rowsPerItem = Math.max(1, Math.floor(16384 / width));
  const values = {
    x: staged,
    codes: to.codes,
    stride: to.stride,
    rows,
    rowsPerItem,
    width,
    scales: to.scales === 0 ? spare : to.scales,
    squares,
    sums: to.sums === 0 ? spare + 4 * rows : to.sums,
    refused,
    centre: middle,
  };
  memory.run(
    kernel(pack, spec),
    Math.ceil(rows / rowsPerItem),
    Int32Array.from(PACK_ARGUMENTS, (name) => values[name]),
  );
  if (new Int32Array(memory.buffer, refused, 1)[0] > 0) return null;
  if (scales !== null) memory.floats(to.scales, rows).set(scales);
  return spec.bits === 1 ? new Float64Array(rows).fill(dims) : new Int32Array(memory.buffer, squares, rows).slice();
}

/** @throws LowbitError E_VALUE for numbers that are not finite, and norms that are too large */
export function refuseBad(x: Float32Array, dims: number, ids: Uint32Array): void {
  const fours = dims - (dims % 4);
  for (let r = 0, from = 0; from < x.length; r++, from += dims) {
    let [a, b, c, d] = [0, 0, 0, 0];
    let i = from;
    for (const end = from + fours; i < end; i += 4) {
      a += x[i] * x[i];
      b += x[i + 1] * x[i + 1];
      c += x[i + 2] * x[i + 2];
      d += x[i + 3] * x[i + 3];
    }
    for (; i < from + dims; i++) a += x[i] * x[i];
    if (!(a + b + c + d < MOST_SQUARE))
      throw new LowbitError(
        "E_VALUE",
        `search vectors: expected finite numbers and a norm below 1e17, got others in the vector of id ${ids[r]}. Repair the data, scale it, or leave it out.`,
      );
  }
}
const MOST_SQUARE = 1e34;

/**
 * The general way: `quantize`, with scales of the caller's where a format has too few values for the rule of the
 * largest one.
 */
export function quantizePanel(
  x: Float32Array,
  rows: number,
  dims: number,
  format: Format,
  { element }: Operands,
  scales: Float32Array | null,
): PackedTensor {
  const backend = wasmSync();
  if (scales === null || format.kind !== "block") return quantize(tensor(x.slice(), [rows, dims]), format, { backend });
  const divided = x.map((v, i) => v / scales[Math.floor(i / dims)]);
  const codes = quantize(tensor(divided, [rows, dims]), element, { backend });
  return { ...codes, format, scales: new Uint8Array(scales.slice().buffer) };
}
