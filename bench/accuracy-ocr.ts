// The PP-OCRv4 recogniser as published (opset 9, weights in Constant nodes) at 4.5 stored bits a weight, Conv and
// MatMul: files written by quantizeModel and run by onnxruntime-node. Stored bits, SQNR at the input of the softmax,
// and the text of rendered lines: the 20 of the demo, the same texts in styles far outside those of calibration, and in
// the fonts of the machine. Calibration sees other texts in the demo's stroke font, no real font. Run: npm run bench --
// accuracy-ocr [RTN] [RTN-mixed] [mixed] [refit] [by-hand] [--choose]. A minute of processor time for mixed, the rest
// some more.
import { rmSync } from "node:fs";
import { cpus, loadavg } from "node:os";
import { join } from "node:path";
import { scratchFolder } from "../scripts/scratch.mjs";
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
const TOKENS = 150;

/** Blocks divide k, so that no short block costs a scale of its own. */
function blocked(k: number, sizes: readonly number[]): string {
  return `int4_b${sizes.find((block) => k % block === 0)}_float16`;
}

/** Kernels of one channel (depthwise convolutions, and the first one) see 9 to 27 values: one block a row. */
const isSmall = (k: number): boolean => k < 30;

const ALL_IN_FOUR = (k: number): string => (isSmall(k) ? "int4_row_float16" : blocked(k, [40, 32, 30]));
/**
 * Small kernels in 8 bits, a row each: 2 % of the weights, by which most of the error comes in (--choose: RTN against
 * RTN-mixed); wider blocks elsewhere pay for them.
 */
const SMALL_IN_EIGHT = (k: number): string => (isSmall(k) ? "int8_row_float16" : blocked(k, [60, 64, 40, 32, 30]));

export async function accuracyOcr(args: readonly string[] = []): Promise<void> {
  const model = readModel(RECOGNISER);
  const layers = modelLayers(model).filter(({ opType }) => opType === "Conv" || opType === "MatMul");
  model.close();
  const weights = layers.reduce((sum, { rows, k }) => sum + rows * k, 0);
  const inFormats = (formatOf: (k: number) => string): QuantizeModelOptions => ({
    format: "int4_b32_float16",
    target: "stored",
    opTypes: ["Conv", "MatMul"],
    rules: layers.map(({ name, k }) => ({ match: name, format: formatOf(k) })),
  });
  const calibration = lineFeeds(calibrationLines());
  const maxTokens = TOKENS * calibration.length;
  // Few rows reach the layers behind global pooling, one a line.
  const gptq = { name: "gptq", damp: 0.05, actOrder: true, polish: true, minRows: 1 } as const;
  const cases: [string, QuantizeModelOptions][] = [
    ["RTN", inFormats(ALL_IN_FOUR)],
    ["RTN-mixed", inFormats(SMALL_IN_EIGHT)],
    ["mixed", { ...inFormats(SMALL_IN_EIGHT), algorithm: gptq, calibration, calibrate: { maxTokens, holdOut: 0 } }],
    // every weight in 4 bits: damping, order, polish and ridge chosen layer by layer on lines held out
    ["refit", { ...inFormats(ALL_IN_FOUR), algorithm: "refit", calibration, calibrate: { maxTokens } }],
    [
      "by-hand",
      {
        ...inFormats(ALL_IN_FOUR),
        // the damping makes up for the few rows
        algorithm: { name: "refit", ridge: 0.05, damp: 0.02, actOrder: true, search: { method: "mse" }, minRows: 1, polish: false },
        calibration,
        calibrate: { maxTokens, holdOut: 0 },
      },
    ],
  ];
  console.log(`${cpus()[0].model}, ${cpus().length} threads, node ${process.version}, load ${loadavg()[0].toFixed(1)}`);
  console.log(`${layers.length} Conv and MatMul, ${weights} weights; ${calibration.length} calibration lines`);
  console.log("weights    lines  stored bits  SQNR dB  characters right %  lines as float32  file bytes  seconds");
  // --choose: the texts of calibration in other styles, for choosing between the cases
  const chosen = args.filter((arg) => arg !== "--choose");
  const sets: Record<string, Line[]> = args.includes("--choose")
    ? { choose: choiceLines() }
    : { demo: evaluationLines(), other: otherLines(), fonts: await fontLines(TEXTS.slice(0, EVALUATED), 3, 9) };
  const folder = scratchFolder("ocr");
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
          `${name.padEnd(9)}  ${set.padEnd(5)}  ${bits.toFixed(4).padStart(11)}  ${sqnr(float.get(set)!, readings).toFixed(2).padStart(7)}  ${right.toFixed(2).padStart(18)}  ${`${same} of ${readings.length}`.padStart(16)}  ${String(report.fileBytesAfter).padStart(10)}  ${report.seconds.toFixed(0).padStart(7)}`,
        );
        if (name.startsWith("RTN")) continue;
        const bound = 100 * characterAccuracy(lines, float.get(set)!) - POINTS;
        console.log(`  at most ${BITS} bits, text within ${POINTS} point of float32: ${bits <= BITS && right >= bound ? "met" : "MISSED"}`);
      }
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
