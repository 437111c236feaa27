// Runs vitest suites where vitest does not run: collects and runs them with vitest's own runner and returns plain
// results.
import { startTests, type File, type Task, type VitestRunner } from "@vitest/runner";

export interface SuiteResult {
  readonly passed: number;
  readonly skipped: readonly string[];
  /** Milliseconds of the tests that took over two seconds. */
  readonly slow: readonly { readonly test: string; readonly ms: number }[];
  readonly failed: readonly { readonly test: string; readonly errors: readonly string[] }[];
}

const title = (task: Task): string =>
  task.suite === undefined ? `${task.file.name} > ${task.name}` : `${title(task.suite as Task)} > ${task.name}`;

type Mutable<T> = { -readonly [K in keyof T]: T[K] extends readonly (infer E)[] ? E[] : T[K] };

function collect(tasks: readonly Task[], out: Mutable<SuiteResult>): void {
  for (const task of tasks) {
    const errors = (task.result?.errors ?? []).map((e) => `${e.message}\n${e.stack ?? ""}`);
    if (errors.length > 0 || (task.type === "test" && task.result?.state === "fail")) out.failed.push({ test: title(task), errors });
    else if (task.type === "test") {
      if (task.result?.state === "pass") out.passed++;
      else out.skipped.push(title(task));
    }
    const ms = task.result?.duration ?? 0;
    if (task.type === "test" && ms > 2000) out.slow.push({ test: title(task), ms });
    if (task.type === "suite") collect(task.tasks, out);
  }
}

/** Runs suites given by name and import function, one after the other; an empty suite is a failure. */
export async function runSuites(suites: Readonly<Record<string, () => Promise<unknown>>>): Promise<SuiteResult> {
  const runner: VitestRunner = {
    config: {
      root: "/",
      setupFiles: [],
      name: undefined,
      passWithNoTests: false,
      testNamePattern: undefined,
      allowOnly: false,
      sequence: { seed: 1, hooks: "stack", setupFiles: "list" },
      chaiConfig: undefined,
      maxConcurrency: 1,
      testTimeout: 120_000,
      hookTimeout: 120_000,
      retry: 0,
      includeTaskLocation: false,
      tags: [],
      tagsFilter: undefined,
      strictTags: false,
    },
    async importFile(path, source) {
      if (source === "collect") await suites[path.slice(1)]();
    },
  };
  const out: Mutable<SuiteResult> = { passed: 0, skipped: [], slow: [], failed: [] };
  const files: File[] = await startTests(
    Object.keys(suites).map((name) => `/${name}`),
    runner,
  );
  collect(files, out);
  return out;
}
