// lowbit formats: the table of all formats; the card of one (layout, limits, values); how one value lands in it.
import { bitCard, explainValue } from "../../../formats/core/explain.ts";
import type { EncodeOptions, Format, NumberFormat, Overflow, Rounding } from "../../../formats/core/types.ts";
import { allFormats, format, nearest } from "../../../formats/registry.ts";
import { json, table } from "../report.ts";
import type { CommandSpec, ParsedArgs } from "../spec.ts";
import { EXIT, usageError } from "../spec.ts";

const ROUNDINGS: readonly Rounding[] = ["halfEven", "halfExpand", "halfTrunc", "halfCeil", "halfFloor", "trunc", "expand", "ceil", "floor"];
const OVERFLOWS: readonly Overflow[] = ["saturate", "inf", "nan", "error", "wrap"];

export const formatsCommand: CommandSpec = {
  name: "formats",
  summary: "Lists the number formats; with NAME the card of one: layout, limits, values.",
  positionals: ["[NAME]"],
  options: {
    value: { short: "x", value: "X", help: "how a number lands in format NAME: code, value, error, neighbours" },
    rounding: { value: "MODE", help: `with --value: ${ROUNDINGS.join(", ")}` },
    overflow: { value: "MODE", help: `with --value: ${OVERFLOWS.join(", ")}` },
  },
  notes: `NAME is a name, an alias (e4m3fn), or a parametric name: int5, uint4_b32_zp, float8_e4m3fn_row.
  lowbit formats float8_e4m3fn --value 0.3`,
  run: runFormats,
};

async function runFormats(args: ParsedArgs, context: Parameters<CommandSpec["run"]>[1]): Promise<number> {
  const [name] = args.positionals;
  const text = args.text("value");
  for (const option of ["rounding", "overflow"])
    if (args.flag(option) && text === undefined) throw usageError(`--${option}: expected together with --value, got it alone.`);
  if (name === undefined) {
    if (text !== undefined) throw usageError("--value: expected together with the NAME of a format, got it alone.");
    context.print(args.json ? json({ command: "formats", formats: allFormats.map(plain) }) : formatsText());
    return EXIT.ok;
  }
  const f = format(name);
  if (text === undefined) {
    context.print(args.json ? json({ command: "formats", format: { ...plain(f), values: bitCard(f).values } }) : cardText(f));
    return EXIT.ok;
  }
  if (!isScalar(f))
    throw usageError(
      `--value: expected a scalar format, got ${f.name}, where a value depends on its whole block.${f.kind === "block" ? ` Ask for its element ${f.element.name}.` : ""}`,
    );
  const options: EncodeOptions = {
    ...(args.flag("rounding") ? { rounding: choice(args, "rounding", ROUNDINGS) } : {}),
    ...(args.flag("overflow") ? { overflow: choice(args, "overflow", OVERFLOWS) } : {}),
  };
  const { lines, ...explained } = explainValue(f, numberOf(text), options);
  context.print(args.json ? json({ command: "formats", ...explained }) : `${lines.join("\n")}\n`);
  return EXIT.ok;
}

const isScalar = (f: Format): f is NumberFormat => f.kind !== "block" && f.kind !== "opaque";

function choice<T extends string>(args: ParsedArgs, name: string, known: readonly T[]): T {
  const text = args.text(name) ?? "";
  const found = known.find((word) => word.toLowerCase() === text.toLowerCase());
  if (found === undefined)
    throw usageError(`--${name}: expected one of ${known.join(", ")}, got ${text}. Did you mean ${nearest(text, known)[0]}?`);
  return found;
}

/** A number as it is typed; inf and nan in any case. */
function numberOf(text: string): number {
  const special = /^([+-]?)(inf|infinity|nan)$/i.exec(text.trim());
  if (special !== null) return special[2].toLowerCase() === "nan" ? NaN : special[1] === "-" ? -Infinity : Infinity;
  const value = Number(text);
  if (text.trim() === "" || Number.isNaN(value)) throw usageError(`--value: expected a number, inf or nan, got ${JSON.stringify(text)}.`);
  return value;
}

/** Stored bits per value: of a large matrix where a format scales blocks. */
const bitsPerValue = (f: Format): number =>
  f.kind === "opaque" ? (8 * f.blockBytes) / f.blockSize : f.kind === "block" ? f.bitsPerValue(4096, 4096) : f.bits;

/** Plain data on a format, for --json. */
function plain(f: Format): Record<string, unknown> {
  const base = { name: f.name, kind: f.kind, aliases: f.aliases, spec: f.spec, bitsPerValue: bitsPerValue(f) };
  if (isScalar(f))
    return { ...base, bits: f.bits, fields: f.fields, limits: f.limits, defaults: f.defaults, access: f.access.kind, onnx: f.onnx ?? null };
  if (f.kind === "opaque") return { ...base, blockSize: f.blockSize, blockBytes: f.blockBytes };
  const levels = (list: BlockLevels): unknown => list.map((level) => ({ format: level.format.name, span: level.span }));
  return {
    ...base,
    element: f.element.name,
    scales: levels(f.scales),
    offset: f.offset === undefined ? null : { role: f.offset.role, levels: levels(f.offset.levels) },
    scaleRule: f.scaleRule,
    rangeRule: f.rangeRule,
    tail: f.tail,
  };
}

type BlockLevels = Extract<Format, { kind: "block" }>["scales"];

/** At most six digits; an exponent where the number is long. */
function short(value: number): string {
  if (Number.isNaN(value)) return "";
  const rounded = Number(value.toPrecision(6));
  const text = String(rounded);
  return text.length <= 10 && (rounded === value || Math.abs(value) < 1e6) ? text : rounded.toExponential();
}

function formatsText(): string {
  const special = ({ limits }: NumberFormat): string =>
    [limits.hasInf ? "inf" : "", limits.hasNaN ? "nan" : "", limits.hasNegativeZero ? "-0" : "", limits.hasZero ? "" : "no 0"]
      .filter(Boolean)
      .join(" ");
  const scalars = table(
    [
      { title: "format" },
      { title: "kind" },
      { title: "bits", right: true },
      { title: "max", right: true },
      { title: "min > 0", right: true },
      { title: "special" },
      { title: "aliases" },
    ],
    allFormats
      .filter(isScalar)
      .map((f) => [f.name, f.kind, String(f.bits), short(f.limits.max), short(f.limits.minPositive), special(f), f.aliases.join(" ")]),
  );
  const others = allFormats.filter((f) => !isScalar(f));
  const blocks = table(
    [{ title: "format" }, { title: "kind" }, { title: "bits per value", right: true }, { title: "spec" }],
    others.map((f) => [f.name, f.kind, String(Number(bitsPerValue(f).toFixed(4))), f.spec]),
  );
  return [
    scalars,
    ...(others.length === 0 ? [] : ["", blocks]),
    "",
    `${allFormats.length} named formats. Any scalar format can be scaled by name: <element>_b<n> | _row | _tensor [_<scale format>] [_zp].`,
    "",
  ].join("\n");
}

function cardText(f: Format): string {
  const { lines, values } = bitCard(f);
  return [f.name, ...lines.map((line) => `  ${line}`), ...(values === null || !isScalar(f) ? [] : ["", ...valueRows(f, values)]), ""].join(
    "\n",
  );
}

/** All codes with their values, in columns; a space between fields. */
function valueRows(f: NumberFormat, values: readonly { code: number; value: number }[]): string[] {
  const cells = values.map(({ code, value }) => {
    const bits = code.toString(2).padStart(f.bits, "0");
    let at = 0;
    const fields = (f.fieldsOf?.(code) ?? f.fields).map((field) => bits.slice(at, (at += field.bits))).join(" ");
    return [fields, Object.is(value, -0) ? "-0" : String(value)];
  });
  const bits = Math.max(...cells.map(([fields]) => fields.length));
  const texts = cells.map(([fields, value]) => `${fields.padEnd(bits)}  ${value}`);
  const width = Math.max(...texts.map((text) => text.length)) + 3;
  const columns = f.bits < 3 ? 1 : 4;
  const rows = Math.ceil(texts.length / columns);
  return Array.from({ length: rows }, (_, row) =>
    Array.from({ length: columns }, (_, column) => (texts[column * rows + row] ?? "").padEnd(width))
      .join("")
      .trimEnd(),
  );
}
