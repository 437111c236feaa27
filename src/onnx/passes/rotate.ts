// rotate: Hadamard rotations fused into the weights. The residual stream of a pre-norm transformer is turned by one
// matrix (writers get W -> Q^T W, readers W -> W Q), the values of attention by one per head; where it is asked for,
// the inputs of products are turned by nodes. Outliers of one channel are spread over its block, which is what block
// formats round well. Sources: QuaRot (arXiv 2404.00456), SliceGPT (2401.15024: LayerNorm becomes RMSNorm behind
// centred writers), SpinQuant (2405.16406: per-head rotations), MR-GPTQ (2509.23202: blocks).
import { centerOutputs } from "../../quantize/equalize.ts";
import { transposed } from "../../quantize/linalg.ts";
import { hadamardRotation, type Rotation } from "../../quantize/rotation.ts";
import { addInitializer, floatTensor, freshName, insertAfter, insertBefore, renameOutput, writeConstant } from "../edit.ts";
import { TensorProto_DataType as T, type NodeProto } from "../file/gen/onnx_pb.ts";
import { makeTensor } from "../file/model.ts";
import { readFloats } from "../file/values.ts";
import { makeNode, nodeName, resolveConstant, type Scope } from "../graph/graph.ts";
import { ROTATION_NAME } from "../layers.ts";
import { patternRegExp } from "../patterns.ts";
import { readBias, readMatrix, takesBias, writeBias, writeWeight, type ModelLayer } from "../primitives.ts";
import { attentionValue } from "./attention.ts";
import { foldNormPass, foldObstacle } from "./fold-norm.ts";
import { findNorms, isProduct, type Norm } from "./norms.ts";
import { rmsObstacle, toRms } from "./rms.ts";
import { findStream, type Stream } from "./stream.ts";
import type { Pass, PassContext, PassSettings } from "./types.ts";

interface RotateSettings {
  readonly block: number | "full";
  readonly seed: number | null;
  readonly heads: boolean;
  readonly boundary: boolean;
  readonly online: readonly string[];
}

const DEFAULT_BLOCK = 128;

function settingsOf(settings: PassSettings): RotateSettings {
  const { block = DEFAULT_BLOCK, seed = null, heads = true, boundary = false, online = [] } = settings;
  const whole = (value: unknown, least: number): boolean => Number.isSafeInteger(value) && (value as number) >= least;
  if (block !== "full" && !(whole(block, 2) && ((block as number) & ((block as number) - 1)) === 0))
    throw new RangeError(`pass rotate, block: expected a power of two or "full", got ${JSON.stringify(block)}.`);
  if (seed !== null && !whole(seed, 0))
    throw new RangeError(`pass rotate, seed: expected null or a whole number, got ${JSON.stringify(seed)}.`);
  for (const [name, value] of Object.entries({ heads, boundary }))
    if (typeof value !== "boolean") throw new TypeError(`pass rotate, ${name}: expected true or false, got ${JSON.stringify(value)}.`);
  if (!Array.isArray(online) || online.some((pattern) => typeof pattern !== "string"))
    throw new TypeError(`pass rotate, online: expected a list of name patterns, got ${JSON.stringify(online)}.`);
  return { block, seed, heads, boundary, online } as RotateSettings;
}

/** The largest power of two that divides n, at most `most`. */
function blockWithin(n: number, most: number): number {
  let block = 1;
  while (2 * block <= most && n % (2 * block) === 0) block *= 2;
  return block;
}

/** "full" where an order has a Hadamard matrix; else the largest block that divides the length. */
function rotationFor(n: number, settings: RotateSettings): Rotation {
  const { block, seed } = settings;
  return hadamardRotation(n, { block: block === "full" ? n : blockWithin(n, block), seed });
}

/** W Q: the inputs of the layer are turned. */
function turnColumns(context: PassContext, layer: ModelLayer, q: Rotation): void {
  const matrix = readMatrix(context.model, layer);
  q.apply(matrix);
  writeWeight(context.model, layer, matrix);
}

/**
 * Q^T W and Q^T b: the outputs of the layer are turned, centred first where asked. A bias in an Add of the stream is
 * turned there.
 */
function turnRows(context: PassContext, layer: ModelLayer, q: Rotation, center: boolean, withBias: boolean): void {
  const { model } = context;
  const { rows, k } = layer;
  const bias = withBias ? readBias(model, layer) : null;
  const own = { weight: readMatrix(model, layer), rows, k, bias };
  const from = center ? centerOutputs(own) : own;
  const columns = transposed(from.weight, rows, k);
  q.apply(columns);
  writeWeight(model, layer, transposed(columns, k, rows));
  if (from.bias !== null) {
    q.apply(from.bias as Float64Array<ArrayBuffer>);
    writeBias(model, layer, from.bias);
  }
}

function turnTable(context: PassContext, stream: Stream, node: NodeProto, input: number, q: Rotation, center: boolean): void {
  const { tensor } = resolveConstant(stream.scope, node.input[input])!;
  const values = Float64Array.from(readFloats(context.model, tensor));
  if (center) {
    for (let at = 0; at < values.length; at += q.n) {
      let mean = 0;
      for (let i = 0; i < q.n; i++) mean += values[at + i] / q.n;
      for (let i = 0; i < q.n; i++) values[at + i] -= mean;
    }
  }
  q.apply(values);
  writeConstant(context.model, stream.scope, node, input, Float32Array.from(values));
}

/** Q as a constant [n, n], its rows centred where asked, or its transpose. */
function matrixConstant(context: PassContext, scope: Scope, q: Rotation, form: "turn" | "back", center: boolean): string {
  const { n } = q;
  const matrix = form === "turn" ? q.matrix() : transposed(q.matrix(), n, n);
  if (center) {
    // (I - 11^T / n) Q
    for (let c = 0; c < n; c++) {
      let mean = 0;
      for (let r = 0; r < n; r++) mean += matrix[r * n + c] / n;
      for (let r = 0; r < n; r++) matrix[r * n + c] -= mean;
    }
  }
  const tensor = floatTensor(context.model, `${ROTATION_NAME}${form}`, [n, n], Float32Array.from(matrix));
  return addInitializer(scope, tensor, context.model);
}

/**
 * Products with Q where something foreign makes a value of the stream, and with Q^T where something foreign reads one.
 */
function bridge(context: PassContext, stream: Stream, q: Rotation, center: boolean): number {
  const { model } = context;
  const { scope } = stream;
  let turn: string | undefined;
  let back: string | undefined;
  const plain = new Map<string, string>();
  for (const value of stream.foreignValues.keys()) {
    const node = scope.producers.get(value)!;
    const before = freshName(model, `${value}_plain`);
    renameOutput(scope, node, node.output.indexOf(value), before);
    turn ??= matrixConstant(context, scope, q, "turn", center);
    insertAfter(scope, node, [makeNode("MatMul", [before, turn], [value], { name: freshName(model, `${value}_turn`) })]);
    if (!center) plain.set(value, before);
  }
  let added = stream.foreignValues.size;
  for (const { value, reader, norm } of stream.foreignReaders) {
    let name = plain.get(value);
    if (name === undefined) {
      name = freshName(model, `${value}_plain`);
      back ??= matrixConstant(context, scope, q, "back", false);
      const node = makeNode("MatMul", [value, back], [name], { name: freshName(model, `${value}_turn_back`) });
      insertAfter(scope, scope.producers.get(value)!, [node]);
      plain.set(value, name);
      added++;
    }
    const replace = (node: NodeProto): void => {
      node.input = node.input.map((input) => (input === value ? name : input));
    };
    if (norm !== null) norm.core.forEach(replace);
    else replace(reader.node!);
  }
  return added;
}

/** Why a stream cannot be turned as it is. */
function streamObstacle(context: PassContext, stream: Stream, settings: RotateSettings, center: boolean): string | undefined {
  if (stream.norms.size === 0 || stream.writers.size === 0) return "no products write it and read it behind a norm";
  const kinds = new Set([...stream.norms].map((norm) => norm.kind));
  if (kinds.size > 1) return "it has LayerNorm and RMSNorm";
  for (const norm of stream.norms) {
    const reason = rmsObstacle(context, norm);
    if (reason !== undefined) return reason;
  }
  for (const [value, reason] of stream.foreignValues) {
    if (!stream.scope.producers.has(value) || !settings.boundary)
      return `${value}: ${reason}${stream.scope.producers.has(value) ? " (boundary: true puts a product there)" : ""}`;
  }
  for (const { value, reader, norm, reason } of stream.foreignReaders) {
    if (!settings.boundary) return `${value}: ${reason} (boundary: true puts a product there)`;
    if (reader.node === null || reader.input < 0) return `${value}: ${reason}`;
    if (center && norm?.kind !== "layer") return `${value}: ${reason}, which needs the mean that rotation takes out`;
  }
  return undefined;
}

function turnStream(context: PassContext, stream: Stream, settings: RotateSettings): string {
  const center = [...stream.norms].some((norm) => norm.kind === "layer");
  const q = rotationFor(stream.size, settings);
  for (const layer of stream.readers) turnColumns(context, layer, q);
  for (const layer of stream.writers) turnRows(context, layer, q, center, layer.opType === "Gemm");
  for (const { node, input } of stream.tables.values()) turnTable(context, stream, node, input, q, center);
  const bridges = bridge(context, stream, q, center);
  context.refresh();
  for (const norm of stream.norms) toRms(context, norm);
  context.refresh();
  return `residual stream of ${stream.size} channels turned in blocks of ${q.block}: ${stream.readers.size} products read it, ${stream.writers.size} write it, ${stream.tables.size} tables and biases, ${stream.norms.size} ${center ? "LayerNorms, now RMSNorms" : "norms"}${bridges > 0 ? `; ${bridges} products with the matrix at its bounds` : ""}`;
}

/** Turns the channels of each head between value and output projections. */
function turnHeads(context: PassContext, settings: RotateSettings): number {
  let turned = 0;
  for (const output of context.layers) {
    if (!isProduct(output)) continue;
    const value = attentionValue(context, output);
    if (value === null || (readBias(context.model, value.layer) !== null && !takesBias(value.layer))) continue;
    const most = settings.block === "full" ? value.headSize : Math.min(settings.block, value.headSize);
    const q = hadamardRotation(output.k, { block: blockWithin(value.headSize, most), seed: settings.seed });
    turnRows(context, value.layer, q, false, true);
    turnColumns(context, output, q);
    turned++;
  }
  return turned;
}

/** Turns the inputs of products at run time: Reshape to blocks, MatMul with a Hadamard matrix, Reshape back. */
function turnOnline(context: PassContext, settings: RotateSettings): number {
  const { model } = context;
  const turned = new Map<string, string>();
  const products = context.layers.filter(isProduct);
  const wanted = products.filter((layer) => settings.online.some((pattern) => patternRegExp(pattern).test(layer.name)));
  if (wanted.length === 0) context.note(`online: no product's name matches ${settings.online.join(", ")}`);
  for (const layer of wanted) {
    const { scope, node, k } = layer;
    const block = settings.block === "full" ? k : blockWithin(k, settings.block);
    const q = hadamardRotation(k, { block });
    const key = `${scope.path}:${node.input[0]}`;
    let name = turned.get(key);
    if (name === undefined) {
      const base = node.input[0];
      const take = (suffix: string): string => freshName(model, `${base}_${suffix}`);
      const matrix = hadamardRotation(block).matrix();
      const h = addInitializer(
        scope,
        floatTensor(model, `${ROTATION_NAME}hadamard_${block}`, [block, block], Float32Array.from(matrix)),
        model,
      );
      name = take("turned");
      if (block === k) insertBefore(scope, node, [makeNode("MatMul", [base, h], [name], { name: take("turn") })]);
      else {
        const shape = new BigInt64Array([-1n, BigInt(block)]);
        const blocks = makeTensor(model, `blocks_${block}`, T.INT64, [2], new Uint8Array(shape.buffer));
        const [size, split, product] = [take("shape"), take("blocks"), take("product")];
        insertBefore(scope, node, [
          makeNode("Shape", [base], [size], { name: size }),
          makeNode("Reshape", [base, addInitializer(scope, blocks, model)], [split], { name: split }),
          makeNode("MatMul", [split, h], [product], { name: product }),
          makeNode("Reshape", [product, size], [name], { name: take("turn") }),
        ]);
      }
      turned.set(key, name);
    }
    node.input[0] = name;
    turnColumns(context, layer, q);
  }
  if (wanted.length > 0) {
    context.refresh();
    context.note(
      `${wanted.length} products read inputs that ${turned.size} groups of nodes turn at run time: ${wanted
        .map((l) => nodeName(l.node))
        .slice(0, 4)
        .join(", ")}${wanted.length > 4 ? " ..." : ""}`,
    );
  }
  return wanted.length;
}

/** Turns every residual stream that it can. */
function turnStreams(context: PassContext, settings: RotateSettings): number {
  const norms = findNorms(context);
  const done = new Set<Norm>();
  let turned = 0;
  const reasons: string[] = [];
  for (const norm of norms) {
    if (done.has(norm) || norm.size === 0) continue;
    done.add(norm);
    const stream = findStream(context, norm, norms, (other) => foldObstacle(context, other) === undefined);
    for (const { norm: other } of stream.foreignReaders) if (other !== null) done.add(other);
    for (const other of stream.norms) done.add(other);
    const center = [...stream.norms].some(({ kind }) => kind === "layer");
    const obstacle = streamObstacle(context, stream, settings, center);
    if (obstacle !== undefined) {
      reasons.push(`the stream at ${norm.inputs[0]} stays: ${obstacle}`);
      continue;
    }
    context.note(turnStream(context, stream, settings));
    turned++;
  }
  if (norms.length === 0) reasons.push("no normalization was found, so no residual stream");
  for (const reason of reasons.slice(0, 4)) context.note(reason);
  return turned;
}

export const rotatePass: Pass = {
  name: "rotate",
  options: ["block", "seed", "heads", "boundary", "online"],
  check: (settings) => void settingsOf(settings),
  async run(context, given) {
    const settings = settingsOf(given);
    // Gains that products can take over stand in the way of a rotation.
    const folded = await foldNormPass.run({ ...context, note: () => {} }, { name: "fold-norm" });
    if (folded > 0) context.note(`${folded} norms folded first`);
    let changed = folded + turnStreams(context, settings);
    if (settings.heads) {
      const heads = turnHeads(context, settings);
      context.note(
        heads > 0 ? `${heads} pairs of value and output projections turned by head` : "no spelled-out attention was found to turn by head",
      );
      changed += heads;
    }
    if (settings.online.length > 0) changed += turnOnline(context, settings);
    if (changed === 0) context.note("nothing changed");
    return changed;
  },
};
