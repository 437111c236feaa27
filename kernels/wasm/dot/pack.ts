// Packs a weight matrix for the kernels of integer products: see gemm.ts. Runs once per matrix.
import { groupSpan } from "../../activations.ts";
import { offsetTerms } from "../../offsets.ts";
import type { DotPlan } from "../../plan.ts";
import type { WeightSource } from "../../weight.ts";
import { FieldWriter, termWriter } from "../products/pack.ts";
import { paddedGroup, weightRecord } from "./gemmspec.ts";

export interface PackedShape {
  /** Rows of W per block. */
  readonly blocks: number;
  readonly groups: number;
  /** Elements of K per group, and the same with padding. */
  readonly span: number;
  readonly group: number;
  readonly bytes: number;
}

export function packedShape(source: WeightSource, plan: DotPlan): PackedShape {
  const span = groupSpan(source.span, source.k);
  const group = paddedGroup(plan.bits, span);
  const groups = Math.ceil(source.k / span);
  const blocks = Math.ceil(source.rows / 16);
  const record = weightRecord({ bits: plan.bits, group, ...offsetTerms(source, plan) });
  return { blocks, groups, span, group, bytes: blocks * groups * record.bytes };
}

/** Writes the packed matrix of an integer kernel at `address` of `buffer`, where zeros are. */
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
