// What a law is, and how a broken one is reported: the smallest counterexample that fast-check finds, with the rule,
// the value, its bits, what was expected and what was found.
import * as fc from "fast-check";
import { isA } from "../../formats/core/check.ts";
import { hexCode } from "../../formats/core/explain.ts";
import type { NumberFormat } from "../../formats/core/types.ts";

/**
 * A rule that a format has to keep. Run `check` in any test runner; it throws with a readable counterexample when the
 * rule is broken.
 */
export interface Law {
  readonly name: string;
  check(): void;
}

/** How a rule is broken by one input. */
export interface Violation {
  /** The input and what became of it, one fact a line. */
  readonly facts: readonly string[];
  readonly expected: string;
  readonly found: string;
}

/** How many inputs a law of a format tries, and from which seed. */
export interface LawOptions {
  /** Random inputs a law tries; default 200. Formats of at most 10 bits try every code besides. */
  readonly runs?: number;
  /** Seed of the random inputs; default 1, so that a run can be repeated. */
  readonly seed?: number;
}

/** What the laws and arbitraries are about. @throws TypeError for anything else than a scalar format */
export function checkScalar(what: string, format: NumberFormat): void {
  if (typeof format !== "object" || format === null || typeof format.encode !== "function" || !Number.isInteger(format.bits))
    throw new TypeError(`${what}: expected a scalar format, got ${isA(format)}. Make one with the builders of lowbit/formats.`);
}

/** @throws TypeError for options that are none */
export function checkLawOptions(what: string, options: LawOptions): void {
  if (typeof options !== "object" || options === null || Array.isArray(options))
    throw new TypeError(`${what} options: expected an object of runs and seed, got ${isA(options)}.`);
  for (const [key, value] of Object.entries(options))
    if ((key !== "runs" && key !== "seed") || !(value === undefined || Number.isSafeInteger(value)))
      throw new TypeError(`${what} options: expected whole numbers runs and seed, got ${key.slice(0, 40)}: ${String(value)}.`);
}

/** "0.3 (binary64 3fd3333333333333)". */
export function showDouble(x: number): string {
  const view = new DataView(new ArrayBuffer(8));
  view.setFloat64(0, x);
  const text = Object.is(x, -0) ? "-0" : String(x);
  return `${text} (binary64 ${view.getBigUint64(0).toString(16).padStart(16, "0")})`;
}

/** "0x2a = 0 0101 010 -> 0.3125". */
export function showCode(format: NumberFormat, code: number): string {
  const digits = code.toString(2).padStart(format.bits, "0");
  let at = 0;
  const parts = (format.fieldsOf?.(code) ?? format.fields).map(({ bits }) => digits.slice(at, (at += bits)));
  const v = format.decode(code);
  return `${hexCode(code, format.bits)} = ${parts.join(" ")} -> ${Object.is(v, -0) ? "-0" : v}`;
}

function report(format: string, law: string, v: Violation, note: string): Error {
  return new Error([`${format} breaks the law "${law}"`, ...v.facts, `expected  ${v.expected}`, `found     ${v.found}`, note].join("\n  "));
}

/** Runs a rule that gives null where it holds; what it throws is a violation as well. */
function guarded<T>(rule: (x: T) => Violation | null, show: (x: T) => readonly string[]): (x: T) => Violation | null {
  return (x) => {
    try {
      return rule(x);
    } catch (error) {
      return { facts: show(x), expected: "no error", found: error instanceof Error ? `${error.name}: ${error.message}` : String(error) };
    }
  };
}

/** A law over all inputs of an arbitrary (and over a list of inputs that are always tried, smallest first). */
export function law<T>(
  format: { readonly name: string },
  name: string,
  inputs: fc.Arbitrary<T>,
  show: (x: T) => readonly string[],
  rule: (x: T) => Violation | null,
  options: LawOptions,
  always: () => Iterable<T> = () => [],
): Law {
  const test = guarded(rule, show);
  return {
    name,
    check() {
      for (const x of always()) {
        const v = test(x);
        if (v !== null) throw report(format.name, name, v, "the first failing of all codes");
      }
      const result = fc.check(
        fc.property(inputs, (x) => test(x) === null),
        { numRuns: options.runs ?? 200, seed: options.seed ?? 1 },
      );
      if (!result.failed || result.counterexample === null) return;
      const [x] = result.counterexample;
      throw report(
        format.name,
        name,
        test(x)!,
        `shrunk ${result.numShrinks} times; repeat with { seed: ${result.seed} } and fast-check path "${result.counterexamplePath ?? ""}"`,
      );
    },
  };
}

/** A law without inputs. */
export function fact(format: { readonly name: string }, name: string, rule: () => Violation | null): Law {
  const test = guarded(rule, () => []);
  return {
    name,
    check() {
      const v = test(undefined);
      if (v !== null) throw report(format.name, name, v, "holds or fails without input");
    },
  };
}
