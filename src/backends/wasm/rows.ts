// Packing a weight by a kernel (kernels/wasm/products/rowpack.ts) where its codes lie densely in rows: a megabyte at a
// time through scratch space, on all threads. What else a weight may be, the packers of each family move field by
// field.
import { addendOf } from "../../../kernels/offsets.ts";
import type { WeightSource } from "../../../kernels/weight.ts";
import type { Space } from "../../../kernels/wasm/engine/engine.ts";
import { kernel } from "../../../kernels/wasm/engine/family.ts";
import type { Runtime } from "../../../kernels/wasm/engine/runtime.ts";
import { groupsPerBlock, ROW_PACK_ARGUMENTS, rowBits, rowPack, type RowPackSpec } from "../../../kernels/wasm/products/rowpack.ts";

/** What a family's packer knows of the matrix and its records. */
export interface RowPacking {
  readonly source: WeightSource;
  readonly plan: {
    readonly bits: number;
    readonly remap: ArrayLike<number> | null;
    readonly unit: number;
    readonly shift: number;
    readonly bias: number;
  };
  readonly cut: { readonly span: number; readonly group: number; readonly groups: number; readonly half?: boolean };
  readonly record: { readonly codes: number; readonly zeroPoint: number; readonly add: number; readonly bytes: number };
  readonly parts: { readonly zeroPoint: boolean; readonly add: boolean };
  readonly address: number;
}

/** Bytes of codes that are staged at once. */
const CHUNK = 2 ** 18;

/** Writes the packed matrix; false where the kernel does not take it. Rows beyond the last are left as they are. */
export function packRows(runtime: Runtime, space: Space, { source, plan, cut, record, parts, address }: RowPacking): boolean {
  const { dense, rows, k } = source;
  const { group, groups } = cut;
  const fields = rowBits(source, plan);
  const perBlock = groupsPerBlock(source, cut);
  if (dense === undefined || fields === null || perBlock === 0) return false;
  const { bits, flip } = fields;
  const blocks = Math.ceil(k / source.span);
  const zeroPoint = parts.zeroPoint ? record.zeroPoint : 0;
  const spec: RowPackSpec = { bits, half: cut.half === true, group, bytes: record.bytes, zeroPoint, shared: runtime.shared };
  const built = kernel(rowPack, spec);
  const stride = (groups * group * bits) / 8;
  const most = 16 * Math.max(1, Math.min(Math.ceil(rows / 16), Math.floor(CHUNK / (16 * stride))));
  const staged = {
    codes: space.scratch("pack codes", most * stride),
    scales: space.scratch("pack scales", 4 * most * blocks),
    zeros: parts.zeroPoint ? space.scratch("pack zeros", 4 * most * blocks) : 0,
  };
  let word = 0;
  for (let i = 0; i < 32; i += bits) word |= flip << i;
  for (let from = 0; from < rows; from += most) {
    const count = Math.min(most, rows - from);
    const items = Math.ceil(count / 16);
    stageCodes(new Uint8Array(space.buffer, staged.codes, 16 * items * stride), dense, from, count, stride);
    const scales = new Float32Array(space.buffer, staged.scales, 16 * items * blocks);
    stageTerms(scales, source, plan, from, count, parts.zeroPoint ? new Float32Array(space.buffer, staged.zeros, scales.length) : null);
    const values = {
      ...staged,
      stride,
      blocks,
      perBlock,
      out: address + (from / 16) * groups * record.bytes,
      groups,
      flip: word,
      shift: plan.shift,
    };
    runtime.work(space, built, items, Int32Array.from(ROW_PACK_ARGUMENTS, (name) => values[name]), 0); // prettier-ignore
  }
  if (parts.add) writeAddends(space, { source, plan, cut, record, parts, address });
  return true;
}

/** Rows of codes, padded with zeros to `stride` bytes; zeros for rows beyond the last. */
function stageCodes(to: Uint8Array, dense: NonNullable<WeightSource["dense"]>, from: number, count: number, stride: number): void {
  const { rowBytes } = dense;
  dense.codes(from, count, to.subarray(0, count * rowBytes));
  // from the last row on, so that none is written over before it has moved
  if (rowBytes !== stride)
    for (let r = count - 1; r >= 0; r--) {
      to.copyWithin(r * stride, r * rowBytes, (r + 1) * rowBytes);
      to.fill(0, r * stride + rowBytes, (r + 1) * stride);
    }
  to.fill(0, count * stride);
}

/** Scales in units of the operands, and zero points in the same. */
function stageTerms(
  to: Float32Array,
  source: WeightSource,
  { unit }: { readonly unit: number },
  from: number,
  count: number,
  zeros: Float32Array | null,
): void {
  const blocks = Math.ceil(source.k / source.span);
  const plain = source.dense?.scales;
  if (unit === 1 && plain !== undefined) plain(from, count, to.subarray(0, count * blocks));
  else {
    const row = new Float64Array(blocks);
    for (let r = 0; r < count; r++) {
      source.scales(from + r, row);
      for (let b = 0; b < blocks; b++) to[r * blocks + b] = row[b] * unit;
    }
  }
  to.fill(0, count * blocks);
  if (zeros === null) return;
  const row = new Float64Array(blocks);
  for (let r = 0; r < count; r++) {
    source.offsets(from + r, row);
    for (let b = 0; b < blocks; b++) zeros[r * blocks + b] = Math.round(row[b] / unit);
  }
  zeros.fill(0, count * blocks);
}

function writeAddends(space: Space, { source, plan, cut, record, parts, address }: RowPacking): void {
  const { rows, k, role } = source;
  const blocks = Math.ceil(k / source.span);
  const [scales, offsets] = [new Float64Array(blocks), new Float64Array(blocks)];
  const floats = new Float32Array(space.buffer, address, (Math.ceil(rows / 16) * cut.groups * record.bytes) / 4);
  for (let r = 0; r < rows; r++) {
    source.scales(r, scales);
    if (role !== "none") source.offsets(r, offsets);
    for (let g = 0; g < cut.groups; g++) {
      const base = ((r >> 4) * cut.groups + g) * record.bytes;
      const block = Math.floor((g * cut.span) / source.span);
      floats[(base + record.add) / 4 + (r & 15)] = addendOf(role, parts.zeroPoint, scales[block], offsets[block], plan.bias);
    }
  }
}
