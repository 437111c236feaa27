// Formats by name: exact names, aliases, and parametric names (int5, int5_b64, uint4_b32_float16_zp,
// float8_e4m3fn_row), memoised.
import * as named from "./all.ts";
import { LowbitError } from "./core/errors.ts";
import type { BlockFormat, Format, NumberFormat, Span } from "./core/types.ts";
import { defineBlock } from "./define/block.ts";
import { scalarsByName } from "./define/index.ts";
import { oliveByName } from "./define/olive.ts";

/** Every named format of the package, in the order of the documentation table. */
export const allFormats: readonly Format[] = /* @__PURE__ */ (() => {
  // The order of a namespace is the bundler's; names sort the same everywhere, int2 before int16. One collator: a
  // localeCompare with options makes one for each comparison.
  const { compare } = new Intl.Collator("en", { numeric: true });
  return Object.freeze(Object.values<Format>(named).sort((a, b) => compare(a.name, b.name)));
})();

/** The names of `allFormats`. */
export type FormatName = keyof typeof named;

type Scaled = `_b${number}` | `_b${number}_${string}` | "_row" | `_row_${string}` | "_tensor" | `_tensor_${string}`;
type ScalarName =
  | `${"" | "u"}int${number}`
  | `posit${number}_es${number}`
  | `bipolar${number}`
  | `binary${number}p${number}${"se" | "sf" | "ue" | "uf"}`
  | `float_e${number}m${number}${"" | "_ieee" | "_fn" | "_fnuz" | "_p3109"}`
  | `${"" | "u"}fixed${number}_f${number}`
  | `takum${"" | "_linear"}${number}`
  | `lns${number}_f${number}`;

/**
 * What `format` gives for a name: the kind of a named or parametric one, else (aliases, names made at run time) any.
 */
export type FormatOf<N extends string> = N extends FormatName
  ? (typeof named)[N]
  : N extends `${string}${Scaled}`
    ? BlockFormat
    : N extends ScalarName
      ? NumberFormat
      : Format;

let byName: Map<string, Format> | undefined;
let byAlias: Map<string, Format[]> | undefined;

function index(): { byName: Map<string, Format>; byAlias: Map<string, Format[]> } {
  if (byName && byAlias) return { byName, byAlias };
  byName = new Map(allFormats.map((f) => [f.name, f]));
  byAlias = new Map();
  for (const f of allFormats) for (const a of f.aliases) byAlias.set(a, [...(byAlias.get(a) ?? []), f]);
  return { byName, byAlias };
}

type Parametric = (name: string) => Format | undefined;

const scalar = (name: string): NumberFormat | undefined => {
  const f = lookup(name);
  return f && f.kind !== "block" && f.kind !== "opaque" ? f : undefined;
};

/** <element>_b<n> | _row | _tensor [_<scale format>] [_zp]. */
const scaled: Parametric = (name) => {
  const zeroPoint = name.endsWith("_zp");
  const m = /^(.+?)_(b[1-9][0-9]*|row|tensor)(?:_(.+))?$/.exec(zeroPoint ? name.slice(0, -3) : name);
  if (!m) return undefined;
  const element = scalar(m[1]);
  const scale = scalar(m[3] ?? "float32");
  if (!element || !scale) return undefined;
  const span: Span = m[2] === "row" || m[2] === "tensor" ? m[2] : Number(m[2].slice(1));
  if (zeroPoint && element.kind !== "int") return undefined;
  return defineBlock({
    element,
    scales: [{ format: scale, span }],
    ...(zeroPoint ? { offset: { role: "zeroPoint", levels: [{ format: element, span }] } } : {}),
  });
};

const parametric: readonly Parametric[] = [...scalarsByName, scaled, oliveByName];

function lookup(name: string): Format | undefined {
  const { byName, byAlias } = index();
  const known = byName.get(name);
  if (known) return known;
  const aliased = byAlias.get(name);
  if (aliased && aliased.length > 1)
    throw new LowbitError(
      "E_FORMAT_UNKNOWN",
      `format name: expected one format, got "${name}", which names ${aliased.map((f) => f.name).join(" and ")}. Use a full name.`,
    );
  if (aliased) return aliased[0];
  for (const make of parametric) {
    const f = make(name);
    if (f) {
      // The canonical name wins, so that two spellings give one object.
      const same = byName.get(f.name) ?? f;
      byName.set(f.name, same);
      byName.set(name, same);
      return same;
    }
  }
  return undefined;
}

/**
 * The format of a name, an alias or a parametric name; case does not matter. The same name always gives the same
 * object. The type follows from a name that is written out: `format("mxfp4")` is a BlockFormat, `format("int5")` a
 * NumberFormat.
 * @throws LowbitError E_FORMAT_UNKNOWN with the nearest names, or with the candidates of an ambiguous alias
 * @example format("e4m3fn") === format("float8_e4m3fn")
 */
export function format<const N extends FormatName | (string & {})>(name: N): FormatOf<N>;
export function format(name: string): Format {
  if (typeof name !== "string") throw new TypeError(`format name: expected a string, got ${typeof name}.`);
  const found = lookup(name.toLowerCase());
  if (found) return found;
  const { byName, byAlias } = index();
  const near = nearest(name.toLowerCase(), [...new Set([...byName.keys(), ...byAlias.keys()])]);
  throw new LowbitError(
    "E_FORMAT_UNKNOWN",
    `format name: expected a known format, got "${name.slice(0, 60)}". Nearest: ${near.join(", ")}. \`lowbit formats\` lists all.`,
  );
}

/** The three names nearest to a misspelt one, best first. */
export function nearest(name: string, names: readonly string[]): string[] {
  const scored = names.map((n) => ({ n, d: editDistance(name.slice(0, 40), n) - (n.includes(name) || name.includes(n) ? 2 : 0) }));
  return scored
    .sort((a, b) => a.d - b.d || (a.n < b.n ? -1 : 1))
    .slice(0, 3)
    .map((s) => s.n);
}

function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) next[j] = Math.min(row[j] + 1, next[j - 1] + 1, row[j - 1] + (a[i - 1] === b[j - 1] ? 0 : 1));
    row = next;
  }
  return row[b.length];
}
