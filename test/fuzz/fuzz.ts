// Fuzzing: inputs made from good ones by changes that know their structure, run with budgets. A finding is an error
// that is no LowbitError, more than a second of processor time, or more than 64 MiB and 40 times the input of
// memory. Inputs are bytes and nothing else: every choice of a run (options, sizes) is drawn from the bytes themselves,
// so that a file of the corpus alone repeats it.
import { isLowbitError } from "../../formats/core/errors.ts";
import type { Random } from "../helpers/random.ts";
import { random } from "../helpers/random.ts";

/** What is attacked: a reader of files, or of names. */
export interface FuzzTarget {
  readonly name: string;
  /** Runs in the tests, where they take longer than those of others; `npm run fuzz` has more. */
  readonly runs?: number;
  /** An input, mostly a damaged one. */
  make(rng: Random): Uint8Array;
  /** Throws LowbitErrors for bad inputs. For models: the bytes before and after, which a runtime may judge. */
  run(input: Uint8Array): Promise<FuzzResult | undefined>;
}

export interface FuzzResult {
  readonly before: Uint8Array;
  readonly after: Uint8Array;
}

export interface Finding {
  readonly target: string;
  readonly kind: "exception" | "hang" | "memory" | "runtime";
  readonly text: string;
  readonly input: Uint8Array;
}

export const BUDGET = { seconds: 1, bytes: 64 * 2 ** 20, perInputByte: 40 } as const;

/** The input of run `index`: runs are independent of each other, so that any of them can be repeated alone. */
export const inputOf = (target: FuzzTarget, seed: number, index: number): Uint8Array =>
  target.make(random((Math.imul(seed, 0x9e3779b1) ^ Math.imul(index + 1, 0x85ebca6b)) >>> 0));

const memoryNow = (): number => {
  const { heapUsed, arrayBuffers } = process.memoryUsage();
  return heapUsed + arrayBuffers;
};

/** Runs one input. @returns what was wrong, or null; what the target gave; the LowbitError that it threw */
export async function check(
  target: FuzzTarget,
  input: Uint8Array,
): Promise<{ finding: Finding | null; result?: FuzzResult; error?: Error }> {
  const finding = (kind: Finding["kind"], text: string): { finding: Finding } => ({ finding: { target: target.name, kind, text, input } });
  const memory = memoryNow();
  const clock = process.cpuUsage();
  let result: FuzzResult | undefined;
  let refused: Error | undefined;
  try {
    result = await target.run(input);
  } catch (error) {
    if (!isLowbitError(error)) return finding("exception", error instanceof Error ? (error.stack ?? error.message) : String(error));
    if (!/expected [^]+, got /.test(error.message)) return finding("exception", `not "expected, got": ${error.message}`);
    refused = error;
  }
  const { user, system } = process.cpuUsage(clock);
  const seconds = (user + system) / 1e6;
  if (seconds > BUDGET.seconds) return finding("hang", `${seconds.toFixed(1)} s of processor time`);
  // What has not been collected yet is a lower bound of the peak.
  const grown = memoryNow() - memory;
  if (grown > BUDGET.bytes + BUDGET.perInputByte * input.length)
    return finding("memory", `${(grown / 2 ** 20).toFixed(0)} MiB for ${input.length} bytes`);
  return { finding: null, result, error: refused };
}

/** Gives an input to every reader that takes such files; the LowbitError of the last one that refuses it is thrown. */
export async function readByAll(readers: readonly (() => unknown)[]): Promise<void> {
  let refused: unknown;
  for (const read of readers)
    try {
      await read();
    } catch (error) {
      if (!isLowbitError(error)) throw error;
      refused = error;
    }
  if (refused !== undefined) throw refused;
}

/** The number that all choices of a run are drawn from: FNV-1a of its bytes. */
export function digest(bytes: Uint8Array): number {
  let h = 0x811c9dc5;
  for (const byte of bytes) h = Math.imul(h ^ byte, 0x01000193);
  return h >>> 0;
}

export const pick = <T>(rng: Random, list: readonly T[]): T => list[rng.integer(list.length)];

/** Changes that know nothing: bits, bytes, cuts, doubled and removed pieces, numbers at the ends of their range. */
export function damageBytes(rng: Random, bytes: Uint8Array): Uint8Array {
  let out = new Uint8Array(bytes);
  for (let n = 1 + rng.integer(4); n > 0 && out.length > 0; n--) {
    const at = rng.integer(out.length);
    const length = Math.min(1 + rng.integer(16), out.length - at);
    const splice = (piece: Uint8Array, removed: number): Uint8Array<ArrayBuffer> => {
      const next = new Uint8Array(out.length - removed + piece.length);
      next.set(out.subarray(0, at));
      next.set(piece, at);
      next.set(out.subarray(at + removed), at + piece.length);
      return next;
    };
    switch (rng.integer(7)) {
      case 0:
        out[at] ^= 1 << rng.integer(8);
        break;
      case 1:
        out[at] = rng.integer(256);
        break;
      case 2:
        out = out.slice(0, at);
        break;
      case 3:
        out = splice(out.slice(at, at + length), 0);
        break;
      case 4:
        out = splice(new Uint8Array(0), length);
        break;
      case 5:
        out.fill(rng.integer(2) * 255, at, at + Math.min(length, 8));
        break;
      default:
        out = splice(
          Uint8Array.from({ length }, () => rng.integer(256)),
          0,
        );
    }
  }
  return out;
}

const NUMBERS = [
  0,
  -0,
  1,
  -1,
  2,
  3,
  8,
  31,
  32,
  33,
  64,
  255,
  256,
  65536,
  2 ** 31 - 1,
  2 ** 31,
  2 ** 32,
  2 ** 53 - 1,
  2 ** 53,
  1e9,
  1e300,
  -1e300,
  0.5,
  1e-300,
  5e-324,
];
const STRINGS = ["", "__proto__", "constructor", "toString", "hasOwnProperty", "x", "row", "tensor", "a".repeat(300), "\u0000", "\ud800"];

/** One change somewhere in a JSON value, which stays JSON. `words` are strings that mean something there. */
export function damageJson(rng: Random, value: unknown, words: readonly string[] = []): unknown {
  const root: { value: unknown } = { value: structuredClone(value) };
  const sites: [Record<string, unknown>, string][] = [];
  const stack: [Record<string, unknown>, string][] = [[root as unknown as Record<string, unknown>, "value"]];
  for (let site = stack.pop(); site !== undefined; site = stack.pop()) {
    sites.push(site);
    const inner = site[0][site[1]];
    if (typeof inner === "object" && inner !== null)
      for (const key of Object.keys(inner)) stack.push([inner as Record<string, unknown>, key]);
  }
  for (let n = 1 + rng.integer(3); n > 0; n--) {
    const [parent, key] = pick(rng, sites);
    const here = parent[key];
    const other = pick(rng, sites);
    const set = (next: unknown): void => {
      // "__proto__" as an own field, as JSON.parse makes it.
      Object.defineProperty(parent, key, { value: next, enumerable: true, configurable: true, writable: true });
    };
    switch (rng.integer(9)) {
      case 0:
        set(pick(rng, NUMBERS));
        break;
      case 1:
        set(pick(rng, [...STRINGS, ...words, ...words]));
        break;
      case 2:
        set(pick(rng, [null, true, false, [], {}, [1], [[]]] as unknown[]));
        break;
      case 3:
        set(structuredClone(other[0][other[1]]));
        break;
      case 4:
        if (Array.isArray(parent)) parent.splice(Number(key), 1);
        else delete parent[key];
        break;
      case 5:
        if (typeof here === "number") set(here + pick(rng, [-1, 1, 0.5, here, 2 ** 32]));
        break;
      case 6:
        if (typeof here === "number") set(-here);
        else if (typeof here === "string") set(here + pick(rng, [...STRINGS, "0"]));
        break;
      case 7:
        if (Array.isArray(here)) here.push(structuredClone(pick(rng, [...here, 0])));
        break;
      default:
        if (typeof here === "object" && here !== null && !Array.isArray(here))
          Object.defineProperty(here, pick(rng, [...STRINGS, ...words, "extra"]), {
            value: pick(rng, NUMBERS),
            enumerable: true,
            configurable: true,
            writable: true,
          });
    }
  }
  return root.value;
}
