// Tapered formats: words whose order as signed integers is that of their values, negative ones in two's complement, 0 =
// 00..0, NaR = 10..0 (posits, takums). Rounding cuts the infinite bit string at n bits, ties to the even word: the
// boundary above a word is the word with a 1 appended, which is not the arithmetic mean where exponent bits are cut
// off. Nothing rounds to 0 or NaR; Infinity and NaN become NaR.
import { makeCodec } from "../core/codec.ts";
import { nanCode, pickCode, type Ends } from "../core/table.ts";
import type { EncodeDefaults, EncodeOptions, NumberFormat } from "../core/types.ts";

type CodecOptions = Parameters<typeof makeCodec>[0];

export interface TaperedOptions extends Pick<
  CodecOptions,
  "kind" | "name" | "aliases" | "bits" | "spec" | "fields" | "definition" | "scaleTo"
> {
  /** Fields of the word of a code's magnitude. */
  readonly fieldsOf: (word: number) => ReturnType<NonNullable<CodecOptions["fieldsOf"]>>;
  /** The value of a positive word of n bits, or of n + 1, which boundaries need. */
  readonly valueOf: (word: number, bits: number) => number;
  /** The largest word whose value is at most x > 0. */
  readonly cut: (x: number) => number;
}

const DEFAULTS: EncodeDefaults = { rounding: "halfEven", overflow: "saturate", infinity: "keep", nan: "nan" };

export function defineTapered({ valueOf, cut, fieldsOf, ...options }: TaperedOptions): NumberFormat {
  const { name, bits } = options;
  const span = 2 ** bits;
  const nar = span / 2;
  const negate = (code: number) => (code === 0 ? 0 : span - code);
  const positive = (word: number): number => (word === 0 ? 0 : valueOf(word, bits));
  const decode = (code: number): number => (code === nar ? NaN : code < nar ? positive(code) : -positive(span - code));
  /** The boundary above a positive word or zero. Nothing rounds to zero, so it starts at 0. */
  const tieAbove = (word: number): number => (word === 0 ? 0 : valueOf(2 * word + 1, bits + 1));
  const [max, minPositive] = [positive(nar - 1), positive(1)];
  const ends: Ends = { name, max, min: -max, maxCode: nar - 1, minCode: nar + 1, zeroCode: 0, nanCode: nar };

  const encode = (value: number, o?: EncodeOptions): number => {
    if (Number.isNaN(value)) return nanCode(ends, o?.nan ?? DEFAULTS.nan);
    if (!Number.isFinite(value) && (o?.infinity ?? DEFAULTS.infinity) === "keep") return nanCode(ends, o?.nan ?? DEFAULTS.nan, value);
    if (value === 0) return 0;
    const x = Math.abs(value);
    if (x >= max) return value > 0 ? ends.maxCode : ends.minCode;
    const word = cut(x);
    const lo = positive(word);
    if (lo === x) return value > 0 ? word : negate(word);
    const hi = positive(word + 1);
    const rounding = o?.rounding ?? DEFAULTS.rounding;
    return value > 0
      ? pickCode(name, x, lo, hi, tieAbove(word), word, word + 1, rounding, o?.random)
      : pickCode(name, value, -hi, -lo, -tieAbove(word), negate(word + 1), negate(word), rounding, o?.random);
  };

  return makeCodec({
    ...options,
    fieldsOf: (code) => fieldsOf(code <= nar ? code : span - code),
    defaults: DEFAULTS,
    decode,
    source: {
      boundary: (lower, _upper, lowerCode, upperCode) => (lower >= 0 ? tieAbove(lowerCode) : -tieAbove(negate(upperCode))),
      beyond: null,
      nanCode: nar,
    },
    encode,
    limits: {
      max,
      min: -max,
      minPositive,
      minNormal: minPositive,
      hasZero: true,
      hasNegativeZero: false,
      hasInf: false,
      hasNaN: true,
      symmetric: true,
      finiteValues: span - 1,
    },
    // NaR is a value like any other in comparisons, below all numbers, and stepping wraps: the order of the words as
    // signed integers.
    ordering: "word",
  });
}
