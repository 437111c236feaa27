// Which weight of a graph is which module of a checkpoint. Exporters rename modules
// ("/model/layers.0/attn/q_proj/MatMul" of "model.layers.0.self_attn.q_proj"): the last part of the name and all
// numbers must agree, of the rest as much as possible.
import { LowbitError } from "../../../formats/core/errors.ts";
import { nearest } from "../../../formats/registry.ts";
import { patternRegExp, type NamePattern } from "../patterns.ts";

/** A user's rule. First match wins. */
export interface PlaceRule {
  /** A name of the checkpoint: a glob, whose `*` are $1, $2, ... of `to`, or a regular expression with groups. */
  readonly match: NamePattern;
  /** Name of the node, or of its weight; "keep": the graph keeps what it has. */
  readonly to: string;
}

/** Something of the graph that can be named: the names that it goes by. */
export interface Named {
  readonly names: readonly string[];
}

/** Parts that exporters add. */
const ADDED = /^(?:MatMul|Gemm|Conv|ConvTranspose|Gather|Transpose|Constant|node|initializer)(?:_\d+)?$/i;
/** What a tensor is to its module. */
const ROLE = /^(?:weight|bias)$/;

/** The parts of a name that say which module it is; with `roles`, which tensor of it too. */
function partsOf(name: string, roles: boolean): string[] {
  const parts = name.split(/[./:]+/).filter((part) => part !== "");
  const named = parts.filter((part) => !ROLE.test(part));
  const own = new Set(named.filter((part) => !ADDED.test(part)));
  // a module may be called as an operator is: conv
  if (own.size === 0 && named.length > 0) own.add(named[0]);
  return parts.filter((part) => (ROLE.test(part) ? roles : own.has(part)));
}

/** Length of the longest common subsequence. */
function common(a: readonly string[], b: readonly string[]): number {
  let row = new Array<number>(b.length + 1).fill(0);
  for (const part of a) {
    const next = [0];
    for (let j = 1; j <= b.length; j++) next[j] = part === b[j - 1] ? row[j - 1] + 1 : Math.max(row[j], next[j - 1]);
    row = next;
  }
  return row[b.length];
}

/** Names that a rule matches. */
export const hitsOf = (names: readonly string[], { match }: PlaceRule): string[] => {
  const regex = capturing(match);
  return names.filter((name) => regex.test(name));
};

const numbersOf = (parts: readonly string[]): string => parts.filter((part) => /^\d+$/.test(part)).join();

/** How many parts two names share; 0 where they cannot be the same module. */
function likeness(a: readonly string[], b: readonly string[]): number {
  if (a.length === 0 || a.at(-1) !== b.at(-1) || numbersOf(a) !== numbersOf(b)) return 0;
  return common(a, b);
}

/** A glob with its stars as groups, or the regular expression. */
function capturing(pattern: NamePattern): RegExp {
  if (typeof pattern !== "string" || /^\/.+\/[dgimsuvy]*$/s.test(pattern)) return patternRegExp(pattern);
  const source = pattern
    .replace(/[\\^$.|+()[\]{}]/g, "\\$&")
    .replaceAll("*", "(.*)")
    .replaceAll("?", ".");
  return new RegExp(`^${source}$`, "s");
}

/**
 * Where names go by the rules alone: the target, "keep", or undefined where no rule matches.
 * @throws LowbitError E_ONNX for a rule that matches no name, or that leads to nothing of the graph
 */
function byRules(names: readonly string[], rules: readonly PlaceRule[], targets: readonly Named[]): Map<string, Named | "keep"> {
  const out = new Map<string, Named | "keep">();
  const known = new Map(targets.flatMap((target) => target.names.map((name) => [name, target] as const)));
  for (const { match, to } of rules) {
    const regex = capturing(match);
    const hits = names.filter((name) => regex.test(name));
    if (hits.length === 0)
      throw new LowbitError(
        "E_ONNX",
        `rule ${String(match)}: expected to match a name of the checkpoint, got none of ${names.length}. Nearest: ${nearest(String(match), [...names]).join(", ")}.`,
      );
    for (const name of hits) {
      if (out.has(name)) continue;
      const wanted = to === "keep" ? to : name.replace(regex, to);
      const target = wanted === "keep" ? wanted : known.get(wanted);
      if (target === undefined)
        throw new LowbitError(
          "E_ONNX",
          `rule ${String(match)}: expected a node or weight of the graph for ${name}, got ${JSON.stringify(wanted)}. Nearest: ${nearest(wanted, [...known.keys()]).join(", ")}.`,
        );
      out.set(name, target);
    }
  }
  return out;
}

export interface Matches<T extends Named> {
  readonly found: ReadonlyMap<string, T>;
  /** Names that have no target, and why. */
  readonly left: ReadonlyMap<string, string>;
  /** Names that a rule placed: the user knows, nothing is guessed. */
  readonly ruled: ReadonlySet<string>;
}

/**
 * Matches names of a checkpoint with targets of a graph: by the user's rules first, then each with the one that it is
 * most like, and that with it.
 * @param roles names are those of tensors (q_proj.bias), not of modules
 */
export function matchNames<T extends Named>(
  names: readonly string[],
  targets: readonly T[],
  rules: readonly PlaceRule[],
  roles = false,
): Matches<T> {
  const ruledNames = byRules(names, rules, targets) as Map<string, T | "keep">;
  const found = new Map<string, T>();
  const left = new Map<string, string>();
  const taken = new Map<T, string>();
  for (const [name, target] of ruledNames) {
    if (target === "keep") left.set(name, "a rule says keep");
    else if (taken.has(target))
      throw new LowbitError(
        "E_ONNX",
        `rules: expected one name for ${target.names[0]}, got ${taken.get(target)!} and ${name}. Correct the rules.`,
      );
    else {
      found.set(name, target);
      taken.set(target, name);
    }
  }
  // by the last part and the numbers: only those can be alike
  const keyOf = (parts: readonly string[]): string => `${parts.at(-1) ?? ""} ${numbersOf(parts)}`;
  const groups = new Map<string, { readonly target: T; readonly parts: readonly string[] }[]>();
  for (const target of targets) {
    if (taken.has(target)) continue;
    const forms = new Map(target.names.map((name) => partsOf(name, roles)).map((parts) => [parts.join("."), parts]));
    for (const parts of forms.values()) groups.set(keyOf(parts), [...(groups.get(keyOf(parts)) ?? []), { target, parts }]);
  }
  const wishes = new Map<T, { readonly score: number; readonly names: string[] }>();
  const best = new Map<string, { readonly score: number; readonly targets: T[] }>();
  for (const name of names) {
    if (ruledNames.has(name)) continue;
    const parts = partsOf(name, roles);
    const scores = new Map<T, number>();
    for (const { target, parts: other } of groups.get(keyOf(parts)) ?? [])
      scores.set(target, Math.max(scores.get(target) ?? 0, likeness(parts, other)));
    const score = Math.max(0, ...scores.values());
    if (score === 0) {
      left.set(name, "nothing in the graph has a name like it");
      continue;
    }
    const top = [...scores].filter(([, s]) => s === score).map(([target]) => target);
    best.set(name, { score, targets: top });
    for (const target of top) {
      const wish = wishes.get(target);
      if (wish === undefined || wish.score < score) wishes.set(target, { score, names: [name] });
      else if (wish.score === score) wish.names.push(name);
    }
  }
  for (const [name, { targets: top }] of best) {
    const mutual = top.filter((target) => wishes.get(target)!.names.includes(name));
    if (mutual.length === 1 && wishes.get(mutual[0])!.names.length === 1) found.set(name, mutual[0]);
    else if (mutual.length > 1) left.set(name, `several of the graph are like it (${list(mutual.map((t) => t.names[0]))}): give a rule`);
    else if (mutual.length === 1) left.set(name, `${list(wishes.get(mutual[0])!.names)} are all like ${mutual[0].names[0]}: give a rule`);
    else left.set(name, `${top[0].names[0]} is more like ${wishes.get(top[0])!.names[0]}`);
  }
  return { found, left, ruled: new Set(ruledNames.keys()) };
}

const list = (names: readonly string[]): string =>
  `${names.slice(0, 3).join(", ")}${names.length > 3 ? `, ... ${names.length} in all` : ""}`;
