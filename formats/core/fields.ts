// Checks of what a builder is given, once for each definition: every field has its type, and none is misspelt. What a
// sound field may hold (widths, spans, values that fit) is the builder's own business.
import { isA } from "./check.ts";
import { LowbitError } from "./errors.ts";
import type { NumberFormat } from "./types.ts";

type Rule = readonly [expected: string, holds: (x: unknown) => boolean];

const isObject = (x: unknown): x is Record<string, unknown> => typeof x === "object" && x !== null && !Array.isArray(x);
const texts = (x: unknown): boolean => Array.isArray(x) && x.every((name) => typeof name === "string");

/** A field of one of a few words. */
export const oneOf = (...words: readonly string[]): Rule => [`one of ${words.join(", ")}`, (x) => words.includes(x as string)];
/** What the builder itself looks at. */
export const ANY: Rule = ["anything", () => true];
export const TEXT: Rule = ["a string", (x) => typeof x === "string"];
export const FLAG: Rule = ["true or false", (x) => typeof x === "boolean"];
export const NUMBER: Rule = ["a number", (x) => typeof x === "number"];
export const LIST: Rule = ["an array", Array.isArray];
export const CALL: Rule = ["a function", (x) => typeof x === "function"];
export const RECORD: Rule = ["an object", isObject];
export const POLICIES: Rule = [
  "an object of rounding, overflow, infinity and nan",
  (x) => isObject(x) && Object.keys(x).every((key) => ["rounding", "overflow", "infinity", "nan"].includes(key)),
];
/** A scalar format as an element, a scale or an offset. */
export const SCALAR: Rule = [
  "a scalar format",
  (x) => isObject(x) && Number.isInteger(x.bits) && typeof (x as unknown as NumberFormat).encode === "function",
];

const COMMON: Readonly<Record<string, Rule>> = { name: TEXT, aliases: ["an array of strings", texts], spec: TEXT, kind: TEXT };

/**
 * Refuses what is no set of options, fields of another type, and fields that do not exist. Undefined fields are left
 * out.
 * @throws LowbitError E_FORMAT
 */
export function checkFields(builder: string, options: object, rules: Readonly<Record<string, Rule>>): void {
  const bad = (what: string, expected: string, got: string, remedy: string): LowbitError =>
    new LowbitError("E_FORMAT", `${builder}${what}: expected ${expected}, got ${got}. ${remedy}`);
  if (!isObject(options)) throw bad("", "an object of options", isA(options), "See docs/adding-a-format.md.");
  for (const [key, value] of Object.entries(options)) {
    if (value === undefined) continue;
    const rule = Object.hasOwn(rules, key) ? rules[key] : Object.hasOwn(COMMON, key) ? COMMON[key] : undefined;
    if (rule === undefined) throw bad("", `the fields ${Object.keys(rules).join(", ")}`, key.slice(0, 40), "Is it misspelt?");
    const shown = typeof value === "string" ? JSON.stringify(value.slice(0, 40)) : typeof value === "number" ? String(value) : isA(value);
    if (!rule[1](value)) throw bad(` ${key}`, rule[0], shown, "Leave it out for the default, where it has one.");
  }
}
