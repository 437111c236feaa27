// The PP-OCRv4 recogniser as published (opset 9, weights in Constant nodes) with 4-bit weights, Conv and MatMul, round-to-nearest beside refit with GPTQ in sequence, in
// the same formats: files written by quantizeModel and run by onnxruntime-node. Stored bits, SQNR at the input of the softmax, and the text of rendered lines:
// the 20 of the demo, and the same texts in styles far outside those of calibration. Run: npm run bench -- accuracy-ocr. Takes three to four minutes.
import { mkdtempSync, rmSync } from "node:fs";
import { cpus, loadavg, tmpdir } from "node:os";
import { join } from "node:path";
import { modelLayers, quantizeModel, readModel, type QuantizeModelOptions } from "../src/onnx/index.ts";
import { calibrationLines, characterAccuracy, evaluationLines, lineFeeds, otherLines, readLines, RECOGNISER, sqnr } from "./ocr.ts";

const BITS = 4.5;
const POINTS = 1;

/** Blocks divide k, so that no short block costs a scale of its own; rows of small kernels are one block. */
function formatName(k: number): string {
  if (k < 30) return "int4_row_float16";
  return `int4_b${[40, 32, 30].find((block) => k % block === 0)}_float16`;
}

export async function accuracyOcr(): Promise<void> {
  const model = readModel(RECOGNISER);
  const layers = modelLayers(model).filter(({ opType }) => opType === "Conv" || opType === "MatMul");
  model.close();
  const rules = layers.map(({ name, k }) => ({ match: name, format: formatName(k) }));
  const weights = layers.reduce((sum, { rows, k }) => sum + rows * k, 0);
  const common: QuantizeModelOptions = { format: "int4_b32_float16", target: "stored", opTypes: ["Conv", "MatMul"], rules };
  const calibration = lineFeeds(calibrationLines());
  const cases: [string, QuantizeModelOptions][] = [
    ["RTN", common],
    [
      "refit",
      {
        ...common,
        // Few rows reach the layers behind global pooling, one a line: the damping makes up for it.
        algorithm: { name: "refit", ridge: 0.05, damp: 0.02, actOrder: true, search: { method: "mse" }, minRows: 1, polish: false },
        sequential: true,
        calibration,
        // about 160 vectors of a line
        calibrate: { maxTokens: 160 * calibration.length, holdOut: 0 },
      },
    ],
  ];
  console.log(`${cpus()[0].model}, ${cpus().length} threads, node ${process.version}, load ${loadavg()[0].toFixed(1)}`);
  console.log(`${layers.length} Conv and MatMul, ${weights} weights; ${calibration.length} calibration lines`);
  console.log("weights  lines  stored bits  SQNR dB  characters right %  lines as float32  file bytes  seconds");
  const sets = { demo: evaluationLines(), other: otherLines() };
  const folder = mkdtempSync(join(tmpdir(), "lowbit-ocr-"));
  try {
    const float = { demo: await readLines(RECOGNISER, sets.demo), other: await readLines(RECOGNISER, sets.other) };
    for (const [name, options] of cases) {
      const path = join(folder, `${name}.onnx`);
      const report = await quantizeModel(RECOGNISER, path, options);
      const bits = (8 * report.weightBytesAfter) / weights;
      for (const set of ["demo", "other"] as const) {
        const readings = await readLines(path, sets[set]);
        const right = 100 * characterAccuracy(sets[set], readings);
        const same = readings.filter(({ text }, i) => text === float[set][i].text).length;
        console.log(
          `${name.padEnd(7)}  ${set.padEnd(5)}  ${bits.toFixed(4).padStart(11)}  ${sqnr(float[set], readings).toFixed(2).padStart(7)}  ${right.toFixed(2).padStart(18)}  ${`${same} of ${readings.length}`.padStart(16)}  ${String(report.fileBytesAfter).padStart(10)}  ${report.seconds.toFixed(0).padStart(7)}`,
        );
        if (name === "RTN") continue;
        const bound = 100 * characterAccuracy(sets[set], float[set]) - POINTS;
        console.log(`  at most ${BITS} bits, text within ${POINTS} point of float32: ${bits <= BITS && right >= bound ? "met" : "MISSED"}`);
      }
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
