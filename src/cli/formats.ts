// Formats as the command line names them: by name, or by a definition in JSON.
import { defineFormat } from "../../formats/define/index.ts";
import type { Format, FormatDefinition, NumberFormat } from "../../formats/core/types.ts";
import { format } from "../../formats/registry.ts";
import type { OptionSpec, ParsedArgs } from "./spec.ts";
import { usageError } from "./spec.ts";

export const DEFINE_OPTION: OptionSpec = {
  value: "JSON",
  help: 'a format of your own instead of NAME: {"kind":"float","name":"mine","exponentBits":3,"mantissaBits":2,"specials":"fn","bias":5}',
};

export const isScalar = (f: Format): f is NumberFormat => f.kind !== "block" && f.kind !== "opaque";

/** The format of the first argument, or of --define. @throws LowbitError E_CLI, E_FORMAT, E_FORMAT_UNKNOWN */
export function formatOf(args: ParsedArgs): Format | undefined {
  const [name] = args.positionals;
  const text = args.text("define");
  if (text === undefined) return name === undefined ? undefined : format(name);
  if (name !== undefined) throw usageError(`--define: expected no NAME beside it, got ${name}.`);
  let definition: FormatDefinition;
  try {
    definition = JSON.parse(text) as FormatDefinition;
  } catch (error) {
    throw usageError(`--define: expected a definition in JSON, got ${(error as Error).message}.`);
  }
  return defineFormat(resolved(definition) as FormatDefinition);
}

/** Elements and scales that are given by name become their definitions. @throws LowbitError E_FORMAT_UNKNOWN */
function resolved(part: unknown): unknown {
  if (Array.isArray(part)) return part.map(resolved);
  if (typeof part !== "object" || part === null) return part;
  const named = (key: string, value: unknown): unknown =>
    (key === "element" || key === "format") && typeof value === "string" ? format(value).definition : resolved(value);
  return Object.fromEntries(Object.entries(part).map(([key, value]) => [key, named(key, value)]));
}

/** The same, where only scalar formats will do. */
export function scalarOf(args: ParsedArgs, what: string): NumberFormat {
  const f = formatOf(args);
  if (f === undefined) throw usageError(`${what}: expected the NAME of a format or --define, got neither.`);
  if (!isScalar(f))
    throw usageError(
      `${what}: expected a scalar format, got ${f.name}, where a value depends on its whole block.${f.kind === "block" ? ` Ask for its element ${f.element.name}.` : ""}`,
    );
  return f;
}
