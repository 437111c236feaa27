// Damaged files: seeded mutations of a sound one. A reader must answer each with a value or a typed error, quickly and
// in bounded memory.
import { isLowbitError } from "../../formats/core/errors.ts";
import { random } from "./random.ts";

/**
 * One damaged copy: flipped bits, extreme bytes and words, cut or repeated stretches, swapped ones; most damage falls
 * on the first `header` bytes.
 */
export function mutate(bytes: Uint8Array, seed: number, header: number): Uint8Array {
  const rng = random(seed);
  let out = bytes.slice();
  for (let n = 1 + rng.integer(3); n > 0; n--) {
    const at = rng.integer(Math.max(1, Math.min(out.length, rng.next() < 0.85 ? header : out.length)));
    const kind = rng.integer(8);
    if (kind === 0) out[at] ^= 1 << rng.integer(8);
    else if (kind === 1) out[at] = [0, 1, 127, 128, 255][rng.integer(5)];
    else if (kind === 2) out.fill(255, at, at + 1 + rng.integer(8));
    else if (kind === 3) out.fill(0, at, at + 1 + rng.integer(8));
    else if (kind === 4) out = out.slice(0, at);
    else if (kind === 5) out.copyWithin(at, rng.integer(out.length), rng.integer(out.length));
    else if (kind === 6) out = Uint8Array.from([...out.subarray(0, at), ...out.subarray(at, at + 16), ...out.subarray(at)]);
    else for (let b = 0; b < 4; b++) out[at + b] = rng.integer(256);
  }
  return out;
}

/** How many mutations: 2,000, or LOWBIT_MUTATIONS. */
export const mutations = (): number => Number(process.env.LOWBIT_MUTATIONS ?? 2000);

/**
 * Reads every mutation of a file; returns what went wrong: errors that are no LowbitError, RangeError of arguments, or
 * reads above a second.
 */
export async function survive(
  sound: Uint8Array,
  header: number,
  read: (bytes: Uint8Array) => Promise<unknown>,
): Promise<{ faults: string[]; refused: number; slowest: number; grown: number }> {
  const faults: string[] = [];
  let [refused, slowest] = [0, 0];
  const before = process.memoryUsage().arrayBuffers;
  let grown = 0;
  for (let seed = 0; seed < mutations(); seed++) {
    const bytes = mutate(sound, seed, header);
    const started = process.cpuUsage();
    try {
      await read(bytes);
    } catch (error) {
      refused++;
      if (!isLowbitError(error)) faults.push(`seed ${seed}: ${String((error as Error).stack).slice(0, 300)}`);
    }
    const spent = process.cpuUsage(started);
    slowest = Math.max(slowest, (spent.user + spent.system) / 1e6);
    if (seed % 100 === 0) grown = Math.max(grown, process.memoryUsage().arrayBuffers - before);
  }
  return { faults, refused, slowest, grown };
}
