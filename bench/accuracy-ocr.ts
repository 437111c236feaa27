// The PP-OCRv4 recogniser with 4-bit weights, Conv and MatMul, round-to-nearest beside GPTQ in the same formats: stored bits, SQNR at the input of the softmax
// and accuracy of the text of 20 rendered lines, with the project's bounds. Weights are replaced by their dequantized values; activations stay float32.
// Layer by layer: inputs come from the model quantized so far; each weight is first refitted to give, from these inputs, what the float model's inputs gave
// (least squares with a ridge; the aim is that of GPTAQ, arXiv 2504.02692), then quantized; the mean error that is left goes into the bias the layer has already.
// Run: npx tsx bench/accuracy-ocr.ts. Takes three to four minutes.
import { cpus, loadavg } from "node:os";
import type * as ort from "onnxruntime-node";
import { dequantize, quantize, tensor, type PackedTensor } from "../src/index.ts";
import { format } from "../formats/index.ts";
import { correctDriftBias, driftStatistics, gptq, refit, rtn, storedBytes, type DriftStatistics } from "../src/quantize/index.ts";
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

const storedBits = (p: PackedTensor): number => 8 * storedBytes(p);

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

/** Both inputs of a layer, one entry per group: those of the float model and those of the model quantized so far. */
async function collect(float: Recogniser, quantized: Recogniser, layer: OcrLayer): Promise<DriftStatistics[]> {
  const { k, input, name } = layer;
  const [a, b] = [await probe(float, [input]), await probe(quantized, [input])];
  const groups = Array.from({ length: layer.groups }, () => driftStatistics(k, { name }));
  for (const line of calibration) {
    const x = (await feed(a, line))[input] as ort.Tensor;
    const y = (await feed(b, line))[input] as ort.Tensor;
    // An odd step, so that it visits every column of a map.
    const every = layer.geometry === null ? 1 : Math.max(1, Math.floor((x.dims[2] * x.dims[3]) / PER_LINE)) | 1;
    groups.forEach((group, g) => group.add(inputRows(layer, x, g, every), inputRows(layer, y, g, every)));
  }
  await a.release();
  await b.release();
  return groups.map((group) => group.finish());
}

async function calibrated(float: Recogniser): Promise<Result> {
  const recogniser = loadRecogniser();
  let bits = 0;
  for (const layer of recogniser.layers) {
    const { k, name } = layer;
    const rows = layer.rows / layer.groups;
    const values = new Float32Array(layer.weight.length);
    const bias = new Float64Array(layer.rows);
    (await collect(float, recogniser, layer)).forEach((drift, g) => {
      const weight = layer.weight.subarray(g * rows * k, (g + 1) * rows * k);
      // Few rows reach the layers behind global pooling, one a line: the damping makes up for it.
      const quantizer = gptq({ hessian: drift.inputs, name, damp: DAMP, actOrder: true, search: { method: "mse" }, minRows: 1 });
      const packed = quantize(
        tensor(weight, [rows, k]),
        format(formatName(layer)),
        refit({ drift, ridge: RIDGE, quantizer, minRows: 1, name }),
      );
      bits += storedBits(packed);
      const q = dequantize(packed);
      values.set(q, g * rows * k);
      bias.set(correctDriftBias({ weight, rows, k }, q, drift), g * rows);
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
