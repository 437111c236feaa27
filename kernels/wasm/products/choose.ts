// Which integer kernel a weight matrix gets: from the properties of its values, the activations asked for and what the
// engine does well.
import { offsetTerms } from "../../offsets.ts";
import { integerRefusal } from "../../activations.ts";
import type { WeightSource } from "../../weight.ts";
import type { WasmFeatures } from "../engine/features.ts";
import { fieldLayout } from "./fields.ts";
import { zipsPlanes, type DotStyle, type GemmSpec } from "../dot/gemmspec.ts";
import { packedShape, type PackedShape } from "../dot/pack.ts";
import { rowBits } from "./rowpack.ts";
import { tileRows } from "./tiles.ts";
import { latticePlan, tableError, tablePlan, type DotPlan } from "../../plan.ts";

export interface DotChoice {
  readonly plan: DotPlan;
  readonly shape: PackedShape;
  /** For a product of m rows of activations; the same object for the same kernel. */
  spec(m: number): GemmSpec;
  readonly reasons: readonly string[];
}

/** What becomes of values on no even grid under integer activations. */
export type Codebook = "exact" | "int16" | "int8";

export interface DotOptions {
  readonly activationBits: 8 | 16;
  readonly features: Pick<WasmFeatures, "relaxed" | "dot">;
  readonly shared: boolean;
  /** A table of at most 16 values on no grid: refused, or fixed point of 16 bits (two planes) or 7 (one). */
  readonly codebook: Codebook;
}

function style(plan: DotPlan, { features, activationBits }: DotOptions): { style: DotStyle; reason: string } {
  const largest = Math.max(...plan.planes.map((plane) => plane.max));
  if (features.dot === "none") return { style: "simd", reason: "no exact relaxed dot product in this engine: i16 products (SIMD128)" };
  if (features.dot === "u8") return { style: "dot", reason: "relaxed dot product, exact for unsigned bytes" };
  if (largest > 127)
    return { style: "simd", reason: "operands above 7 bits are not exact in this engine's relaxed dot product: i16 products" };
  // two planes on both sides: the products of a high and a low one share an i16 sum
  if (features.dot === "i7" && activationBits === 16 && largest * plan.planes.length > 127)
    return { style: "simd", reason: "pairs of two planes would overflow i16 accumulation: i16 products" };
  if (features.dot === "i7")
    return { style: "madd16", reason: "the engine emulates the i32 dot product: i16 accumulation, widened before it can overflow" };
  return { style: "dot", reason: "relaxed dot product with 7-bit weights" };
}

/**
 * A lattice whose 16-entry table needs 8 bits, as two planes of 4 bits: where only 7-bit operands are exact, two short
 * products beat i16 ones. Null where the shift has no room to be a multiple of 16.
 */
function nibblePlanes(plan: DotPlan): DotPlan | null {
  const { table, max } = plan.planes[0];
  if (table === null || plan.planes.length !== 1 || plan.doubled || plan.bias !== 0 || max <= 127) return null;
  const shift = Math.ceil(plan.shift / 16);
  const more = shift * 16 - plan.shift;
  if (max + more > 255 || plan.shift < 0) return null;
  const moved = table.map((u) => u + more);
  return {
    ...plan,
    planes: [
      { table: moved.map((u) => u & 15), max: 15 },
      { table: moved.map((u) => u >> 4), max: 15 },
    ],
    radix: 16,
    shift,
  };
}

/** Operands from tables or joined pieces: worth decoding once per block for few rows of activations. */
export const isCostly = ({ planes, bits }: GemmSpec): boolean => {
  const layout = fieldLayout(bits);
  return planes.some((plane) => plane.table !== null) || layout.pieces.flat().length > layout.quads;
};

/** Whether operands are not the stored bytes. */
export const decodes = ({ planes, bits }: GemmSpec): boolean => bits < 8 || planes.some((plane) => plane.table !== null);

/**
 * Where the inner product is one instruction, tiles of more rows than leave room for decoding pay from groups of so
 * many elements on: below, float32 steps at the end of a group are what takes longer.
 */
const HIGH_GROUP = 64;
/** Time of a row in tiles of so many, in rows of tiles of four; and of decoding a panel. */
const HIGH_TILES = [[6, 0.91], [5, 0.93]] as const; // prettier-ignore
const DECODING = 2;

/** Rows of a tile for m rows: at most `most`, or more where that takes less time. */
function highRows(m: number, most: number, decoding: number): number {
  let rows = tileRows(m, most);
  let least = Math.ceil(m / rows) * rows;
  for (const [mr, time] of HIGH_TILES) {
    const own = time * Math.ceil(m / mr) * mr + decoding;
    if (own < least) [rows, least] = [mr, own];
  }
  return rows;
}

/** The integer kernel for a matrix, or why there is none. */
export function chooseDot(source: WeightSource, options: DotOptions): DotChoice | string {
  const refusal = integerRefusal(source);
  if (refusal !== null) return refusal;
  const values = source.values!;
  const lattice = latticePlan(values);
  if (lattice === null && options.codebook === "exact") return 'values on no even grid, to be kept exact: codebook "exact"';
  let plan = lattice ?? tablePlan(values, options.codebook === "int8" ? 1 : 2)!;
  if (options.features.dot === "i7" && options.activationBits === 8 && source.role !== "zeroPoint") plan = nibblePlanes(plan) ?? plan;
  const shape = packedShape(source, plan, rowBits(source, plan) !== null);
  const parts = offsetTerms(source, plan);
  const chosen = style(plan, options);
  const tile = (mr: number, panel: boolean): GemmSpec => ({
    style: chosen.style,
    relaxed: options.features.relaxed,
    activationBits: options.activationBits,
    bits: plan.bits,
    planes: plan.planes.map((plane) => ({ table: plane.table === null ? null : Array.from(plane.table), max: plane.max })),
    radix: plan.radix,
    group: shape.group,
    doubled: plan.doubled,
    ...parts,
    ...(shape.half ? { half: true } : {}),
    mr,
    nv: mr === 1 ? 4 : 2,
    panel: panel && mr > 1,
    shared: options.shared,
  });
  const one = tile(1, false);
  const accumulators = zipsPlanes(one)
    ? 2
    : chosen.style === "simd"
      ? plan.planes.length
      : plan.planes.length + options.activationBits / 8 - 1;
  // 15 vector registers: 8 accumulators, two operands, a broadcast, a mask and what decoding needs
  const most = accumulators === 1 ? 4 : 2;
  const reasons = [
    lattice !== null
      ? `all values lie on an even grid: integer products are exact`
      : `table of at most 16 values as ${plan.planes.length === 2 ? "16-bit fixed point (two int8 planes)" : "7-bit fixed point, on request"}: ` +
        `each within ${tableError(values, plan).toExponential(1)} of itself; codebook "exact" keeps them`,
    chosen.reason,
  ];
  // operands from tables or joined pieces are worth decoding once per block from two tiles on; plain fields where the
  // products leave no room for it
  const costly = isCostly(one);
  const panelFrom = costly ? 8 : chosen.style === "dot" ? Infinity : options.activationBits === 16 ? 16 : 32;
  const tiles = new Map<number, GemmSpec>();
  const isHigh = options.features.dot === "u8" && accumulators === 1 && shape.group >= HIGH_GROUP;
  const spec = (m: number): GemmSpec => {
    const mr = isHigh ? highRows(m, most, costly || !decodes(one) ? 0 : DECODING) : tileRows(m, most);
    const key = m >= panelFrom || (mr > most && decodes(one)) ? -mr : mr;
    let found = tiles.get(key);
    if (found === undefined) tiles.set(key, (found = tile(mr, key < 0)));
    return found;
  };
  return { plan, shape, spec, reasons };
}
