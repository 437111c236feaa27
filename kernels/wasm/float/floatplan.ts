// How a format's codes become float32 in a kernel, from its values alone: a lattice, a float table of at most 16 or 256
// entries, fields that shift into place, 16-bit floats; anything else is decoded to float32 panels when it is packed.
// Nothing here knows a format's name.
import { groupSpan } from "../../activations.ts";
import { offsetTerms, undoubled } from "../../offsets.ts";
import { wideScales, type WeightSource } from "../../weight.ts";
import { floatPeriod, floatRecord, type FloatDecode, type FloatSpec } from "./float.ts";
import { tileRows } from "../products/tiles.ts";
import { latticePlan } from "../../plan.ts";

export interface FloatPlan {
  readonly decode: FloatDecode;
  /** What the record holds. */
  readonly layout: Pick<FloatSpec, "bits" | "group" | "scale" | "zeroPoint" | "add">;
  readonly scaleFirst: boolean;
  /** Stored field of each code; null: the code itself. */
  readonly remap: Uint8Array | Uint16Array | null;
  readonly unit: number;
  readonly shift: number;
  readonly bias: number;
  /** 256 floats for `table8`. */
  readonly table: Float32Array | null;
  readonly span: number;
  readonly groups: number;
  readonly blocks: number;
  readonly bytes: number;
  readonly reason: string;
}

const view = new DataView(new ArrayBuffer(4));

function fromBits(bits: number): number {
  view.setUint32(0, bits);
  return view.getFloat32(0);
}

function toBits(value: number): number {
  view.setFloat32(0, value);
  return view.getUint32(0);
}

/**
 * Mantissa bits and exponent of a sign-exponent-mantissa format whose values are its fields moved into a float32, for
 * the codes marked in `used`.
 */
function shiftFields(values: Float64Array, bits: number, used: Uint8Array): { mantissaBits: number; exponent: number } | null {
  const sign = 1 << (bits - 1);
  for (let mantissaBits = 0; mantissaBits <= bits - 2 && mantissaBits <= 7; mantissaBits++) {
    const image = (code: number): number =>
      fromBits((((code & sign) !== 0 ? 0x80000000 : 0) | ((code & (sign - 1)) << (23 - mantissaBits))) >>> 0);
    // the largest finite code says which power of two is missing
    let exponent = NaN;
    for (let code = sign - 1; code > 0 && Number.isNaN(exponent); code--)
      if (Number.isFinite(values[code]) && values[code] > 0) exponent = Math.log2(values[code] / image(code));
    if (!Number.isInteger(exponent) || exponent < 0 || exponent > 127) continue;
    const fits = (code: number): boolean => Object.is(values[code], image(code) * 2 ** exponent);
    if (values.every((_, code) => used[code] === 0 || fits(code))) return { mantissaBits, exponent };
  }
  return null;
}

/** Marks the codes that a matrix uses. */
function usedCodes(source: WeightSource): Uint8Array {
  const used = new Uint8Array(2 ** source.bits);
  const codes = source.bits <= 8 ? new Uint8Array(source.k) : new Uint16Array(source.k);
  for (let r = 0; r < source.rows; r++) {
    source.codes(r, codes);
    for (let i = 0; i < codes.length; i++) used[codes[i]] = 1;
  }
  return used;
}

const HALF_EXPONENT = 112;

/** bfloat16 codes (or float16, as they are) for a format of 9..16 bits, or null. */
function halfPlan(values: Float64Array, used: Uint8Array): { mantissaBits: 7 | 10; remap: Uint16Array | null; reason: string } | null {
  const bfloat = new Uint16Array(values.length);
  let exact = true;
  for (let code = 0; code < values.length && exact; code++) {
    if (used[code] === 0) continue;
    const image = toBits(values[code]);
    const same = Number.isNaN(values[code]) || (Object.is(fromBits(image), values[code]) && (image & 0xffff) === 0);
    exact = same;
    bfloat[code] = image >>> 16;
  }
  if (exact) return { mantissaBits: 7, remap: bfloat, reason: "16-bit words that are the upper half of a float32" };
  const float16 = (code: number): number => fromBits((((code & 0x8000) << 16) | ((code & 0x7fff) << 13)) >>> 0) * 2 ** HALF_EXPONENT;
  if (values.length === 65536 && values.every((v, code) => used[code] === 0 || Object.is(float16(code), v)))
    return { mantissaBits: 10, remap: null, reason: "16-bit fields shifted into a float32" };
  return null;
}

type Parts = Pick<FloatPlan, "decode" | "remap" | "unit" | "shift" | "bias" | "table" | "reason"> & {
  readonly bits: number;
  /** Integer zero points are subtracted before scaling. */
  readonly integer?: boolean;
};

const plain = { unit: 1, shift: 0, bias: 0, table: null };
const identity = (n: number): Uint8Array => Uint8Array.from({ length: n }, (_, code) => code);

function parts(source: WeightSource): Parts {
  const { values, bits } = source;
  const decoded: Parts = {
    ...plain,
    decode: { kind: "float" },
    remap: null,
    bits: 32,
    reason: "decoded to float32 panels when packed: no kernel decodes these codes on the way",
  };
  if (values === null || bits > 16) return decoded;
  if (bits > 8) {
    const half = halfPlan(values, usedCodes(source));
    if (half === null) return decoded;
    return { ...plain, decode: { kind: "half", mantissaBits: half.mantissaBits }, remap: half.remap, bits: 16, reason: half.reason };
  }
  const lattice = latticePlan(values);
  if (lattice !== null) {
    const table = lattice.planes[0].table;
    const { unit, shift } = undoubled(lattice);
    return {
      decode: {
        kind: "lattice",
        table: table === null ? null : Array.from(table),
        shift,
      },
      remap: lattice.remap,
      bits: lattice.bits,
      unit,
      shift: lattice.shift,
      bias: lattice.bias,
      table: null,
      integer: lattice.bias === 0 && !lattice.doubled,
      reason: "integers converted to float32",
    };
  }
  const all = identity(values.length);
  if (bits <= 4)
    return {
      ...plain,
      decode: { kind: "table4", values: Array.from(values) },
      remap: all,
      bits,
      reason: "float32 table of 16 entries in registers",
    };
  const fields = shiftFields(values, bits, usedCodes(source));
  if (fields !== null)
    return {
      ...plain,
      decode: { kind: "shift", ...fields },
      remap: all,
      bits,
      reason: "sign, exponent and mantissa fields shifted into a float32",
    };
  const table = new Float32Array(256);
  values.forEach((v, code) => (table[code] = v));
  return { ...plain, decode: { kind: "table8" }, remap: all, bits: 8, table, reason: "float32 table of 256 entries in memory" };
}

/** The float plan of a matrix; every matrix has one. */
export function floatPlan(source: WeightSource): FloatPlan {
  let chosen = parts(source);
  let span = groupSpan(source.span, source.k, 64);
  // decoded panels carry no scales
  const decode = (why: string): void =>
    void (chosen = { ...plain, decode: { kind: "float" }, remap: null, bits: 32, reason: `${why}: decoded to float32 panels when packed` });
  const wide = chosen.bits === 32 ? "one" : wideScales(source, chosen.unit);
  if (wide === "outside") decode("scales beyond the range of a float32");
  else if (span === 0 && chosen.bits !== 32) decode(`blocks of ${source.span} cannot be cut into equal groups`);
  if (chosen.bits === 32) span = 16;
  const step = Math.max(4, floatPeriod(chosen.bits));
  const group = Math.ceil(span / step) * step;
  const groups = Math.ceil(source.k / span);
  const blocks = Math.ceil(source.rows / 16);
  const decoded = chosen.bits === 32;
  const terms = offsetTerms(source, { exact: chosen.integer === true, bias: chosen.bias });
  const layout = {
    bits: chosen.bits,
    group,
    scale: !decoded,
    zeroPoint: !decoded && terms.zeroPoint,
    add: !decoded && terms.add,
  };
  const reason = wide === "any" && !decoded ? `${chosen.reason}, scaled before it is multiplied: elements of a wide range` : chosen.reason;
  const bytes = blocks * groups * floatRecord(layout).bytes;
  return { ...chosen, reason, layout, scaleFirst: wide === "any" && !decoded, span, groups, blocks, bytes };
}

/** The float kernel's code for a plan and a tile. */
export function floatSpec(plan: FloatPlan, mr: number, relaxed: boolean, shared: boolean): FloatSpec {
  return { decode: plan.decode, relaxed, ...plan.layout, scaleFirst: plan.scaleFirst && mr === 1, mr, nv: mr <= 2 ? 4 : 2, shared };
}

/**
 * Rows per tile: one row is fused; 6 x 8 with fused multiply-add, 2 x 16 otherwise (a product needs a register of its
 * own).
 */
export function floatRows(m: number, relaxed: boolean): number {
  return tileRows(m, m <= 2 || !relaxed ? 2 : 6);
}
