// The worker of the playground: opens, quantizes, runs and compares models, all in this browser.
import {
  quantizeModelBytes,
  readModelBytes,
  recipeOf,
  reportHtml,
  summarizeModel,
  useRuntime,
  writeModelBytes,
  worstHistograms,
  type FeedTensor,
  type Feeds,
  type QuantizeOptions,
  type QuantizeReport,
  type ReportContent,
} from "../../../src/onnx/index.ts";
import { checkFeeds, modelInputs, nestedFeed, sampleFeeds } from "../../../src/onnx/calibrate/feeds.ts";
import { readSafetensorsFeeds } from "../../../src/onnx/calibrate/npy.ts";
import { parseRecipe } from "../../../src/onnx/recipe.ts";
import { reportParts } from "../../../src/onnx/report/html.ts";
import type { OnnxModel } from "../../../src/onnx/file/model.ts";
import type { InputMetadata } from "../../../src/onnx/verify/feeds.ts";
import { contiguous, parseNpy, type NpyArray } from "../../../src/interop/npy/npy.ts";
import { readNpz } from "../../../src/interop/npy/npz.ts";
import { compare } from "./compare";
import { serve, type Handlers } from "../shared/calls";
import type { Calls } from "./protocol";
import { ortCpu } from "./runtimes";

/** Batches that calibration looks at, and comparisons run. */
const CALIBRATION_BATCHES = 64;

interface State {
  readonly name: string;
  /** The model as one file, external data inside. */
  readonly bytes: Uint8Array;
  readonly model: OnnxModel;
  feeds: Feeds[] | null;
  made: { readonly bytes: Uint8Array; content: ReportContent } | null;
}
let state: State | null = null;

function current(): State {
  if (state === null) throw new Error("expected a model, got none. Choose one first.");
  return state;
}

/** Arrays of a .npz by name, or the one of a .npy. */
async function readArrays(
  name: string,
  bytes: Uint8Array,
  one: (tensor: FeedTensor) => Map<string, FeedTensor>,
): Promise<Map<string, FeedTensor>> {
  const feed = (array: NpyArray): FeedTensor => ({ type: array.dtype, data: contiguous(array), dims: array.shape });
  if (/\.npy$/i.test(name)) return one(feed(parseNpy(bytes, name)));
  const { arrays } = await readNpz(bytes);
  const out = new Map<string, FeedTensor>();
  for (const [key, read] of arrays) out.set(key, feed(await read()));
  return out;
}

/** Own inputs: samples along the first axis where the model takes one at a time. */
async function readInputs(name: string, bytes: Uint8Array, inputs: readonly InputMetadata[], scale?: number): Promise<Feeds[]> {
  const one = (tensor: FeedTensor): Map<string, FeedTensor> => {
    if (inputs.length !== 1)
      throw new Error(
        `${name}: expected a value for each of ${inputs.map((i) => i.name).join(", ")}, got one array. Give an .npz with those names.`,
      );
    return new Map([[inputs[0].name, tensor]]);
  };
  if (scale !== undefined) {
    const dims = inputs[0].shape.map((d) => (typeof d === "number" && d > 0 ? d : 1));
    const size = dims.reduce((a, b) => a * b, 1);
    return Array.from({ length: Math.floor(bytes.length / size) }, (_, i) => ({
      [inputs[0].name]: { type: "float32", dims, data: Float32Array.from(bytes.subarray(i * size, (i + 1) * size), (v) => v * scale) },
    }));
  }
  if (/\.(json|jsonl)$/i.test(name)) {
    const text = new TextDecoder().decode(bytes).trim();
    const rows: unknown[] = /\.jsonl$/i.test(name) ? text.split("\n").map((line) => JSON.parse(line)) : [JSON.parse(text)].flat();
    return rows.map((row, i) => checkFeeds(nestedFeed(row, inputs, `${name}, ${i}`), inputs, `${name}, ${i}`));
  }
  const arrays = /\.safetensors$/i.test(name) ? await readSafetensorsFeeds(bytes, name) : await readArrays(name, bytes, one);
  return [...sampleFeeds(arrays, inputs, name)].map((feeds, i) => checkFeeds(feeds, inputs, `${name}, batch ${i}`));
}

const handlers: Handlers<Calls> = {
  open({ name, bytes, external }) {
    const model = readModelBytes(bytes, external);
    const summary = summarizeModel(model);
    const inside = Object.keys(external).length === 0;
    state = { name, bytes: inside ? bytes : writeModelBytes(model), model, feeds: null, made: null };
    return Promise.resolve({
      name,
      bytes: bytes.length + Object.values(external).reduce((n, b) => n + b.length, 0),
      opset: Object.entries(summary.opsets).map(([domain, version]) => `${domain} ${version}`).join(", "), // prettier-ignore
      producer: summary.producer,
      nodes: Object.values(summary.operators).reduce((a, b) => a + b, 0),
      inputs: summary.inputs,
      outputs: summary.outputs,
      layers: summary.layers,
    });
  },
  async inputs({ name, bytes, scale }) {
    const s = current();
    s.feeds = await readInputs(name, bytes, modelInputs(s.model), scale);
    if (s.feeds.length === 0) throw new Error(`${name}: expected at least one sample, got none.`);
    return { name, batches: s.feeds.length };
  },
  async quantize({ options, calibrate }, progress) {
    const s = current();
    const asked = parseRecipe(options, "options") as QuantizeOptions;
    if (calibrate) {
      if (s.feeds === null)
        throw new Error("expected inputs to calibrate on, got none. Drop an .npz, .npy, .safetensors or .jsonl of them.");
      progress(0, "loading onnxruntime-web");
      useRuntime(await ortCpu());
    }
    const { bytes, report } = await quantizeModelBytes(s.bytes, {
      ...asked,
      ...(calibrate ? { calibration: s.feeds!.slice(0, CALIBRATION_BATCHES) } : {}),
      onProgress: ({ done, total, layer }) => progress(total === 0 ? 1 : done / total, layer),
    });
    progress(1, "histograms");
    const named: QuantizeReport = {
      ...report,
      outputs: [`${s.name.replace(/\.onnx$/i, "")}_${report.dtype.replaceAll(/\W+/g, "_")}.onnx`],
    };
    const histograms = worstHistograms(readModelBytes(s.bytes), report.layers);
    s.made = { bytes, content: { input: s.name, report: named, recipe: recipeOf(asked), histograms } };
    return { report: named, parts: reportParts(s.made.content) };
  },
  async compare({ runtimes, own, samples, seed }, progress) {
    const s = current();
    if (s.made === null) throw new Error("expected a quantized model, got none. Quantize first.");
    const feeds = own ? s.feeds : null;
    // the last ones: calibration takes the first
    const chosen = feeds === null ? null : feeds.slice(-samples);
    const verify = await compare(s.bytes, s.made.bytes, {
      ...{ runtimes, feeds: chosen, samples, seed },
      onProgress: (done, total, text) => progress(done / total, text),
    });
    s.made.content = { ...s.made.content, verify };
    const sqnrDb = Math.min(...verify.outputs.map((o) => o.sqnrDb));
    return { ok: verify.ok, sqnrDb, parts: reportParts(s.made.content) };
  },
  download({ what }) {
    const { made } = current();
    if (made === null) throw new Error("expected a quantized model, got none. Quantize first.");
    const [name] = made.content.report.outputs;
    if (what === "model") return Promise.resolve({ name, bytes: made.bytes });
    return Promise.resolve({ name: name.replace(/\.onnx$/, ".html"), bytes: new TextEncoder().encode(reportHtml(made.content)) });
  },
};

serve<Calls>(handlers);
