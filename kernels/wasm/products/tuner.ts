// A small measured choice of the tile, per kind of weight and number of activation rows: at most two dozen candidates,
// a few interleaved runs each, on the product that is asked for. Off by default; the default tile stays unless another
// is clearly faster. All candidates give the same numbers.
import type { GemmSpec } from "../dot/gemmspec.ts";
import { decodes, isCostly } from "./choose.ts";

/** Classes of activation rows that share a choice. */
export const rowClass = (m: number): number => (m <= 4 ? m : m <= 16 ? 16 : 64);

/** Key of a choice: everything in the spec but the tile. */
export const tuneKey = (spec: GemmSpec, m: number): string => JSON.stringify({ ...spec, mr: 0, nv: 0, style: "" }) + rowClass(m);

const TILES: readonly (readonly [number, 2 | 4])[] = [
  [1, 4],
  [1, 2],
  [2, 2],
  [2, 4],
  [3, 2],
  [3, 4],
  [4, 2],
  [4, 4],
  [5, 2],
  [6, 2],
];

/** Tiles to measure, the default first. */
export function tileCandidates(standard: GemmSpec, m: number): GemmSpec[] {
  const styles = standard.style === "madd16" ? (["madd16", "dot"] as const) : [standard.style];
  // more than four rows of one instruction leave no room for decoding
  const panel = (mr: number): boolean =>
    mr > 1 && (standard.style === "dot" && !isCostly(standard) ? mr > 4 && decodes(standard) : standard.panel);
  const all = TILES.filter(([mr]) => mr <= m).flatMap(([mr, nv]) =>
    styles.map((style): GemmSpec => ({ ...standard, mr, nv, style, panel: panel(mr) })),
  );
  return [standard, ...all.filter((s) => s.mr !== standard.mr || s.nv !== standard.nv || s.style !== standard.style)];
}

/** How much faster than the default a candidate must be to replace it. */
const MARGIN = 0.97;

/** A choice, and how many times as fast as the default it ran. */
export interface Fastest<T> {
  readonly chosen: T;
  readonly gain: number;
}

/** A measurement runs a candidate until this has passed: clocks of browsers tick in parts of a millisecond. */
const LEAST_MS = 0.2;
const MOST_REPEATS = 64;

/** Pairs of runs in which a candidate must prove itself, and how many of them it must win: 3 % of equal ones would. */
const PAIRS = 11;
const WON = 9;

/**
 * The fastest of `candidates` by the best of `rounds` interleaved runs; the first unless another takes less than 97 %
 * of its time there, and once more in pairs of runs of these two alone: a neighbour's work on the same machine must not
 * choose.
 */
export function fastestOf<T>(
  candidates: readonly T[],
  run: (candidate: T) => void,
  now: () => number = () => performance.now(),
  rounds = 5,
): Fastest<T> {
  const repeats = candidates.map(() => 1);
  const timed = (i: number): number => {
    const begin = now();
    for (let r = 0; r < repeats[i]; r++) run(candidates[i]);
    return (now() - begin) / repeats[i];
  };
  // two runs to compile and to reach the optimising tier, then rounds that a busy moment hits alike
  candidates.forEach((_, i) => {
    timed(i);
    repeats[i] = Math.max(1, Math.min(MOST_REPEATS, Math.ceil(LEAST_MS / timed(i))));
  });
  const best = candidates.map(() => Infinity);
  for (let round = 0; round < rounds; round++) candidates.forEach((_, i) => (best[i] = Math.min(best[i], timed(i))));
  let chosen = 0;
  for (let i = 1; i < candidates.length; i++) if (best[i] < best[chosen]) chosen = i;
  const standard = { chosen: candidates[0], gain: 1 };
  if (!(best[chosen] < MARGIN * best[0])) return standard;
  const [first, other] = [[] as number[], [] as number[]];
  for (let pair = 0; pair < PAIRS; pair++) {
    first.push(timed(0));
    other.push(timed(chosen));
  }
  const gain = Math.min(...first) / Math.min(...other);
  const won = first.filter((ms, i) => other[i] < ms).length;
  return won >= WON && gain * MARGIN > 1 ? { chosen: candidates[chosen], gain } : standard;
}

/** `fastestOf` without the gain. */
export const fastest = <T>(...given: Parameters<typeof fastestOf<T>>): T => fastestOf(...given).chosen;
