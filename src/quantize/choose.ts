// The choices of a plan from its table of losses and bytes: least sum of one within a budget of the other, least
// maximum, or the cheapest within a bound per layer. Every uniform choice is among those considered, so that none is
// better on what is minimised.
import { LowbitError } from "../../formats/core/errors.ts";

/** Losses (importance included) and bytes of one layer, by choice. */
export interface ChoiceRow {
  readonly name: string;
  readonly loss: readonly number[];
  readonly bytes: readonly number[];
}

export type ChoiceTable = readonly ChoiceRow[];
type Column = "loss" | "bytes";

export const total = (table: ChoiceTable, choice: readonly number[], what: Column): number =>
  choice.reduce((n, c, i) => n + table[i][what][c], 0);

const argmin = (list: readonly number[]) => list.reduce((a, v, i) => (v < list[a] ? i : a), 0);

function checkBudget(least: number, budget: number, cost: Column): void {
  if (least > budget)
    throw new LowbitError(
      "E_CALIBRATION",
      `plan: expected a budget of at least ${least} (${cost}), got ${budget}. Raise it, or add ${cost === "bytes" ? "narrower" : "wider"} candidates.`,
    );
}

/**
 * Least sum of `goal` with the sum of `cost` within the budget: Lagrangian sweep, then exchanges of one and two layers,
 * and every choice in `uniform`.
 * @throws LowbitError E_CALIBRATION for a budget that nothing meets
 */
export function minimise(
  table: ChoiceTable,
  goal: Column,
  cost: Column,
  budget: number,
  uniform: readonly (readonly number[])[],
): number[] {
  // Among equals in cost the better one.
  const least = table.map((row) =>
    row[cost].reduce((a, v, c) => (v < row[cost][a] || (v === row[cost][a] && row[goal][c] < row[goal][a]) ? c : a), 0),
  );
  checkBudget(total(table, least, cost), budget, cost);
  let best = least;
  const consider = (choice: readonly number[]) => {
    if (total(table, choice, cost) <= budget && total(table, choice, goal) < total(table, best, goal)) best = [...choice];
  };
  // Slopes at which a layer's choice changes.
  const slopes = new Set<number>();
  for (const row of table)
    for (let a = 0; a < row[cost].length; a++)
      for (let b = 0; b < row[cost].length; b++) {
        const run = row[cost][b] - row[cost][a];
        if (run > 0 && row[goal][a] > row[goal][b]) slopes.add((row[goal][a] - row[goal][b]) / run);
      }
  for (const slope of slopes)
    for (const lambda of [slope * (1 - 1e-9), slope * (1 + 1e-9)])
      consider(table.map((row) => argmin(row[goal].map((g, c) => g + lambda * row[cost][c]))));
  for (const choice of uniform) consider(choice);
  exchange(table, goal, cost, budget, best);
  return best;
}

/**
 * Changes one or two layers while that lowers the goal within the budget; `choice` in place. Differences, so that large
 * tables stay cheap.
 */
function exchange(table: ChoiceTable, goal: Column, cost: Column, budget: number, choice: number[]): void {
  for (let room = budget - total(table, choice, cost); ;) {
    let [gain, one, to, two, and, used] = [0, -1, 0, -1, 0, 0];
    for (let i = 0; i < table.length; i++)
      for (let c = 0; c < table[i].loss.length; c++) {
        const g = table[i][goal][c] - table[i][goal][choice[i]];
        const n = table[i][cost][c] - table[i][cost][choice[i]];
        if (n <= room && g < gain) [gain, one, to, two, used] = [g, i, c, -1, n];
        for (let j = 0; j < i; j++)
          for (let e = 0; e < table[j].loss.length; e++) {
            const g2 = g + table[j][goal][e] - table[j][goal][choice[j]];
            const n2 = n + table[j][cost][e] - table[j][cost][choice[j]];
            if (n2 <= room && g2 < gain) [gain, one, to, two, and, used] = [g2, i, c, j, e, n2];
          }
      }
    // Sums in another order may differ in the last bits: a gain must be more than that.
    if (one < 0 || -gain <= 1e-12 * Math.abs(total(table, choice, goal))) return;
    const before = [choice[one], two < 0 ? 0 : choice[two]];
    choice[one] = to;
    if (two >= 0) choice[two] = and;
    if (total(table, choice, cost) > budget) {
      choice[one] = before[0];
      if (two >= 0) choice[two] = before[1];
      return;
    }
    room -= used;
  }
}

/** Loss of a choice without the layer's importance. */
const relative = (row: ChoiceRow, c: number, importance: number) => (importance === 0 ? 0 : row.loss[c] / importance);

/** Per layer the fewest bytes with a loss within the bound, and among those the least loss. */
function cheapest(row: ChoiceRow, bound: number, importance: number): number {
  let found = -1;
  for (let c = 0; c < row.loss.length; c++)
    if (relative(row, c, importance) <= bound)
      if (found < 0 || row.bytes[c] < row.bytes[found] || (row.bytes[c] === row.bytes[found] && row.loss[c] < row.loss[found])) found = c;
  return found;
}

/** @throws LowbitError E_CALIBRATION for a layer that no choice keeps within the bound */
export function withinBound(table: ChoiceTable, bound: number, importance: readonly number[]): number[] {
  return table.map((row, i) => {
    const c = cheapest(row, bound, importance[i]);
    if (c >= 0) return c;
    const best = Math.min(...row.loss.map((_, j) => relative(row, j, importance[i])));
    throw new LowbitError(
      "E_CALIBRATION",
      `plan of layer "${row.name}": expected a candidate with loss ${bound} or less, got ${best} at best. Add wider formats.`,
    );
  });
}

/**
 * The least bound that the bytes allow every layer to keep.
 * @throws LowbitError E_CALIBRATION for a budget that nothing meets
 */
export function leastMaximum(table: ChoiceTable, budget: number, importance: readonly number[]): number[] {
  const bounds = [...new Set(table.flatMap((row, i) => row.loss.map((_, c) => relative(row, c, importance[i]))))].sort((a, b) => a - b);
  const at = (bound: number): number[] | null => {
    const choice = table.map((row, i) => cheapest(row, bound, importance[i]));
    return choice.includes(-1) || total(table, choice, "bytes") > budget ? null : choice;
  };
  checkBudget(
    table.reduce((n, row) => n + Math.min(...row.bytes), 0),
    budget,
    "bytes",
  );
  let [lo, hi] = [0, bounds.length - 1];
  while (lo < hi) {
    const mid = (lo + hi) >> 1;
    if (at(bounds[mid]) === null) lo = mid + 1;
    else hi = mid;
  }
  return at(bounds[lo])!;
}
