// Takums of any width. Word: sign S, direction D, regime R (3 bits), characteristic C (r bits), mantissa; a word of n <
// 12 bits is one of 12 whose last bits are 0; negative words are two's complement. r = D ? R : 7 - R, c = D ? 2^r - 1 +
// C : -2^(r+1) + 1 + C, so c lies in -255..254 at every width.
//   linear: (-1)^S * 2^c * (1 + m)        logarithmic: (-1)^S * sqrt(e)^(c + m)
// Spec: Hunhold, "Beating Posits at Their Own Game: Takum Arithmetic" (2024); names as in libtakum. Rounding as in
// tapered.ts. Logarithmic values are irrational: a code's value is the nearest double.
import { LowbitError } from "../core/errors.ts";
import { FLAG, NUMBER, checkFields } from "../core/fields.ts";
import { exactExp } from "../core/exp.ts";
import { exponentOf } from "../core/round.ts";
import type { Field, NumberFormat } from "../core/types.ts";
import { defineTapered } from "./tapered.ts";

/** A takum, logarithmic or linear, of any width. */
export interface TakumOptions {
  /** Default takum<n> or takum_linear<n>. */
  readonly name?: string;
  readonly aliases?: readonly string[];
  /** Width n, 5..32. */
  readonly bits: number;
  /** Values by powers of two with a linear mantissa. Without, they are powers of sqrt(e). */
  readonly linear: boolean;
}

/** c + m of a positive word of `bits` bits, exact. */
function logarithm(word: number, bits: number): number {
  const wide = word * 2 ** Math.max(0, 12 - bits);
  const width = Math.max(bits, 12);
  const regime = Math.floor(wide / 2 ** (width - 5));
  const up = regime >= 8;
  const r = up ? regime - 8 : 7 - regime;
  const rest = (wide % 2 ** (width - 5)) / 2 ** (width - 5 - r); // characteristic bits before the point, mantissa after it
  return (up ? 2 ** r - 1 : 1 - 2 ** (r + 1)) + rest;
}

/** The value of c + m. */
function power(l: number, linear: boolean): number {
  if (!linear) return exactExp(l / 2);
  const c = Math.floor(l);
  return (1 + l - c) * 2 ** c;
}

/**
 * The word of c + m, m in 0..1, with the bits that do not fit cut off; below the range 0, above it the largest word.
 */
function wordOf(c: number, m: number, bits: number): number {
  if (c < -255) return 0;
  if (c > 254) return 2 ** (bits - 1) - 1;
  const up = c >= 0;
  const r = exponentOf(up ? c + 1 : -c);
  const rest = up ? c + 1 - 2 ** r : c + 2 ** (r + 1) - 1;
  const room = bits - 5 - r; // of the mantissa; below 0 the characteristic is cut
  // m is cut before the sum, which then is exact
  const tail = room >= 0 ? rest * 2 ** room + Math.floor(m * 2 ** room) : Math.floor(rest / 2 ** -room);
  return (up ? 8 + r : 7 - r) * 2 ** (bits - 5) + tail;
}

/**
 * A takum format.
 * @throws LowbitError E_FORMAT when bits is not in 5..32 or linear is no boolean
 * @example defineTakum({ bits: 16, linear: true }).encode(1) // 0x4000
 */
export function defineTakum(options: TakumOptions): NumberFormat {
  checkFields("defineTakum", options, { bits: NUMBER, linear: FLAG });
  const { bits, linear } = options;
  if (!Number.isInteger(bits) || bits < 5 || bits > 32)
    throw new LowbitError("E_FORMAT", `defineTakum bits: expected an integer in 5..32, got ${bits}. Choose the width of one code.`);
  if (typeof linear !== "boolean")
    throw new LowbitError("E_FORMAT", `defineTakum linear: expected true or false, got ${String(linear)}. Both kinds are called takum.`);
  const name = options.name ?? `takum${linear ? "_linear" : ""}${bits}`;
  const last = 2 ** (bits - 1) - 1;
  const valueOf = (word: number, n: number): number => power(logarithm(word, n), linear);

  /** The largest word whose value is at most x > 0. */
  const cut = (x: number): number => {
    if (linear) {
      const c = exponentOf(x);
      return wordOf(c, x / 2 ** c - 1, bits);
    }
    // The logarithm of the engine is near enough to be one word off.
    const l = 2 * Math.log(x);
    let word = wordOf(Math.floor(l), l - Math.floor(l), bits);
    while (word > 0 && valueOf(word, bits) > x) word--;
    while (word < last && valueOf(word + 1, bits) <= x) word++;
    return word;
  };

  const heads: Field[] = [
    { name: "sign", bits: 1 },
    { name: "direction", bits: 1 },
    { name: "regime", bits: 3 },
  ];
  return defineTapered({
    kind: "takum",
    name,
    aliases: options.aliases,
    bits,
    spec: `${linear ? "linear" : "logarithmic"} takum (Hunhold 2024)`,
    fields: [...heads, ...(bits > 5 ? [{ name: "characteristic", bits: bits - 5 } as const] : [])],
    fieldsOf(word) {
      const head = Math.floor(word / 2 ** (bits - 5)) % 16;
      const r = Math.min(head >= 8 ? head - 8 : 7 - head, bits - 5);
      const tail: Field[] = [
        { name: "characteristic", bits: r },
        { name: "mantissa", bits: bits - 5 - r },
      ];
      return [...heads, ...tail.filter((f) => f.bits > 0)];
    },
    definition: { kind: "takum", name, bits, linear },
    // Most precise around one, as posits.
    scaleTo: power(1, linear),
    valueOf,
    cut,
  });
}

/** takum<n> (logarithmic) and takum_linear<n>, for the registry. */
export function takumByName(name: string): NumberFormat | undefined {
  const m = /^takum(_linear)?([1-9][0-9]?)$/.exec(name);
  if (!m || Number(m[2]) < 5 || Number(m[2]) > 32) return undefined;
  return defineTakum({ bits: Number(m[2]), linear: m[1] !== undefined });
}
