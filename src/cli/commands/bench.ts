// lowbit bench: how fast models run, in one or several runtimes, in turn.
import { benchModels, type BenchCell, type BenchReport } from "../../onnx/verify/bench.ts";
import { RUNTIME_NAMES } from "../../onnx/verify/table.ts";
import { progressLine } from "../progress.ts";
import { count, json, size, table } from "../report.ts";
import type { CommandSpec, ParsedArgs } from "../spec.ts";
import { EXIT, numberOption } from "../spec.ts";
import { dimsOf, inputsOf, runtimesOf } from "./verify.ts";

export const benchCommand: CommandSpec = {
  name: "bench",
  summary: "Measures models side by side: latency, tokens per second, memory, load time, in every runtime asked for.",
  positionals: ["MODEL", "[MODEL...]"],
  options: {
    runtimes: { value: "LIST", help: `where to run them: ${RUNTIME_NAMES.join(", ")} (default node)` },
    runs: { short: "n", value: "N", help: "rounds that count, after two that do not (default 20)" },
    inputs: {
      value: "PATH",
      multiple: true,
      help: "data instead of random inputs: .npz, folder, .jsonl, .mjs, or NAME=FILE.npy (repeated)",
    },
    dims: { value: "NAME=N,...", multiple: true, help: "sizes of symbolic dimensions, by name or as INPUT:AXIS" },
    seed: { value: "N", help: "seed of the random inputs (default 1)" },
    generate: { value: "N", help: "decoders: tokens per second over N greedy tokens" },
    threads: { value: "N", help: "threads of the runtime inside an operator" },
  },
  notes: `All models are open at once, each in a process (or browser) of its own, and run in turn, so that other work falls on all alike. The first is what
the others are compared with: x 2 is twice as fast in the same runtime.
  lowbit bench model.onnx model_q4.onnx model_quantized.onnx --runtimes node,web`,
  run: runBench,
};

async function runBench(args: ParsedArgs, context: Parameters<CommandSpec["run"]>[1]): Promise<number> {
  const whole = (name: string, least: number): number | undefined =>
    numberOption(args, name, `a whole number from ${least}`, (n) => Number.isInteger(n) && n >= least && n < 2 ** 32);
  const runtimes = runtimesOf(args);
  const [runs, seed, threads, generate] = [whole("runs", 1), whole("seed", 0), whole("threads", 1), whole("generate", 1)];
  const dims = dimsOf(args);
  const inputs = args.flag("inputs") ? await inputsOf(args.all("inputs")) : undefined;
  const progress = progressLine();
  let report: BenchReport;
  try {
    report = await benchModels(args.positionals, {
      onCell: ({ model, runtime }) => progress.note(`${model} in ${runtime}`),
      ...(runtimes && { runtimes }),
      ...(runs && { runs }),
      ...(seed !== undefined && { seed }),
      ...(threads && { threads }),
      ...(generate && { generate }),
      ...(dims && { dims }),
      ...(inputs && { inputs }),
    });
  } finally {
    progress.clear();
  }
  if (args.json) context.print(json({ command: "bench", ...report }));
  else context.print(benchText(report));
  return report.cells.some(({ error }) => error !== undefined) ? EXIT.failed : EXIT.ok;
}

const ms = (value: number): string => (Number.isNaN(value) ? "" : value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0));

function benchRow(cell: BenchCell): string[] {
  return [
    cell.model,
    cell.runtime,
    count(cell.fileBytes),
    ms(cell.loadMs),
    ms(cell.firstMs),
    ms(cell.medianMs),
    ms(cell.p95Ms),
    Number.isNaN(cell.ratio) ? "" : cell.ratio.toFixed(2),
    cell.tokensPerSecond === undefined ? "" : cell.tokensPerSecond.toFixed(1),
    cell.peakBytes === null ? "" : size(cell.peakBytes),
  ];
}

export function benchText({ cells, runs, random, inputs }: BenchReport): string {
  const titles = ["model", "runtime", "bytes", "load ms", "first ms", "median ms", "p95 ms", "x", "tokens/s", "memory"];
  const about = new Set(
    cells.map(({ runtime, version, note }) => `${runtime}: version ${version}${note === undefined ? "" : `, ${note}`}`),
  );
  const failed = cells.flatMap(({ model, runtime, error }) => (error === undefined ? [] : [`${model} in ${runtime}: ${error}`]));
  const shapes = Object.entries(inputs).map(([name, dims]) => `${name} [${dims.join(", ")}]`);
  return [
    table(
      titles.map((title, i) => ({ title, ...(i > 1 ? { right: true } : {}) })),
      cells.map(benchRow),
    ),
    "",
    `${runs} rounds in turn, ${random ? "random " : ""}inputs ${shapes.join("; ")}`,
    ...about,
    ...failed,
    "",
  ].join("\n");
}
