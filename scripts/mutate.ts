// npm run mutate -- FOLDER [--count 400] [--seed 1] [--tests test/FOLDER] [--workers 2] [--ids 3,17]: how many small
// faults do the tests find? A seeded sample of mutants (scripts/mutants.ts) of FOLDER, each run against the test files
// that reach it, quickest first, until one fails. Prints those that survive and the score: found / (all - equivalent).
// Mutants that mean the same as the original are listed in test/mutants/equivalent.json, with the reason.
// Tests that run the built package do not see mutants: what only they reach counts as not reached.
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { createVitest, type TestModule, type TestSpecification, type Vitest } from "vitest/node";
import { mutantsOf, withSwitches, type Mutant } from "./mutants.ts";

const root = fileURLToPath(new URL("..", import.meta.url));
const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    count: { type: "string", default: "400" },
    seed: { type: "string", default: "1" },
    tests: { type: "string" },
    workers: { type: "string", default: "2" },
    ids: { type: "string" },
  },
});
const folder = (positionals[0] ?? "").replace(/\/$/, "");
const tests = values.tests ?? `test/${folder.replace(/^src\//, "")}`;
if (folder === "" || !existsSync(join(root, folder)) || !existsSync(join(root, tests))) {
  console.error("mutate: expected a folder of sources and one of tests, e.g. npm run mutate -- src/tensor --tests test/tensor");
  process.exit(2);
}

/** mulberry32. */
function random(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

const key = (m: Mutant): string => `${m.file}: ${m.original} -> ${m.replacement}`;
const short = (text: string): string => text.replace(/\s+/g, " ").slice(0, 70);
const show = (id: number, m: Mutant): string => `  ${id}  ${m.file}:${m.line}  ${short(m.original)}  ->  ${short(m.replacement)}`;

/** Where a run writes what its test files reached. */
const reachedDir = mkdtempSync(join(tmpdir(), "lowbit-mutants-"));

function sample(): Mutant[] {
  const all: Mutant[] = [];
  for (const path of (readdirSync(join(root, folder), { recursive: true }) as string[]).filter((p) => p.endsWith(".ts")).sort()) {
    const file = join(folder, path);
    if (!/(^|\/)gen\/|\.d\.ts$/.test(file)) all.push(...mutantsOf(file, readFileSync(join(root, file), "utf8")));
  }
  const next = random(Number(values.seed));
  const order = all.map((mutant) => ({ mutant, at: next() })).sort((a, b) => a.at - b.at);
  return order.slice(0, Number(values.count)).map(({ mutant }) => mutant);
}

async function open(mutants: readonly Mutant[]): Promise<Vitest> {
  const byFile = new Map<string, { id: number; mutant: Mutant }[]>();
  mutants.forEach((mutant, id) => byFile.set(mutant.file, [...(byFile.get(mutant.file) ?? []), { id, mutant }]));
  return createVitest(
    "test",
    {
      root,
      config: false,
      watch: false,
      include: [`${tests}/**/*.test.ts`],
      exclude: [],
      pool: "forks",
      maxWorkers: Number(values.workers),
      bail: 1,
      reporters: [{}],
      testTimeout: 120_000,
      hookTimeout: 120_000,
      setupFiles: [join(root, "test/setup.ts"), join(root, "test/mutants/setup.ts")],
      onConsoleLog: () => false,
    },
    {
      plugins: [
        {
          name: "mutants",
          enforce: "pre",
          transform(code: string, id: string) {
            const chosen = byFile.get(relative(root, id.split("?")[0]));
            return chosen === undefined ? undefined : { code: withSwitches(code, chosen), map: null };
          },
        },
      ],
    },
  );
}

/** Runs the files; which modules failed? */
async function run(
  vitest: Vitest,
  specs: TestSpecification[],
  mutant: number,
  limit: number,
): Promise<{ failed: boolean; modules: TestModule[] }> {
  process.env.LOWBIT_MUTANT = String(mutant);
  process.env.TEST_FILE_LIMIT_MS = String(limit);
  const { testModules, unhandledErrors } = await vitest.runTestSpecifications(specs);
  const failed = unhandledErrors.length > 0 || testModules.some((m) => !m.ok() || m.state() === "failed");
  return { failed, modules: testModules };
}

const mutants = sample();
const listed = JSON.parse(readFileSync(join(root, "test/mutants/equivalent.json"), "utf8")) as Record<string, string>;
process.env.LOWBIT_MUTANT_REACHED = reachedDir;
mkdirSync(reachedDir, { recursive: true });
const vitest = await open(mutants);
let code = 0;
try {
  const specs = await vitest.globTestSpecifications();
  const begin = Date.now();
  const whole = await run(vitest, specs, -1, 600_000);
  if (whole.failed) {
    for (const m of whole.modules) if (!m.ok()) console.error(`mutate: ${m.moduleId} fails without a mutant`);
    throw new Error("mutate: expected tests that pass on the code as it is, got failures. Mend them first.");
  }
  const seconds = new Map(whole.modules.map((m) => [m.moduleId, m.diagnostic().duration / 1000]));
  const reach = new Map<number, TestSpecification[]>();
  for (const name of readdirSync(reachedDir)) {
    const { file, ids } = JSON.parse(readFileSync(join(reachedDir, name), "utf8")) as { file: string; ids: number[] };
    const spec = specs.find((s) => s.moduleId === file);
    if (spec !== undefined) for (const id of ids) reach.set(id, [...(reach.get(id) ?? []), spec]);
  }
  delete process.env.LOWBIT_MUTANT_REACHED;
  console.log(
    `${folder}: ${mutants.length} mutants, ${specs.length} files of tests pass without one in ${((Date.now() - begin) / 1000).toFixed(0)} s`,
  );

  const [found, survivors, unreached, equivalent]: number[][] = [[], [], [], []];
  const chosen = values.ids === undefined ? mutants.keys() : values.ids.split(",").map(Number);
  for (const id of chosen) {
    const mutant = mutants[id];
    const files = (reach.get(id) ?? []).sort((a, b) => (seconds.get(a.moduleId) ?? 0) - (seconds.get(b.moduleId) ?? 0));
    if (Object.hasOwn(listed, key(mutant))) {
      equivalent.push(id);
      continue;
    }
    if (files.length === 0) {
      unreached.push(id);
      console.log(`not reached ${show(id, mutant)}`);
      continue;
    }
    let killed = false;
    // one file after the other: most mutants fall at the first
    for (const spec of files) {
      killed = (await run(vitest, [spec], id, 20_000 + 8000 * (seconds.get(spec.moduleId) ?? 1))).failed;
      if (killed) break;
    }
    (killed ? found : survivors).push(id);
    if (!killed) console.log(`survived    ${show(id, mutant)}`);
  }
  const counted = found.length + survivors.length + unreached.length;
  console.log(
    `${folder}: ${found.length} of ${counted} found (${((100 * found.length) / Math.max(1, counted)).toFixed(1)} %), ` +
      `${survivors.length} survived, ${unreached.length} not reached, ${equivalent.length} equivalent; seed ${values.seed}, ` +
      `${((Date.now() - begin) / 60_000).toFixed(1)} min`,
  );
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  code = 1;
} finally {
  await vitest.close();
  rmSync(reachedDir, { recursive: true, force: true });
}
process.exit(code);
