// Codes as bit planes: plane i holds bit i of every code, 32 codes to a word, the first code in the lowest bit (FlexQ
// and ABQ-LLM: in the highest, order "msb"). A dot product of codes is a sum of popcounts over pairs of planes;
// `dotBitPlanes` is the definition that bit-serial kernels are checked against.
import { codeArray, type Codes } from "./pack.ts";

/** Codes as one plane of bits for each of their digits, 32 codes a word. */
export interface BitPlanes {
  readonly bits: number;
  readonly count: number;
  readonly order: "lsb" | "msb";
  /** bits arrays of ceil(count / 32) words, least significant plane first; padding bits are zero. */
  readonly planes: readonly Uint32Array[];
}

/** What the bits of a code stand for: 0 and 1, two's complement (the top plane counts negative), or -1 and +1. */
export type BitAlphabet = "unsigned" | "twos" | "bipolar";

function checkBits(bits: number): void {
  if (!Number.isInteger(bits) || bits < 1 || bits > 32) throw new RangeError(`bits: expected an integer in 1..32, got ${bits}.`);
}

/**
 * Codes as planes of their bits: bit i of all codes in one plane, 32 codes to a word, the first the least significant.
 * @throws RangeError for a code that does not fit into bits
 * @example toBitPlanes([1, 2, 3], 2).planes // [Uint32Array [0b101], Uint32Array [0b110]]
 */
export function toBitPlanes(codes: ArrayLike<number>, bits: number, order: "lsb" | "msb" = "lsb"): BitPlanes {
  checkBits(bits);
  const count = codes.length;
  const planes = Array.from({ length: bits }, () => new Uint32Array(Math.ceil(count / 32)));
  for (let k = 0; k < count; k++) {
    const c = codes[k];
    if (!(Number.isInteger(c) && c >= 0 && c < 2 ** bits))
      throw new RangeError(`codes[${k}]: expected an integer in 0..${2 ** bits - 1}, got ${c}. Mask or re-encode the codes.`);
    const at = order === "lsb" ? k & 31 : 31 - (k & 31);
    for (let i = 0; i < bits; i++) planes[i][k >>> 5] |= ((c >>> i) & 1) << at;
  }
  return { bits, count, order, planes };
}

/**
 * Codes from their bit planes: undoes `toBitPlanes`.
 * @example fromBitPlanes(toBitPlanes([1, 2, 3], 2)) // [1, 2, 3]
 */
export function fromBitPlanes({ bits, count, order, planes }: BitPlanes): Codes {
  checkBits(bits);
  const out = codeArray(bits, count);
  for (let k = 0; k < count; k++) {
    const at = order === "lsb" ? k & 31 : 31 - (k & 31);
    let c = 0;
    for (let i = 0; i < bits; i++) c |= ((planes[i][k >>> 5] >>> at) & 1) << i;
    out[k] = c >>> 0;
  }
  return out;
}

function popcount(x: number): number {
  x -= (x >>> 1) & 0x55555555;
  x = (x & 0x33333333) + ((x >>> 2) & 0x33333333);
  return Math.imul((x + (x >>> 4)) & 0x0f0f0f0f, 0x01010101) >>> 24;
}

/**
 * The dot product of the values that two sets of planes stand for; exact while it stays below 2^53. Between two planes
 * it is popcount(a AND b) for bits 0 and 1, count - 2 popcount(a XOR b) for bits -1 and +1, and 2 popcount(a AND b) -
 * popcount(a) for 0/1 with -1/+1.
 * @throws RangeError when counts or orders differ
 * @example
 * const a = toBitPlanes([1, 2, 3], 2);
 * const b = toBitPlanes([0, 1, 1], 1); // -1, 1, 1 as bipolar bits
 * dotBitPlanes(a, b, "unsigned", "bipolar") // 4: -1 + 2 + 3
 */
export function dotBitPlanes(a: BitPlanes, b: BitPlanes, alphabetA: BitAlphabet, alphabetB: BitAlphabet): number {
  if (a.count !== b.count || a.order !== b.order)
    throw new RangeError(`dotBitPlanes: expected planes of one count and order, got ${a.count} ${a.order} and ${b.count} ${b.order}.`);
  const weight = (p: BitPlanes, i: number, alphabet: BitAlphabet) => (alphabet === "twos" && i === p.bits - 1 ? -(2 ** i) : 2 ** i);
  const [signsA, signsB] = [alphabetA === "bipolar", alphabetB === "bipolar"];
  let sum = 0;
  for (let i = 0; i < a.bits; i++)
    for (let j = 0; j < b.bits; j++) {
      const [x, y] = [a.planes[i], b.planes[j]];
      let both = 0;
      let differ = 0;
      let onlyA = 0;
      let onlyB = 0;
      for (let w = 0; w < x.length; w++) {
        both += popcount(x[w] & y[w]);
        differ += popcount(x[w] ^ y[w]);
        onlyA += popcount(x[w]);
        onlyB += popcount(y[w]);
      }
      const d = signsA && signsB ? a.count - 2 * differ : signsB ? 2 * both - onlyA : signsA ? 2 * both - onlyB : both;
      sum += weight(a, i, alphabetA) * weight(b, j, alphabetB) * d;
    }
  return sum;
}
