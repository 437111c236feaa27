// lowbit formats: the table of all formats; the card of one (fields, limits, values); what becomes of one value in it.
import type { BlockFormat, Format, NumberFormat, OpaqueFormat, ScaleLevel, Span } from "../../../formats/core/types.ts";
import { allFormats, format } from "../../../formats/registry.ts";
import { json, table } from "../report.ts";
import type { CommandSpec } from "../spec.ts";
import { EXIT, usageError } from "../spec.ts";

export const formatsCommand: CommandSpec = {
  name: "formats",
  summary: "Lists the number formats; with NAME the card of one: fields, limits, values.",
  positionals: ["[NAME]"],
  options: {
    value: { short: "x", value: "X", help: "what becomes of a number in format NAME: code, value, error, neighbours" },
  },
  notes: `NAME is a name, an alias (e4m3fn), or a parametric name: int5, uint4_b32_zp, float8_e4m3fn_row.
  lowbit formats float8_e4m3fn --value 0.3`,
  run: async (args, context) => {
    const [name] = args.positionals;
    const text = args.text("value");
    if (name === undefined) {
      if (text !== undefined) throw usageError("--value: expected together with the NAME of a format, got it alone.");
      context.print(args.json ? json({ command: "formats", formats: allFormats.map(describe) }) : formatsText());
      return EXIT.ok;
    }
    const f = format(name);
    if (text === undefined) {
      context.print(args.json ? json({ command: "formats", format: describe(f) }) : cardText(f));
      return EXIT.ok;
    }
    if (!isScalar(f))
      throw usageError(`--value: expected a scalar format, got ${f.name}, which scales blocks of values. Ask for its element format.`);
    const explained = explain(f, numberOf(text));
    context.print(args.json ? json({ command: "formats", format: f.name, ...explained }) : explainText(f, explained));
    return EXIT.ok;
  },
};

const isScalar = (f: Format): f is NumberFormat => f.kind !== "block" && f.kind !== "opaque";

/** A number as it is typed; inf and nan in any case. */
function numberOf(text: string): number {
  const special = /^([+-]?)(inf|infinity|nan)$/i.exec(text.trim());
  if (special !== null) return special[2].toLowerCase() === "nan" ? NaN : special[1] === "-" ? -Infinity : Infinity;
  const value = Number(text);
  if (text.trim() === "" || Number.isNaN(value)) throw usageError(`--value: expected a number, inf or nan, got ${JSON.stringify(text)}.`);
  return value;
}

/** -0 is a value of its own here. */
const show = (value: number): string => (Object.is(value, -0) ? "-0" : String(value));

const spanText = (span: Span): string => (typeof span === "object" ? span.join("x") : String(span));
const levelText = (level: ScaleLevel): string => `${level.format.name} per ${spanText(level.span)}`;

/** Stored bits per value of a large matrix. */
const blockBits = (f: BlockFormat | OpaqueFormat): number =>
  f.kind === "opaque" ? (8 * f.blockBytes) / f.blockSize : f.bitsPerValue(4096, 4096);

/** Plain data on a format, for --json. */
function describe(f: Format): Record<string, unknown> {
  const base = { name: f.name, kind: f.kind, aliases: f.aliases, spec: f.spec };
  if (isScalar(f))
    return { ...base, bits: f.bits, fields: f.fields, limits: f.limits, defaults: f.defaults, access: f.access.kind, onnx: f.onnx ?? null };
  if (f.kind === "opaque") return { ...base, bitsPerValue: blockBits(f), blockSize: f.blockSize, blockBytes: f.blockBytes };
  return {
    ...base,
    bitsPerValue: blockBits(f),
    element: f.element.name,
    scales: f.scales.map((level) => ({ format: level.format.name, span: level.span })),
    offset:
      f.offset === undefined
        ? null
        : { role: f.offset.role, levels: f.offset.levels.map((l) => ({ format: l.format.name, span: l.span })) },
    scaleRule: f.scaleRule,
    rangeRule: f.rangeRule,
  };
}

function formatsText(): string {
  const scalar = allFormats.filter(isScalar);
  const scaled = allFormats.filter((f): f is BlockFormat | OpaqueFormat => !isScalar(f));
  const special = (f: NumberFormat): string =>
    [f.limits.hasInf ? "inf" : "", f.limits.hasNaN ? "nan" : "", f.limits.hasNegativeZero ? "-0" : ""].filter(Boolean).join(" ");
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
    scalar.map((f) => [f.name, f.kind, String(f.bits), short(f.limits.max), short(f.limits.minPositive), special(f), f.aliases.join(" ")]),
  );
  const blocks = table(
    [{ title: "format" }, { title: "bits per value", right: true }, { title: "element and scales" }, { title: "aliases" }],
    scaled.map((f) => [f.name, String(Number(blockBits(f).toFixed(3))), composition(f), f.aliases.join(" ")]),
  );
  const scaledNames =
    "Any scalar format can be scaled by name: <element>_b<n> | _row | _tensor [_<scale format>] [_zp], e.g. int4_b32, uint4_b32_zp.";
  return [scalars, ...(scaled.length === 0 ? [] : ["", blocks]), "", `${allFormats.length} formats. ${scaledNames}`, ""].join("\n");
}

const short = (value: number): string => String(Number(value.toPrecision(6)));

const composition = (f: BlockFormat | OpaqueFormat): string =>
  f.kind === "opaque"
    ? `${f.blockSize} values in ${f.blockBytes} bytes`
    : [
        f.element.name,
        ...f.scales.map(levelText),
        ...(f.offset === undefined ? [] : [`${f.offset.role} ${f.offset.levels.map(levelText).join(" ")}`]),
      ].join(", ");

/** `s eeee mmm` for a float; the most significant bit is left. */
const fieldsText = (f: NumberFormat): string => f.fields.map((field) => field.name[0].repeat(field.bits)).join(" ");

function cardText(f: Format): string {
  const head = [f.aliases.length === 0 ? f.name : `${f.name} (${f.aliases.join(", ")})`, f.spec, ""];
  if (!isScalar(f)) {
    const facts = [`bits per value  ${Number(blockBits(f).toFixed(4))}`, `made of         ${composition(f)}`];
    if (f.kind === "block")
      facts.push(
        `scale rule      ${f.scaleRule}`,
        `range rule      ${f.rangeRule}`,
        `last block      ${f.tail === "short" ? "may be short" : "must be whole"}`,
      );
    return [...head, ...facts, ""].join("\n");
  }
  const { limits, defaults } = f;
  const facts = [
    ["bits", `${f.bits}: ${fieldsText(f)}  (${f.fields.map((field) => `${field.name} ${field.bits}`).join(", ")})`],
    ["max, min", `${show(limits.max)}, ${show(limits.min)}`],
    [
      "smallest > 0",
      `${show(limits.minPositive)}${limits.minNormal === limits.minPositive ? "" : `, normal from ${show(limits.minNormal)}`}`,
    ],
    ["finite values", `${limits.finiteValues}${limits.symmetric ? ", symmetric" : ""}`],
    ["zero", limits.hasZero ? (limits.hasNegativeZero ? "+0 and -0" : "one zero") : "none"],
    ["special", [limits.hasInf ? "infinities" : "no infinity", limits.hasNaN ? "NaN" : "no NaN"].join(", ")],
    ["encode", `rounding ${defaults.rounding}, overflow ${defaults.overflow}, infinity ${defaults.infinity}, NaN ${defaults.nan}`],
    ["kernels read", f.access.kind],
    ["ONNX type", f.onnx === undefined ? "none" : String(f.onnx)],
  ];
  const lines = facts.map(([name, text]) => `${name.padEnd(13)}  ${text}`);
  if (f.table !== null && f.bits <= 6) lines.push("", ...valueRows(f));
  return [...head, ...lines, ""].join("\n");
}

/** All codes with their values, by column. */
function valueRows(f: NumberFormat): string[] {
  const cells = Array.from({ length: 2 ** f.bits }, (_, code) => `${bitsText(f, code)}  ${show(f.decode(code))}`);
  const width = Math.max(...cells.map((cell) => cell.length)) + 3;
  const columns = Math.max(1, Math.min(4, 2 ** (f.bits - 2)));
  const rows = Math.ceil(cells.length / columns);
  return Array.from({ length: rows }, (_, row) =>
    Array.from({ length: columns }, (_, column) => (cells[column * rows + row] ?? "").padEnd(width))
      .join("")
      .trimEnd(),
  );
}

/** The bits of a code, a space between fields. */
function bitsText(f: NumberFormat, code: number): string {
  const bits = code.toString(2).padStart(f.bits, "0");
  let at = 0;
  return f.fields.map((field) => bits.slice(at, (at += field.bits))).join(" ");
}

interface Explained {
  readonly input: number;
  readonly code: number;
  readonly bits: string;
  readonly value: number;
  readonly error: number;
  /** The finite values next to the input, where the format has a table; null beyond its ends. */
  readonly below: number | null;
  readonly above: number | null;
}

function explain(f: NumberFormat, input: number): Explained {
  const code = f.encode(input);
  const value = f.decode(code);
  const values = f.order?.values;
  let below: number | null = null;
  let above: number | null = null;
  if (values !== undefined && !Number.isNaN(input)) {
    const first = values.findIndex((v) => v >= input);
    above = first < 0 ? null : values[first];
    const last = values.findLastIndex((v) => v <= input);
    below = last < 0 ? null : values[last];
  }
  return { input, code, bits: bitsText(f, code), value, error: value - input, below, above };
}

function explainText(f: NumberFormat, e: Explained): string {
  const neighbour = (value: number | null): string => (value === null ? "none" : show(value));
  return [
    `${show(e.input)} in ${f.name}`,
    `code   0x${e.code.toString(16).padStart(Math.ceil(f.bits / 4), "0")} = ${e.bits}  (${fieldsText(f)})`,
    `value  ${show(e.value)}`,
    ...(Number.isFinite(e.error)
      ? [`error  ${show(e.error)}${e.input === 0 ? "" : ` (${((100 * Math.abs(e.error)) / Math.abs(e.input)).toPrecision(3)}%)`}`]
      : []),
    ...(f.order === null || Number.isNaN(e.input) ? [] : [`between ${neighbour(e.below)} and ${neighbour(e.above)}`]),
    "",
  ].join("\n");
}
