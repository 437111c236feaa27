// A small measured choice of the tile, per kind of weight and number of activation rows: at most two dozen candidates,
// a few interleaved runs each, on the product that is asked for. Off by default; the default tile stays unless another
// is clearly faster. All candidates give the same numbers.
import type { GemmSpec } from "../dot/gemmspec.ts";

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
  [6, 2],
];

/** Tiles to measure, the default first. */
export function tileCandidates(standard: GemmSpec, m: number): GemmSpec[] {
  const styles = standard.style === "madd16" ? (["madd16", "dot"] as const) : [standard.style];
  const all = TILES.filter(([mr]) => mr <= m).flatMap(([mr, nv]) =>
    styles.map((style): GemmSpec => ({ ...standard, mr, nv, style, panel: standard.panel && mr > 1 })),
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

/**
 * The fastest of `candidates` by the best of `rounds` interleaved runs; the first unless another takes less than 97 %
 * of its time.
 */
export function fastestOf<T>(
  candidates: readonly T[],
  run: (candidate: T) => void,
  now: () => number = () => performance.now(),
  rounds = 5,
): Fastest<T> {
  const best = candidates.map(() => Infinity);
  // two runs to compile and to reach the optimising tier, then rounds that a busy moment hits alike
  for (const candidate of candidates) for (let i = 0; i < 2; i++) run(candidate);
  for (let round = 0; round < rounds; round++)
    candidates.forEach((candidate, i) => {
      const begin = now();
      run(candidate);
      best[i] = Math.min(best[i], now() - begin);
    });
  let chosen = 0;
  for (let i = 1; i < candidates.length; i++) if (best[i] < best[chosen]) chosen = i;
  return best[chosen] < MARGIN * best[0]
    ? { chosen: candidates[chosen], gain: best[0] / best[chosen] }
    : { chosen: candidates[0], gain: 1 };
}

/** `fastestOf` without the gain. */
export const fastest = <T>(...given: Parameters<typeof fastestOf<T>>): T => fastestOf(...given).chosen;
