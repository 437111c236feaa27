// The last step of `quantize`: values to codes, with the scales as they are stored. Panels go to the kernels of a codec
// where they are exact, else through the loops below, one for each arithmetic.
import { encodeArray } from "../../../formats/core/bulk.ts";
import { codeArray, packInto, type Codes } from "../../../formats/core/pack.ts";
import { roundToInteger } from "../../../formats/core/round.ts";
import type { SpanGrid } from "../../../formats/core/span.ts";
import type { BlockFormat, NumberFormat } from "../../../formats/core/types.ts";
import type { BlockEncoder, BulkCodec } from "../../backends/types.ts";
import type { MatrixView, TensorData } from "../tensor.ts";
import { forPanels, PANEL_ROWS } from "./panels.ts";
import type { Policy } from "./policy.ts";

/** The parameters of every cell of the innermost grid. */
export interface CellParams {
  readonly grid: SpanGrid;
  /** As stored, all levels together; NaN makes all codes of a cell those of zero. */
  readonly scale: Float64Array;
  readonly zeroPoint: Float64Array;
  /** Elements are float32(x * factor), or float32(x / divisor), before rounding; without, x / scale in binary64. */
  readonly factor?: Float64Array;
  readonly divisor?: Float64Array;
  /** -0 becomes +0 before rounding. */
  readonly positiveZero?: boolean;
}

/**
 * One block, filled in anew for each: a run of values, what they are divided by, and where their codes go (out[i]
 * belongs to values[i]).
 */
interface Block {
  values: TensorData;
  start: number;
  end: number;
  scale: number;
  zero: number;
  /** Least and largest code, as a number. */
  readonly low: number;
  readonly high: number;
  readonly mask: number;
  readonly out: Codes;
}

const fr = Math.fround;
/** Adding and taking away 1.5 * 2^52 rounds a double below 2^51 to an integer, half to even. */
const MAGIC = 6755399441055744;

/** Writes the codes of all rows, each row from a byte of its own. */
export function encodeElements(
  m: MatrixView,
  { element }: BlockFormat,
  policy: Policy,
  cells: CellParams,
  codec: BulkCodec | undefined,
  codes: Uint8Array,
): void {
  const { bits } = element;
  const rowBytes = Math.ceil((m.k * bits) / 8);
  const { grid } = cells;
  const fast = codec === undefined ? null : bulkEncoder(codec, element, policy, cells);
  const buffer = codeArray(bits, Math.min(m.rows, PANEL_ROWS) * m.k);
  const encode = blockLoop(element, policy, cells, buffer);
  forPanels(m, (values, row, count) => {
    if (fast?.(values, row, count, m.k, codes.subarray(row * rowBytes), rowBytes)) return;
    for (let r = 0; r < count; r++) {
      const cell0 = Math.floor((row + r) / grid.rows) * grid.gridK;
      for (let b = 0; b < grid.gridK; b++) {
        const start = r * m.k + b * grid.k;
        encode.block(values, start, Math.min(start + grid.k, (r + 1) * m.k), cell0 + b);
      }
    }
    encode.finish(count * m.k);
    for (let r = 0; r < count; r++) packInto(buffer, r * m.k, m.k, bits, codes, (row + r) * rowBytes);
  });
}

/** Range of integer codes: narrow ones leave out the most negative. */
function codeLimits(element: NumberFormat, policy: Policy): { low: number; high: number } {
  const { min, max } = element.limits;
  const narrow = policy.rangeRule === "narrow" && element.kind === "int" && min < 0 && max > 0;
  return { low: narrow ? -max : min, high: max };
}

/** Integers that one of the integer loops takes. */
const plainInteger = (element: NumberFormat, policy: Policy): boolean =>
  element.kind === "int" && element.bits <= 16 && policy.rounding === "halfEven" && policy.overflow === "saturate";

type PanelEncoder = (values: TensorData, row: number, count: number, k: number, out: Uint8Array, rowBytes: number) => boolean;

/**
 * The kernels of a codec, where they are exact for the policy. They say themselves, panel by panel, where they are not.
 */
function bulkEncoder(codec: BulkCodec, element: NumberFormat, policy: Policy, cells: CellParams): PanelEncoder | null {
  const { grid, scale, zeroPoint, factor, divisor, positiveZero = false } = cells;
  const float32 = factor ?? divisor;
  const integer = float32 === undefined && plainInteger(element, policy);
  if (policy.steps !== "exact" && policy.steps !== "reciprocal") return null;
  if (element.kind === "int" && !integer) return null;
  const { low, high } = codeLimits(element, policy);
  const run: BlockEncoder | null = codec.blockEncoder({
    element,
    rounding: policy.rounding,
    overflow: policy.overflow,
    arithmetic: factor ? "multiply" : divisor ? "quotient" : "exact",
    positiveZero,
    integer: integer ? { min: low, max: high } : null,
  });
  if (run === null) return null;
  const panelScale = new Float64Array(PANEL_ROWS * grid.gridK);
  const panelZero = integer ? new Float64Array(panelScale.length) : null;
  return (values, row, count, k, out, rowBytes) => {
    if (!(values instanceof Float32Array)) return false;
    for (let r = 0, i = 0; r < count; r++) {
      const cell0 = Math.floor((row + r) / grid.rows) * grid.gridK;
      for (let b = 0; b < grid.gridK; b++, i++) {
        const s = scale[cell0 + b];
        const p = s !== s || float32 === undefined ? s : float32[cell0 + b];
        // NaN stands for a block that its scale makes NaN; zero is a block of zeros, whose quotients are none
        if ((p !== p && s === s) || (s === 0 && float32 === undefined)) return false;
        panelScale[i] = p;
        if (panelZero !== null) panelZero[i] = zeroPoint[cell0 + b];
      }
    }
    const n = count * grid.gridK;
    const offset = panelZero === null ? null : panelZero.subarray(0, n);
    return run(values, { rows: count, k, span: Math.min(grid.k, k), scale: panelScale.subarray(0, n), offset }, out, rowBytes);
  };
}

interface BlockLoop {
  block(values: TensorData, start: number, end: number, cell: number): void;
  /** After the last block of a panel. */
  finish(count: number): void;
}

/** The loop of a policy over single blocks, into a buffer of codes. */
function blockLoop(element: NumberFormat, policy: Policy, cells: CellParams, buffer: Codes): BlockLoop {
  const { steps } = policy;
  if (
    steps === "nbits" ||
    steps === "nbitsThenZero" ||
    (steps !== "reciprocal" && cells.factor === undefined && cells.divisor === undefined && plainInteger(element, policy))
  ) {
    const loop =
      steps === "nbits" ? nbitsBlock : steps === "nbitsThenZero" ? nbitsThenZeroBlock : steps === "onnx" ? onnxBlock : exactBlock;
    const { low, high } = codeLimits(element, policy);
    const record: Block = {
      values: new Float32Array(0),
      start: 0,
      end: 0,
      scale: 1,
      zero: 0,
      low,
      high,
      mask: 2 ** element.bits - 1,
      out: buffer,
    };
    return {
      block(values, start, end, cell) {
        record.values = values;
        record.start = start;
        record.end = end;
        record.scale = cells.scale[cell];
        record.zero = cells.zeroPoint[cell];
        loop(record);
      },
      finish: () => undefined,
    };
  }
  return generalLoop(element, policy, cells, buffer);
}

/** Every other policy: quotients go to a scratch array, and that through the element's own encoder. */
function generalLoop(element: NumberFormat, policy: Policy, cells: CellParams, buffer: Codes): BlockLoop {
  const { scale, zeroPoint, factor, divisor, positiveZero = false } = cells;
  const { rounding, overflow, random } = policy;
  const float32 = factor ?? divisor;
  const single = float32 !== undefined || policy.steps === "onnx";
  const scratch: TensorData = single ? new Float32Array(buffer.length) : new Float64Array(buffer.length);
  const { low, high } = codeLimits(element, policy);
  const clamp = overflow === "saturate" ? (q: number) => Math.min(high, Math.max(low, q)) : (q: number) => q;
  // Integers are rounded before the zero point is added: ties must not depend on its parity.
  const whole = element.kind === "int";
  return {
    block(values, start, end, cell) {
      const s = scale[cell];
      // A factor that is NaN is none.
      const f = float32 === undefined ? NaN : float32[cell];
      // A block whose scale is NaN or zero is that whatever its codes.
      if (s !== s || (s === 0 && f !== f)) scratch.fill(0, start, end);
      else if (f !== f) for (let i = start; i < end; i++) scratch[i] = values[i] / s;
      else {
        for (let i = start; i < end; i++) {
          const v = fr(values[i]);
          scratch[i] = positiveZero && v === 0 ? 0 : factor ? fr(v * f) : fr(v / f);
        }
      }
      const z = zeroPoint[cell];
      if (whole) for (let i = start; i < end; i++) scratch[i] = clamp(roundToInteger(scratch[i], rounding, random) + z);
    },
    finish: (count) => void encodeArray(element, scratch.subarray(0, count), buffer, { rounding, overflow, random }),
  };
}

// ---- integer loops, one for each arithmetic
// ----------------------------------------------------------------------------------------- Clamping comes before
// rounding where the bounds are integers, so that casts stay in range.

function exactBlock(block: Block): void {
  const { values, start, end, scale, zero, mask, out } = block;
  const lo = block.low - zero;
  const hi = block.high - zero;
  for (let i = start; i < end; i++) {
    const t = values[i] / scale;
    const c = t > hi ? hi : t < lo ? lo : t;
    out[i] = (c + MAGIC - MAGIC + zero) & mask;
  }
}

function onnxBlock(block: Block): void {
  const { values, start, end, scale, zero, mask, out } = block;
  const lo = block.low - zero;
  const hi = block.high - zero;
  for (let i = start; i < end; i++) {
    const t = fr(fr(values[i]) / scale);
    const c = t > hi ? hi : t < lo ? lo : t;
    out[i] = (c + MAGIC - MAGIC + zero) & mask;
  }
}

/**
 * Codes are found in the unsigned range 0..2^bits - 1 (a symmetric format as if its zero point were the middle), as
 * MatMulNBits stores them.
 */
function nbitsBlock(block: Block): void {
  const { values, start, end, scale, mask, out } = block;
  const r = reciprocal(scale);
  const middle = block.low < 0 ? -block.low : 0;
  const top = block.high + middle;
  const zero = block.zero + middle;
  for (let i = start; i < end; i++) {
    const t = fr(fr(fr(values[i]) * r) + zero);
    const q = t >= top ? top : t > 0 ? (t + 0.5) | 0 : 0;
    out[i] = (q - middle) & mask;
  }
}

/** Rounded half away from zero first, so that halves of both signs lie the same way around the zero point. */
function nbitsThenZeroBlock(block: Block): void {
  const { values, start, end, scale, zero, mask, out } = block;
  const r = reciprocal(scale);
  const lo = block.low - zero;
  const hi = block.high - zero;
  for (let i = start; i < end; i++) {
    const t = fr(fr(values[i]) * r);
    const c = t > hi ? hi : t < lo ? lo : t;
    out[i] = ((c < 0 ? -Math.floor(0.5 - c) : Math.floor(c + 0.5)) + zero) & mask;
  }
}

const reciprocal = (scale: number): number => (scale === 0 ? 0 : fr(1 / scale));
