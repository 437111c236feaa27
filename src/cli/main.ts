#!/usr/bin/env node
// The command `lowbit`: finds the command, runs it, turns errors into one clear line and an exit code. Signals abort
// the work, which leaves nothing behind; a second signal ends the process at once.
import { readFileSync } from "node:fs";
import { constants } from "node:os";
import { isLowbitError } from "../../formats/core/errors.ts";
import { nearest } from "../../formats/registry.ts";
import { json } from "./report.ts";
import { standardOutput } from "./stdout.ts";
import type { CliContext, CommandSpec } from "./spec.ts";
import { COLUMNS, EXIT, commandHelp, parseCommand, usageError, wrapped } from "./spec.ts";

/** Loaded when asked for: `lowbit formats` needs no ONNX. */
const COMMANDS: Readonly<Record<string, () => Promise<CommandSpec>>> = {
  quantize: async () => (await import("./commands/quantize.ts")).quantizeCommand,
  inspect: async () => (await import("./commands/inspect.ts")).inspectCommand,
  calibrate: async () => (await import("./commands/calibrate.ts")).calibrateCommand,
  merge: async () => (await import("./commands/merge.ts")).mergeCommand,
  verify: async () => (await import("./commands/verify.ts")).verifyCommand,
  bench: async () => (await import("./commands/bench.ts")).benchCommand,
  convert: async () => (await import("./commands/convert.ts")).convertCommand,
  formats: async () => (await import("./commands/formats.ts")).formatsCommand,
  vectors: async () => (await import("./commands/vectors.ts")).vectorsCommand,
  compare: async () => (await import("./commands/compare.ts")).compareCommand,
  "search-bench": async () => (await import("./commands/search-bench.ts")).searchBenchCommand,
};

/** Errors that only a mistaken command line brings about. */
const USAGE_CODES: readonly string[] = ["E_CLI", "E_FORMAT_UNKNOWN"];

const SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP"] as const;

/** The version of the package: package.json is two folders up from both src/cli and dist/esm. */
const version = (): string =>
  (JSON.parse(readFileSync(new URL("../../package.json", import.meta.url), "utf8")) as { version: string }).version;

async function help(): Promise<string> {
  const commands = await Promise.all(Object.values(COMMANDS).map((load) => load()));
  const rows = commands.map((command) => [`lowbit ${[command.name, ...command.positionals].join(" ")}`, command.summary]);
  const width = Math.max(...rows.map(([left]) => left.length));
  return [
    "lowbit: low-precision number formats and ONNX quantization",
    "",
    ...rows.map(([left, right]) => `  ${left.padEnd(width)}  ${wrapped(right, COLUMNS - width - 4, width + 4)}`),
    "",
    "lowbit COMMAND --help lists the options of a command. All take --json, --debug, --help and --version.",
    "Exit codes: 0 ok, 1 failed, 2 usage, 3 verification failed.",
    "",
  ].join("\n");
}

async function dispatch(argv: readonly string[], context: CliContext): Promise<number> {
  const [name, ...rest] = argv;
  if (name === undefined)
    throw usageError(`lowbit: expected a command, got none. One of ${Object.keys(COMMANDS).join(", ")}; see lowbit --help.`);
  if (name === "--version" || name === "-v") {
    context.print(`${version()}\n`);
    return EXIT.ok;
  }
  if (name === "--help" || name === "-h" || name === "help") {
    const topic = rest.find((word) => Object.hasOwn(COMMANDS, word));
    context.print(topic === undefined ? await help() : commandHelp(await COMMANDS[topic]()));
    return EXIT.ok;
  }
  if (!Object.hasOwn(COMMANDS, name)) {
    const known = Object.keys(COMMANDS);
    throw usageError(
      name.startsWith("-")
        ? `${name}: expected a command first (${known.join(", ")}), got an option. See lowbit --help.`
        : `${name}: expected a command (${known.join(", ")}), got an unknown one. Did you mean lowbit ${nearest(name, known)[0]}?`,
    );
  }
  const command = await COMMANDS[name]();
  // Help and version need no sound command line around them.
  const options = rest.includes("--") ? rest.slice(0, rest.indexOf("--")) : rest;
  if (options.includes("--help") || options.includes("-h")) {
    context.print(commandHelp(command));
    return EXIT.ok;
  }
  if (options.includes("--version")) {
    context.print(`${version()}\n`);
    return EXIT.ok;
  }
  return command.run(parseCommand(command, rest), context);
}

function report(error: unknown, argv: readonly string[], signal: NodeJS.Signals | undefined, print: (text: string) => void): number {
  const known = isLowbitError(error);
  const code = known ? error.code : "E_UNEXPECTED";
  const message = error instanceof Error ? error.message : String(error);
  const exit =
    signal !== undefined
      ? 128 + constants.signals[signal]
      : USAGE_CODES.includes(code)
        ? EXIT.usage
        : code === "E_VERIFY"
          ? EXIT.verification
          : EXIT.failed;
  const text = known
    ? `${code}: ${message}`
    : `${code}: ${message}\nThis is a defect in lowbit. Run again with --debug and report what it prints.`;
  process.stderr.write(`lowbit: ${argv.includes("--debug") && error instanceof Error ? `${text}\n${stacks(error)}` : text}\n`);
  if (argv.includes("--json")) print(json({ error: { code, message }, exitCode: exit }));
  return exit;
}

/** The stack of an error and of what caused it. */
function stacks(error: Error): string {
  const cause = error.cause instanceof Error ? `\ncaused by ${stacks(error.cause)}` : "";
  return `${error.stack ?? error.message}${cause}`;
}

async function main(argv: readonly string[]): Promise<void> {
  const controller = new AbortController();
  let signal: NodeJS.Signals | undefined;
  for (const name of SIGNALS)
    process.on(name, () => {
      if (signal !== undefined) process.exit(128 + constants.signals[name]);
      signal = name;
      controller.abort(new Error(name));
    });
  const output = standardOutput();
  const context: CliContext = { signal: controller.signal, print: (text) => output.print(text) };
  try {
    process.exitCode = await dispatch(argv, context);
  } catch (error) {
    process.exitCode = report(error, argv, signal, (text) => output.print(text));
  }
  // A runtime that was interrupted in the middle of its work would keep the process alive.
  if (signal !== undefined) process.exit();
  const failure = await output.settled();
  // What went wrong before the result was written says more.
  if (failure !== undefined) process.exitCode = process.exitCode || report(failure, [], undefined, () => undefined);
}

await main(process.argv.slice(2));
