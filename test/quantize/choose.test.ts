// The choices of plans against all choices there are, on small tables whose sums are exact (eighths) or are not
// (tenths: .1 + .2 is above .3): within the budget, no change of one or two layers is better, no uniform choice is.
import { describe, expect, test } from "vitest";
import { leastMaximum, minimise, total, withinBound, type ChoiceRow } from "../../src/quantize/choose.ts";
import { random } from "../helpers/random.ts";

type Column = "loss" | "bytes";
const rng = random(5);

function draw(unit: number): ChoiceRow[] {
  const choices = 1 + rng.integer(4);
  return Array.from({ length: 1 + rng.integer(4) }, (_, i) => ({
    name: `l${i}`,
    loss: Array.from({ length: choices }, () => rng.integer(12) * unit),
    bytes: Array.from({ length: choices }, () => 1 + rng.integer(12)),
  }));
}

/** Every choice of a table. */
function all(table: readonly ChoiceRow[]): number[][] {
  let list: number[][] = [[]];
  for (const row of table) list = list.flatMap((before) => row.loss.map((_, c) => [...before, c]));
  return list;
}
const differ = (a: readonly number[], b: readonly number[]) => a.filter((c, i) => c !== b[i]).length;

describe.each([0.125, 0.1])("losses in units of %d", (unit) => {
  test.each([
    ["loss", "bytes"],
    ["bytes", "loss"],
  ] as [Column, Column][])("least %s within a budget of %s", (goal, cost) => {
    const refused = expect.objectContaining({ code: "E_CALIBRATION", message: expect.stringContaining(`(${cost})`) as string });
    let [tight, optimal, runs] = [0, 0, 0];
    for (let n = 0; n < 400; n++) {
      const table = draw(unit);
      const everything = all(table);
      const costs = everything.map((choice) => total(table, choice, cost));
      // a sum that there is, so that it is met exactly or missed by a rounding
      const budget = rng.integer(8) === 0 ? Math.min(...costs) - 0.05 : costs[rng.integer(costs.length)] + (rng.integer(3) - 1) * 1e-9;
      const uniform = table[0].loss.map((_, c) => table.map(() => c));
      if (budget < Math.min(...costs)) {
        expect(() => minimise(table, goal, cost, budget, uniform)).toThrow(refused);
        continue;
      }
      const got = minimise(table, goal, cost, budget, uniform);
      runs++;
      const least = total(table, got, goal);
      expect(total(table, got, cost)).toBeLessThanOrEqual(budget);
      if (total(table, got, cost) === budget) tight++;
      let best = Infinity;
      everything.forEach((choice, i) => {
        // of sums that are rounded, those that meet the budget to the last bit may be passed over
        if (costs[i] > budget - (unit === 0.1 && cost === "loss" ? 1e-10 : 0)) return;
        const there = total(table, choice, goal);
        best = Math.min(best, there);
        if (differ(choice, got) <= 2 || new Set(choice).size === 1) expect(there).toBeGreaterThanOrEqual(least - 1e-9);
      });
      if (least - best < 1e-9) optimal++;
    }
    expect(tight).toBeGreaterThan(10);
    expect(optimal / runs).toBeGreaterThan(0.98);
  });
});

test("where nothing costs more than the least, the better of equal cost is taken", () => {
  const table = [{ name: "a", loss: [3, 1, 2], bytes: [4, 4, 5] }];
  expect(minimise(table, "loss", "bytes", 4, [])).toEqual([1]);
  expect(minimise([{ name: "a", loss: [1, 1], bytes: [5, 4] }], "bytes", "loss", 1, [])).toEqual([1]);
});

test("within a bound: per layer the fewest bytes, among those the least loss; layers that do not count are free", () => {
  for (let n = 0; n < 200; n++) {
    const table = draw(0.125);
    const importance = table.map(() => rng.integer(3));
    const relative = (i: number, c: number) => (importance[i] === 0 ? 0 : table[i].loss[c] / importance[i]);
    const bound = rng.integer(10) * 0.125;
    const want = table.map(({ loss, bytes }, i) => {
      const fitting = loss.map((_, c) => c).filter((c) => relative(i, c) <= bound);
      return fitting.sort((a, b) => bytes[a] - bytes[b] || loss[a] - loss[b] || a - b)[0];
    });
    const bad = want.indexOf(undefined as never);
    if (bad < 0) expect(withinBound(table, bound, importance)).toEqual(want);
    else {
      const best = Math.min(...table[bad].loss.map((_, c) => relative(bad, c)));
      expect(() => withinBound(table, bound, importance)).toThrow(
        `plan of layer "l${bad}": expected a candidate with loss ${bound} or less, got ${best} at best`,
      );
    }
  }
});

test("the least bound that the bytes allow every layer to keep", () => {
  let refused = 0;
  for (let n = 0; n < 300; n++) {
    const table = draw(0.125);
    const importance = table.map(() => 1 + rng.integer(2));
    const worst = (choice: readonly number[]) => Math.max(...choice.map((c, i) => table[i].loss[c] / importance[i]));
    const everything = all(table);
    const least = Math.min(...everything.map((choice) => total(table, choice, "bytes")));
    const budget = least + rng.integer(12) - 1;
    if (budget < least) {
      refused++;
      expect(() => leastMaximum(table, budget, importance)).toThrow(`expected a budget of at least ${least} (bytes), got ${budget}`);
      continue;
    }
    const got = leastMaximum(table, budget, importance);
    expect(total(table, got, "bytes")).toBeLessThanOrEqual(budget);
    const within = everything.filter((choice) => total(table, choice, "bytes") <= budget);
    expect(worst(got)).toBe(Math.min(...within.map(worst)));
  }
  expect(refused).toBeGreaterThan(5);
});
