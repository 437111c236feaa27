// Posits of any width and exponent size. Word: sign, regime (a run of equal bits and its end), es exponent bits,
// fraction; negative words are two's complement. Value = (-1)^s * 2^(2^es * k + e) * (1 + f); 0 = 00..0, NaR = 10..0.
// Spec: Posit Standard 2022 (es = 2 at every n); es = 0, 1, 3, 4 as in the 2018 draft. Rounding as in tapered.ts.
import { LowbitError } from "../core/errors.ts";
import { NUMBER, checkFields } from "../core/fields.ts";
import { exponentOf } from "../core/round.ts";
import type { Field, NumberFormat } from "../core/types.ts";
import { defineTapered } from "./tapered.ts";

/** A posit of any width and exponent size. */
export interface PositOptions {
  /** Default posit<n>_es<es>. */
  readonly name?: string;
  readonly aliases?: readonly string[];
  /** Width n, 2..32. */
  readonly bits: number;
  /** Exponent bits, 0..4; 2 in the 2022 standard. No default: files of both vintages exist. */
  readonly es: number;
  readonly spec?: string;
}

/** The widths of regime, exponent and fraction of a positive word without its sign bit (n-1 bits). */
function split(word: number, bits: number, es: number): { run: number; k: number; exponent: number; fraction: number } {
  const width = bits - 1;
  const bit = (i: number) => Math.floor(word / 2 ** i) % 2;
  const first = bit(width - 1);
  let run = 1;
  while (run < width && bit(width - 1 - run) === first) run++;
  const rest = Math.max(0, width - run - 1); // the bit that ends the run is not there when the run fills the word
  return { run, k: first === 1 ? run - 1 : -run, exponent: Math.min(es, rest), fraction: Math.max(0, rest - es) };
}

/** The exact value of a positive word of n bits; also of n = 33, which boundaries of 32-bit posits need. */
function positiveValue(word: number, bits: number, es: number): number {
  const { k, exponent, fraction } = split(word, bits, es);
  const f = word % 2 ** fraction;
  const e = (Math.floor(word / 2 ** fraction) % 2 ** exponent) * 2 ** (es - exponent); // exponent bits that are cut off are 0
  return (1 + f / 2 ** fraction) * 2 ** (2 ** es * k + e);
}

/**
 * A posit format.
 * @throws LowbitError E_FORMAT when bits is not in 2..32 or es not in 0..4
 * @example definePosit({ bits: 6, es: 1 }).limits.max // 256
 */
export function definePosit(options: PositOptions): NumberFormat {
  checkFields("definePosit", options, { bits: NUMBER, es: NUMBER });
  const { bits, es } = options;
  if (!Number.isInteger(bits) || bits < 2 || bits > 32)
    throw new LowbitError("E_FORMAT", `definePosit bits: expected an integer in 2..32, got ${bits}. Choose the width of one code.`);
  if (!Number.isInteger(es) || es < 0 || es > 4)
    throw new LowbitError("E_FORMAT", `definePosit es: expected an integer in 0..4, got ${es}. The 2022 standard has es = 2.`);
  const name = options.name ?? `posit${bits}_es${es}`;
  const nar = 2 ** (bits - 1);
  /** The largest word whose value is at most x: cut the bit string of x > 0. */
  const cut = (x: number): number => {
    const scale = exponentOf(x);
    const k = Math.floor(scale / 2 ** es);
    if (k >= bits - 2) return nar - 1;
    if (k < -(bits - 2)) return 0;
    const e = scale - k * 2 ** es;
    const f = x / 2 ** scale - 1; // 52 bits, exact
    const rest = bits - 1 - (k >= 0 ? k + 2 : 1 - k);
    const regime = k >= 0 ? 2 ** (k + 2) - 2 : 1;
    return regime * 2 ** rest + Math.floor(e * 2 ** (rest - es)) + (rest > es ? Math.floor(f * 2 ** (rest - es)) : 0);
  };

  return defineTapered({
    kind: "posit",
    name,
    aliases: [`posit<${bits},${es}>`, `posit(${bits},${es})`, ...(options.aliases ?? [])],
    bits,
    spec: options.spec ?? (es === 2 ? "Posit Standard 2022" : "posit with es exponent bits, 2018 draft of the posit standard"),
    fields: [
      { name: "sign", bits: 1 },
      { name: "regime", bits: bits - 1 },
    ],
    fieldsOf(word) {
      if (word === 0 || word === nar) return [{ name: "sign", bits: 1 } as const, { name: "regime", bits: bits - 1 } as const];
      const { run, exponent, fraction } = split(word, bits, es);
      const all: Field[] = [
        { name: "sign", bits: 1 },
        { name: "regime", bits: Math.min(run + 1, bits - 1) },
        { name: "exponent", bits: exponent },
        { name: "mantissa", bits: fraction },
      ];
      return all.filter((f) => f.bits > 0);
    },
    definition: { kind: "posit", name, bits, es },
    // useed: the end of the range in which the fraction is longest.
    scaleTo: Math.min(2 ** (2 ** es), 2 ** (2 ** es * (bits - 2))),
    valueOf: (word, n) => positiveValue(word, n, es),
    cut,
  });
}

/** posit<n>_es<es>, for the registry. */
export function positByName(name: string): NumberFormat | undefined {
  const m = /^posit([1-9][0-9]?)_es([0-4])$/.exec(name) ?? /^posit[<(]([1-9][0-9]?), ?([0-4])[>)]$/.exec(name);
  if (!m || Number(m[1]) < 2 || Number(m[1]) > 32) return undefined;
  return definePosit({ bits: Number(m[1]), es: Number(m[2]) });
}

/**
 * Bits of the quire that holds any sum of up to 2^31 - 1 products of two posits exactly: 1 sign, 31 carry guard, and 2
 * * 2^es * (n - 2) bits on either side of the point. 16 n for es = 2, the quire of the 2022 standard.
 * @example quireBits(posit8_es2) // 128
 */
export function quireBits(format: NumberFormat): number {
  const { max } = format.limits;
  return 32 + 4 * exponentOf(max);
}
