// HiFloat8: 8 bits whose exponent width is told by a prefix code (the dot), so that precision tapers: 3 mantissa bits
// around 1, 1 bit at the ends.
//   dot 11: 4 exponent bits, 1 mantissa bit   10: 3 and 2   01: 2 and 3   001: 1 and 3   0001: 0 and 3
//   0000: denormal, 3
// The exponent is a sign and a magnitude whose leading 1 is not written: |e| in 8..15, 4..7, 2..3, 1, 0. Denormal:
// 2^(m - 23) for m = 1..7, so no mantissa.
// 0x00 = 0, 0x80 = NaN, 0x6f and 0xef = infinities; no negative zero. Ties round away from zero. Spec: "Ascend HiFloat8
// Format for Deep Learning"
// (arXiv 2409.16626), section 2; en_dtypes.
import { makeCodec } from "../core/codec.ts";
import { tableEncoder } from "../core/table.ts";
import type { Field, NumberFormat } from "../core/types.ts";

const [NAN, INF, NEGATIVE_INF] = [0x80, 0x6f, 0xef];

/** Widths of dot, exponent and mantissa of a magnitude. */
function split(magnitude: number): readonly [dot: number, exponent: number, mantissa: number] {
  if (magnitude >= 0x60) return [2, 4, 1];
  if (magnitude >= 0x40) return [2, 3, 2];
  if (magnitude >= 0x20) return [2, 2, 3];
  return magnitude >= 0x10 ? [3, 1, 3] : [4, 0, 3];
}

function magnitudeValue(magnitude: number): number {
  if (magnitude < 8) return magnitude === 0 ? 0 : 2 ** (magnitude - 23);
  const [, exponent, mantissa] = split(magnitude);
  const field = (magnitude >> mantissa) & (2 ** exponent - 1);
  const top = exponent === 0 ? 0 : 2 ** (exponent - 1);
  const size = exponent === 0 ? 0 : top + (field % top);
  return (1 + (magnitude & (2 ** mantissa - 1)) / 2 ** mantissa) * 2 ** (field >= top ? -size : size);
}

/** HiFloat8. */
export function defineHifloat8(): NumberFormat {
  return makeCodec({
    kind: "float",
    name: "hifloat8",
    aliases: ["hif8"],
    bits: 8,
    spec: "Ascend HiFloat8 (arXiv 2409.16626)",
    fields: [
      { name: "sign", bits: 1 },
      { name: "dot", bits: 7 },
    ],
    fieldsOf(code) {
      const [dot, exponent, mantissa] = split(code & 0x7f);
      const all: Field[] = [
        { name: "sign", bits: 1 },
        { name: "dot", bits: dot },
        { name: "exponent", bits: exponent },
        { name: "mantissa", bits: mantissa },
      ];
      return all.filter((f) => f.bits > 0);
    },
    defaults: { rounding: "halfExpand", overflow: "inf", infinity: "overflow", nan: "nan" },
    definition: { kind: "hifloat8", name: "hifloat8" },
    // Three mantissa bits reach from 2^-3 to 2^4: what is scaled to 15 keeps them.
    scaleTo: 15,
    decode: (code) => {
      const magnitude = code & 0x7f;
      if (code === NAN) return NaN;
      const value = magnitude === INF ? Infinity : magnitudeValue(magnitude);
      return code >= 0x80 ? -value : value;
    },
    encodeBy: tableEncoder,
    source: { beyond: { above: 49152, below: -49152 }, nanCode: NAN, infCode: INF, negativeInfCode: NEGATIVE_INF, minNormal: 2 ** -15 },
  });
}
