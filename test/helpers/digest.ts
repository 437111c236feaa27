// Digests of what formats give, and the numbers and policies at which encoders differ: for tests that hold on to all
// outputs at once.
import { createHash } from "node:crypto";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { afterAll, expect } from "vitest";
import { isLowbitError, type EncodeOptions, type NumberFormat } from "../../formats/index.ts";
import { awkwardBlock, random } from "./random.ts";

/** Sixteen digits of what is fed to it: text, numbers with the sign of zero, bytes. */
export function digest(feed: (add: (...values: unknown[]) => void) => void): string {
  const hash = createHash("sha256");
  const numbers = new Float64Array(4096);
  let held = 0;
  const flush = (): void => {
    hash.update(new Uint8Array(numbers.buffer, 0, 8 * held));
    held = 0;
  };
  // thousands of errors are expected, and nobody reads where they come from
  const { stackTraceLimit } = Error;
  Error.stackTraceLimit = 0;
  try {
    feed((...values) => {
      for (const v of values) {
        if (typeof v === "number") {
          if (held === numbers.length) flush();
          numbers[held++] = v;
          continue;
        }
        flush();
        if (ArrayBuffer.isView(v)) hash.update(new Uint8Array(v.buffer, v.byteOffset, v.byteLength));
        else hash.update(`${typeof v === "string" ? v : shown(v)}\n`);
      }
    });
  } finally {
    Error.stackTraceLimit = stackTraceLimit;
  }
  flush();
  return hash.digest("hex").slice(0, 16);
}
/** JSON that keeps -0, NaN and infinities. */
const shown = (x: unknown): string => JSON.stringify(x, (_, v: unknown) => (typeof v === "number" && (!Number.isFinite(v) || Object.is(v, -0)) ? `#${Object.is(v, -0) ? "-0" : v}` : v)) ?? "nothing"; // prettier-ignore
export const tried = <T>(run: () => T): T | string => {
  try {
    return run();
  } catch (error) {
    if (isLowbitError(error)) return `${error.code} ${error.message}`;
    throw error;
  }
};

function next(x: number, by: number): number {
  const f = Float64Array.of(x);
  const words = new BigInt64Array(f.buffer);
  words[0] += BigInt(x === 0 ? Math.abs(by) : by);
  return x === 0 && by < 0 ? -f[0] : f[0];
}

/** Numbers where encoders differ: values, boundaries, what lies beside them, ends of float32 and float64. */
export function numbers(f: NumberFormat): number[] {
  const { limits, order } = f;
  const rng = random(7);
  const values = order === null ? [] : [...order.values];
  const bounds = order === null ? [] : [...order.boundaries];
  const some = (list: number[], n: number) => (list.length <= n ? list : Array.from({ length: n }, () => list[rng.integer(list.length)]));
  const edges = [limits.max, limits.min, limits.minPositive, limits.minNormal, 1, -1, 0].filter(Number.isFinite);
  const near = [...some(values, 24), ...some(bounds, 40), ...edges].flatMap((v) => [v, next(v, 1), next(v, -1), Math.fround(v), 1.5 * v]);
  const size = Math.max(Math.abs(limits.max), Math.abs(limits.min));
  const drawn = Array.from({ length: 60 }, (_, i) => rng.normal() * size * 2 ** -(i % 30));
  const all = [...near, ...drawn, -0, NaN, Infinity, -Infinity, 3e38, -1e300, 5e-324, 2 ** -149];
  return [...new Map(all.map((v) => [Object.is(v, -0) ? "-0" : String(v), v])).values()];
}

export const POLICIES: EncodeOptions[] = [
  {},
  ...(["halfExpand", "halfTrunc", "halfCeil", "halfFloor", "trunc", "expand", "ceil", "floor"] as const).map((rounding) => ({ rounding, overflow: "saturate" as const })),
  ...(["inf", "nan", "error", "wrap"] as const).map((overflow) => ({ overflow, nan: "max" as const })),
  { infinity: "keep", nan: "zero" }, { infinity: "overflow", overflow: "saturate", nan: "error" }, { rounding: "stochastic", random: () => 0.3, overflow: "saturate" },
] as EncodeOptions[]; // prettier-ignore

/** Rows of blocks of every kind. */
export function rowsOf(rows: number, k: number, seed: number): Float32Array {
  const rng = random(seed);
  const x = new Float32Array(rows * k);
  for (let at = 0, kind = seed; at < x.length; at += 16, kind++) x.set(awkwardBlock(rng, 16, kind).subarray(0, x.length - at), at);
  return x;
}

/**
 * Compares digests with those of a fixture of test/fixtures/formats; with UPDATE_STABILITY=1 they are written there
 * after all tests instead.
 */
export function holder<T>(fixture: string): { hold(name: string, digests: T): void; readonly names: readonly string[] } {
  const path = new URL(`../fixtures/formats/${fixture}`, import.meta.url);
  const update = process.env.UPDATE_STABILITY === "1";
  const known = new Map(existsSync(path) ? Object.entries(JSON.parse(readFileSync(path, "utf8")) as Record<string, T>) : []);
  const made: Record<string, T> = {};
  afterAll(() => {
    if (update) writeFileSync(path, `${JSON.stringify(made, null, 2)}\n`);
  });
  return {
    hold(name, digests) {
      made[name] = digests;
      if (!update) expect(digests, name).toEqual(known.get(name));
    },
    names: update ? [] : [...known.keys()],
  };
}
