// Codebooks: any table of up to 65536 values by code, in any order. Between two neighbouring values the decision
// threshold is their midpoint (which minimises the squared error) or the definer's. A value on a threshold takes the
// lower neighbour (strict >) unless the defaults say otherwise. Spec of the named ones: bitsandbytes (nf4, fp4, af4),
// ggml (iq4_nl).
import { makeCodec } from "../core/codec.ts";
import { LowbitError } from "../core/errors.ts";
import { LIST, NUMBER, POLICIES, checkFields } from "../core/fields.ts";
import { nextDown } from "../core/round.ts";
import { tableEncoder } from "../core/table.ts";
import type { EncodeDefaults, NumberFormat } from "../core/types.ts";

/** A format given by its values, and by its decision thresholds where those are not the midpoints. */
export interface CodebookOptions {
  readonly name: string;
  readonly aliases?: readonly string[];
  /**
   * Value by code; at least 2 distinct values. "-0" (JSON has no other way to say it) or -0 makes a code of negative
   * zero. Duplicates are allowed: encoding produces the lower code. Codes beyond the list decode to NaN and are never
   * produced.
   */
  readonly values: readonly (number | "-0")[];
  /** Default: as many as the values need. */
  readonly bits?: number;
  /** Between each two neighbours of the sorted distinct values, strictly inside; default the midpoints. */
  readonly thresholds?: readonly number[];
  readonly spec?: string;
  readonly defaults?: Partial<EncodeDefaults>;
}

const DEFAULTS: EncodeDefaults = { rounding: "halfFloor", overflow: "saturate", infinity: "overflow", nan: "error" };

/** (a + b) / 2, rounded down where no double holds it: then nothing above the true midpoint compares as a tie. */
export function midpoint(a: number, b: number): number {
  const [x, y] = [a / 2, b / 2];
  const m = x + y;
  const t = m - x;
  const error = x - (m - t) + (y - t); // exact: Knuth's two-sum
  return error < 0 ? nextDown(m) : m;
}

/**
 * A codebook format.
 * @throws LowbitError E_FORMAT: fewer than 2 distinct values, values that are not finite or do not fit bits, thresholds
 * out of order
 * @example defineCodebook({ name: "nonuniform2", values: [-1, -0.25, 0.25, 1] }).encode(0.7) // 3
 */
export function defineCodebook(options: CodebookOptions): NumberFormat {
  checkFields("defineCodebook", options, { values: LIST, bits: NUMBER, thresholds: LIST, defaults: POLICIES });
  const { name } = options;
  const bad = (what: string, expected: string, got: unknown, remedy: string) =>
    new LowbitError("E_FORMAT", `${name} ${what}: expected ${expected}, got ${got}. ${remedy}`);
  if (!Array.isArray(options.values)) throw bad("values", "an array of numbers", typeof options.values, "List the value of each code.");
  const values = (options.values as readonly (number | "-0")[]).map((v, code) => {
    const x = v === "-0" ? -0 : v;
    if (typeof x !== "number" || !Number.isFinite(x))
      throw bad(`values[${code}]`, "a finite number", String(v), "Every code of a codebook has a value.");
    return x;
  });
  const sorted = [...new Set(values.map((v) => v + 0))].sort((a, b) => a - b);
  if (sorted.length < 2) throw bad("values", "at least 2 distinct values", sorted.length, "Use a scale instead.");
  const bits = options.bits ?? Math.max(1, Math.ceil(Math.log2(values.length)));
  if (!Number.isInteger(bits) || bits < 1 || bits > 16) throw bad("bits", "an integer in 1..16", bits, "Choose the width of one code.");
  if (values.length > 2 ** bits) throw bad("values", `at most ${2 ** bits} for ${bits} bits`, values.length, "Raise bits.");
  const thresholds = options.thresholds ?? sorted.slice(1).map((v, i) => midpoint(sorted[i], v));
  if (thresholds.length !== sorted.length - 1)
    throw bad(
      "thresholds",
      `${sorted.length - 1}, one between each two distinct values`,
      thresholds.length,
      "Leave them out for midpoints.",
    );
  for (const [i, t] of thresholds.entries()) {
    if (!(t >= sorted[i] && t < sorted[i + 1]) || (options.thresholds && t === sorted[i]))
      throw bad(`thresholds[${i}]`, `a number between ${sorted[i]} and ${sorted[i + 1]}`, t, "Sort them as the values.");
  }
  const above = new Map(sorted.slice(1).map((v, i) => [v, thresholds[i]]));
  const negativeZero = values.findIndex((v) => Object.is(v, -0));
  return makeCodec({
    kind: "codebook",
    name,
    aliases: options.aliases,
    bits,
    spec: options.spec ?? "a table of values",
    fields: [{ name: "index", bits }],
    defaults: { ...DEFAULTS, ...options.defaults },
    definition: {
      kind: "codebook",
      name,
      bits,
      values: values.map((v) => (Object.is(v, -0) ? "-0" : v)),
      ...(options.thresholds ? { thresholds: [...options.thresholds] } : {}),
      ...(options.defaults ? { defaults: options.defaults } : {}),
    },
    decode: (code) => (code < values.length ? values[code] : NaN),
    encodeBy: tableEncoder,
    source: {
      boundary: (_lower, upper) => above.get(upper)!,
      beyond: null,
      ...(negativeZero >= 0 && values.some((v) => Object.is(v, 0)) ? { negativeZeroCode: negativeZero } : {}),
    },
  });
}
