// Packs a weight matrix for the kernels of integer products: see gemm.ts. Runs once per matrix.
import { groupSpan } from "../../activations.ts";
import { offsetTerms } from "../../offsets.ts";
import type { DotPlan } from "../../plan.ts";
import type { WeightSource } from "../../weight.ts";
import { groupsPerBlock } from "../products/rowpack.ts";
import { FieldWriter, termWriter } from "../products/pack.ts";
import { paddedGroup, weightRecord } from "./gemmspec.ts";

export interface PackedShape {
  /** Rows of W per block. */
  readonly blocks: number;
  readonly groups: number;
  /** Elements of K per group, and the same with padding. */
  readonly span: number;
  readonly group: number;
  /** Scales are float16. */
  readonly half: boolean;
  readonly bytes: number;
}

/** Rows whose scales are looked at, at once. */
const LOOK = 256;

/**
 * Are all scales, in units of the operands, float16 values of full precision (or zero)? Then they take half the bytes.
 * Only scales that lie side by side are looked at: reading others twice would cost more than it saves.
 */
function scalesFitHalf(source: WeightSource, { unit }: Pick<DotPlan, "unit">): boolean {
  const read = source.dense?.scales;
  if (read === undefined) return false;
  const blocks = Math.ceil(source.k / source.span);
  const scales = new Float32Array(LOOK * blocks);
  const bits = new Uint32Array(scales.buffer);
  for (let r = 0; r < source.rows; r += LOOK) {
    const count = Math.min(LOOK, source.rows - r);
    const values = scales.subarray(0, count * blocks);
    read(r, count, values);
    if (unit !== 1) for (let i = 0; i < values.length; i++) values[i] *= unit;
    for (let i = 0; i < values.length; i++) {
      const exponent = (bits[i] >>> 23) & 255;
      // float16 has exponents -14 to 15 and 10 bits of a fraction
      if ((bits[i] & 0x1fff) !== 0 || ((exponent < 113 || exponent > 142) && bits[i] << 1 !== 0)) return false;
    }
  }
  return true;
}

export function packedShape(source: WeightSource, plan: DotPlan, byRows: boolean): PackedShape {
  const span = groupSpan(source.span, source.k);
  const group = paddedGroup(plan.bits, span);
  const groups = Math.ceil(source.k / span);
  const blocks = Math.ceil(source.rows / 16);
  const terms = offsetTerms(source, plan);
  // addends are in units of the result, which one row of activations has only at its end
  const half = byRows && !terms.add && groupsPerBlock(source, { span, group, groups }) !== 0 && scalesFitHalf(source, plan);
  const record = weightRecord({ bits: plan.bits, group, half, ...terms });
  return { blocks, groups, span, group, half, bytes: blocks * groups * record.bytes };
}

/**
 * Writes the packed matrix of an integer kernel at `address` of `buffer`, where zeros are; where scales are float32.
 */
export function packWeight(source: WeightSource, plan: DotPlan, shape: PackedShape, buffer: ArrayBufferLike, address: number): void {
  const { rows, k } = source;
  const { span, group, groups } = shape;
  const parts = offsetTerms(source, plan);
  const record = weightRecord({ bits: plan.bits, group, ...parts });
  const bytes = new Uint8Array(buffer, address, shape.bytes);
  const floats = new Float32Array(buffer, address, shape.bytes / 4);
  const words = new Int16Array(buffer, address, shape.bytes / 2);
  const blocks = Math.ceil(k / source.span);
  const scales = new Float64Array(blocks);
  const offsets = new Float64Array(blocks);
  const writer = new FieldWriter(bytes, source, shape, plan.remap, plan.bits, false);
  const terms = termWriter(source.role, plan, record, parts, floats, words);
  for (let r = 0; r < rows; r++) {
    writer.read(r);
    source.scales(r, scales);
    if (source.role !== "none") source.offsets(r, offsets);
    const row = r & 15;
    for (let g = 0; g < groups; g++) {
      const base = ((r >> 4) * groups + g) * record.bytes;
      writer.put(base, row, g);
      const block = Math.floor((g * span) / source.span);
      terms(base, row, scales[block], offsets[block]);
    }
  }
}
