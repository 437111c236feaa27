// A tensor of the visitor's own: opened, profiled, ranked and drawn in a worker.
import { allFormats, format, type Format } from "../../../formats/index.ts";
import { isLowbitError } from "../../../formats/core/errors.ts";
import { readGguf, readSafetensors } from "../../../src/interop/index.ts";
import { contiguous, parseNpy } from "../../../src/interop/npy/npy.ts";
import { modelLayers, readModelBytes, readWeight } from "../../../src/onnx/index.ts";
import { histogramOf } from "../../../src/onnx/report/histogram.ts";
import { histogramHtml } from "../../../src/onnx/report/html.ts";
import { advise, storedBits } from "../../../src/quantize/index.ts";
import { matrixView, readRows, tensor, type Tensor } from "../../../src/tensor/tensor.ts";
import { serve } from "../shared/calls";
import { drift, profileOf, sampleRows, type DriftRow, type Profile } from "./analyse";

export interface TensorName {
  readonly name: string;
  readonly shape: readonly number[];
  readonly type: string;
}

export interface Ranked {
  readonly format: string;
  readonly bits: number;
  readonly sqnrDb: number;
  readonly predictedDb: number | null;
}

export interface Analysis {
  readonly profile: Profile;
  /** Rows that formats were ranked on, of how many. */
  readonly sampled: readonly [rows: number, of: number, k: number];
  readonly ranked: readonly Ranked[];
  readonly left: readonly string[];
  readonly drift: readonly DriftRow[];
  readonly seconds: number;
}

export interface TensorCalls {
  open: { args: { file: Blob; name: string }; result: readonly TensorName[] };
  /** Formats by name, or none: those of at most `bits` a value. */
  analyse: { args: { tensor: string; bits: number; formats: readonly string[] }; result: Analysis };
  /** HTML of the last tensor's values against a format's code points; "" where it has none. */
  histogram: { args: { format: string }; result: string };
}

interface Opened {
  readonly names: readonly TensorName[];
  read(name: string): Promise<Tensor>;
}

/** Values that formats are ranked on: evenly spaced rows of larger tensors. */
const SAMPLE = 2 ** 18;
/** What a scale for the whole tensor may add to the bits of a value. */
const ONCE = 1 / 64;

let opened: Opened | null = null;
let sample: { readonly name: string; readonly values: Float32Array; readonly rows: number; readonly k: number } | null = null;

const matrix = (data: Float32Array, shape: readonly number[]): Tensor => {
  const k = shape.at(-1) ?? 1;
  return tensor(data, [k === 0 ? 0 : data.length / k, k]);
};

async function open(file: Blob, name: string): Promise<Opened> {
  if (/\.npy$/i.test(name)) {
    const array = parseNpy(new Uint8Array(await file.arrayBuffer()), name);
    if (!array.dtype.startsWith("float")) throw new Error(`${name}: expected floats, got ${array.dtype}.`);
    const data = contiguous(array);
    const floats = array.dtype === "float16" ? Float32Array.from(data as Uint16Array, (code) => half.decode(code)) : data;
    return {
      names: [{ name, shape: array.shape, type: array.dtype }],
      read: () => Promise.resolve(matrix(floats instanceof Float32Array ? floats : Float32Array.from(floats as Float64Array), array.shape)),
    };
  }
  if (/\.onnx$/i.test(name)) {
    const model = readModelBytes(new Uint8Array(await file.arrayBuffer()));
    const layers = new Map(modelLayers(model).map((layer) => [layer.name, layer]));
    return {
      names: [...layers].map(([key, layer]) => ({ name: key, shape: layer.shape, type: layer.opType })),
      read: (key) => Promise.resolve(readWeight(model, layers.get(key)!)),
    };
  }
  if (!/\.(safetensors|gguf)$/i.test(name)) throw new Error(`${name}: expected .safetensors, .gguf, .npy or .onnx, got another name.`);
  const container = /\.gguf$/i.test(name) ? await readGguf(file) : await readSafetensors(file);
  const tensors = new Map<string, { shape: readonly number[]; values(): Promise<Float32Array>; type?: { name: string }; dtype?: string }>(container.tensors); // prettier-ignore
  return {
    names: [...tensors].map(([key, t]) => ({ name: key, shape: t.shape, type: t.dtype ?? t.type?.name ?? "" })),
    read: async (key) => matrix(await tensors.get(key)!.values(), tensors.get(key)!.shape),
  };
}
const half = format("float16");

/** Formats within one bit below; scalar ones of few bits with a scale for each row, or for 32 values. */
function candidates(bits: number, rows: number, k: number): Format[] {
  const all = allFormats.flatMap((f) =>
    f.kind === "block" || f.kind === "opaque" || f.bits > 8
      ? [f]
      : [format(`${f.name}_row`) as Format, format(`${f.name}_b32_float16`) as Format],
  );
  return all.filter((f) => {
    const stored = storedBits(f, rows, k);
    return stored <= bits + ONCE && stored > bits - 1;
  });
}

async function analyse(name: string, bits: number, formats: readonly string[]): Promise<Analysis> {
  if (opened === null) throw new Error("expected a file, got none. Choose one first.");
  const from = performance.now();
  const whole = await opened.read(name);
  const view = matrixView(whole);
  const profile = profileOf(view.data as Float32Array);
  const rows = sampleRows(view.rows, view.k, SAMPLE);
  const values = new Float32Array(rows.length * view.k);
  rows.forEach((row, i) => readRows(view, row, 1, values.subarray(i * view.k, (i + 1) * view.k)));
  sample = { name, values, rows: rows.length, k: view.k };
  const small = tensor(values, [rows.length, view.k]);
  const chosen = formats.length > 0 ? formats.map((f) => format(f) as Format) : candidates(bits, rows.length, view.k);
  const ranked: Ranked[] = [];
  const left: string[] = [];
  for (const candidate of chosen)
    try {
      const [{ bits: stored, qsnr, predictedQsnr }] = advise(small, [candidate]);
      ranked.push({ format: candidate.name, bits: stored, sqnrDb: qsnr, predictedDb: predictedQsnr });
    } catch (error) {
      if (!isLowbitError(error)) throw error;
      left.push(`${candidate.name}: ${error.message}`);
    }
  ranked.sort((a, b) => b.sqnrDb - a.sqnrDb || a.bits - b.bits);
  return {
    profile,
    sampled: [rows.length, view.rows, view.k],
    ranked,
    left,
    drift: drift(values, rows.length, view.k),
    seconds: (performance.now() - from) / 1000,
  };
}

function histogram(name: string): string {
  if (sample === null) return "";
  const found = histogramOf(sample.name, sample.values, sample, format(name) as Format);
  return found === null ? "" : `<div class="grid" style="grid-template-columns:1fr">${histogramHtml(found)}</div>`;
}

serve<TensorCalls>({
  open: async ({ file, name }) => (opened = await open(file, name)).names,
  analyse: (args) => analyse(args.tensor, args.bits, args.formats),
  histogram: (args) => histogram(args.format),
});
