// How a number lands in a format, and the bit card of a format: plain data and the lines that say it, for the command
// line and the documentation. Pure functions; scalar formats are explained bit by bit, block formats by their parts.
import { LowbitError } from "./errors.ts";
import { bisect, exponentOf, nextDown, nextUp } from "./round.ts";
import type { EncodeOptions, Field, Format, NumberFormat } from "./types.ts";

/** One field of one code. */
export interface FieldBits {
  readonly name: Field["name"];
  /** Binary digits, most significant first. */
  readonly bits: string;
  /** What they say, where that is a number of its own: "-", "2^-2", "1.25". */
  readonly meaning: string;
}

export interface Neighbour {
  readonly code: number;
  readonly value: number;
}

/** How a value lands in a format, as data and as lines of text: see `explainValue`. */
export interface ValueExplanation {
  readonly format: string;
  readonly input: number;
  readonly code: number;
  readonly hex: string;
  readonly binary: string;
  readonly fields: readonly FieldBits[];
  /** What the code decodes to. */
  readonly value: number;
  /** value - input; NaN where either is not finite. */
  readonly error: number;
  readonly relativeError: number;
  /** Why this code. */
  readonly reason: "exact" | "nearest" | "tie" | "overflow" | "underflow" | "not a number" | "rounding";
  /**
   * The representable values on either side of the input (of the value itself where the input is exact); null beyond
   * the ends.
   */
  readonly below: Neighbour | null;
  readonly above: Neighbour | null;
  /** Formats of at most 16 bits: inputs between these two boundaries land on this code. */
  readonly interval: readonly [from: number, to: number] | null;
  readonly lines: readonly string[];
}

/** "0x7e", padded to the width of the code. */
export const hexCode = (code: number, bits: number): string => `0x${code.toString(16).padStart(Math.ceil(bits / 4), "0")}`;
/** A number as documentation shows it: -0 keeps its sign, powers of two beyond four digits are written as such. */
export function showNumber(x: number): string {
  if (Object.is(x, -0)) return "-0";
  const m = Math.abs(x);
  const e = Math.log2(m);
  if (Number.isInteger(e) && m === 2 ** e && (e > 16 || e < -10)) return `${x < 0 ? "-" : ""}2^${e}`;
  return String(x);
}

/** The fields of one code. */
export function fieldBits(format: NumberFormat, code: number): FieldBits[] {
  const digits = code.toString(2).padStart(format.bits, "0");
  const fields = format.fieldsOf?.(code) ?? format.fields;
  const value = format.decode(code);
  // Two's complement words are read after negation.
  const negative = format.ordering === "word" && value < 0;
  const read = negative ? (2 ** format.bits - code).toString(2).padStart(format.bits, "0") : digits;
  let at = 0;
  return fields.map(({ name, bits }) => {
    const part = digits.slice(at, at + bits);
    const number = parseInt(read.slice(at, at + bits) || "0", 2);
    at += bits;
    return { name, bits: part, meaning: meaning(format, name, part, number, bits, value, read, at) };
  });
}

function meaning(
  format: NumberFormat,
  name: Field["name"],
  part: string,
  number: number,
  bits: number,
  value: number,
  read: string,
  end: number,
): string {
  const { bias, mantissaBits, subnormals, es } = format.definition as {
    bias?: number;
    mantissaBits?: number;
    subnormals?: boolean;
    es?: number;
  };
  if (name === "padding") return "ignored";
  if (name === "sign") return part === "1" ? "-" : "+";
  if (!Number.isFinite(value) || value === 0) return Number.isNaN(value) ? "NaN" : showNumber(value);
  if (name === "integer" || name === "index") return showNumber(value);
  if (format.kind === "logarithmic") return `2^${showNumber(Math.round(Math.log2(Math.abs(value)) * 2 ** 20) / 2 ** 20)}`;
  if (name === "dot")
    return bits === 4 && part === "0000" ? "denormal" : `${{ "11": 4, "10": 3, "01": 2, "001": 1, "0001": 0 }[part]} exponent bits`;
  if (name === "direction") return number === 1 ? "up" : "down";
  if (name === "characteristic") return `c = ${characteristic(format, Math.abs(value))}`;
  if (name === "regime" && format.kind === "takum") return `r = ${read[1] === "1" ? number : 7 - number}`;
  if (name === "exponent" && format.fieldsOf !== undefined && es === undefined) return `2^${exponentOf(value)}`;
  if (name === "regime") {
    const run = read.slice(end - bits, end);
    const ones = run[0] === "1";
    const length = run.lastIndexOf(run[0]) + 1;
    return `k = ${ones ? length - 1 : -length}: 2^${(ones ? length - 1 : -length) * 2 ** (es ?? 0)}`;
  }
  if (name === "exponent") {
    if (es !== undefined) return `2^${number * 2 ** (es - bits)}`;
    return number === 0 && subnormals !== false ? `subnormal, 2^${1 - (bias ?? 0)}` : `2^${number - (bias ?? 0)}`;
  }
  const leading = es === undefined && (mantissaBits ?? 0) > 0 && /^0+$/.test(exponentDigits(format, read)) ? 0 : 1;
  return String(leading + number / 2 ** bits);
}

/** c of a takum: the whole part of its logarithm. */
function characteristic(format: NumberFormat, magnitude: number): number {
  if (format.definition.linear === true) return exponentOf(magnitude);
  // A value e^(c / 2) is a rounded double: its logarithm may come out below c by rounding.
  return Math.floor(2 * Math.log(magnitude) + 2 ** -40);
}

function exponentDigits(format: NumberFormat, digits: string): string {
  let at = 0;
  for (const f of format.fields) {
    if (f.name === "exponent") return digits.slice(at, at + f.bits);
    at += f.bits;
  }
  return "1";
}

/**
 * How a value lands in a scalar format: code, fields, value, error, neighbours and the reason.
 * @throws LowbitError E_UNSUPPORTED for block and opaque formats, and whatever `format.encode` throws
 * @example explainValue(float8_e4m3fn, 0.3).lines.join("\n")
 */
export function explainValue(format: Format, input: number, options: EncodeOptions = {}): ValueExplanation {
  if (format.kind === "block" || format.kind === "opaque") {
    const use = format.kind === "block" ? `its element format ${format.element.name}` : "a scalar format";
    throw new LowbitError(
      "E_UNSUPPORTED",
      `explainValue: expected a scalar format, got ${format.name}, where a value depends on its whole block. Explain ${use} instead.`,
    );
  }
  const code = format.encode(input, options);
  const value = format.decode(code);
  const at = (x: number, rounding: "floor" | "ceil"): Neighbour | null => {
    const c = format.encode(x, { rounding, overflow: "saturate", infinity: "overflow" });
    const v = format.decode(c);
    return rounding === "floor" ? (v <= x ? { code: c, value: v } : null) : v >= x ? { code: c, value: v } : null;
  };
  const exact = input === value;
  const finite = Number.isFinite(input);
  const { limits } = format;
  const hasBelow = finite && (exact ? input > limits.min : input >= limits.min);
  const hasAbove = finite && (exact ? input < limits.max : input <= limits.max);
  const below = hasBelow ? at(exact ? nextDown(input) : input, "floor") : null;
  const above = hasAbove ? at(exact ? nextUp(input) : input, "ceil") : null;
  const rounding = options.rounding ?? format.defaults.rounding;
  const interval = rounding === "stochastic" ? null : intervalOf(format, value, options);
  const reason: ValueExplanation["reason"] = Number.isNaN(input)
    ? "not a number"
    : exact
      ? "exact"
      : !finite || input > limits.max || input < limits.min
        ? "overflow"
        : value === 0
          ? "underflow"
          : !rounding.startsWith("half")
            ? "rounding"
            : interval && (input === interval[0] || input === interval[1])
              ? "tie"
              : "nearest";
  const error = value - input;
  const relativeError = error / Math.abs(input);
  const fields = fieldBits(format, code);
  const hex = hexCode(code, format.bits);
  const why = {
    exact: "represented exactly",
    nearest: `the nearest value (${rounding})`,
    tie: `on the boundary between two values: ${rounding}`,
    rounding: `rounded by "${rounding}"`,
    overflow: beyondRange(format, input, value, options, rounding),
    underflow: "rounds to zero",
    "not a number": `NaN: policy "${options.nan ?? format.defaults.nan}"`,
  }[reason];
  const side = (n: Neighbour | null, word: string) => (n ? [`${word} ${showNumber(n.value)} (${hexCode(n.code, format.bits)})`] : []);
  const lines = [
    `${showNumber(input)} -> ${showNumber(value)}   code ${hex}   ${format.name}`,
    `bits      ${fields.map((f) => `${f.name} ${f.bits}${f.meaning === "" ? "" : ` (${f.meaning})`}`).join("  ")}`,
    `why       ${why}`,
    ...(Number.isFinite(error)
      ? [`error     ${showNumber(error)}${input !== 0 ? ` (${(100 * relativeError).toPrecision(3)} %)` : ""}`]
      : []),
    ...(below || above ? [`between   ${[...side(below, "below"), ...side(above, "above")].join(", ")}`] : []),
    ...(interval ? [`lands here ${showNumber(interval[0])} .. ${showNumber(interval[1])}`] : []),
  ];
  return {
    format: format.name,
    input,
    code,
    hex,
    binary: code.toString(2).padStart(format.bits, "0"),
    fields,
    value,
    error,
    relativeError,
    reason,
    below,
    above,
    interval,
    lines,
  };
}

function beyondRange(format: NumberFormat, input: number, value: number, options: EncodeOptions, rounding: string): string {
  const { limits, defaults } = format;
  if (!Number.isFinite(input) && (options.infinity ?? defaults.infinity) === "keep")
    return `an infinite input: policy "keep"${Number.isFinite(value) ? `, and "${options.nan ?? defaults.nan}" for what is no number` : ""}`;
  const overflow = options.overflow ?? defaults.overflow;
  const range = `beyond the range ${showNumber(limits.min)}..${showNumber(limits.max)}`;
  // Directed rounding reaches the last value before any overflow, and posits have none.
  const last = overflow !== "saturate" && (value === limits.min || value === limits.max);
  return last ? `${range}: the last value (rounding "${rounding}", overflow "${overflow}")` : `${range}: overflow "${overflow}"`;
}

/** What one code stands for. */
export type CodeExplanation = Pick<
  ValueExplanation,
  "format" | "code" | "hex" | "binary" | "fields" | "value" | "below" | "above" | "lines"
>;

/**
 * A code of a scalar format: fields, value, the values beside it.
 * @throws RangeError where the code is not one of the format's
 * @example explainCode(posit8_es2, 0x48).value // 2
 */
export function explainCode(format: NumberFormat, code: number): CodeExplanation {
  const value = format.decode(code);
  const step = (x: number, rounding: "floor" | "ceil"): Neighbour | null => {
    const c = format.encode(x, { rounding, overflow: "saturate", infinity: "overflow" });
    const v = format.decode(c);
    return v === value ? null : { code: c, value: v };
  };
  const { limits } = format;
  const below = value > limits.min ? step(nextDown(Math.min(value, Number.MAX_VALUE)), "floor") : null;
  const above = value < limits.max ? step(nextUp(Math.max(value, -Number.MAX_VALUE)), "ceil") : null;
  const hex = hexCode(code, format.bits);
  const fields = fieldBits(format, code);
  const side = (n: Neighbour | null, word: string) => (n ? [`${word} ${showNumber(n.value)} (${hexCode(n.code, format.bits)})`] : []);
  const lines = [
    `code ${hex} -> ${showNumber(value)}   ${format.name}`,
    `bits      ${fields.map((f) => `${f.name} ${f.bits}${f.meaning === "" ? "" : ` (${f.meaning})`}`).join("  ")}`,
    ...(below || above ? [`between   ${[...side(below, "below"), ...side(above, "above")].join(", ")}`] : []),
  ];
  return { format: format.name, code, hex, binary: code.toString(2).padStart(format.bits, "0"), fields, value, below, above, lines };
}

function intervalOf(format: NumberFormat, value: number, options: EncodeOptions): readonly [number, number] | null {
  const { order } = format;
  if (order === null || !Number.isFinite(value)) return null;
  const i = order.values.indexOf(value + 0);
  if (i < 0) return null;
  // Beyond the ends: as far as the overflow policy still gives this value.
  const end = (sign: 1 | -1): number => {
    const stays = (x: number) => {
      const c = format.encode(sign * x, { ...options, overflow: options.overflow === "error" ? "saturate" : options.overflow });
      return format.decode(c) === value;
    };
    if (stays(Number.MAX_VALUE)) return sign * Infinity;
    // The last double that stays, by bisection on what no longer does.
    return sign * nextDown(bisect((x) => !stays(x), Math.max(sign * value, 0), Number.MAX_VALUE));
  };
  return [i === 0 ? end(-1) : order.boundaries[i - 1], i === order.values.length - 1 ? end(1) : order.boundaries[i]];
}

/** What a format is, in one plain object. */
export interface BitCard {
  readonly name: string;
  readonly kind: Format["kind"];
  readonly aliases: readonly string[];
  readonly spec: string;
  /** Bits of one code; of block formats of one element, of opaque formats per value. */
  readonly bits: number;
  /** Field layout, one letter a bit: "s eeee mmm". Empty where a format has no code of its own. */
  readonly layout: string;
  readonly lines: readonly string[];
  /** Every code and value where there are 64 or fewer. */
  readonly values: readonly Neighbour[] | null;
}

const LETTER: Record<Field["name"], string> = {
  sign: "s",
  exponent: "e",
  mantissa: "m",
  direction: "d",
  regime: "r",
  characteristic: "c",
  dot: "d",
  integer: "i",
  index: "i",
  padding: "-",
};

/** The bit card of any format. @example bitCard(nf4).lines.join("\n") */
export function bitCard(format: Format): BitCard {
  const { name, kind, aliases, spec } = format;
  const common = { name, kind, aliases, spec };
  if (format.kind === "opaque") {
    const bits = (8 * format.blockBytes) / format.blockSize;
    const lines = [`block     ${format.blockSize} values in ${format.blockBytes} bytes, ${bits} bits per value`, `spec      ${spec}`];
    return { ...common, bits, layout: "", lines, values: null };
  }
  if (format.kind === "block") {
    const level = (l: { format: NumberFormat; span: unknown }) =>
      `${l.format.name} per ${typeof l.span === "number" ? `${l.span} elements` : Array.isArray(l.span) ? `${l.span[0]} x ${l.span[1]} tile` : String(l.span)}`;
    const lines = [
      `element   ${format.element.name}`,
      `scales    ${format.scales.map(level).join(", then ")}`,
      ...(format.offset ? [`offset    ${format.offset.role}: ${format.offset.levels.map(level).join(", then ")}`] : []),
      `rules     scale ${format.scaleRule}, range ${format.rangeRule}, last block ${format.tail === "short" ? "may be short" : "must be whole"}`,
      `storage   ${format.bitsPerValue(4096, 4096)} bits per value of a 4096 x 4096 matrix`,
      `spec      ${spec}`,
    ];
    return { ...common, bits: format.element.bits, layout: "", lines, values: null };
  }
  const { limits, defaults, bits } = format;
  const layout = format.fields.map((f) => LETTER[f.name].repeat(f.bits)).join(" ");
  const yes = (what: boolean, text: string) => (what ? [text] : []);
  const specials = [
    ...yes(limits.hasNegativeZero, "-0"),
    ...yes(limits.hasInf, "infinities"),
    ...yes(limits.hasNaN, "NaN"),
    ...yes(!limits.hasZero, "no zero"),
  ];
  const lines = [
    `layout    ${layout}   (${bits} bit${bits === 1 ? "" : "s"})`,
    `range     ${showNumber(limits.min)} .. ${showNumber(limits.max)}${Number.isNaN(limits.minPositive) ? "" : `, smallest positive ${showNumber(limits.minPositive)}`}${limits.minNormal === limits.minPositive || Number.isNaN(limits.minNormal) ? "" : `, smallest normal ${showNumber(limits.minNormal)}`}`,
    `values    ${limits.finiteValues} finite${specials.length ? `; ${specials.join(", ")}` : ""}`,
    `defaults  rounding ${defaults.rounding}, overflow ${defaults.overflow}, NaN ${defaults.nan}`,
    `spec      ${spec}`,
    ...yes(aliases.length > 0, `aliases   ${aliases.join(", ")}`),
  ];
  const values = bits <= 6 ? Array.from({ length: 2 ** bits }, (_, code) => ({ code, value: format.decode(code) })) : null;
  return { ...common, bits, layout, lines, values };
}
