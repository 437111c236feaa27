// The PP-OCRv4 recogniser as published (opset 9, weights in Constant nodes) with 4-bit weights, Conv and MatMul,
// round-to-nearest beside refit with GPTQ in sequence, in the same formats: files written by quantizeModel and run by
// onnxruntime-node. Stored bits, SQNR at the input of the softmax, and the text of rendered lines: the 20 of the demo,
// the same texts in styles far outside those of calibration, and in the fonts of the machine. Run: npm run bench --
// accuracy-ocr [RTN] [refit] [by-hand] [--choose]. Some minutes.
import { mkdtempSync, rmSync } from "node:fs";
import { cpus, loadavg, tmpdir } from "node:os";
import { join } from "node:path";
import { modelLayers, quantizeModel, readModel, type QuantizeModelOptions } from "../src/onnx/index.ts";
import { TEXTS } from "../examples/text-lines.mjs";
import { fontLines } from "./font-lines.ts";
import {
  calibrationLines,
  characterAccuracy,
  choiceLines,
  EVALUATED,
  evaluationLines,
  lineFeeds,
  otherLines,
  readLines,
  RECOGNISER,
  sqnr,
  type Line,
  type Reading,
} from "./ocr.ts";

const BITS = 4.5;
const POINTS = 1;
/** Vectors of a line that count. */
const TOKENS = 160;

/** Blocks divide k, so that no short block costs a scale of its own; rows of small kernels are one block. */
function formatName(k: number): string {
  if (k < 30) return "int4_row_float16";
  return `int4_b${[40, 32, 30].find((block) => k % block === 0)}_float16`;
}

export async function accuracyOcr(args: readonly string[] = []): Promise<void> {
  const model = readModel(RECOGNISER);
  const layers = modelLayers(model).filter(({ opType }) => opType === "Conv" || opType === "MatMul");
  model.close();
  const rules = layers.map(({ name, k }) => ({ match: name, format: formatName(k) }));
  const weights = layers.reduce((sum, { rows, k }) => sum + rows * k, 0);
  const common: QuantizeModelOptions = { format: "int4_b32_float16", target: "stored", opTypes: ["Conv", "MatMul"], rules };
  const calibration = lineFeeds(calibrationLines());
  const cases: [string, QuantizeModelOptions][] = [
    ["RTN", common],
    // damping, order, search, polish and ridge chosen layer by layer on lines held out
    ["refit", { ...common, algorithm: "refit", calibration, calibrate: { maxTokens: TOKENS * calibration.length } }],
    [
      "by-hand",
      {
        ...common,
        // Few rows reach the layers behind global pooling, one a line: the damping makes up for it.
        algorithm: { name: "refit", ridge: 0.05, damp: 0.02, actOrder: true, search: { method: "mse" }, minRows: 1, polish: false },
        calibration,
        calibrate: { maxTokens: TOKENS * calibration.length, holdOut: 0 },
      },
    ],
  ];
  console.log(`${cpus()[0].model}, ${cpus().length} threads, node ${process.version}, load ${loadavg()[0].toFixed(1)}`);
  console.log(`${layers.length} Conv and MatMul, ${weights} weights; ${calibration.length} calibration lines`);
  console.log("weights  lines  stored bits  SQNR dB  characters right %  lines as float32  file bytes  seconds");
  // --choose: the texts of calibration in other styles, for choosing between the cases
  const chosen = args.filter((arg) => arg !== "--choose");
  const sets: Record<string, Line[]> = args.includes("--choose")
    ? { choose: choiceLines() }
    : { demo: evaluationLines(), other: otherLines(), fonts: await fontLines(TEXTS.slice(0, EVALUATED), 3, 9) };
  const folder = mkdtempSync(join(tmpdir(), "lowbit-ocr-"));
  try {
    const float = new Map<string, Reading[]>();
    for (const [set, lines] of Object.entries(sets)) float.set(set, await readLines(RECOGNISER, lines));
    for (const [name, options] of cases.filter(([id]) => chosen.length === 0 || chosen.includes(id))) {
      const path = join(folder, `${name}.onnx`);
      const report = await quantizeModel(RECOGNISER, path, options);
      const bits = (8 * report.weightBytesAfter) / weights;
      for (const [set, lines] of Object.entries(sets)) {
        const readings = await readLines(path, lines);
        const right = 100 * characterAccuracy(lines, readings);
        const same = readings.filter(({ text }, i) => text === float.get(set)![i].text).length;
        console.log(
          `${name.padEnd(7)}  ${set.padEnd(5)}  ${bits.toFixed(4).padStart(11)}  ${sqnr(float.get(set)!, readings).toFixed(2).padStart(7)}  ${right.toFixed(2).padStart(18)}  ${`${same} of ${readings.length}`.padStart(16)}  ${String(report.fileBytesAfter).padStart(10)}  ${report.seconds.toFixed(0).padStart(7)}`,
        );
        if (name === "RTN") continue;
        const bound = 100 * characterAccuracy(lines, float.get(set)!) - POINTS;
        console.log(`  at most ${BITS} bits, text within ${POINTS} point of float32: ${bits <= BITS && right >= bound ? "met" : "MISSED"}`);
      }
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
