// lowbit formats: the table of all formats; the card of one (layout, limits, values); how one value lands in it.
import { bitCard, explainCode, explainValue } from "../../../formats/core/explain.ts";
import { readNumber } from "../../../formats/core/read-number.ts";
import type { Format, NumberFormat } from "../../../formats/core/types.ts";
import { valueTable } from "../../../formats/core/value-table.ts";
import { allFormats } from "../../../formats/registry.ts";
import { DEFINE_OPTION, formatOf, isScalar, scalarOf } from "../formats.ts";
import { POLICIES, policies } from "../policies.ts";
import { json, table } from "../report.ts";
import type { CommandSpec, ParsedArgs } from "../spec.ts";
import { EXIT, usageError } from "../spec.ts";

export const formatsCommand: CommandSpec = {
  name: "formats",
  summary: "Lists the number formats; with NAME the card of one: layout, limits, values.",
  positionals: ["[NAME]"],
  options: {
    value: { short: "x", value: "X", help: "how a number (0.3, 0x1.8p3, 2^-7, inf, nan) lands in format NAME" },
    code: { short: "c", value: "CODE", help: "what a code stands for, decimal, 0x or 0b: fields, value, neighbours" },
    csv: { help: "all values by code as CSV" },
    hex: { help: "all values by code for Verilog's $readmemh, as IEEE doubles" },
    define: DEFINE_OPTION,
    rounding: { ...POLICIES.rounding, help: `with --value: ${POLICIES.rounding.help}` },
    overflow: { ...POLICIES.overflow, help: `with --value: ${POLICIES.overflow.help}` },
  },
  notes: `NAME is a name, an alias (e4m3fn), or a parametric name: int5, uint4_b32_zp, float8_e4m3fn_row.
  lowbit formats float8_e4m3fn --value 0.3
  lowbit formats posit8_es2 --code 0x48
  lowbit formats --define '{"kind":"float","name":"mine","exponentBits":3,"mantissaBits":2,"specials":"fn","bias":5}' --csv`,
  run: runFormats,
};

/** What is asked about one format, instead of its card; only one at a time. */
const QUESTIONS = ["value", "code", "csv", "hex"] as const;

async function runFormats(args: ParsedArgs, context: Parameters<CommandSpec["run"]>[1]): Promise<number> {
  const asked = QUESTIONS.filter((name) => args.flag(name));
  if (asked.length > 1) throw usageError(`${asked.map((name) => `--${name}`).join(", ")}: expected one of them, got ${asked.length}.`);
  const [question] = asked;
  for (const option of ["rounding", "overflow"])
    if (args.flag(option) && question !== "value") throw usageError(`--${option}: expected together with --value, got it alone.`);
  const f = formatOf(args);
  if (f === undefined) {
    if (question !== undefined) throw usageError(`--${question}: expected together with the NAME of a format, got it alone.`);
    context.print(args.json ? json({ command: "formats", formats: allFormats.map(plain) }) : formatsText());
    return EXIT.ok;
  }
  if (question === undefined) {
    context.print(args.json ? json({ command: "formats", format: { ...plain(f), values: bitCard(f).values } }) : cardText(f));
    return EXIT.ok;
  }
  const scalar = scalarOf(args, `--${question}`);
  if (question === "csv" || question === "hex") {
    if (args.json) throw usageError(`--json: expected it without --${question}, which prints a file of its own.`);
    context.print(valueTable(scalar, question === "csv" ? "csv" : "readmemh"));
    return EXIT.ok;
  }
  const text = args.text(question)!;
  const { lines, ...explained } =
    question === "code" ? explainCode(scalar, codeOf(text, scalar)) : explainValue(scalar, numberOf(text), policies(args));
  context.print(args.json ? json({ command: "formats", ...explained }) : `${lines.join("\n")}\n`);
  return EXIT.ok;
}

/** A code as it is typed: decimal, 0x or 0b. */
function codeOf(text: string, { name, bits }: NumberFormat): number {
  const code = /^(0x[0-9a-f]+|0b[01]+|\d+)$/i.test(text.trim()) ? Number(text) : NaN;
  if (!Number.isSafeInteger(code)) throw usageError(`--code: expected an integer, decimal, 0x or 0b, got ${JSON.stringify(text)}.`);
  const last = 2 ** bits - 1;
  if (code > last) throw usageError(`--code: expected a code of ${name}, 0..${last} (${bits} bits), got ${text.trim()}.`);
  return code;
}

/** A number as it is typed, C's hexadecimal ones too. */
function numberOf(text: string): number {
  const value = readNumber(text);
  if (value === undefined) throw usageError(`--value: expected a number (0.3, 0x1.8p3, 2^-7), inf or nan, got ${JSON.stringify(text)}.`);
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
