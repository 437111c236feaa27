// npm run fuzz -- onnx|safetensors|gguf|npz|registry|search-index|checkpoint|tfjs-model [--runs 10000] [--seed 1] [--from 0] [--run]: runs
// damaged inputs with budgets (test/fuzz/fuzz.ts).
//   --run: models that run in onnxruntime-node before must run after. Findings are written to out/fuzz; those that are
//   mended move to test/fixtures/fuzz. The runs are in a process of their own: what hangs is ended, what crashes is
//   known by its number, and the next process goes on behind it.
import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdirSync, writeFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { Worker } from "node:worker_threads";
import type { Finding } from "../test/fuzz/fuzz.ts";
import { BUDGET, check, inputOf } from "../test/fuzz/fuzz.ts";
import { TARGETS } from "../test/fuzz/targets/index.ts";
import { runs as runsInRuntime } from "../test/fuzz/runtime.ts";

const root = fileURLToPath(new URL("..", import.meta.url));
const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    runs: { type: "string", default: "10000" },
    seed: { type: "string", default: "1" },
    from: { type: "string", default: "0" },
    run: { type: "boolean", default: false },
    child: { type: "boolean", default: false },
  },
});
const [name = ""] = positionals;
const target = Object.hasOwn(TARGETS, name) ? TARGETS[name] : undefined;
if (target === undefined) {
  console.error(`fuzz: expected one of ${Object.keys(TARGETS).join(", ")}, got ${name === "" ? "nothing" : name}.`);
  process.exit(2);
}
const [runs, seed, from] = [values.runs, values.seed, values.from].map(Number);

/**
 * Ends this process where a run takes more processor time than its budget and a second: a loop without end does not end
 * by itself.
 */
function watch(): Int32Array {
  const now = new Int32Array(new SharedArrayBuffer(4));
  const code = `
const { workerData } = require("node:worker_threads");
let [last, since] = [-1, process.cpuUsage()];
setInterval(() => {
  if (workerData[0] !== last) [last, since] = [workerData[0], process.cpuUsage()];
  else if (process.cpuUsage(since).user > ${(BUDGET.seconds + 1) * 1e6}) {
    require("node:fs").writeSync(1, "hang " + last + "\\n");
    process.kill(process.pid, "SIGKILL");
  }
}, 100);`;
  new Worker(code, { eval: true, workerData: now, execArgv: [] }).unref();
  return now;
}

/**
 * Runs from..runs, one line of output a thing that happened: "at i", "before i", "after i", "finding i JSON", "done".
 */
async function child(): Promise<void> {
  const now = watch();
  const say = (line: string): void => {
    for (let rest = Buffer.from(`${line}\n`); rest.length > 0;)
      try {
        rest = rest.subarray(writeSync(1, rest));
      } catch (error) {
        // a pipe whose reader has no time is full: no finding
        if ((error as NodeJS.ErrnoException).code !== "EAGAIN") throw error;
        Atomics.wait(now, 0, Atomics.load(now, 0), 10);
      }
  };
  let good = 0;
  for (let i = from; i < runs; i++) {
    Atomics.store(now, 0, i);
    say(`at ${i}`);
    const { finding, result, error } = await check(target!, inputOf(target!, seed, i));
    if (finding !== null) say(`finding ${i} ${JSON.stringify([finding.kind, finding.text])}`);
    if (finding === null && error === undefined) good++;
    if (result === undefined || !values.run) continue;
    say(`before ${i}`);
    if (!(await runsInRuntime(result.before)).ok) continue;
    say(`after ${i}`);
    const { ok, text } = await runsInRuntime(result.after);
    if (!ok) say(`finding ${i} ${JSON.stringify(["runtime", text])}`);
  }
  say(`done ${good}`);
}

const findings: Finding[] = [];
function found(index: number, kind: Finding["kind"], text: string): void {
  const input = inputOf(target!, seed, index);
  findings.push({ target: name, kind, text, input });
  const folder = join(root, "out/fuzz");
  mkdirSync(folder, { recursive: true });
  const file = join(folder, `${name}-${createHash("sha256").update(input).digest("hex").slice(0, 12)}`);
  writeFileSync(file, input);
  console.log(`run ${index}: ${kind}, ${input.length} bytes in ${file}\n  ${text.split("\n").slice(0, 6).join("\n  ")}`);
}

/** One process. @returns where the next one goes on, or undefined at the end */
function process1(start: number): Promise<number | undefined> {
  return new Promise((resolve) => {
    const args = [
      "--import",
      "tsx",
      fileURLToPath(import.meta.url),
      name,
      "--child",
      "--runs",
      String(runs),
      "--seed",
      String(seed),
      "--from",
      String(start),
      ...(values.run ? ["--run"] : []),
    ];
    const running = spawn(process.execPath, args, { cwd: root, stdio: ["ignore", "pipe", "inherit"] });
    let rest = "";
    let at = ["at", String(start)];
    let hung = false;
    running.stdout.setEncoding("utf8").on("data", (text: string) => {
      const lines = (rest + text).split("\n");
      rest = lines.pop()!;
      for (const line of lines) {
        const [what, index, ...more] = line.split(" ");
        if (what === "finding") found(Number(index), ...(JSON.parse(more.join(" ")) as [Finding["kind"], string]));
        else if (what === "hang") {
          hung = true;
          // The runtime's own time with the original is no finding.
          if (at[0] !== "before")
            found(Number(index), "hang", `more than ${BUDGET.seconds} s of processor time${at[0] === "after" ? " in the runtime" : ""}`);
        } else if (what === "done") at = [what, index];
        else if (what === "at" || what === "before" || what === "after") at = [what, index];
      }
    });
    running.on("close", (code, signal) => {
      if (at[0] === "done") {
        console.log(`${runs - start} runs of ${name}, seed ${seed}: ${at[1]} inputs were taken, ${findings.length} findings`);
        resolve(undefined);
        return;
      }
      // A crash of the runtime on the original is its own.
      if (!hung && at[0] !== "before")
        found(Number(at[1]), at[0] === "after" ? "runtime" : "exception", `the process ended: ${signal ?? code}`);
      resolve(Number(at[1]) + 1);
    });
  });
}

if (values.child) await child();
else {
  for (let next: number | undefined = from; next !== undefined && next < runs;) next = await process1(next);
  process.exitCode = findings.length > 0 ? 1 : 0;
}
