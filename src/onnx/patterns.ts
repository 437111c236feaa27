// Patterns on the names of nodes: globs and regular expressions, and which names they choose.
import { LowbitError } from "../../formats/core/errors.ts";
import { nearest } from "../../formats/registry.ts";

/** A pattern on node names: a glob (`*` and `?`), a regular expression as `/source/flags`, or a RegExp. */
export type NamePattern = string | RegExp;

/** The regular expression of a pattern. @throws RangeError where it is none */
export function patternRegExp(pattern: NamePattern): RegExp {
  if (pattern instanceof RegExp) return new RegExp(pattern.source, pattern.flags.replace(/[gy]/g, ""));
  // node names like /layers.0/mlp look like one too: only flags that exist make it a regular expression
  const regex = /^\/(.+)\/([dgimsuvy]*)$/s.exec(pattern);
  if (regex !== null) {
    try {
      return new RegExp(regex[1], regex[2].replace(/[gy]/g, ""));
    } catch (cause) {
      throw new RangeError(
        `pattern ${pattern}: expected a regular expression, got ${(cause as Error).message}. Correct it, or use a glob.`,
        { cause },
      );
    }
  }
  const source = pattern
    .replace(/[\\^$.|+()[\]{}]/g, "\\$&")
    .replaceAll("*", ".*")
    .replaceAll("?", ".");
  return new RegExp(`^${source}$`, "s");
}

/** A matcher for one pattern. @throws LowbitError E_ONNX where it matches none of `names` */
export function nameMatcher(what: string, pattern: NamePattern, names: readonly string[]): (name: string) => boolean {
  if (typeof pattern === "string" && names.includes(pattern)) return (name) => name === pattern;
  const regex = patternRegExp(pattern);
  if (!names.some((name) => regex.test(name))) {
    const near = typeof pattern === "string" && names.length > 0 ? ` Nearest: ${nearest(pattern, names).join(", ")}.` : "";
    const other = what === "exclude" ? " A node without a weight stays in float32 by keep (--keep)." : "";
    throw new LowbitError(
      "E_ONNX",
      `${what} ${String(pattern)}: expected to match a node with a weight, got none of ${names.length}.${near}${other} Run lowbit inspect to see the names.`,
    );
  }
  return (name) => regex.test(name);
}

/**
 * Decides by name which layers are taken; returns the reason where one is not.
 * @throws LowbitError where a pattern matches no name
 */
export function nameFilter(
  options: { readonly include?: readonly NamePattern[]; readonly exclude?: readonly NamePattern[] },
  names: readonly string[],
): (name: string) => string | undefined {
  const compile = (what: string, patterns: readonly NamePattern[] | undefined) =>
    patterns?.map((pattern) => ({ pattern, matches: nameMatcher(what, pattern, names) }));
  const include = compile("include", options.include);
  const exclude = compile("exclude", options.exclude);
  return (name) => {
    if (include !== undefined && !include.some(({ matches }) => matches(name))) return "not included by name";
    const hit = exclude?.find(({ matches }) => matches(name));
    return hit === undefined ? undefined : `excluded by ${String(hit.pattern)}`;
  };
}
