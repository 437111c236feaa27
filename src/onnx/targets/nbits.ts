// Packed tensors as the operands of com.microsoft.MatMulNBits and GatherBlockQuantized: codes of 2, 4 or 8 bits,
// counted from the least, lowest bits first, rows in whole blocks along k; one scale per block; zero points packed
// likewise. Formats of integers go in as they are; every other format whose values lie on an even grid of at most 256
// steps goes in exactly, its steps as codes (FP4 as 8-bit codes of twice the value). The bytes that stand for nothing
// are those of onnxruntime's own tool: after an odd k the zero point, then zeros; a zero point that is no block's is
// the middle code.
import { decodeArray } from "../../../formats/core/bulk.ts";
import { LowbitError } from "../../../formats/core/errors.ts";
import { elementOf, rowScales } from "../../../formats/core/packed.ts";
import { codeArray, packedBytes, packInto, unpackInto } from "../../../formats/core/pack.ts";
import type { BlockFormat, Format, NumberFormat, PackedTensor, Span } from "../../../formats/core/types.ts";
import { defineBlock } from "../../../formats/define/index.ts";
import { float16 } from "../../../formats/float16.ts";
import { float32 } from "../../../formats/float32.ts";

export const NBITS_BLOCKS: readonly number[] = [16, 32, 64, 128, 256];
const NBITS: readonly number[] = [2, 4, 8];

export interface NBitsOperands {
  readonly bits: number;
  readonly blockSize: number;
  /** [rows, blocks, blockSize * bits / 8]. */
  readonly codes: Uint8Array;
  /** Bytes of float32 or float16, [rows, blocks]. */
  readonly scales: Uint8Array;
  /** Are the scales float16? */
  readonly half: boolean;
  /** [rows, ceil(blocks * bits / 8)]; null where every zero point is the middle code. */
  readonly zeroPoints: Uint8Array | null;
  readonly blocks: number;
}

/** How a format becomes codes of n bits; null where it cannot. */
interface NBitsPlan {
  readonly bits: number;
  readonly blockSize: number;
  /** The codes, zero points and scales are already what the operator wants, but for the sign. */
  readonly asIs: boolean;
}

/** The block size of the operator for a span of the format's scales: one scale may be written for several blocks. */
function blockOf(span: Span, k: number): number | null {
  if (typeof span === "number") return [...NBITS_BLOCKS].reverse().find((size) => span % size === 0) ?? null;
  if (typeof span !== "string" && span[1] % 16 !== 0) return null;
  const reach = typeof span === "string" ? 128 : span[1];
  return [...NBITS_BLOCKS].reverse().find((size) => reach % size === 0 && (size === 16 || size <= k)) ?? 16;
}

/** Steps of the grid that all values of a format lie on: least and largest, and the value of one. */
function stepsOf(element: NumberFormat): { readonly least: number; readonly most: number; readonly unit: number } | null {
  const values = element.order === null || element.limits.hasNaN || element.limits.hasInf ? null : element.table;
  if (values === null || element.bits > 8) return null;
  const finite = [...values].filter((v) => v !== 0).map(Math.abs);
  if (finite.length === 0) return null;
  // the largest power of two times an odd number that divides all: on a grid of powers of two, the smallest magnitude's
  let unit = Math.min(...finite);
  for (let tries = 0; tries < 8 && !finite.every((v) => Number.isInteger(v / unit)); tries++) unit /= 2;
  if (!finite.every((v) => Number.isInteger(v / unit))) return null;
  const steps = [...values].map((v) => v / unit);
  return { least: Math.min(...steps), most: Math.max(...steps), unit };
}

/** The plan for a format and a row length, or why there is none. */
export function nbitsPlan(format: Format, k: number): NBitsPlan | string {
  if (format.kind !== "block") return `${format.name} has no scales by block`;
  const { element, scales, offset } = format;
  const blockSize = blockOf(scales[0].span, k);
  if (blockSize === null) return `blocks of ${JSON.stringify(scales[0].span)} are no multiple of 16`;
  if (offset !== undefined && offset.role === "min") return "a minimum per block is no zero point";
  const zeroPoint = offset?.role === "zeroPoint";
  const [level] = scales;
  const sameZero = !zeroPoint || (offset.levels[0].span === level.span && offset.levels[0].format.bits === element.bits);
  const wholeScale = level.format === float32 || level.format === float16;
  if (
    element.kind === "int" &&
    NBITS.includes(element.bits) &&
    scales.length === 1 &&
    sameZero &&
    wholeScale &&
    level.span === blockSize &&
    (offset === undefined ? element.limits.min < 0 : zeroPoint && element.limits.min === 0)
  )
    return { bits: element.bits, blockSize, asIs: true };
  const steps = stepsOf(element);
  if (steps === null) return `the values of ${element.name} lie on no even grid of 256 steps`;
  // with zero points codes count from them
  const reach = zeroPoint ? steps.most - steps.least : Math.max(-steps.least, steps.most + 1);
  const bits = NBITS.find((b) => reach <= 2 ** (b - 1));
  return bits === undefined ? `the values of ${element.name} need more than 8 bits` : { bits, blockSize, asIs: false };
}

/**
 * The format of q4, q2 and 8-bit blocks: signed with the extreme at the least code, or unsigned with a zero point per
 * block.
 */
export function nbitsFormat(element: NumberFormat, blockSize: number, half: boolean): BlockFormat {
  const scales = [{ format: half ? float16 : float32, span: blockSize }];
  if (element.limits.min < 0) return defineBlock({ element, scales, rangeRule: "ort" });
  return defineBlock({ element, scales, offset: { role: "zeroPoint", levels: [{ format: element, span: blockSize }] } });
}

/** The same format, of one level of scales, with another float type of them. */
export function withScaleFormat(format: BlockFormat, scale: NumberFormat): BlockFormat {
  const { element, scales, offset, scaleRule, rangeRule, tail, nonFinite } = format;
  return defineBlock({
    element,
    scales: [{ format: scale, span: scales[0].span }],
    ...(offset === undefined ? {} : { offset }),
    scaleRule,
    rangeRule,
    tail,
    nonFinite,
  });
}

/** The same format with scales and zero points for other parts of a weight. */
export function withSpan(format: BlockFormat, span: Span): BlockFormat {
  const { element, scales, offset, scaleRule, rangeRule, tail, nonFinite } = format;
  return defineBlock({
    element,
    scales: [{ format: scales[0].format, span }],
    ...(offset === undefined ? {} : { offset: { ...offset, levels: [{ format: offset.levels[0].format, span }] } }),
    scaleRule,
    rangeRule,
    tail,
    nonFinite,
  });
}

/**
 * The operands for a packed tensor [rows, k].
 * @param half write float16 scales where the format has none of its own type
 * @param owned the codes may be changed in place: nobody else reads them
 * @throws LowbitError E_UNSUPPORTED where the format cannot be such codes
 */
export function nbitsOperands(packed: PackedTensor, half: boolean, owned = false): NBitsOperands {
  const plan = nbitsPlan(packed.format, packed.k);
  if (typeof plan === "string")
    throw new LowbitError(
      "E_UNSUPPORTED",
      `MatMulNBits: expected integers, or values on an even grid, with scales per block of 16 to 256, got ${packed.format.name}: ${plan}. Use the target "stored".`,
    );
  return plan.asIs ? asTheyAre(packed, plan, owned) : asSteps(packed, plan, half);
}

function asTheyAre(packed: PackedTensor, { bits, blockSize }: NBitsPlan, owned: boolean): NBitsOperands {
  const { rows, k } = packed;
  const format = packed.format as BlockFormat;
  const blocks = Math.ceil(k / blockSize);
  const rowBytes = (blocks * blockSize * bits) / 8;
  const middle = 2 ** (bits - 1);
  // Signed codes are two's complement: the unsigned code with its top bit flipped.
  const signed = format.element.limits.min < 0;
  const flip = signed ? [0xaa, 0x88, 0x80][NBITS.indexOf(bits)] : 0;
  // blocks of 16 codes and more: rows of whole words
  const whole = rowBytes === packed.rowBytes && packed.codes.byteOffset % 4 === 0;
  const codes = whole && owned ? packed.codes : new Uint8Array(rows * rowBytes);
  if (whole) {
    const from = new Int32Array(packed.codes.buffer, packed.codes.byteOffset, codes.length / 4);
    const to = new Int32Array(codes.buffer, codes.byteOffset, from.length);
    const mask = Math.imul(flip, 0x01010101);
    if (mask !== 0 || !owned) for (let i = 0; i < to.length; i++) to[i] = from[i] ^ mask;
  } else {
    for (let row = 0; row < rows; row++) {
      const from = row * packed.rowBytes;
      const to = row * rowBytes;
      for (let i = 0; i < packed.rowBytes; i++) codes[to + i] = packed.codes[from + i] ^ flip;
    }
  }
  const zeroBytes = packedBytes(blocks, bits);
  const zeroPoints = packed.offsets === null ? null : packed.offsets.slice();
  const perByte = 8 / bits;
  if (k % perByte !== 0) {
    const last = Math.floor(k / perByte);
    const used = (k % perByte) * bits;
    for (let row = 0; row < rows; row++) {
      const at = (blocks - 1) * bits;
      const zero = zeroPoints === null ? middle : (zeroPoints[row * zeroBytes + (at >> 3)] >> (at & 7)) & (2 ** bits - 1);
      let fill = 0;
      for (let bit = used; bit < 8; bit += bits) fill |= zero << bit;
      codes[row * rowBytes + last] = (codes[row * rowBytes + last] & (2 ** used - 1)) | fill;
    }
  }
  if (zeroPoints !== null && (blocks * bits) % 8 !== 0) {
    let fill = 0;
    for (let bit = (blocks * bits) % 8; bit < 8; bit += bits) fill |= middle << bit;
    for (let row = 1; row <= rows; row++) zeroPoints[row * zeroBytes - 1] |= fill;
  }
  return { bits, blockSize, codes, scales: packed.scales!, half: format.scales[0].format === float16, zeroPoints, blocks };
}

/** Exact codes of another width: steps of the grid around the middle code; zero points are taken off. */
function asSteps(packed: PackedTensor, { bits, blockSize }: NBitsPlan, half: boolean): NBitsOperands {
  const { rows, k } = packed;
  const format = packed.format as BlockFormat;
  const element = elementOf(packed)!;
  const { unit } = stepsOf(element)!;
  const blocks = Math.ceil(k / blockSize);
  const rowBytes = (blocks * blockSize * bits) / 8;
  const middle = 2 ** (bits - 1);
  const codes = new Uint8Array(rows * rowBytes);
  const scales = new Float32Array(rows * blocks);
  const levels = rowScales(packed, format);
  const scale = new Float64Array(levels.blocks);
  const offset = new Float64Array(levels.blocks);
  const row = codeArray(element.bits, k);
  const values = new Float64Array(k);
  const steps = new Uint8Array(blocks * blockSize);
  const zeroPoint = format.offset?.role === "zeroPoint";
  for (let r = 0; r < rows; r++) {
    unpackInto(packed.codes, r * packed.rowBytes, element.bits, row, 0, k);
    decodeArray(element, row, values);
    levels.fill(r, scale, offset);
    for (let j = 0; j < k; j++) {
      const cell = Math.floor(j / levels.span);
      steps[j] = Math.round((values[j] - (zeroPoint ? offset[cell] : 0)) / unit) + middle;
    }
    packInto(steps, 0, k, bits, codes, r * rowBytes);
    for (let b = 0; b < blocks; b++) scales[r * blocks + b] = scale[Math.floor((b * blockSize) / levels.span)] * unit;
  }
  if (!half) return { bits, blockSize, codes, scales: new Uint8Array(scales.buffer), half, zeroPoints: null, blocks };
  const narrow = Uint16Array.from(scales, (s) => float16.encode(s));
  return { bits, blockSize, codes, scales: new Uint8Array(narrow.buffer), half, zeroPoints: null, blocks };
}
