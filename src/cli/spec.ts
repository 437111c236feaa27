// What a command line looks like: each command is data (options, help), from which parsing, --help and docs/cli.md's
// options are derived. Parsing is node:util parseArgs by tokens; mistakes become E_CLI with the nearest option.
import { parseArgs } from "node:util";
import { LowbitError } from "../../formats/core/errors.ts";
import { nearest } from "../../formats/registry.ts";

export interface OptionSpec {
  readonly short?: string;
  /** Name of its value in help; without one the option is a switch. */
  readonly value?: string;
  /** May be given more than once. */
  readonly multiple?: boolean;
  readonly help: string;
}

export interface CommandSpec {
  readonly name: string;
  readonly summary: string;
  /** Positional arguments; a name in brackets may be left out, and the last one repeated where it ends in "...". */
  readonly positionals: readonly string[];
  readonly options: Readonly<Record<string, OptionSpec>>;
  /** Text after the options in --help. */
  readonly notes: string;
  /** Runs the command; returns the exit code. */
  run(args: ParsedArgs, context: CliContext): Promise<number>;
}

export interface ParsedArgs {
  readonly positionals: readonly string[];
  readonly json: boolean;
  flag(name: string): boolean;
  text(name: string): string | undefined;
  all(name: string): readonly string[];
}

export interface CliContext {
  /** Aborted by SIGINT, SIGTERM or SIGHUP. */
  readonly signal: AbortSignal;
  /** Writes a result to stdout. */
  print(text: string): void;
}

/** Options that every command has. */
export const COMMON_OPTIONS: Readonly<Record<string, OptionSpec>> = {
  json: { help: "print one JSON document on stdout, nothing else" },
  debug: { help: "print stack traces of errors" },
  help: { short: "h", help: "print this text" },
  version: { help: "print the version" },
};

/** Exit codes; docs/cli.md lists them. A signal gives 128 + its number. */
export const EXIT = { ok: 0, failed: 1, usage: 2, verification: 3 } as const;

export const usageError = (message: string): LowbitError => new LowbitError("E_CLI", message);

/** Options as they are typed: -o OUT, --json. */
const shown = (name: string, option: OptionSpec): string =>
  `${option.short === undefined ? "" : `-${option.short}, `}--${name}${option.value === undefined ? "" : ` ${option.value}`}`;

/** A value that looks like an option was probably not meant as one; numbers below zero are. */
const looksLikeOption = (text: string): boolean => /^-[^\d.]/.test(text);

/** Parses the arguments after the command's name. @throws LowbitError E_CLI */
export function parseCommand(command: CommandSpec, argv: readonly string[]): ParsedArgs {
  const specs: Record<string, OptionSpec> = { ...command.options, ...COMMON_OPTIONS };
  const { tokens } = parseArgs({
    args: [...argv],
    options: Object.fromEntries(
      Object.entries(specs).map(([name, spec]) => [
        name,
        { type: spec.value === undefined ? "boolean" : "string", ...(spec.short === undefined ? {} : { short: spec.short }) },
      ]),
    ),
    strict: false,
    allowPositionals: true,
    tokens: true,
  });
  const help = `See lowbit ${command.name} --help.`;
  const values = new Map<string, string[]>();
  const positionals: string[] = [];
  for (const token of tokens) {
    if (token.kind === "positional") positionals.push(token.value);
    if (token.kind !== "option") continue;
    const spec = Object.hasOwn(specs, token.name) ? specs[token.name] : undefined;
    if (spec === undefined) {
      const near = token.name.length > 1 ? `Did you mean --${nearest(token.name, Object.keys(specs))[0]}? ` : "";
      throw usageError(`${token.rawName}: expected an option of lowbit ${command.name}, got an unknown one. ${near}${help}`);
    }
    if (spec.value === undefined) {
      if (token.value !== undefined) throw usageError(`--${token.name}: expected no value, got ${JSON.stringify(token.value)}. ${help}`);
    } else if (token.value === undefined || token.value === "" || (!token.inlineValue && looksLikeOption(token.value))) {
      const got = token.value ? `${token.value} (for a value that begins with a dash write --${token.name}=VALUE)` : "none";
      throw usageError(`--${token.name}: expected a value ${spec.value}, got ${got}. ${help}`);
    }
    const given = values.get(token.name);
    if (given !== undefined && !spec.multiple && spec.value !== undefined)
      throw usageError(`--${token.name}: expected it once, got it again with ${JSON.stringify(token.value)}. ${help}`);
    values.set(token.name, [...(given ?? []), token.value ?? ""]);
  }
  const required = command.positionals.filter((name) => !name.startsWith("["));
  const wanted = command.positionals.join(" ");
  if (positionals.length < required.length) {
    const got = positionals.length === 0 ? "nothing" : positionals.join(" ");
    throw usageError(`lowbit ${command.name}: expected ${wanted}, got ${got}. ${help}`);
  }
  const open = command.positionals.at(-1)?.endsWith("...]") ?? false;
  if (positionals.length > command.positionals.length && !open) {
    const extra = positionals.slice(command.positionals.length).join(" ");
    throw usageError(`lowbit ${command.name}: expected ${wanted}, got also ${extra}. ${help}`);
  }
  return {
    positionals,
    json: values.has("json"),
    flag: (name) => values.has(name),
    text: (name) => values.get(name)?.[0],
    all: (name) => values.get(name) ?? [],
  };
}

/** A number option. @throws LowbitError E_CLI */
export function numberOption(args: ParsedArgs, name: string, what: string, accept: (value: number) => boolean): number | undefined {
  const text = args.text(name);
  if (text === undefined) return undefined;
  const value = Number(text);
  if (text.trim() === "" || Number.isNaN(value) || !accept(value))
    throw usageError(`--${name}: expected ${what}, got ${JSON.stringify(text)}.`);
  return value;
}

/** Columns of a help text; examples stay on their lines. */
export const COLUMNS = 100;

/** Words in lines of at most so many columns; `indent` spaces open all but the first. */
export function wrapped(text: string, columns: number, indent = 0): string {
  const lines = [""];
  for (const word of text.split(" ")) {
    const last = lines[lines.length - 1];
    if (last === "") lines[lines.length - 1] = word;
    else if (last.length + 1 + word.length <= columns) lines[lines.length - 1] = `${last} ${word}`;
    else lines.push(word);
  }
  return lines.join(`\n${" ".repeat(indent)}`);
}

/** Notes: lines of prose flow together, examples (which begin with spaces) and what is behind them do not. */
function paragraphs(notes: string): string {
  const parts: string[] = [];
  for (const line of notes.split("\n"))
    if (line.startsWith(" ") || parts.length === 0 || parts[parts.length - 1].startsWith(" ")) parts.push(line);
    else parts[parts.length - 1] += ` ${line}`;
  return parts.map((part) => (part.startsWith(" ") ? part : wrapped(part, COLUMNS))).join("\n");
}

/** The text of `lowbit COMMAND --help`. */
export function commandHelp(command: CommandSpec): string {
  const rows = Object.entries({ ...command.options, ...COMMON_OPTIONS }).map(([name, spec]) => [shown(name, spec), spec.help]);
  const width = Math.max(...rows.map(([left]) => left.length));
  return [
    `lowbit ${[command.name, ...command.positionals].join(" ")} [options]`,
    "",
    wrapped(command.summary, COLUMNS),
    "",
    ...rows.map(([left, right]) => `  ${left.padEnd(width)}  ${wrapped(right, COLUMNS - width - 4, width + 4)}`),
    ...(command.notes === "" ? [] : ["", paragraphs(command.notes)]),
    "",
  ].join("\n");
}
