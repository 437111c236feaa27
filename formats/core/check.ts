// Checks of arguments: plain mistakes (a string where a number belongs, a policy that does not exist) are TypeErrors
// that name what was expected.
import type { EncodeOptions } from "./types.ts";

/** What a value is, for messages: "a string", "null", "Int8Array". */
export function isA(x: unknown): string {
  if (x === null || x === undefined) return String(x);
  return typeof x === "object" ? (x.constructor?.name ?? "an object") : `a ${typeof x}`;
}

const POLICIES = [
  ["rounding", new Set(["halfEven", "halfExpand", "halfTrunc", "halfCeil", "halfFloor", "trunc", "expand", "ceil", "floor", "stochastic"])],
  ["overflow", new Set(["saturate", "inf", "nan", "error", "wrap"])],
  ["infinity", new Set(["overflow", "keep"])],
  ["nan", new Set(["nan", "error", "zero", "negativeZero", "max"])],
] as const satisfies readonly (readonly [keyof EncodeOptions, ReadonlySet<string>])[];

/** @throws TypeError for a policy that does not exist */
export function checkEncodeOptions(what: string, options: EncodeOptions): void {
  if (typeof options !== "object" || options === null)
    throw new TypeError(`${what} options: expected an object of policies, got ${isA(options)}. Leave it out for the format's own.`);
  for (const [key, names] of POLICIES) {
    const policy: unknown = options[key];
    if (policy !== undefined && !(names as ReadonlySet<unknown>).has(policy))
      throw new TypeError(
        `${what} ${key}: expected one of ${[...names].join(", ")}, got ${typeof policy === "string" ? `"${policy}"` : isA(policy)}. Leave it out for the format's own.`,
      );
  }
  if (options.random !== undefined && typeof options.random !== "function")
    throw new TypeError(`${what} random: expected a function that gives numbers in [0, 1), got ${isA(options.random)}.`);
}

/**
 * A Buffer (whose `slice` is a view, and whose `buffer` is a pool) as a plain view of the same bytes.
 * @throws TypeError for anything else than bytes
 */
export function plainBytes(what: string, bytes: Uint8Array): Uint8Array {
  if (!(bytes instanceof Uint8Array)) throw new TypeError(`${what}: expected a Uint8Array, got ${isA(bytes)}.`);
  return bytes.constructor === Uint8Array ? bytes : new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.length);
}
