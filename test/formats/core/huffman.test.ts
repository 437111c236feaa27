// Code lengths and canonical codes: optimal against the sum of all inner nodes, prefix-free, never longer than a read.
import { expect, test } from "vitest";
import { LONGEST, canonical, huffmanLengths } from "../../../formats/core/huffman.ts";
import { random } from "../../helpers/random.ts";

const counts = (...values: number[]): Float64Array => Float64Array.from({ length: 256 }, (_, s) => values[s] ?? 0);

/** The cost of an optimal code: what merging the two least, again and again, adds up to. */
function optimal(all: Float64Array): number {
  const weights = [...all].filter((w) => w > 0);
  let cost = 0;
  while (weights.length > 1) {
    weights.sort((a, b) => b - a);
    const sum = weights.pop()! + weights.pop()!;
    cost += sum;
    weights.push(sum);
  }
  return cost;
}
const costOf = (all: Float64Array, lengths: Uint8Array): number => all.reduce((sum, w, s) => sum + w * lengths[s], 0);
const kraft = (lengths: Uint8Array): number => [...lengths].filter((l) => l > 0).reduce((sum, l) => sum + 2 ** -l, 0);

test("few symbols", () => {
  expect([...huffmanLengths(counts())].every((l) => l === 0)).toBe(true);
  expect([...huffmanLengths(counts(0, 9))].every((l) => l === 0)).toBe(true);
  expect([...huffmanLengths(counts(3, 0, 5)).subarray(0, 3)]).toEqual([1, 0, 1]);
  expect([...huffmanLengths(counts(1, 1, 2)).subarray(0, 3)]).toEqual([2, 2, 1]);
});

test("lengths are those of an optimal code, and leave no code unused", () => {
  const rng = random(5);
  for (let round = 0; round < 60; round++) {
    const all = counts(...Array.from({ length: 2 + rng.integer(200) }, () => Math.floor(2 ** (12 * rng.next())) - 1));
    if (all.filter((w) => w > 0).length < 2) continue;
    const lengths = huffmanLengths(all);
    expect(costOf(all, lengths)).toBe(optimal(all));
    expect(kraft(lengths)).toBe(1);
    expect([...lengths.keys()].filter((s) => lengths[s] > 0 !== all[s] > 0)).toEqual([]);
  }
});

test("counts as Fibonacci's numbers, whose codes would be too long, stay within a read", () => {
  const fibonacci = [1, 1];
  while (fibonacci.length < 60) fibonacci.push(fibonacci.at(-1)! + fibonacci.at(-2)!);
  const lengths = huffmanLengths(counts(...fibonacci));
  expect(Math.max(...lengths)).toBeLessThanOrEqual(LONGEST);
  expect(kraft(lengths)).toBe(1);
  // what is given up is little: rare symbols alone have longer codes
  expect(costOf(counts(...fibonacci), lengths)).toBeLessThan(1.0001 * optimal(counts(...fibonacci)));
  // the longest code of 25 of them just fits: no length is given up
  const fits = counts(...fibonacci.slice(0, LONGEST + 1));
  expect(costOf(fits, huffmanLengths(fits))).toBe(optimal(fits));
});

test("canonical codes are prefix-free, ascending by length and then by symbol", () => {
  const all = counts(...Array.from({ length: 40 }, (_, s) => 1 + ((s * 37) % 17) ** 3));
  const lengths = huffmanLengths(all);
  const { symbols, codes } = canonical(
    lengths,
    [...lengths.keys()].filter((s) => lengths[s] > 0),
  );
  const texts = symbols.map((s) => codes[s].toString(2).padStart(lengths[s], "0"));
  expect(texts.every((text, i) => text.length === lengths[symbols[i]])).toBe(true);
  expect([...texts].sort()).toEqual(texts);
  for (let i = 1; i < texts.length; i++) {
    expect(texts[i].startsWith(texts[i - 1])).toBe(false);
    const [a, b] = [symbols[i - 1], symbols[i]];
    expect(lengths[a] < lengths[b] || (lengths[a] === lengths[b] && a < b)).toBe(true);
  }
  expect(codes[symbols[0]]).toBe(0);
});
