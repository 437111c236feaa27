// Runs of test files for scripts/mutate.ts: vitest, with the mutants written in behind switches and the runner of
// test/mutants/runner.ts. What a run finds is in its journal, also where a mutant ended the process.
import { createHash } from "node:crypto";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join, relative } from "node:path";
import { createVitest, type TestSpecification, type Vitest } from "vitest/node";
import { BaseSequencer } from "vitest/node";
import type { Entry, Plan } from "../test/mutants/runner.ts";
import { withSwitches, type Mutant } from "./mutants.ts";

export const hashOf = (text: string): string => createHash("sha256").update(text).digest("hex").slice(0, 16);

/** One file after the other, in the order that was asked for. */
class AsAsked extends BaseSequencer {
  override sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    return Promise.resolve(files);
  }
}

export interface Runs {
  readonly files: readonly string[];
  /** Runs test files by their plans, in order. @returns what the journal says, and whether vitest saw a failure */
  run(plans: ReadonlyMap<string, Plan>, mutant?: number): Promise<{ entries: Entry[]; failed: string[]; error: string }>;
  close(): Promise<void>;
}

export interface RunsOptions {
  readonly root: string;
  /** A folder for plan and journal. */
  readonly work: string;
  /** Folders or files of tests, from the root. */
  readonly tests: readonly string[];
  readonly mutants: readonly Mutant[];
  /** Files by their path from the root, as the mutants were drawn from them. */
  readonly sources: ReadonlyMap<string, string>;
  /** Milliseconds of tests in one process that a mutant may cost. */
  readonly budget: number;
}

export async function openRuns({ root, work, tests, mutants, sources, budget }: RunsOptions): Promise<Runs> {
  const byFile = new Map<string, { id: number; mutant: Mutant }[]>();
  mutants.forEach((mutant, id) => byFile.set(mutant.file, [...(byFile.get(mutant.file) ?? []), { id, mutant }]));
  const [plan, journal] = [join(work, "plan.json"), join(work, "journal.jsonl")];
  Object.assign(process.env, {
    LOWBIT_MUTANT: "-1",
    LOWBIT_MUTANT_COUNT: String(mutants.length),
    LOWBIT_MUTANT_PLAN: plan,
    LOWBIT_MUTANT_JOURNAL: journal,
    LOWBIT_MUTANT_BUDGET_MS: String(budget),
    TEST_FILE_LIMIT_MS: "900000",
  });
  const plugin = {
    name: "mutants",
    enforce: "pre" as const,
    transform(_: string, id: string) {
      const file = relative(root, id.split("?")[0]);
      const chosen = byFile.get(file);
      // the text that the sample was drawn from: someone may edit the file meanwhile
      return chosen === undefined ? undefined : { code: withSwitches(sources.get(file)!, chosen), map: null };
    },
  };
  const vitest: Vitest = await createVitest(
    "test",
    {
      root,
      config: false,
      watch: false,
      include: tests.map((t) => (t.endsWith(".ts") ? t : `${t}/**/*.test.ts`)),
      exclude: [],
      pool: "forks",
      maxWorkers: 1,
      fileParallelism: false,
      execArgv: ["--max-old-space-size=3000"],
      sequence: { sequencer: AsAsked },
      runner: join(root, "test/mutants/runner.ts"),
      reporters: [{}],
      testTimeout: 600_000,
      hookTimeout: 120_000,
      setupFiles: [join(root, "test/setup.ts"), join(root, "test/mutants/setup.ts")],
      onConsoleLog: () => false,
    },
    { plugins: [plugin], logLevel: "silent" },
  );
  const specs = await vitest.globTestSpecifications();
  return {
    files: specs.map((s) => s.moduleId),
    async run(plans, mutant = -1) {
      writeFileSync(plan, JSON.stringify(Object.fromEntries(plans)));
      writeFileSync(journal, "");
      process.env.LOWBIT_MUTANT = String(mutant);
      const chosen = [...plans.keys()].map((file) => specs.find((s) => s.moduleId === file)!);
      const { testModules } = await vitest.runTestSpecifications(chosen);
      const bad = testModules.filter((m) => !m.ok());
      const errors = bad.flatMap((m) => [...m.errors(), ...[...m.children.allTests("failed")].flatMap((t) => t.result().errors ?? [])]);
      return { entries: entriesOf(journal), failed: bad.map((m) => m.moduleId), error: errors[0]?.message ?? "" };
    },
    close: () => vitest.close(),
  };
}

function entriesOf(journal: string): Entry[] {
  const lines = readFileSync(journal, "utf8").split("\n").filter(Boolean);
  return lines.map((line) => JSON.parse(line) as Entry);
}

/** What a test file reaches, as it was found once. */
export interface Reach {
  /** Of the test file, and of all mutants: where one differs the file is run again. */
  readonly key: string;
  /** Mutants that run while the file loads or in hooks: each needs a process of its own. */
  readonly loaded: number[];
  readonly tests: { name: string; ms: number; ids: number[] }[];
}

/** What is known from earlier runs: reach by test file, and by mutant the test that found it. */
export interface Known {
  reach: Record<string, Reach>;
  killed: Record<string, { source: string; test: string; testKey: string }>;
}

export function readKnown(path: string): Known {
  if (!existsSync(path)) return { reach: {}, killed: {} };
  return JSON.parse(readFileSync(path, "utf8")) as Known;
}
