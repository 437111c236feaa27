// Which weights the look-up kernel takes, and their packing: planes of the lattice numbers of gemm.ts (the same unit,
// shift and offsets, so that both kernels give the same floats), or the two masks of ternary.ts.
import { groupSpan, integerRefusal } from "../../activations.ts";
import { offsetTerms } from "../../offsets.ts";
import type { WeightSource } from "../../weight.ts";
import type { WasmFeatures } from "../engine/features.ts";
import { lutGroup, lutPlace, lutRecord, type LutPlan, type LutSpec } from "./lut.ts";
import { latticePlan } from "../../plan.ts";
import { termWriter } from "../products/pack.ts";
import { ternaryPlan } from "./ternary.ts";

export interface LutChoice {
  readonly plan: LutPlan;
  readonly spec: LutSpec;
  readonly blocks: number;
  readonly groups: number;
  /** Elements of K per group, without padding. */
  readonly span: number;
  readonly bytes: number;
  readonly reasons: readonly string[];
}

function planesPlan(source: WeightSource): LutPlan | string {
  const plan = latticePlan(source.values!);
  if (plan === null) return "the values lie on no even grid";
  const { unit, shift, bias } = plan;
  const [{ table }] = plan.planes;
  let u = Uint8Array.from(plan.remap, (field) => (table === null ? field : table[field]));
  // a grid that misses zero by half a step was refined to hold it: every other step is enough here
  const doubled = plan.doubled || (plan.shift % 2 === 1 && u.every((v) => v % 2 === 0));
  if (doubled && !plan.doubled) u = u.map((v) => v / 2);
  const planes = Math.max(1, 32 - Math.clz32(Math.max(...u)));
  if (planes > 4) return "the values take more than 4 bits on their grid";
  return { planes, equal: false, remap: u, unit, shift, doubled, bias };
}

/** The look-up kernel for a matrix, or why there is none. */
export function chooseLut(
  source: WeightSource,
  kind: "lookup" | "ternary",
  options: { readonly features: Pick<WasmFeatures, "relaxed">; readonly shared: boolean },
): LutChoice | string {
  const refusal = integerRefusal(source);
  if (refusal !== null) return refusal;
  const plan = kind === "ternary" ? (ternaryPlan(source) ?? "values other than -1, 0 and 1 times a unit") : planesPlan(source);
  if (typeof plan === "string") return plan;
  const { planes, equal, shift, doubled } = plan;
  const span = groupSpan(source.span, source.k);
  const spec: LutSpec = {
    relaxed: options.features.relaxed,
    planes,
    equal,
    group: lutGroup(equal, span),
    shift,
    doubled,
    // every value is one of the grid
    ...offsetTerms(source, { exact: true, bias: plan.bias }),
    shared: options.shared,
  };
  const groups = Math.ceil(source.k / span);
  const blocks = Math.ceil(source.rows / 16);
  const reasons = equal
    ? ["all values are -1, 0 or 1 times a unit: sums of activations under two masks, looked up, without multiplication; exact"]
    : [
        `${planes} bit plane${planes === 1 ? "" : "s"} of an even grid: sums of four activations looked up per plane; integer products are exact`,
      ];
  return { plan, spec, blocks, groups, span, bytes: blocks * groups * lutRecord(spec).bytes, reasons };
}

/** Writes the packed matrix at `address` of `buffer`, where zeros are. */
export function packLut(source: WeightSource, choice: LutChoice, buffer: ArrayBufferLike, address: number): void {
  const { rows, k } = source;
  const { plan, spec, span, groups } = choice;
  const record = lutRecord(spec);
  const bytes = new Uint8Array(buffer, address, choice.bytes);
  const floats = new Float32Array(buffer, address, choice.bytes / 4);
  const words = new Int16Array(buffer, address, choice.bytes / 2);
  const places = Array.from({ length: spec.group }, (_, i) => Array.from({ length: spec.planes }, (__, p) => lutPlace(spec, i, p)));
  const at = Uint16Array.from(places.flat(), (place) => 16 * place.vector);
  const bit = Uint8Array.from(places.flat(), (place) => place.bit);
  const codes = new Uint8Array(k);
  const blocks = Math.ceil(k / source.span);
  const scales = new Float64Array(blocks);
  const offsets = new Float64Array(blocks);
  const terms = termWriter(source.role, plan, record, spec, floats, words);
  for (let r = 0; r < rows; r++) {
    source.codes(r, codes);
    source.scales(r, scales);
    if (source.role !== "none") source.offsets(r, offsets);
    const row = r & 15;
    const lane = row < 8 ? 2 * row : 2 * (row - 8) + 1;
    for (let g = 0; g < groups; g++) {
      const base = ((r >> 4) * groups + g) * record.bytes;
      const first = g * span;
      const last = Math.min(k, first + span);
      for (let i = first, place = 0; i < last; i++) {
        const u = plan.remap[codes[i]];
        for (let p = 0; p < spec.planes; p++, place++) bytes[base + lane + at[place]] |= ((u >> p) & 1) << bit[place];
      }
      const block = Math.floor(first / source.span);
      terms(base, row, scales[block], offsets[block]);
    }
  }
}
