// Runs of test files for scripts/mutate.ts: vitest, with the mutants written in behind switches and the runner of
// test/mutants/runner.ts. What a run finds is in its journal, also where a mutant ended the process.
import { createHash } from "node:crypto";
import { existsSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { join, relative } from "node:path";
import { createVitest, type TestSpecification, type Vitest } from "vitest/node";
import { BaseSequencer } from "vitest/node";
import type { Entry, Plan } from "../test/mutants/runner.ts";
import { bundles } from "./mutants-bundle.ts";
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
  /**
   * Runs test files by their plans in one process, in order, until one finds its mutant. @returns what the journal says,
   * and where vitest saw a failure
   */
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
  // the text that the sample was drawn from: someone may edit the file meanwhile
  const changed = (file: string): string | undefined =>
    byFile.has(file) ? withSwitches(sources.get(file)!, byFile.get(file)!) : undefined;
  // inside the root, where packages are found
  const folder = mkdtempSync(join(root, ".cache/mutate/bundles-"));
  process.once("exit", () => rmSync(folder, { recursive: true, force: true }));
  const bundleOf = await bundles(root, folder, testFiles(root, tests), changed);
  const setups = await bundles(
    root,
    folder,
    ["test/setup.ts", "test/mutants/setup.ts"].map((f) => join(root, f)),
    changed,
  );
  const vitest: Vitest = await createVitest(
    "test",
    {
      root,
      config: false,
      watch: false,
      include: [...bundleOf.values()].map((file) => relative(root, file)),
      exclude: [],
      pool: "forks",
      maxWorkers: 1,
      fileParallelism: false,
      isolate: false,
      bail: 1,
      execArgv: ["--max-old-space-size=3000"],
      sequence: { sequencer: AsAsked },
      runner: join(root, "test/mutants/runner.ts"),
      reporters: [{}],
      testTimeout: 600_000,
      hookTimeout: 120_000,
      setupFiles: [...setups.values()],
      server: { deps: { external: [/\.cache\/mutate\/bundles-/] } },
      onConsoleLog: () => false,
    },
    { logLevel: "silent" },
  );
  const specs = await vitest.globTestSpecifications();
  const testOf = new Map([...bundleOf].map(([test, bundle]) => [bundle, test]));
  return {
    files: [...bundleOf.keys()],
    async run(plans, mutant = -1) {
      writeFileSync(plan, JSON.stringify(Object.fromEntries([...plans].map(([file, p]) => [bundleOf.get(file), p]))));
      process.env.LOWBIT_MUTANT = String(mutant);
      const chosen = [...plans.keys()].map((file) => specs.find((s) => s.moduleId === bundleOf.get(file))!);
      for (let attempt = 1; ; attempt++) {
        writeFileSync(journal, "");
        const { testModules } = await vitest.runTestSpecifications(chosen);
        const entries = entriesOf(journal).map((entry): Entry => ({ ...entry, file: testOf.get(entry.file)! }));
        // on a machine under load a process may not come up in time, which says nothing of a mutant
        if (entries.length === 0 && attempt < 3) continue;
        // of these files alone: what failed in an earlier run is still listed
        const bad = testModules.filter((m) => !m.ok() && chosen.some(({ moduleId }) => moduleId === m.moduleId));
        const errors = bad.flatMap((m) => [...m.errors(), ...[...m.children.allTests("failed")].flatMap((t) => t.result().errors ?? [])]);
        return { entries, failed: bad.map((m) => testOf.get(m.moduleId)!), error: errors[0]?.message ?? "" };
      }
    },
    close: () => vitest.close(),
  };
}

/** All files of tests below some paths. */
export function testFiles(root: string, tests: readonly string[]): string[] {
  const found = tests.flatMap((t) => {
    if (t.endsWith(".ts")) return [join(root, t)];
    const below = readdirSync(join(root, t), { recursive: true }) as string[];
    return below.filter((f) => f.endsWith(".test.ts")).map((f) => join(root, t, f));
  });
  return found.sort();
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

/** What is known from earlier runs: reach by test file; by mutant the test file that found it, and those that did not. */
export interface Known {
  reach: Record<string, Reach>;
  missed: Record<string, { source: string; tests: Record<string, string> }>;
  killed: Record<string, { source: string; test: string; testKey: string }>;
  /** The largest budget of a run that missed. */
  budget?: number;
}

export function readKnown(path: string): Known {
  if (!existsSync(path)) return { reach: {}, missed: {}, killed: {} };
  // a store of an earlier version has no list of those that were missed
  const known = JSON.parse(readFileSync(path, "utf8")) as Omit<Known, "missed"> & Partial<Known>;
  return { ...known, missed: known.missed ?? {} };
}
