// Panels of blocks on the WebAssembly backend: what `quantize` and `dequantize` do to every value, given the scales. A
// panel passes through engine memory in pieces of whole rows (of a long row in parts): scaled in place, block by block,
// then converted and packed as one run of values.
import { codeArray, packedBytes, packInto, unpackInto } from "../../../formats/core/pack.ts";
import type { NumberFormat } from "../../../formats/core/types.ts";
import type { Space, WasmFunction } from "../../../kernels/wasm/engine/engine.ts";
import { BITS_SLACK, BITS_STEP, packsBits } from "../../../kernels/wasm/convert/bits.ts";
import { CODEC_STEP } from "../../../kernels/wasm/convert/codec.ts";
import { PIECE, words, type CodecTools } from "./converters.ts";
import type { BlockDecoder, BlockEncoder, BlockPanel, ElementPolicy } from "../types.ts";

const fr = Math.fround;
const bits32 = new Uint32Array(1);
const float32 = new Float32Array(bits32.buffer);

/** A run of blocks inside a piece: values from `at`, parameters from `block`. */
type Run = readonly [at: number, block: number, blocks: number, length: number];

/** Pieces of at most PIECE values: where they start in the panel, their rows, and their runs of blocks. */
function forPieces(panel: BlockPanel, visit: (row: number, rows: number, from: number, count: number, runs: readonly Run[]) => void): void {
  const { rows, k, span } = panel;
  const perRow = Math.ceil(k / span);
  if (k > PIECE) {
    for (let row = 0; row < rows; row++)
      for (let from = 0; from < k; from += PIECE) {
        const count = Math.min(PIECE, k - from);
        const runs: Run[] = [];
        for (let at = 0; at < count;) {
          const inside = (from + at) % span;
          const block = row * perRow + Math.floor((from + at) / span);
          const whole = inside === 0 ? Math.floor((count - at) / span) : 0;
          const length = whole > 0 ? span : Math.min(span - inside, count - at);
          runs.push([at, block, Math.max(1, whole), length]);
          at += Math.max(1, whole) * length;
        }
        visit(row, 1, from, count, runs);
      }
    return;
  }
  const rowsAtOnce = Math.floor(PIECE / k);
  const whole = Math.floor(k / span);
  const rest = k - whole * span;
  for (let row = 0; row < rows; row += rowsAtOnce) {
    const count = Math.min(rowsAtOnce, rows - row);
    const runs: Run[] = [];
    if (rest === 0) runs.push([0, row * perRow, count * perRow, span]);
    else
      for (let r = 0; r < count; r++) {
        if (whole > 0) runs.push([r * k, (row + r) * perRow, whole, span]);
        runs.push([r * k + whole * span, (row + r) * perRow + whole, 1, rest]);
      }
    visit(row, count, 0, count * k, runs);
  }
}

/**
 * Is every boundary a float32 whose last bit is zero? Then a quotient rounded to odd falls on its side of all of them.
 */
function evenBoundaries(element: NumberFormat): boolean {
  return element.order!.boundaries.every((b) => {
    float32[0] = b;
    return float32[0] === b && (bits32[0] & 1) === 0;
  });
}

const isFloat32 = (values: Float64Array): boolean => {
  for (let i = 0; i < values.length; i++) if (fr(values[i]) !== values[i]) return false;
  return true;
};

/** Copies parameters into engine memory; returns their address. */
function put(space: Space, name: string, values: Float64Array, as: Float32ArrayConstructor | Float64ArrayConstructor): number {
  const address = space.scratch(`codec ${name}`, values.length * as.BYTES_PER_ELEMENT);
  new as(space.buffer, address, values.length).set(values);
  return address;
}

/** Rounding whose boundaries are those of `NumberFormat.order`. */
const TO_NEAREST: readonly string[] = ["halfEven", "halfExpand", "halfTrunc", "halfCeil", "halfFloor"];

/** @see BulkCodec.blockEncoder */
export function blockEncoder(tools: CodecTools, policy: ElementPolicy): BlockEncoder | null {
  const { element, arithmetic, integer, rounding, overflow } = policy;
  const { bits } = element;
  if (bits > 16 || element.order === null || overflow !== "saturate") return null;
  if (integer !== null && (arithmetic !== "exact" || rounding !== "halfEven")) return null;
  if (integer === null && arithmetic === "exact" && !(TO_NEAREST.includes(rounding) && evenBoundaries(element))) return null;
  const convert = integer === null ? tools.encoder(element, { rounding, overflow }) : null;
  if (integer === null && convert === null) return null;
  const zero = integer === null && element.limits.hasZero ? 0 : null;

  return (x, panel, out, rowBytes) => {
    const { k, rows, scale, offset } = panel;
    const blocks = scale.length;
    const spoilt: number[] = [];
    for (let b = 0; b < blocks; b++) {
      const p = scale[b];
      if (p !== p || (p === 0 && arithmetic === "exact")) spoilt.push(b);
      else if (arithmetic !== "exact" && fr(p) !== p) return false;
    }
    if (spoilt.length > 0 && zero === null) return false;
    const space = convert === null ? tools.space() : convert.space;
    const kernels = tools.blocks(space);
    const wide = bits > 8;
    const values = space.scratch("codec values", 4 * PIECE + 64);
    const codes = space.scratch("codec codes", 2 * PIECE + BITS_SLACK);
    const packed = space.scratch("codec packed", 2 * PIECE + BITS_SLACK);
    const doubled = arithmetic === "exact";
    const p = put(space, "scales", scale, doubled ? Float64Array : Float32Array);
    let bounds: readonly [number, number, number] = [0, 0, 0];
    if (integer !== null) {
      const z = offset ?? new Float64Array(blocks);
      if (!isFloat32(z)) return false;
      bounds = [
        put(space, "lower bounds", z.map((v) => integer.min - v), Float32Array),
        put(space, "upper bounds", z.map((v) => integer.max - v), Float32Array),
        put(space, "offsets", z, Float32Array),
      ]; // prettier-ignore
    } else if (offset !== null && offset.some((v) => v !== 0)) return false;
    // rows that end on a byte are one stream of codes
    const stream = k <= PIECE && (k * bits) % 8 === 0;
    const row = stream ? null : codeArray(bits, k);
    let refused = false;
    forPieces(panel, (first, count, from, n, runs) => {
      if (refused) return;
      const padded = Math.ceil(n / CODEC_STEP) * CODEC_STEP;
      const staged = new Float32Array(space.buffer, values, padded);
      staged.set(x.subarray(first * k + from, first * k + from + n));
      staged.fill(0, n);
      if (policy.positiveZero) kernels.positive(values, 1, n);
      const run = doubled ? kernels.odd : arithmetic === "multiply" ? kernels.multiply : kernels.quotient;
      for (const [at, block, many, length] of runs) {
        run(values + 4 * at, p + (doubled ? 8 : 4) * block, many, length);
        if (integer !== null)
          kernels.whole(values + 4 * at, bounds[0] + 4 * block, bounds[1] + 4 * block, bounds[2] + 4 * block, many, length);
        for (const b of spoilt)
          if (b >= block && b < block + many) staged.fill(0, at + (b - block) * length, at + (b - block + 1) * length);
      }
      if (convert === null) kernels[wide ? "words16" : "words8"](values, codes, padded, 2 ** bits - 1);
      else if ((convert.run(values, codes, padded, convert.tables) as number) < 0) {
        refused = true;
        return;
      }
      if (stream) {
        const to = first * rowBytes;
        if (!packsBits(bits)) out.set(new Uint8Array(space.buffer, codes, (n * bits) / 8), to);
        else {
          words(space, bits, codes, padded).fill(0, n);
          tools.bits(space, bits).pack(codes, packed, Math.ceil(n / BITS_STEP) * BITS_STEP);
          out.set(new Uint8Array(space.buffer, packed, (n * bits) / 8), to);
        }
        return;
      }
      const found = words(space, bits, codes, n);
      if (k > PIECE) {
        row!.set(found, from);
        if (from + n === k) packInto(row!, 0, k, bits, out, first * rowBytes);
      } else for (let r = 0; r < count; r++) packInto(found, r * k, k, bits, out, (first + r) * rowBytes);
    });
    // rows were left unwritten: bytes must be zero for the general loop
    if (refused) out.fill(0, 0, rows * rowBytes);
    return !refused;
  };
}

/** @see BulkCodec.blockDecoder */
export function blockDecoder(tools: CodecTools, element: NumberFormat, role: "none" | "zeroPoint" | "add"): BlockDecoder | null {
  const { bits, table } = element;
  if (bits > 16 || table === null) return null;
  const convert = tools.decoder(element);
  if (convert === null) return null;
  // a float32 holds every value; differences of small integers are exact
  if (!table.every((v) => v !== v || fr(v) === v)) return null;
  const small = (v: number): boolean => Number.isInteger(v) && Math.abs(v) <= 65536;
  if (role === "zeroPoint" && !table.every(small)) return null;

  return (bytes, rowBytes, panel, out) => {
    const { k, scale, offset } = panel;
    if (role === "zeroPoint" && !(isFloat32(scale) && offset!.every(small))) return false;
    const { space } = convert;
    const kernels = tools.blocks(space);
    const values = space.scratch("codec values", 4 * PIECE + 64);
    const codes = space.scratch("codec codes", 2 * PIECE + BITS_SLACK);
    const packed = space.scratch("codec packed", 2 * PIECE + BITS_SLACK);
    let run: (at: number, block: number, many: number, length: number) => void;
    const bind = (name: string, size: number, ...at: number[]): typeof run => {
      const found: WasmFunction = kernels[name];
      return (x, block, many, length) => void found(x, ...at.map((a) => a + size * block), many, length);
    };
    if (role === "zeroPoint")
      run = bind("shifted", 4, put(space, "offsets", offset!, Float32Array), put(space, "scales", scale, Float32Array));
    else if (role === "none" && scale.every((s) => s === 1)) run = () => undefined;
    else if (role === "none" && isFloat32(scale)) run = bind("multiply", 4, put(space, "scales", scale, Float32Array));
    else {
      // an addend of zero is none: -0 changes no sum
      const addend = offset === null ? new Float64Array(scale.length).fill(-0) : offset.map((o) => (o === 0 ? -0 : o));
      run = bind("affine", 8, put(space, "scales", scale, Float64Array), put(space, "offsets", addend, Float64Array));
    }
    forPieces(panel, (first, count, from, n, runs) => {
      const padded = Math.ceil(n / CODEC_STEP) * CODEC_STEP;
      const unpackRun = (at: number, to: number, many: number): void => {
        if (!packsBits(bits)) {
          new Uint8Array(space.buffer, codes + to, (many * bits) / 8).set(bytes.subarray(at, at + (many * bits) / 8));
          return;
        }
        const size = packedBytes(many, bits);
        new Uint8Array(space.buffer, packed, size).set(bytes.subarray(at, at + size));
        tools.bits(space, bits).unpack(packed, codes + to, Math.ceil(many / BITS_STEP) * BITS_STEP);
      };
      // PIECE is a multiple of 8: a part of a row starts on a byte
      if (count === 1 || (k * bits) % 8 === 0) unpackRun(first * rowBytes + (from * bits) / 8, 0, n);
      else {
        const target = words(space, bits, codes, n);
        for (let r = 0; r < count; r++) unpackInto(bytes, (first + r) * rowBytes, bits, target, r * k, k);
      }
      words(space, bits, codes, padded).fill(0, n);
      convert.run(codes, values, padded, convert.tables);
      for (const [at, block, many, length] of runs) run(values + 4 * at, block, many, length);
      out.set(new Float32Array(space.buffer, values, n), first * k + from);
    });
    return true;
  };
}
