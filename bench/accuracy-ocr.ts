// The PP-OCRv4 recogniser with 4-bit weights, Conv and MatMul, round-to-nearest beside GPTQ in the same formats: stored bits, SQNR at the input of the softmax
// and accuracy of the text of 20 rendered lines, with the project's bounds. Weights are replaced by their dequantized values; activations stay float32.
// Layer by layer: inputs come from the model quantized so far; each weight is first refitted to give, from these inputs, what the float model's inputs gave
// (least squares with a ridge; the aim is that of GPTAQ, arXiv 2504.02692), then quantized; the mean error that is left goes into the bias the layer has already.
// Run: npx tsx bench/accuracy-ocr.ts. Takes three to four minutes.
import { cpus, loadavg } from "node:os";
import type * as ort from "onnxruntime-node";
import { dequantize, quantize, tensor, type PackedTensor } from "../src/index.ts";
import { format } from "../formats/index.ts";
import { gptq, layerStatistics, rtn, type LayerStatistics } from "../src/quantize/index.ts";
import { gptqFactorInPlace, transposed } from "../src/quantize/linalg.ts";
import { fastProduct } from "../src/quantize/simd.ts";
import { calibrationLines, characterAccuracy, evaluationLines, feed, inputRows, loadRecogniser } from "./ocr.ts";
import { probe, readLines, sqnr, type OcrLayer, type Reading, type Recogniser } from "./ocr.ts";

const BITS = 4.5;
const GAIN_DB = 6;
const POINTS = 3;
/** Input vectors taken of one line, about. */
const PER_LINE = 160;
/** Share of the mean diagonal. */
const RIDGE = 0.05;
const DAMP = 0.02;

/** Blocks divide k, so that no short block costs a scale of its own; rows of small kernels are one block. */
function formatName({ k }: OcrLayer): string {
  if (k < 30) return "int4_row_float16";
  return `int4_b${[40, 32, 30].find((block) => k % block === 0)}_float16`;
}

const storedBits = (p: PackedTensor): number =>
  8 * (p.codes.length + (p.scales?.length ?? 0) + (p.superScales?.length ?? 0) + (p.offsets?.length ?? 0));

interface Result {
  readonly bits: number;
  readonly recogniser: Recogniser;
}

function roundToNearest(): Result {
  const recogniser = loadRecogniser();
  let bits = 0;
  for (const layer of recogniser.layers) {
    const packed = quantize(tensor(layer.weight, [layer.rows, layer.k]), format(formatName(layer)), rtn());
    bits += storedBits(packed);
    layer.write(dequantize(packed));
  }
  return { bits, recogniser };
}

interface GroupStatistics {
  /** Of the inputs y in the quantized model. */
  readonly inputs: LayerStatistics;
  /** sum (x - y) y^T and mean of x - y, x being the inputs in the float model. */
  readonly cross: Float64Array;
  readonly shift: Float64Array;
}

async function collect(float: Recogniser, quantized: Recogniser, layer: OcrLayer): Promise<GroupStatistics[]> {
  const { k, input } = layer;
  const [a, b] = [await probe(float, [input]), await probe(quantized, [input])];
  const groups = Array.from({ length: layer.groups }, () => ({
    inputs: layerStatistics(k, { name: layer.name }),
    cross: new Float64Array(k * k),
    shift: new Float64Array(k),
  }));
  for (const line of calibration) {
    const x = (await feed(a, line))[input] as ort.Tensor;
    const y = (await feed(b, line))[input] as ort.Tensor;
    // An odd step, so that it visits every column of a map.
    const every = layer.geometry === null ? 1 : Math.max(1, Math.floor((x.dims[2] * x.dims[3]) / PER_LINE)) | 1;
    groups.forEach(({ inputs, cross, shift }, g) => {
      const p = inputRows(layer, x, g, every);
      const q = inputRows(layer, y, g, every);
      inputs.add(q);
      const d = new Float64Array(p.length);
      for (let i = 0; i < d.length; i++) {
        d[i] = p[i] - q[i];
        shift[i % k] += d[i];
      }
      fastProduct(cross, 0, k, k, k, d, 0, k, Float64Array.from(q), 0, k, d.length / k, 1);
    });
  }
  await a.release();
  await b.release();
  return groups.map(({ inputs, cross, shift }) => {
    const finished = inputs.finish();
    return { inputs: finished, cross, shift: shift.map((v) => v / finished.rows) };
  });
}

/** The weight V with the smallest ||W X - V Y||^2 + ridge ||V - W||^2: W + W C (H + ridge)^-1, C = sum (x - y) y^T. */
function refit(w: Float64Array, rows: number, k: number, { inputs, cross }: GroupStatistics, name: string): Float64Array {
  const factor = Float64Array.from(inputs.hessian!);
  let mean = 0;
  for (let j = 0; j < k; j++) mean += factor[j * k + j] / k;
  for (let j = 0; j < k; j++) factor[j * k + j] += RIDGE * mean;
  if (gptqFactorInPlace(factor, k, fastProduct) >= 0) throw new Error(`${name}: expected a positive definite Hessian; raise the ridge`);
  const times = (left: Float64Array, right: Float64Array, to: Float64Array): Float64Array => {
    fastProduct(to, 0, k, rows, k, transposed(left, rows, k), 0, rows, right, 0, k, k, 1);
    return to;
  };
  const wc = times(w, cross, new Float64Array(rows * k));
  return times(times(wc, transposed(factor, k, k), new Float64Array(rows * k)), factor, w.slice());
}

async function calibrated(float: Recogniser): Promise<Result> {
  const recogniser = loadRecogniser();
  let bits = 0;
  for (const layer of recogniser.layers) {
    const { k, name } = layer;
    const rows = layer.rows / layer.groups;
    const values = new Float32Array(layer.weight.length);
    const bias = new Float64Array(layer.rows);
    (await collect(float, recogniser, layer)).forEach((group, g) => {
      const { inputs, shift } = group;
      const w = Float64Array.from(layer.weight.subarray(g * rows * k, (g + 1) * rows * k));
      const target = Float32Array.from(refit(w, rows, k, group, name));
      // Few rows reach the layers behind global pooling, one a line: the damping makes up for it.
      const quantizer = gptq({ hessian: inputs, name, damp: DAMP, actOrder: true, search: { method: "mse" }, minRows: 1 });
      const packed = quantize(tensor(target, [rows, k]), format(formatName(layer)), quantizer);
      bits += storedBits(packed);
      const q = dequantize(packed);
      values.set(q, g * rows * k);
      for (let i = 0; i < rows * k; i++) {
        const mean = inputs.sum[i % k] / inputs.weight;
        bias[g * rows + Math.floor(i / k)] += w[i] * (mean + shift[i % k]) - q[i] * mean;
      }
    });
    layer.write(values);
    layer.shiftBias(bias);
  }
  return { bits, recogniser };
}

const started = performance.now();
const calibration = calibrationLines();
const evaluation = evaluationLines();
const float = loadRecogniser();
const weights = float.layers.reduce((sum, layer) => sum + layer.weight.length, 0);
const reference = await readLines(float, evaluation);
const accuracy = (readings: readonly Reading[]) => 100 * characterAccuracy(evaluation, readings);
const load = () => loadavg()[0].toFixed(1);
console.log(`${cpus()[0].model}, ${cpus().length} threads, node ${process.version}, load ${load()}`);
console.log(
  `${float.layers.length} Conv and MatMul, ${weights} weights; ${calibration.length} calibration lines, ${evaluation.length} evaluated`,
);
console.log("weights  stored bits  SQNR dB  characters right %   seconds  load");
const print = (name: string, bits: string, db: string, right: number) => {
  const seconds = ((performance.now() - started) / 1000).toFixed(0);
  console.log(
    `${name.padEnd(7)}  ${bits.padStart(11)}  ${db.padStart(7)}  ${right.toFixed(2).padStart(18)}  ${seconds.padStart(8)}  ${load()}`,
  );
};
print("float32", "32", "", accuracy(reference));
const measure = async (name: string, { bits, recogniser }: Result) => {
  const readings = await readLines(recogniser, evaluation);
  const result = { bits: bits / weights, db: sqnr(reference, readings), right: accuracy(readings) };
  print(name, result.bits.toFixed(4), result.db.toFixed(2), result.right);
  return result;
};
const plain = await measure("RTN", roundToNearest());
const best = await measure("GPTQ", await calibrated(float));
const verdict = (what: string, ok: boolean) => console.log(`${what}: ${ok ? "met" : "MISSED"}`);
verdict(`at most ${BITS} stored bits per weight`, best.bits <= BITS);
verdict(`at least ${GAIN_DB} dB above RTN (${(best.db - plain.db).toFixed(2)} dB)`, best.db >= plain.db + GAIN_DB);
verdict(`text within ${POINTS} points of float32`, best.right >= accuracy(reference) - POINTS);
