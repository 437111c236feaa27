// lowbit/testing: property tests for formats, the named ones and a user's own. Needs fast-check beside lowbit. No test
// runner: a law is a name and a check that throws.
import type { Format } from "../../formats/core/types.ts";
import { blockLaws } from "./block-laws.ts";
import { formatLaws } from "./format-laws.ts";
import type { Law, LawOptions } from "./law.ts";

export { arbitraryBlock, arbitraryCode, arbitraryMatrix, arbitraryValue } from "./arbitraries.ts";
export { blockLaws, formatLaws };
export type { Law, LawOptions, Violation } from "./law.ts";

/**
 * The laws of any format, by its kind.
 * @example for (const { name, check } of lawsOf(mxfp4)) test(name, check) // scalar, block or opaque
 */
export function lawsOf(format: Format, options: LawOptions = {}): readonly Law[] {
  return format.kind === "block" || format.kind === "opaque" ? blockLaws(format, options) : formatLaws(format, options);
}
