// The runner of scripts/mutate.ts, in the process of a file of tests. Three modes:
//   reach: which mutants does the file reach when it loads (and in hooks), which does each test reach, in what time?
//   rerun: each test that reaches living mutants runs once as it is, then once per mutant, in this same process;
//          after a test that found one it runs as it is again: what fails then was spoiled, and is left to "fresh"
//   fresh: one mutant from the start of the process, for several files; the first failing test ends it
// What happens is appended to a journal, line by line: a process that a mutant kills or hangs leaves it readable.
import { appendFileSync, readFileSync } from "node:fs";
import { Worker } from "node:worker_threads";
import { TestRunner, type RunnerTask, type RunnerTestFile } from "vitest";

type Test = Parameters<TestRunner["onBeforeTryTask"]>[0];

/** What scripts/mutate.ts asks of a file, and what the journal says. */
export interface Plan {
  readonly mode: "reach" | "rerun" | "fresh";
  /** By test, which mutants to run and its time; in fresh mode without a list all tests run. */
  readonly tests?: Record<string, { ms: number; ids: number[] }>;
}
export type Entry =
  | { kind: "loaded" | "hooks"; file: string; ids: number[] }
  | { kind: "test"; file: string; name: string; ms: number; ids: number[] }
  | { kind: "begin" | "hang" | "spoiled"; file: string; name: string; id: number }
  | { kind: "killed"; file: string; name: string; id: number; text: string }
  | { kind: "survived"; file: string; name: string; id: number; ms: number; hit: boolean }
  | { kind: "unfit"; file: string; name: string; text: string }
  | { kind: "end"; file: string };

interface Switch {
  on: number;
  readonly reached: Uint8Array;
}

const env = process.env;
const journal = env.LOWBIT_MUTANT_JOURNAL!;
const budget = Number(env.LOWBIT_MUTANT_BUDGET_MS);
const plans = JSON.parse(readFileSync(env.LOWBIT_MUTANT_PLAN!, "utf8")) as Record<string, Plan>;
const switches = ((globalThis as { __lowbitMutant?: Switch }).__lowbitMutant ??= {
  on: Number(env.LOWBIT_MUTANT),
  reached: new Uint8Array(Number(env.LOWBIT_MUTANT_COUNT)),
});

const write = (entry: Entry): void => appendFileSync(journal, `${JSON.stringify(entry)}\n`);
const textOf = (error: unknown): string => String(error instanceof Error ? error.message : error).slice(0, 120);

function takeReached(): number[] {
  const ids: number[] = [];
  switches.reached.forEach((r, id) => r && ids.push(id));
  switches.reached.fill(0);
  return ids;
}

function nameOf(task: RunnerTask): string {
  const above = task.suite ? `${nameOf(task.suite)} > ` : "";
  const tasks: RunnerTask[] = task.suite?.tasks ?? task.file.tasks;
  const twins = tasks.filter((t) => t.name === task.name);
  return above + task.name + (twins.length > 1 ? ` #${twins.indexOf(task)}` : "");
}

/**
 * Milliseconds of a test: of the processor, which others on the machine do not lengthen, or a part of the wait for
 * child processes.
 */
function stopwatch(): () => number {
  const [begin, used] = [performance.now(), process.cpuUsage()];
  return () => {
    const { user, system } = process.cpuUsage(used);
    return Math.max((user + system) / 1000, (performance.now() - begin) / 8);
  };
}

/** Ends the process where one try takes more processor time than its limit: a loop without end does not end itself. */
const clock = new Int32Array(new SharedArrayBuffer(8));
const guard = `
const { workerData } = require("node:worker_threads");
let [last, since] = [-1, 0];
setInterval(() => {
  const now = Atomics.load(workerData, 0);
  if (now !== last) [last, since] = [now, process.cpuUsage().user];
  else if (Atomics.load(workerData, 1) > 0 && process.cpuUsage().user - since > Atomics.load(workerData, 1) * 1000)
    process.kill(process.pid, "SIGKILL");
}, 100);`;
new Worker(guard, { eval: true, workerData: clock, execArgv: [] }).unref();

/** Runs `f` within limits of processor time and, in ticks that a stopped process does not count, of waiting. */
async function within<T>(ms: number, f: () => Promise<T>): Promise<T> {
  Atomics.store(clock, 1, Math.min(2 ** 30, ms));
  Atomics.add(clock, 0, 1);
  let [left, timer] = [ms / 50, undefined as NodeJS.Timeout | undefined];
  const waited = new Promise<never>((_, reject) => {
    timer = setInterval(() => --left < 0 && reject(new Error(`waited for more than ${ms} ms`)), 100);
  });
  try {
    return await Promise.race([f(), waited]);
  } finally {
    clearInterval(timer);
    Atomics.store(clock, 1, 0);
  }
}

export default class MutantRunner extends TestRunner {
  private dead = new Set<number>();
  private spent = new Map<number, number>();
  private path = "";
  private plan: Plan = { mode: "reach" };

  onCollected(files: RunnerTestFile[]): void {
    this.path = files[0].filepath;
    this.plan = plans[this.path];
    if (this.plan.mode === "reach") write({ kind: "loaded", file: this.path, ids: takeReached() });
    for (const line of readFileSync(journal, "utf8").split("\n").filter(Boolean)) {
      const entry = JSON.parse(line) as Entry;
      if (entry.kind === "killed" || entry.kind === "spoiled" || entry.kind === "hang") this.dead.add(entry.id);
      if (entry.kind === "survived") this.spent.set(entry.id, (this.spent.get(entry.id) ?? 0) + entry.ms);
    }
    if (this.plan.tests !== undefined) this.choose(files[0]);
  }

  /** Quick tests first; those that nobody asked for do not run. @returns whether any is left */
  private choose(suite: RunnerTestFile | RunnerTask): boolean {
    const time = (task: RunnerTask): number => ("tasks" in task ? Math.min(...task.tasks.map(time), 1e9) : (this.plan.tests![nameOf(task)]?.ms ?? 1e9)); // prettier-ignore
    if (!("tasks" in suite)) {
      const wanted = Object.hasOwn(this.plan.tests!, nameOf(suite));
      if (!wanted) suite.mode = "skip";
      return wanted;
    }
    const any = suite.tasks.map((task) => this.choose(task)).includes(true);
    suite.tasks.sort((a, b) => time(a) - time(b));
    if (!any) suite.mode = "skip";
    return any;
  }

  async runTask(test: Test): Promise<void> {
    const name = nameOf(test);
    const once = (): Promise<void> => Promise.resolve(TestRunner.getTestFn(test)()).then(() => undefined);
    if (this.plan.mode === "reach") {
      write({ kind: "hooks", file: this.path, ids: takeReached() });
      const ms = stopwatch();
      await once();
      write({ kind: "test", file: this.path, name, ms: ms(), ids: takeReached() });
    } else if (this.plan.mode === "fresh") await this.fresh(name, once);
    else await this.rerun(name, once);
  }

  private async fresh(name: string, once: () => Promise<void>): Promise<void> {
    if (this.dead.size > 0) return;
    const id = switches.on;
    write({ kind: "begin", file: this.path, name, id });
    try {
      await within(30_000 + 10 * (this.plan.tests?.[name]?.ms ?? 3000), once);
    } catch (error) {
      this.dead.add(id);
      write({ kind: "killed", file: this.path, name, id, text: textOf(error) });
      throw error;
    }
  }

  private async rerun(name: string, once: () => Promise<void>): Promise<void> {
    const { ids, ms } = this.plan.tests![name];
    const limit = 5000 + 8 * ms;
    const living = ids.filter((id) => !this.dead.has(id) && (this.spent.get(id) ?? 0) < budget);
    if (living.length === 0) return;
    const fails = async (): Promise<string | undefined> => {
      try {
        return void (await within(limit, once));
      } catch (error) {
        return textOf(error);
      }
    };
    const text = await fails();
    if (text !== undefined) return write({ kind: "unfit", file: this.path, name, text });
    for (const id of living) {
      write({ kind: "begin", file: this.path, name, id });
      takeReached();
      const spent = stopwatch();
      switches.on = id;
      const killed = await fails();
      switches.on = -1;
      const ran = spent();
      if (killed === undefined) {
        this.spent.set(id, (this.spent.get(id) ?? 0) + ran);
        write({ kind: "survived", file: this.path, name, id, ms: ran, hit: switches.reached[id] === 1 });
        continue;
      }
      this.dead.add(id);
      const spoiled = (await fails()) !== undefined;
      write(spoiled ? { kind: "spoiled", file: this.path, name, id } : { kind: "killed", file: this.path, name, id, text: killed });
      // what is spoiled stays so: a new process goes on with the rest
      if (spoiled) process.kill(process.pid, "SIGKILL");
    }
  }

  override async onAfterRunFiles(): Promise<void> {
    if (this.plan.mode === "reach") write({ kind: "hooks", file: this.path, ids: takeReached() });
    write({ kind: "end", file: this.path });
    await super.onAfterRunFiles();
  }
}
