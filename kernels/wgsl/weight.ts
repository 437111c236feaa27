// How a weight matrix lies in a GPU's memory and how its codes become operands, from the values alone. A row is chunks
// of 32 elements of k; a chunk of b-bit codes is b words, in planes of 8, 4, 2 or 1 bits (3 = 2 + 1), widest first.
// Within a plane four consecutive elements ("a quad") are fields at one bit position of the four bytes of a word, so
// `(word >> position) & mask` is a quad of bytes: one operand of dot4I8Packed, or unpack4xU8 for floats. 32 weights of
// 4 bits are one vec4u.
import { exprNodes, type Expr } from "../../formats/core/expr.ts";
import { groupSpan } from "../activations.ts";
import { addendOf, offsetTerms, undoubled } from "../offsets.ts";
import { latticePlan } from "../plan.ts";
import { wideScales, type WeightSource } from "../weight.ts";
import { exprFunction, shaderTables } from "./function.ts";

export const CHUNK = 32;

/**
 * How a quad of codes (vec4u) becomes floats: the integers themselves, a table in workgroup memory, a function
 * `decode_bits`, or floats as they lie.
 */
export type GpuDecode =
  | { readonly kind: "integer" }
  | { readonly kind: "table"; readonly size: number }
  | { readonly kind: "expr"; readonly text: string }
  | { readonly kind: "float" };

/**
 * What a stored quad is to an integer dot product: its fields, its fields less 128, or bytes of a table of 16 entries.
 */
export type Operand = "field" | "flipped" | "table";

export interface WeightPlan {
  /** Bits of a stored field: 1..8, 16 or 32 (decoded float32). Also words per chunk. */
  readonly bits: number;
  /**
   * Elements of k per scale; as stored 8, 16 or a multiple of 32 with padding at its end. `group` 0: one scale per row.
   */
  readonly span: number;
  readonly group: number;
  readonly chunks: number;
  /** Scales stored per row: those of whole chunks. */
  readonly groups: number;
  readonly decode: GpuDecode;
  readonly operand: Operand;
  /** Stored field of each code; null: the code itself. */
  readonly remap: Uint8Array | null;
  /** Stored field of padding: one that decodes to a finite value. */
  readonly padding: number;
  /** Words of the table, or null. */
  readonly table: Uint32Array | null;
  /**
   * value = scale * unit * (decoded - zero) + add; the zero of a group is `shift` + zero point / unit where
   * `zeroPoint`, else `shift`.
   */
  readonly scale: boolean;
  readonly unit: number;
  readonly shift: number;
  readonly bias: number;
  readonly zeroPoint: boolean;
  readonly add: boolean;
  /** Integer products: twice the operand less the shift, as the grid misses zero by half a step. */
  readonly doubled: boolean;
  readonly reason: string;
}

const padded = (span: number): number => (span <= 8 ? 8 : span <= 16 ? 16 : Math.ceil(span / CHUNK) * CHUNK);

/** Groups of `span` elements along k as they are stored. */
function groupsOf(k: number, span: number): Pick<WeightPlan, "span" | "group" | "chunks" | "groups"> {
  if (span >= k) return { span: k, group: 0, chunks: Math.ceil(k / CHUNK), groups: 1 };
  const group = padded(span);
  const chunks = Math.ceil((Math.ceil(k / span) * group) / CHUNK);
  return { span, group, chunks, groups: Math.ceil((chunks * CHUNK) / group) };
}

const plain = { remap: null, padding: 0, table: null, unit: 1, shift: 0, bias: 0, operand: "field", doubled: false } as const;

const isFloat32 = (v: number): boolean => !Number.isFinite(v) || Math.fround(v) === v;

/**
 * The plan of products with float activations; every matrix has one. `expr`: decoding of the codes as an expression,
 * where there is one.
 */
export function floatWeight(source: WeightSource, expr: Expr | null): WeightPlan {
  const { values, bits, k, role } = source;
  const coded = { ...groupsOf(k, source.span), scale: true, zeroPoint: role === "zeroPoint" } as const;
  const lattice = values === null || bits > 8 ? null : latticePlan(values);
  if (lattice !== null && lattice.planes[0].table === null)
    return {
      ...plain,
      ...coded,
      bits: lattice.bits,
      decode: { kind: "integer" },
      remap: lattice.remap,
      ...undoubled(lattice),
      bias: lattice.bias,
      add: role === "add" || lattice.bias !== 0,
      reason: "integers converted to float32",
    };
  const padding = values === null ? 0 : values.findIndex((v) => Number.isFinite(v));
  const arithmetic = expr !== null && exprNodes(expr).every((e) => e.table === undefined);
  const word = bits <= 8 ? bits : 16;
  // sums are scaled as a whole: those of elements of a wide range would leave float32 before that
  const wide = wideScales(source, 1) !== "one";
  if (values !== null && bits <= 16 && padding >= 0 && !wide && values.every(isFloat32)) {
    if (bits <= 8 && !arithmetic)
      return {
        ...plain,
        ...coded,
        bits: word,
        padding,
        decode: { kind: "table", size: values.length },
        table: new Uint32Array(Float32Array.from(values).buffer),
        add: role === "add",
        reason: `float32 table of ${values.length} entries in workgroup memory`,
      };
    if (arithmetic)
      return {
        ...plain,
        ...coded,
        bits: word,
        padding,
        decode: { kind: "expr", text: exprFunction("decode_bits", expr, shaderTables([])) },
        add: role === "add",
        reason: "fields of the codes moved into a float32",
      };
  }
  return {
    ...plain,
    ...groupsOf(k, k),
    bits: 32,
    decode: { kind: "float" },
    scale: false,
    zeroPoint: false,
    add: false,
    reason: `decoded to float32 panels when packed: ${wide ? "elements of a wide range under scales" : "no kernel decodes these codes on the way"}`,
  };
}

/**
 * The plan of integer products, or null where the values are no lattice: then activations are quantized and multiplied
 * as floats.
 */
export function integerWeight(source: WeightSource): WeightPlan | null {
  const { values, k } = source;
  const lattice = values === null ? null : latticePlan(values);
  const span = groupSpan(source.span, k);
  if (lattice === null || span === 0) return null;
  const groups = groupsOf(k, span);
  const [plane] = lattice.planes;
  const flipped = plane.max > 127;
  return {
    ...plain,
    ...groups,
    // one scale per row is one per group here
    group: groups.group === 0 ? padded(k) : groups.group,
    groups: groups.group === 0 ? Math.ceil((groups.chunks * CHUNK) / padded(k)) : groups.groups,
    bits: lattice.bits,
    decode: { kind: "integer" },
    operand: plane.table !== null ? "table" : flipped ? "flipped" : "field",
    remap: lattice.remap,
    table: plane.table === null ? null : Uint32Array.from(plane.table, (u) => (flipped ? u ^ 128 : u)),
    scale: true,
    unit: lattice.unit,
    // the sum of 2 u - shift in terms of operands u - 128
    shift: lattice.shift - (flipped ? (lattice.doubled ? 256 : 128) : 0),
    bias: lattice.bias,
    // every value is one of the grid
    ...offsetTerms(source, { exact: true, bias: lattice.bias }),
    doubled: lattice.doubled,
    reason: "all values lie on an even grid: exact integer products (dot4I8Packed)",
  };
}

/** Floats per group in the buffer of offsets: zero, addend. */
export const offsetParts = (plan: WeightPlan): number => (plan.zeroPoint ? 1 : 0) + (plan.add ? 1 : 0);

/** Bytes of one row in each buffer. */
export function rowBytes(plan: WeightPlan): { readonly w: number; readonly scales: number; readonly offsets: number } {
  return {
    w: plan.chunks * plan.bits * 4,
    scales: plan.scale ? plan.groups * 4 : 0,
    offsets: offsetParts(plan) * plan.groups * 4,
  };
}

export interface PackedRows {
  readonly w: Uint32Array<ArrayBuffer>;
  readonly scales: Float32Array<ArrayBuffer>;
  readonly offsets: Float32Array<ArrayBuffer>;
}

/** Planes of a field: width and how many bits lie below it. */
export function planesOf(bits: number): readonly { readonly width: number; readonly below: number; readonly first: number }[] {
  const found: { width: number; below: number; first: number }[] = [];
  let below = 0;
  for (const width of [8, 4, 2, 1])
    if (bits - below >= width) {
      // a plane's first word: the words of wider planes, `width` of them per bit of a chunk
      found.push({ width, below, first: below });
      below += width;
    }
  return found;
}

/** Makes a packer: rows [from, from + count) of the matrix as the kernels read them. */
export function rowPacker(source: WeightSource, plan: WeightPlan): (from: number, count: number) => PackedRows {
  const { k } = source;
  const { bits, span, chunks, groups, remap, padding } = plan;
  const group = plan.group === 0 ? chunks * CHUNK : plan.group;
  const parts = offsetParts(plan);
  const codes = source.bits <= 8 ? new Uint8Array(k) : source.bits <= 16 ? new Uint16Array(k) : new Uint32Array(k);
  const decoded = new Float64Array(bits === 32 ? k : 0);
  const blocks = Math.ceil(k / source.span);
  const scales = new Float64Array(blocks);
  const offsets = new Float64Array(blocks);
  const fields = new Uint16Array(chunks * CHUNK);
  const planes = planesOf(Math.min(bits, 8)).map(({ width, below, first }) => ({
    width,
    below,
    first,
    mask: Math.imul(0x01010101, 2 ** width - 1),
  }));
  return (from, count) => {
    const out = {
      w: new Uint32Array(count * chunks * bits),
      scales: new Float32Array(plan.scale ? count * groups : 0),
      offsets: new Float32Array(count * groups * parts),
    };
    const floats = bits === 32 ? new Float32Array(out.w.buffer) : null;
    for (let row = 0; row < count; row++) {
      const r = from + row;
      const base = row * chunks * bits;
      if (floats !== null) {
        source.decode(r, decoded);
        floats.set(decoded, base);
        continue;
      }
      source.codes(r, codes);
      source.scales(r, scales);
      if (source.role !== "none") source.offsets(r, offsets);
      fields.fill(padding);
      for (let g = 0, i = 0; i < k; g++)
        for (let at = g * group, to = Math.min(k, i + span); i < to; i++, at++) fields[at] = remap === null ? codes[i] : remap[codes[i]];
      if (bits === 16) for (let i = 0; i < fields.length; i += 2) out.w[base + (i >> 1)] = fields[i] | (fields[i + 1] << 16);
      else
        for (let c = 0; c < chunks; c++)
          for (let q = 0; q < 8; q++) {
            const i = c * CHUNK + 4 * q;
            const quad = fields[i] | (fields[i + 1] << 8) | (fields[i + 2] << 16) | (fields[i + 3] << 24);
            for (const { width, below, first, mask } of planes) {
              const place = q * width;
              out.w[base + c * bits + first + (place >> 3)] |= ((quad >>> below) & mask) << (place & 7);
            }
          }
      for (let g = 0; g < groups; g++) {
        const start = g * span;
        if (start >= k) break;
        const block = Math.floor(start / source.span);
        const scale = scales[block];
        const at = row * groups + g;
        out.scales[at] = scale * plan.unit;
        if (plan.zeroPoint) out.offsets[at * parts] = offsets[block] / plan.unit + plan.shift;
        if (plan.add) out.offsets[at * parts + parts - 1] = addendOf(source.role, plan.zeroPoint, scale, offsets[block], plan.bias);
      }
    }
    return out;
  };
}
