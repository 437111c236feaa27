// Interleaved measurement: every round runs each candidate, so that a busy neighbour slows all of them; best and median
// of the rounds, and the best CPU time of this process, which a neighbour that takes the core away does not lengthen:
// ratios between one-thread candidates use it.
import { cpus, loadavg } from "node:os";

export interface Candidate {
  readonly name: string;
  /** One repetition; a promise is awaited. */
  readonly run: () => unknown;
  /** Multiply and add counted as two, per repetition. */
  readonly ops?: number;
  readonly bytes?: number;
  /** Does not repeat in a row: what it reads must come from memory. */
  readonly cold?: boolean;
  readonly threads?: 2;
}

export interface Row {
  readonly name: string;
  readonly bestMs: number;
  readonly medianMs: number;
  /** Best CPU time of the process, all its threads. */
  readonly cpuMs: number;
  readonly gops?: number;
  readonly gbs?: number;
  readonly runs: number;
}

export interface Machine {
  readonly node: string;
  readonly v8: string;
  readonly cpu: string;
  readonly cores: number;
  readonly load: readonly number[];
}

export const machine = (): Machine => ({
  node: process.version,
  v8: process.versions.v8,
  cpu: cpus()[0]?.model ?? "unknown",
  cores: cpus().length,
  load: loadavg().map((v) => Math.round(v * 100) / 100),
});

/**
 * Measures candidates round by round for about `seconds`; slow ones (`limitMs` in the first run) run three times only.
 */
export async function measure(candidates: readonly Candidate[], seconds: number): Promise<Row[]> {
  const times = candidates.map((): number[] => []);
  const cpu = candidates.map(() => Infinity);
  const once = async (i: number): Promise<number> => {
    const used = process.cpuUsage();
    const t = performance.now();
    const result = candidates[i].run();
    if (result instanceof Promise) await result;
    const elapsed = performance.now() - t;
    const { user, system } = process.cpuUsage(used);
    cpu[i] = Math.min(cpu[i], (user + system) / 1000);
    return elapsed;
  };
  for (let i = 0; i < candidates.length; i++) {
    // warm up: compiled by the optimising tier after a millisecond or so of work
    const until = performance.now() + 30;
    do await once(i);
    while (performance.now() < until);
  }
  const begin = performance.now();
  do
    for (let i = 0; i < candidates.length; i++) {
      const slow = times[i].length >= 3 && times[i][0] > 400 * seconds;
      if (slow) continue;
      const first = await once(i);
      // short ones run a few times in a row, so that their own data are in the caches again; the first of them counts
      // for `cold` candidates only
      if (first > 20 || candidates[i].cold === true) times[i].push(first);
      else for (let r = 0; r < 4; r++) times[i].push(await once(i));
    }
  while (performance.now() - begin < 1000 * seconds);
  return candidates.map((candidate, i) => {
    const sorted = times[i].sort((a, b) => a - b);
    const bestMs = sorted[0];
    // CPU time is exact enough from a millisecond on; more threads than one make it longer than the time that passed
    const ms = bestMs > 1 && candidate.threads !== 2 ? Math.min(bestMs, cpu[i]) : bestMs;
    return {
      name: candidate.name,
      bestMs,
      medianMs: sorted[sorted.length >> 1],
      cpuMs: ms,
      ...(candidate.ops === undefined ? {} : { gops: candidate.ops / ms / 1e6 }),
      ...(candidate.bytes === undefined ? {} : { gbs: candidate.bytes / ms / 1e6 }),
      runs: sorted.length,
    };
  });
}
