// Posits from the words of the standard, as bit strings: decoding reads regime, exponent and fraction bit by bit;
// rounding writes the infinite bit string of an exact rational, cuts it after n bits and rounds half to even on the
// string. An oracle: imports nothing of the library.
import { floorLog2, type Rational } from "./rational.ts";

/** The exact value of an n-bit word; null for NaR. */
export function decodePosit(word: number, n: number, es: number): Rational | null {
  let bits = word.toString(2).padStart(n, "0");
  if (!bits.includes("1")) return { n: 0n, d: 1n };
  if (bits.indexOf("1") === 0 && !bits.slice(1).includes("1")) return null;
  const negative = bits[0] === "1";
  if (negative) bits = (2n ** BigInt(n) - BigInt(word)).toString(2).padStart(n, "0");
  const body = bits.slice(1);
  let run = 0;
  while (run < body.length && body[run] === body[0]) run++;
  const k = body[0] === "1" ? run - 1 : -run;
  const rest = body.slice(run + 1);
  const exponent = parseInt(rest.slice(0, es).padEnd(es, "0") || "0", 2);
  const fraction = rest.slice(es);
  const scale = k * 2 ** es + exponent;
  const significand = BigInt(`0b1${fraction}`) * (negative ? -1n : 1n);
  const shift = scale - fraction.length;
  return shift >= 0 ? { n: significand << BigInt(shift), d: 1n } : { n: significand, d: 1n << BigInt(-shift) };
}

/** The word of an exact rational; `null` gives NaR. */
export function roundPosit(r: Rational | null, n: number, es: number): number {
  const all = 2 ** n;
  if (r === null) return all / 2;
  if (r.n === 0n) return 0;
  const negative = r.n < 0n;
  const x: Rational = { n: negative ? -r.n : r.n, d: r.d };
  const scale = floorLog2(x);
  const k = Math.floor(scale / 2 ** es);
  let string = k >= 0 ? `${"1".repeat(k + 1)}0` : `${"0".repeat(-k)}1`;
  if (es > 0) string += (scale - k * 2 ** es).toString(2).padStart(es, "0");
  // fraction bits: x / 2^scale - 1, n + 2 of them and whether anything is left
  let num = scale >= 0 ? x.n - (x.d << BigInt(scale)) : (x.n << BigInt(-scale)) - x.d;
  const den = scale >= 0 ? x.d << BigInt(scale) : x.d;
  for (let i = 0; i < n + 2; i++) {
    num *= 2n;
    if (num >= den) {
      string += "1";
      num -= den;
    } else string += "0";
  }
  const kept = string.slice(0, n - 1);
  const guard = string[n - 1];
  const below = string.slice(n).includes("1") || num !== 0n;
  let word = parseInt(kept, 2);
  if (guard === "1" && (below || word % 2 === 1)) word++;
  if (word === 0) word = 1; // never to zero
  if (word >= all / 2) word = all / 2 - 1; // never to NaR
  return negative ? all - word : word;
}
