// lowbit vectors: operands and results of operations in a format, for test benches of hardware.
import { arithmetic } from "../../../formats/core/arithmetic.ts";
import { hexCode } from "../../../formats/core/explain.ts";
import { vectorArity, type TestVector, type VectorOperation } from "../../../formats/core/test-vectors.ts";
import type { EncodeOptions, NumberFormat } from "../../../formats/core/types.ts";
import { writeFileWhole } from "../../interop/source.ts";
import { DEFINE_OPTION, scalarOf } from "../formats.ts";
import { POLICIES, policies } from "../policies.ts";
import { json } from "../report.ts";
import { EXIT, numberOption, usageError, type CommandSpec } from "../spec.ts";

/** Codes of all vectors of an operation, at most: they are held until they are written. */
const CODES_MAX = 1e7;

const OPERATIONS: readonly VectorOperation[] = ["add", "sub", "mul", "div", "fma", "sqrt", "dot"];

export const vectorsCommand: CommandSpec = {
  name: "vectors",
  summary: "Test vectors of a format: operands and results of add, mul, fma, dot ..., each rounded once from its exact result.",
  positionals: ["[NAME]"],
  options: {
    op: { value: "LIST", help: `operations: ${OPERATIONS.join(", ")} (default add,mul)` },
    count: { value: "N", help: "vectors of each operation, at most (default 1000); where all operands are fewer, each comes once" },
    seed: { value: "N", help: "seed of the drawn operands (default 1)" },
    length: { value: "N", help: "dot: codes of one vector (default 4)" },
    define: DEFINE_OPTION,
    ...POLICIES,
    readmemh: {
      value: "FILE",
      help: "write them for Verilog's $readmemh: a word a line, first operand in the highest bits, result in the lowest",
    },
    force: { short: "f", help: "overwrite FILE" },
  },
  notes: `Corner cases come first: zeros, ends, ones, the smallest values, infinities, NaN and their neighbours. With several operations FILE gets the name of each: FILE of
vectors.hex is vectors.add.hex, vectors.mul.hex. Without --readmemh the vectors are printed as CSV, in hexadecimal codes.
  lowbit vectors float8_e4m3fn --op add,mul --count 10000 --readmemh vectors.hex
  lowbit vectors posit8_es2 --op fma --count 20`,
  async run(args, context) {
    const f = scalarOf(args, "vectors");
    const positive = (n: number): boolean => Number.isSafeInteger(n) && n > 0;
    const operations = operationsOf(args.text("op") ?? "add,mul");
    const count = numberOption(args, "count", "a positive integer", positive);
    const seed = numberOption(args, "seed", "an integer of at least 0", (n) => Number.isSafeInteger(n) && n >= 0);
    const length = numberOption(args, "length", "a positive integer", positive) ?? 4;
    for (const operation of operations) {
      const codes = vectorArity(operation, length) + 1;
      const most = Math.floor(CODES_MAX / codes);
      if (Math.min(count ?? 1000, 2 ** (f.bits * (codes - 1))) > most)
        throw usageError(
          `--count: expected at most ${most} vectors of ${operation}, ${codes} codes each, got ${count ?? 1000}. Other --seeds give more.`,
        );
    }
    const options = policies(args);
    const made = operations.map((operation) => ({
      operation,
      vectors: [
        ...arithmetic(f, options).vectors(operation, {
          ...(count === undefined ? {} : { count }),
          ...(seed === undefined ? {} : { seed }),
          length,
        }),
      ],
    }));
    const file = args.text("readmemh");
    const files = file === undefined ? [] : operations.map((operation) => nameOf(file, operation, operations.length));
    for (const [i, { operation, vectors }] of made.entries())
      if (file !== undefined)
        await writeFileWhole(files[i], [new TextEncoder().encode(memory(f, operation, vectors, length, options))], args.flag("force"));
    if (args.json) context.print(json({ command: "vectors", format: f.name, bits: f.bits, files, operations: made }));
    else if (file !== undefined)
      context.print(made.map(({ operation, vectors }, i) => `${files[i]}: ${vectors.length} vectors of ${operation}\n`).join(""));
    else context.print(made.map(({ operation, vectors }) => csv(f, operation, vectors, length)).join("\n"));
    return EXIT.ok;
  },
};

function operationsOf(text: string): VectorOperation[] {
  const names = text.split(",").map((word) => word.trim());
  const wrong = names.find((name) => !OPERATIONS.includes(name as VectorOperation));
  if (wrong !== undefined) throw usageError(`--op: expected some of ${OPERATIONS.join(", ")}, got ${JSON.stringify(wrong)}.`);
  return [...new Set(names)] as VectorOperation[];
}

/** out.hex of several operations: out.add.hex, out.mul.hex. */
function nameOf(file: string, operation: string, operations: number): string {
  if (operations === 1) return file;
  const dot = /\.[^./\\]+$/.exec(file)?.index ?? file.length;
  return `${file.slice(0, dot)}.${operation}${file.slice(dot)}`;
}

function columns(operation: VectorOperation, length: number): string[] {
  if (operation !== "dot") return ["a", "b", "c"].slice(0, vectorArity(operation));
  return ["a", "b"].flatMap((name) => Array.from({ length }, (_, i) => `${name}${i}`));
}

function csv(f: NumberFormat, operation: VectorOperation, vectors: readonly TestVector[], length: number): string {
  const rows = vectors.map(({ operands, result }) => [...operands, result].map((code) => hexCode(code, f.bits)).join(","));
  return [[...columns(operation, length), operation].join(","), ...rows, ""].join("\n");
}

function memory(
  f: NumberFormat,
  operation: VectorOperation,
  vectors: readonly TestVector[],
  length: number,
  options: EncodeOptions,
): string {
  const names = [...columns(operation, length), "result"];
  const bits = names.length * f.bits;
  const word = ({ operands, result }: TestVector): string =>
    [...operands, result]
      .reduce((all, code) => (all << BigInt(f.bits)) | BigInt(code), 0n)
      .toString(16)
      .padStart(Math.ceil(bits / 4), "0");
  const rounding = options.rounding ?? f.defaults.rounding;
  return [
    `// ${f.name} ${operation}, ${rounding}, overflow ${options.overflow ?? f.defaults.overflow}: ${vectors.length} words of ${bits} bits`,
    `// {${names.join(", ")}}, ${f.bits} bits each`,
    ...vectors.map(word),
    "",
  ].join("\n");
}
