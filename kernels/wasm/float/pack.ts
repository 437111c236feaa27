// Packs a weight matrix for the kernels of float products: see float.ts. Runs once per matrix.
import type { WeightSource } from "../../weight.ts";
import { FieldWriter, termWriter } from "../products/pack.ts";
import { floatRecord } from "./float.ts";
import type { FloatPlan } from "./floatplan.ts";

/** Writes the packed matrix of a float kernel at `address` of `buffer`, where zeros are. */
export function packFloat(source: WeightSource, plan: FloatPlan, buffer: ArrayBufferLike, address: number): void {
  const { rows, k } = source;
  const { span, groups, bytes: total, layout } = plan;
  const record = floatRecord(layout);
  const bytes = new Uint8Array(buffer, address, total);
  const floats = new Float32Array(buffer, address, total / 4);
  const words = new Int16Array(buffer, address, total / 2);
  const decoded = layout.bits === 32;
  const codes = source.bits <= 16 ? new Uint16Array(k) : new Uint32Array(k);
  const values = new Float64Array(decoded ? k : 0);
  const blocks = Math.ceil(k / source.span);
  const scales = new Float64Array(blocks).fill(1);
  const offsets = new Float64Array(blocks);
  const terms = termWriter(source.role, plan, record, layout, floats, words);
  const writer =
    layout.bits > 8
      ? null
      : new FieldWriter(
          bytes,
          source,
          { span, group: layout.group, groups },
          plan.remap as Uint8Array,
          layout.bits,
          plan.decode.kind === "table4",
        );
  for (let r = 0; r < rows; r++) {
    if (decoded) source.decode(r, values);
    else {
      if (writer !== null) writer.read(r);
      else source.codes(r, codes);
      source.scales(r, scales);
      if (source.role !== "none") source.offsets(r, offsets);
    }
    const row = r & 15;
    for (let g = 0; g < groups; g++) {
      const base = ((r >> 4) * groups + g) * record.bytes;
      const first = g * span;
      const last = Math.min(k, first + span);
      if (decoded) {
        for (let i = first; i < last; i++) floats[base / 4 + 16 * (i - first) + row] = values[i];
        continue;
      }
      if (writer !== null) writer.put(base, row, g);
      else
        for (let i = first; i < last; i++) {
          const within = i - first;
          words[base / 2 + 32 * (within >> 1) + 2 * row + (within & 1)] = plan.remap === null ? codes[i] : plan.remap[codes[i]];
        }
      const block = Math.floor(first / source.span);
      terms(base, row, scales[block], offsets[block]);
    }
  }
}
