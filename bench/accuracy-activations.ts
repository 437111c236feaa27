// npm run bench -- accuracy-activations [case ...] [--choose] [--keep=FOLDER]: kjv-llama with weights and activations
// of few bits: files written by quantizeModel whose activations are quantized as the integer products of this library
// do it (low-bit-model.ts), run by onnxruntime-node; perplexity of text that neither calibration nor any choice saw.
// Orders of channels and weights come from 128 windows of 256 calibration tokens. --choose compares the forms of a case
// (`other`) on further training text instead. --keep: files of cases stay in the folder and are not made again.
// `runtime`: the same weights in lowbit/runtime with integer products, beside the file, over some windows; fmpq-model:
// a model by the pass gather-outliers, in lowbit/runtime, over all of them.
import { existsSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { cpus, loadavg } from "node:os";
import { join } from "node:path";
import { scratchFolder } from "../scripts/scratch.mjs";
import { wasm } from "../src/index.ts";
import { quantizeModel, type QuantizeModelOptions } from "../src/onnx/index.ts";
import { loadModel } from "../src/runtime/index.ts";
import { perplexity, perplexityOf } from "../test/onnx/perplexity.ts";
import { loadKjv, type Kjv } from "./kjv.ts";
import { cachedModel, channelMagnitudes, lowBitModel, withoutRounding, type LowBitActivations, type LowBitModel } from "./low-bit-model.ts";

interface Form {
  readonly weights: QuantizeModelOptions | null;
  readonly activations: LowBitActivations;
}

interface Row extends Form {
  readonly id: string;
  readonly bound?: number;
  /** Also with keys and values of 4 bits, which may add this much. */
  readonly cache?: number;
  /** Activations of the runtime's products that are those of the file. */
  readonly runtime?: "int4" | "int6" | "int8";
  readonly other?: readonly Form[];
}

const int4: QuantizeModelOptions = { dtype: "q4", algorithm: "gptq" };
const asymmetric: QuantizeModelOptions = { dtype: "q4", symmetric: false, algorithm: "gptq" };
const int6 = (block: number, algorithm: string): QuantizeModelOptions => ({
  format: `int6_b${block}`,
  target: "stored",
  algorithm: algorithm as "gptq",
});
const mixed = { bits: 4, block: 32, wideShare: 0.16 };

const ROWS: readonly Row[] = [
  { id: "w4a8", weights: asymmetric, activations: { bits: 8, block: 32 }, runtime: "int8" },
  { id: "w4a4", weights: asymmetric, activations: { bits: 4, block: 32 }, runtime: "int4" },
  {
    id: "fmpq",
    weights: asymmetric,
    activations: mixed,
    bound: 24.9,
    cache: 0.05,
    other: [
      { weights: int4, activations: mixed },
      { weights: asymmetric, activations: { ...mixed, hadamard: 32 } },
      { weights: asymmetric, activations: { bits: 4, block: 32, hadamard: 32 } },
    ],
  },
  { id: "kv4", weights: null, activations: { bits: 16, block: 32 }, cache: 0.05 },
  {
    id: "w6a6",
    weights: int6(32, "gptq"),
    activations: { bits: 6, block: 32 },
    bound: 24.48,
    runtime: "int6",
    other: [{ weights: int6(128, "gptq"), activations: { bits: 6, block: 128 } }],
  },
  { id: "w6a6-128", weights: int6(128, "gptq"), activations: { bits: 6, block: 128 }, bound: 24.48, runtime: "int6" },
  { id: "w6a8", weights: int6(128, "gptq"), activations: { bits: 8, block: 128 }, bound: 24.48, runtime: "int8" },
];

const WINDOWS = 128;
const BATCH = 8;
/** Windows that the runtime runs. */
const RUN = 8;

export async function accuracyActivations(args: readonly string[]): Promise<void> {
  const only = args.filter((arg) => !arg.startsWith("--"));
  const ids = [...ROWS.map(({ id }) => id), MODEL];
  const unknown = only.filter((id) => !ids.includes(id));
  if (unknown.length > 0)
    throw new Error(`accuracy-activations: expected cases of ${ids.join(", ")}, or --choose, got ${unknown.join(", ")}`);
  const kjv = loadKjv();
  const keep = args.find((arg) => arg.startsWith("--keep="))?.slice("--keep=".length);
  const folder = keep ?? scratchFolder("activations");
  console.log(`${cpus()[0].model}, ${cpus().length} threads, node ${process.version}, load ${loadavg()[0].toFixed(1)}`);
  try {
    const magnitudes = await magnitudesOf(kjv, folder);
    for (const row of ROWS.filter(({ id }) => only.length === 0 || only.includes(id))) {
      if (!args.includes("--choose")) await evaluate(row, kjv, folder, magnitudes);
      else
        for (const form of [row, ...(row.other ?? [])]) {
          const path = join(folder, "form.onnx");
          rmSync(path, { force: true });
          await write(form, path, kjv, magnitudes);
          const { weights, activations } = form;
          console.log(`${row.id.padEnd(9)} on held-out training text ${(await perplexity(path, kjv.heldOut, Infinity)).toFixed(4)}   ${JSON.stringify({ weights, activations })}`); // prettier-ignore
        }
    }
    if (!args.includes("--choose") && (only.length === 0 || only.includes(MODEL))) await mixedModel(kjv, folder);
  } finally {
    if (keep === undefined) rmSync(folder, { recursive: true, force: true });
  }
}

const MODEL = "fmpq-model";

/** What a user does: quantizeModel with the pass, loadModel with int4 activations. */
async function mixedModel(kjv: Kjv, folder: string): Promise<void> {
  const path = join(folder, `${MODEL}.onnx`);
  const options: QuantizeModelOptions = {
    ...asymmetric,
    passes: [{ name: "gather-outliers", block: mixed.block, share: mixed.wideShare }],
    opTypes: ["MatMul"],
  };
  if (!existsSync(path)) {
    const { notes } = await quantizeModel(kjv.path, path, { ...options, calibration: kjv.feeds(WINDOWS, BATCH) });
    for (const note of notes.filter((text) => text.startsWith("gather-outliers"))) console.log(`          ${note}`);
  }
  const backend = await wasm();
  for (const activations of ["int4", "int8"] as const) {
    const session = await loadModel(path, { backend, activations });
    const result = await perplexityOf(
      async (ids, dims) => (await session.run({ ids: { type: "int64", data: ids, dims } })).logits.data as Float32Array,
      kjv.evaluation,
      Infinity,
    );
    const verdict = activations === "int4" ? ` (at most 24.9: ${result <= 24.9 ? "met" : "MISSED"})` : "";
    console.log(`${MODEL} in lowbit/runtime, ${activations} activations: perplexity ${result.toFixed(4)}${verdict}`);
    await session.release();
  }
  backend.dispose();
}

/** Of calibration data; kept in the folder. */
async function magnitudesOf(kjv: Kjv, folder: string): Promise<Magnitudes> {
  const path = join(folder, "magnitudes.json");
  if (existsSync(path))
    return new Map((JSON.parse(readFileSync(path, "utf8")) as [string, number[]][]).map(([name, of]) => [name, Float64Array.from(of)]));
  const found = await channelMagnitudes(readFileSync(kjv.path), kjv.feeds(WINDOWS, BATCH));
  writeFileSync(path, JSON.stringify([...found].map(([name, of]) => [name, [...of]])));
  return found;
}

type Magnitudes = ReadonlyMap<string, Float64Array>;

/** The file of a form, unless it is there: activations first, so that weights are made for them. */
async function write({ weights, activations }: Form, path: string, kjv: Kjv, magnitudes: Magnitudes): Promise<LowBitModel> {
  const low = lowBitModel(readFileSync(kjv.path), magnitudes, activations);
  if (existsSync(path)) return low;
  if (weights === null) {
    writeFileSync(path, low.bytes);
    return low;
  }
  const rounded = `${path}.rounded.onnx`;
  writeFileSync(rounded, low.bytes);
  const rest: QuantizeModelOptions = activations.hadamard ? { exclude: ["*/rotated"] } : {};
  await quantizeModel(rounded, path, { opTypes: ["MatMul"], ...rest, ...weights, calibration: kjv.feeds(WINDOWS, BATCH) });
  rmSync(rounded);
  return low;
}

/** Keys behind the rotary embedding, and values. */
const KEYS_AND_VALUES = /\.k\/rope$|\.v\/t$/;

async function evaluate(row: Row, kjv: Kjv, folder: string, magnitudes: Magnitudes): Promise<void> {
  const { id, weights, activations, bound, cache } = row;
  const path = join(folder, `${id}.onnx`);
  const { blocks, wide } = await write(row, path, kjv, magnitudes);
  const result = await perplexity(path, kjv.evaluation, Infinity);
  const verdict = bound === undefined ? "" : ` (at most ${bound}: ${result <= bound ? "met" : "MISSED"})`;
  console.log(
    `${id.padEnd(9)} perplexity ${result.toFixed(4)}${verdict}, ${((100 * (blocks - wide)) / blocks).toFixed(1)} % of ${blocks} blocks of ${activations.block} channels have ${activations.bits} bits   ${JSON.stringify({ ...weights, target: undefined })}`,
  );
  if (cache !== undefined) {
    const other = join(folder, "cached.onnx");
    writeFileSync(other, cachedModel(readFileSync(path), KEYS_AND_VALUES));
    const more = (await perplexity(other, kjv.evaluation, Infinity)) - result;
    console.log(`          keys and values of 4 bits add ${more.toFixed(4)} (at most ${cache}: ${more <= cache ? "met" : "MISSED"})`);
  }
  if (row.runtime !== undefined) await beside(row, path, kjv, folder);
}

/** The file's weights without its rounding of activations, which the runtime's products do. */
async function beside({ id, runtime }: Row, path: string, kjv: Kjv, folder: string): Promise<void> {
  const plain = join(folder, "plain.onnx");
  writeFileSync(plain, withoutRounding(readFileSync(path)));
  const backend = await wasm();
  const session = await loadModel(plain, { backend, activations: runtime! });
  const own = await perplexityOf(
    async (ids, dims) => (await session.run({ ids: { type: "int64", data: ids, dims } })).logits.data as Float32Array,
    kjv.evaluation,
    RUN,
  );
  const file = await perplexity(path, kjv.evaluation, RUN);
  console.log(
    `          ${id} over ${RUN} windows: lowbit/runtime with ${runtime} activations ${own.toFixed(4)}, the file in onnxruntime ${file.toFixed(4)}`,
  );
  await session.release();
  backend.dispose();
}
