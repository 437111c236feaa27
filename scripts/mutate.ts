// npm run mutate -- FOLDER|FILE [--count 400] [--seed 1] [--tests test/FOLDER,...] [--budget 60] [--match TEXT] [--again]:
// how many small faults do the tests find? A seeded sample of mutants (scripts/mutants.ts) of FOLDER. First, once, which
// tests reach which mutants, and in what time. Then, quickest files first, each test runs in one process once per mutant
// that it reaches, until a test fails. What runs while modules load, what is remembered from an earlier call and what a
// mutant spoiled gets a process of its own. Prints those that survive, and the score: found / (all - equivalent).
//   --budget: seconds of the processor that tests of one mutant may take in one process, 20 if not said; beyond it
//   counts as survived (a later run with a larger budget tries those again)
//   --match: only mutants whose place and change contain TEXT
//   --again: forget the mutants that earlier runs found (kept in .cache/mutate while source and test file are the same)
// Mutants that mean the same as the original are listed in test/mutants/equivalent.json, with the reason.
// Tests that run the built package do not see mutants: what only they reach counts as not reached.
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { random } from "../test/helpers/random.ts";
import { scratchFolder } from "./scratch.mjs";
import type { Entry, Plan } from "../test/mutants/runner.ts";
import { hashOf, openRuns, readKnown, testFiles, type Reach, type Runs } from "./mutants-run.ts";
import { mutantsOf, type Mutant } from "./mutants.ts";

const root = fileURLToPath(new URL("..", import.meta.url));
const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    count: { type: "string", default: "400" },
    seed: { type: "string", default: "1" },
    tests: { type: "string" },
    budget: { type: "string", default: "20" },
    match: { type: "string" },
    again: { type: "boolean", default: false },
  },
});
const folder = (positionals[0] ?? "").replace(/\/$/, "");
const tests = (values.tests ?? `test/${folder.replace(/^src\//, "")}`).split(",");
if (folder === "" || !existsSync(join(root, folder)) || !tests.every((t) => existsSync(join(root, t)))) {
  console.error("mutate: expected a folder of sources and of tests, e.g. npm run mutate -- src/tensor --tests test/tensor");
  process.exit(2);
}

const [sources, hashes] = [new Map<string, string>(), new Map<string, string>()];
const key = (m: Mutant): string => `${m.file}: ${m.original} -> ${m.replacement}`;
const short = (text: string): string => text.replace(/\s+/g, " ").slice(0, 110);
/** As test/mutants/equivalent.json has it: with the text of the line, of two alike on one line with the column in it. */
function placeOf(m: Mutant): string {
  const line = sources.get(m.file)!.split("\n")[m.line - 1];
  const column = m.column - (line.length - line.trimStart().length);
  const alone = line.split(m.original).length === 2;
  return `${m.file}: ${line.trim()}: ${alone ? "" : `${column}: `}${m.original} -> ${m.replacement}`;
}
const show = (m: Mutant): string => `${m.file}:${m.line}:${m.column}  ${short(m.original)}  ->  ${short(m.replacement)}`;

/** Every mutant has a number from the seed and its own text, so that a change elsewhere leaves the sample as it is. */
function sample(): Mutant[] {
  const all: { mutant: Mutant; at: number }[] = [];
  const files = folder.endsWith(".ts") ? [""] : (readdirSync(join(root, folder), { recursive: true }) as string[]);
  for (const path of files.filter((p) => p === "" || p.endsWith(".ts")).sort()) {
    const file = join(folder, path).replace(/\/$/, "");
    if (/(^|\/)gen\/|\.d\.ts$/.test(file)) continue;
    const source = readFileSync(join(root, file), "utf8");
    sources.set(file, source);
    hashes.set(file, hashOf(source));
    const twins = new Map<string, number>();
    for (const mutant of mutantsOf(file, source)) {
      const nth = twins.get(key(mutant)) ?? 0;
      twins.set(key(mutant), nth + 1);
      all.push({ mutant, at: random(parseInt(hashOf(`${values.seed} ${nth} ${key(mutant)}`).slice(0, 8), 16)).next() });
    }
  }
  all.sort((a, b) => a.at - b.at);
  const chosen = all.slice(0, Number(values.count)).map(({ mutant }) => mutant);
  console.log(`${folder}: ${chosen.length} of ${all.length} mutants, seed ${values.seed}`);
  return chosen;
}

const mutants = sample();
const begin = Date.now();
const minutes = (): string => `${((Date.now() - begin) / 60_000).toFixed(1)} min`;
const listed = JSON.parse(readFileSync(join(root, "test/mutants/equivalent.json"), "utf8")) as Record<string, string>;
const store = join(root, ".cache/mutate", `${hashOf([folder, ...tests].join())}.json`);
const known = readKnown(store);
if (values.again) Object.assign(known, { killed: {}, missed: {} });
// what a smaller budget did not find, a larger one may
if (Number(values.budget) > (known.budget ?? 0)) Object.assign(known, { missed: {}, budget: Number(values.budget) });
const save = (): void => writeFileSync(store, JSON.stringify(known));
// as they are now, when they are put together: someone may edit them while they run
const testKeys = new Map(testFiles(root, tests).map((file) => [file, hashOf(readFileSync(file, "utf8"))]));
const testKey = (file: string): string => testKeys.get(file) ?? "";
const idKey = (id: number): string => hashOf(`${mutants[id].start} ${key(mutants[id])}`);
const setKey = hashOf(mutants.map((m, id) => idKey(id) + hashes.get(m.file)).join());

/** Which tests reach what; files that are known from an earlier run are not run again. */
async function reachOf(runs: Runs): Promise<Map<string, Reach>> {
  const reach = new Map<string, Reach>();
  const keyOf = (file: string): string => hashOf(testKey(file) + setKey);
  const unknown = runs.files.filter((file) => known.reach[file]?.key !== keyOf(file));
  for (const file of unknown) {
    const { entries, failed, error } = await runs.run(new Map([[file, { mode: "reach" } as Plan]]));
    if (failed.length > 0 || entries.at(-1)?.kind !== "end") {
      console.error(`mutate: ${relative(root, file)} fails without a mutant: left out. ${short(error)}`);
      continue;
    }
    const found = entries.filter((e): e is Extract<Entry, { kind: "test" }> => e.kind === "test");
    const loaded = entries.flatMap((e) => (e.kind === "loaded" || e.kind === "hooks" ? e.ids : []));
    known.reach[file] = { key: keyOf(file), loaded: [...new Set(loaded)], tests: found.map(({ name, ms, ids }) => ({ name, ms, ids })) };
    save();
  }
  for (const file of runs.files) if (known.reach[file]?.key === keyOf(file)) reach.set(file, known.reach[file]);
  const seconds = [...reach.values()].reduce((sum, r) => sum + r.tests.reduce((s, t) => s + t.ms, 0) / 1000, 0);
  console.log(`${reach.size} files of tests, ${seconds.toFixed(0)} s of tests; reach known after ${minutes()}`);
  return reach;
}

const killed = new Set<number>();
/** How many mutants a test file found: of a source file, and (by the test file alone) in processes of their own. */
const finds = new Map<string, number>();
const count = (key: string): void => void finds.set(key, (finds.get(key) ?? 0) + 1);
function kill(id: number, file: string): void {
  killed.add(id);
  count(`${mutants[id].file} ${file}`);
  known.killed[idKey(id)] = { source: hashes.get(mutants[id].file)!, test: file, testKey: testKey(file) };
  save();
}

/** A test file did not find a mutant, in a run of the file or in one of the mutant alone. */
function miss(id: number, file: string, way: "file" | "alone"): void {
  const source = hashes.get(mutants[id].file)!;
  const before = known.missed[idKey(id)];
  const entry = before?.source === source ? before : { source, tests: {} };
  known.missed[idKey(id)] = entry;
  entry.tests[`${way} ${file}`] = testKey(file);
}
function missedBefore(id: number, file: string, way: "file" | "alone"): boolean {
  const entry = known.missed[idKey(id)];
  return entry?.source === hashes.get(mutants[id].file) && entry.tests[`${way} ${file}`] === testKey(file);
}

/** All tests again, mutant by mutant. @returns those that need a process of their own, and tests that fail on their own */
async function rerun(runs: Runs, reach: Map<string, Reach>, living: number[]): Promise<{ fresh: Set<number>; unfit: Set<string> }> {
  const [fresh, unfit] = [new Set<number>(), new Set<string>()];
  const missed = new Set<number>();
  const costOf = (r: Reach): number => r.tests.reduce((s, t) => s + t.ms * t.ids.filter((id) => living.includes(id)).length, 0);
  const order = [...reach].sort(([, a], [, b]) => costOf(a) - costOf(b));
  for (const [file, { tests }] of order) {
    let whole = true;
    for (;;) {
      const open = (id: number): boolean => living.includes(id) && !killed.has(id) && !fresh.has(id) && !missedBefore(id, file, "file");
      const wanted = tests
        .map((t) => ({ ...t, ids: t.ids.filter(open) }))
        .filter((t) => t.ids.length > 0 && !unfit.has(`${file} ${t.name}`));
      if (wanted.length === 0) break;
      const plan: Plan = { mode: "rerun", tests: Object.fromEntries(wanted.map(({ name, ms, ids }) => [name, { ms, ids }])) };
      const { entries } = await runs.run(new Map([[file, plan]]));
      for (const e of entries) {
        if (e.kind === "killed") kill(e.id, file);
        if (e.kind === "spoiled") fresh.add(e.id);
        if (e.kind === "survived" && !e.hit) missed.add(e.id);
        if (e.kind === "unfit") unfit.add(`${file} ${e.name}`);
      }
      const last = entries.at(-1);
      // the process ended in the middle of a mutant: it hangs, or takes all memory
      if (last?.kind === "begin") kill(last.id, file);
      else if (last?.kind !== "spoiled") {
        whole = last?.kind === "end";
        break;
      }
    }
    if (!whole) console.error(`mutate: ${relative(root, file)} did not run to its end: its mutants are left to others`);
    else
      for (const id of new Set(tests.flatMap((t) => t.ids)))
        if (living.includes(id) && !killed.has(id) && !fresh.has(id) && !missed.has(id)) miss(id, file, "file");
    save();
  }
  for (const id of missed) if (!killed.has(id)) fresh.add(id);
  if (unfit.size > 0)
    console.log(`${unfit.size} tests fail when run alone, and are left out: ${[...unfit].map((u) => relative(root, u)).join("; ")}`);
  return { fresh, unfit };
}

/** One mutant in a process of its own, with all files that reach it. */
async function alone(runs: Runs, reach: Map<string, Reach>, id: number, unfit: Set<string>): Promise<void> {
  const files: { file: string; ms: number; plan: Plan }[] = [];
  for (const [file, { loaded, tests }] of reach) {
    const reached = tests.filter((t) => t.ids.includes(id) && !unfit.has(`${file} ${t.name}`));
    if (!loaded.includes(id) && reached.length === 0) continue;
    const chosen = loaded.includes(id) ? undefined : Object.fromEntries(reached.map(({ name, ms, ids }) => [name, { ms, ids }]));
    const ms = (loaded.includes(id) ? tests : reached).reduce((s, t) => s + t.ms, 0);
    files.push({ file, ms, plan: { mode: "fresh", tests: chosen } });
  }
  // what is likely to find it in little time comes first
  const worth = ({ file, ms }: { file: string; ms: number }): number =>
    (1 + 5 * (finds.get(`${mutants[id].file} ${file}`) ?? 0) + (finds.get(file) ?? 0)) / (300 + ms);
  files.sort((a, b) => worth(b) - worth(a));
  let left = Number(values.budget) * 1000;
  const within = files.filter(({ ms }, i) => (left -= ms) >= 0 || i === 0).filter(({ file }) => !missedBefore(id, file, "alone"));
  const firstToFind = async (some: typeof within): Promise<number> => {
    const { entries, failed } = await runs.run(new Map(some.map(({ file, plan }) => [file, plan])), id);
    return some.findIndex(({ file }) => {
      const own = entries.filter((entry) => entry.file === file);
      return failed.includes(file) || own.at(-1)?.kind !== "end" || own.some(({ kind }) => kind === "killed");
    });
  };
  for (let todo = within, many = 4; todo.length > 0; many = todo.length) {
    const some = todo.slice(0, many);
    const at = await firstToFind(some);
    // what the files before it left behind may make a file fail: alone it tells
    if (at === 0 || (at > 0 && (await firstToFind([some[at]])) === 0)) {
      count(some[at].file);
      return kill(id, some[at].file);
    }
    const done = at < 0 ? some : some.slice(0, at + 1);
    for (const { file } of done) miss(id, file, "alone");
    save();
    todo = todo.slice(done.length);
  }
}

/** 95 % interval of a share (Wilson 1927). */
function interval(found: number, all: number): string {
  const [z, p] = [1.96, found / Math.max(1, all)];
  const [middle, half] = [p + (z * z) / (2 * all), z * Math.sqrt((p * (1 - p)) / all + (z * z) / (4 * all * all))];
  return [middle - half, middle + half].map((x) => ((100 * x) / (1 + (z * z) / all)).toFixed(1)).join(" to ");
}

async function main(runs: Runs): Promise<void> {
  const reach = await reachOf(runs);
  const reached = new Set([...reach.values()].flatMap((r) => [...r.loaded, ...r.tests.flatMap((t) => t.ids)]));
  const loaded = new Set([...reach.values()].flatMap((r) => r.loaded));
  const equivalent: number[] = [];
  let remembered = 0;
  const living = [...mutants.keys()].filter((id) => {
    if (values.match !== undefined && !show(mutants[id]).includes(values.match)) return false;
    if (Object.hasOwn(listed, placeOf(mutants[id]))) return void equivalent.push(id);
    const before = known.killed[idKey(id)];
    if (before?.source === hashes.get(mutants[id].file) && existsSync(before.test) && before.testKey === testKey(before.test))
      return void (remembered++, killed.add(id), count(`${mutants[id].file} ${before.test}`));
    return reached.has(id);
  });
  const { fresh, unfit } = await rerun(runs, reach, living);
  console.log(`${killed.size} found (${remembered} known from before), after ${minutes()}`);
  for (const id of living) if (!killed.has(id) && (fresh.has(id) || loaded.has(id))) await alone(runs, reach, id, unfit);
  const all = [...mutants.keys()].filter((id) => values.match === undefined || show(mutants[id]).includes(values.match));
  const left = all.filter((id) => !killed.has(id) && !equivalent.includes(id));
  for (const id of left) console.log(`${reached.has(id) ? "survived   " : "not reached"} ${show(mutants[id])}`);
  const counted = killed.size + left.length;
  const unreached = left.filter((id) => !reached.has(id)).length;
  console.log(
    `${folder}: ${killed.size} of ${counted} found, ${((100 * killed.size) / Math.max(1, counted)).toFixed(1)} % ` +
      `(95 %: ${interval(killed.size, counted)}), ${left.length - unreached} survived, ${unreached} not reached, ` +
      `${equivalent.length} equivalent; seed ${values.seed}, ${minutes()}`,
  );
}

mkdirSync(join(root, ".cache/mutate"), { recursive: true });
const work = scratchFolder("mutants");
// a test that a mutant ends leaves its folders: they go with this run, or the next
for (const name of ["TMPDIR", "TEMP", "TMP"]) process.env[name] = work;
process.once("SIGTERM", () => {
  rmSync(work, { recursive: true, force: true });
  process.exit(1);
});
// a message to a process that a mutant has just ended is lost, which its journal tells
process.on("uncaughtException", (error: NodeJS.ErrnoException) => {
  if (error.code !== "EPIPE" && error.code !== "ERR_IPC_CHANNEL_CLOSED") {
    console.error(error);
    process.exit(1);
  }
});
let runs: Runs | undefined;
let code = 0;
try {
  runs = await openRuns({ root, work, tests, mutants, sources, budget: Number(values.budget) * 1000 });
  await main(runs);
} catch (error) {
  console.error(error);
  code = 1;
} finally {
  await runs?.close();
  rmSync(work, { recursive: true, force: true });
}
process.exit(code);
