// placeWeights: packed layers that somebody else quantized (a GPTQ, AWQ, ... checkpoint), and the floats beside them,
// put into the ONNX graph of the same model. Codes and scales are those of the checkpoint: nothing is quantized again.
import { LowbitError } from "../../../formats/core/errors.ts";
import { dequantizeRows } from "../../../formats/core/packed.ts";
import type { PackedTensor } from "../../../formats/core/types.ts";
import { modernizeInputs, newContext, pick, replaceNodes, tidy } from "../convert.ts";
import { setFloats } from "../edit.ts";
import { checkAborted } from "../file/files.ts";
import { TensorProto_DataType as T, type NodeProto, type TensorProto } from "../file/gen/onnx_pb.ts";
import { makeTensor, tensorDims, type OnnxModel } from "../file/model.ts";
import { isFloatType, readFloats } from "../file/values.ts";
import { buildScopes, describeQuantized, intAttribute, makeNode, quantizedKind, sortNodes, type Scope } from "../graph/graph.ts";
import { findLayers, type Layer } from "../layers.ts";
import { modelLayers, writeWeight } from "../primitives.ts";
import { TARGETS } from "../targets/index.ts";
import type { Target, TargetContext } from "../targets/target.ts";
import { layerMatrix, layerType, matrixTensor } from "../weights.ts";
import { fitted } from "./fit.ts";
import { hitsOf, matchNames, type Matches, type PlaceRule } from "./names.ts";

/** What a checkpoint has: `importCheckpoint` of lowbit/interop gives one. */
export interface ForeignWeights {
  /** W [out, in] by module; with `columns`, column j of `packed` is column `columns[j]` of W. */
  readonly layers: ReadonlyMap<string, () => Promise<{ readonly packed: PackedTensor; readonly columns?: Int32Array }>>;
  /** What is not quantized: norms, biases, embeddings. */
  readonly tensors?: ReadonlyMap<string, { readonly dtype: string; readonly shape: readonly number[]; values(): Promise<Float32Array> }>;
}

/** How packed layers of a checkpoint find their nodes, and what they are written as. */
export interface PlaceOptions {
  /** Which module is which node, where names do not say. */
  rules?: readonly PlaceRule[];
  /**
   * Default "auto": MatMulNBits where it holds the codes exactly, else stored codes that a runtime decodes when it
   * loads the model.
   */
  target?: "auto" | "matmulnbits" | "stored";
  /** Of MatMulNBits; default: the runtime's for 4 bits, 4 (int8 activations) for 2 and 8. */
  accuracyLevel?: number;
  /**
   * Leave the graph's norms, biases and other floats as they are. Default false: methods like AWQ change them with the
   * weights.
   */
  keepFloats?: boolean;
  signal?: AbortSignal;
  onProgress?: (progress: { readonly done: number; readonly total: number; readonly layer: string }) => void;
}

/** One layer of the checkpoint in the graph. */
export interface PlacedLayer {
  readonly module: string;
  /** Nodes that read the weight. */
  readonly nodes: readonly string[];
  readonly format: string;
  readonly target: "matmulnbits" | "stored";
  /** Cosine of the checkpoint's values and those that the graph had. */
  readonly cosine: number;
}

/** Which layers of a checkpoint stand in the graph now, and which do not. */
export interface PlaceReport {
  readonly placed: readonly PlacedLayer[];
  /** Floats of the checkpoint that stand in the graph, and whether its values were others before. */
  readonly floats: readonly { readonly tensor: string; readonly to: string; readonly changed: boolean }[];
  /** Names of the checkpoint that stand nowhere, and why. */
  readonly left: readonly { readonly name: string; readonly reason: string }[];
  /** Layers of the graph that keep their floats. */
  readonly kept: readonly string[];
  readonly notes: readonly string[];
}

/** Below this a weight is not that of the same model: rounding and equalization leave far more. */
const COSINE_MIN = 0.5;
/** Rows that are compared, spread over the matrix. */
const SAMPLE_ROWS = 32;

/** Layers that read the same constant. */
interface Place {
  readonly names: readonly string[];
  readonly layers: readonly Layer[];
}

/** What the steps of a placement share. */
interface Work {
  readonly model: OnnxModel;
  readonly context: TargetContext;
  readonly options: PlaceOptions;
  readonly targets: ReadonlyMap<string, Target>;
  readonly replaced: Map<NodeProto, NodeProto[]>;
  readonly unused: Set<string>;
}

/**
 * Puts packed layers into a graph, in place.
 * @throws LowbitError E_ONNX where nothing matches, or a rule leads nowhere; E_ABORTED
 * @example const report = await placeWeights(model, await importCheckpoint("Llama-GPTQ"));
 */
export async function placeWeights(model: OnnxModel, weights: ForeignWeights, options: PlaceOptions = {}): Promise<PlaceReport> {
  const notes: string[] = [];
  if (sortNodes(buildScopes(model))) notes.push("nodes sorted: a value was used before the node that makes it");
  const { tensors = new Map() as NonNullable<ForeignWeights["tensors"]> } = weights;
  const names = [...weights.layers.keys(), ...tensors.keys()];
  const quantized = quantizedKind(buildScopes(model));
  if (quantized !== null)
    notes.push(`the graph is quantized already (${describeQuantized(quantized)}): only its float weights can be replaced`);
  const split = splitRules(names, options.rules ?? [], weights.layers);
  const scopes = buildScopes(model);
  const places = placesOf(findLayers(scopes, model));
  const matches = matchNames([...weights.layers.keys()], places, split.layers);
  if (matches.found.size === 0) throw nothing(matches, weights, places);
  const early = new Map<Scope, NodeProto[]>();
  const context = newContext(
    model,
    scopes,
    pick({ accuracyLevel: options.accuracyLevel }),
    notes,
    () => {
      throw new Error("formats come with the weights");
    },
    early,
  );
  const work: Work = {
    ...{ model, context, options, replaced: new Map(), unused: new Set() },
    targets: new Map(["matmulnbits", "stored"].map((name) => [name, TARGETS.get(name as "stored")!()])),
  };
  const left = new Map(matches.left);
  const placed: PlacedLayer[] = [];
  let done = 0;
  for (const [module, place] of matches.found) {
    checkAborted(options.signal);
    options.onProgress?.({ done: done++, total: matches.found.size, layer: module });
    const result = await placeOne(work, module, place, weights.layers.get(module)!, matches.ruled.has(module));
    if (typeof result === "string") left.set(module, result);
    else placed.push(result);
  }
  if (placed.length === 0) throw nothing({ ...matches, left }, weights, places);
  for (const target of work.targets.values()) target.finish?.(context);
  replaceNodes(scopes, work.replaced, early);
  tidy(context, work.unused);
  modernizeInputs(model, notes);
  const floats = options.keepFloats ? [] : await placeFloats(model, tensors, split.tensors, left);
  const ready = new Set(placed.flatMap(({ nodes }) => nodes));
  const kept = places.flatMap(({ layers }) => layers.map(({ name }) => name)).filter((name) => !ready.has(name));
  return { placed, floats, left: [...left].map(([name, reason]) => ({ name, reason })), kept, notes };
}

/**
 * Float weights by constant: a table that is also a product's is two places, for a packed product leaves the table
 * alone.
 */
function placesOf(layers: readonly Layer[]): Place[] {
  const bySource = new Map<unknown, Map<string, Layer[]>>();
  for (const layer of layers) {
    if (layer.weight === null) continue;
    const { source } = layer.weight;
    const uses = bySource.get(source) ?? new Map<string, Layer[]>();
    bySource.set(source, uses);
    const use = layer.node.opType === "Gather" ? "table" : "operand";
    uses.set(use, [...(uses.get(use) ?? []), layer]);
  }
  return [...bySource.values()].flatMap((uses) =>
    [...uses.values()].map((of) => ({ layers: of, names: [...new Set(of.flatMap(({ name, weight }) => [name, weight!.name]))] })),
  );
}

/**
 * Rules for layers and for the tensors beside them, by what they match; one that matches nothing is for layers, where
 * it is an error.
 */
function splitRules(names: readonly string[], rules: readonly PlaceRule[], layers: ReadonlyMap<string, unknown>) {
  const out = { layers: [] as PlaceRule[], tensors: [] as PlaceRule[] };
  for (const rule of rules) {
    const hits = hitsOf(names, rule);
    const tensors = hits.filter((name) => !layers.has(name));
    if (tensors.length > 0) out.tensors.push(rule);
    if (tensors.length < hits.length || hits.length === 0) out.layers.push(rule);
  }
  return out;
}

function nothing({ left }: Matches<Place>, weights: ForeignWeights, places: readonly Place[]): LowbitError {
  const [first] = [...left].filter(([name]) => weights.layers.has(name));
  const why = first === undefined ? "the checkpoint has no quantized layers" : `${first[0]}: ${first[1]}`;
  const names = places.slice(0, 3).map((place) => place.names.join(" = "));
  return new LowbitError(
    "E_ONNX",
    `checkpoint: expected layers of the graph (${names.join(", ") || "it has no float weights"}), got none of ${weights.layers.size} (${why}). Is it the same model, in floats? Say which is which with rules (--map).`,
  );
}

/** One packed weight into the graph, or why not. */
async function placeOne(
  work: Work,
  module: string,
  place: Place,
  load: () => Promise<{ readonly packed: PackedTensor; readonly columns?: Int32Array }>,
  ruled: boolean,
): Promise<PlacedLayer | string> {
  const { model, context } = work;
  const { packed, columns } = await load();
  for (const layer of place.layers) {
    const matrix = layerMatrix(layer);
    if (typeof matrix === "string") return `${layer.name}: ${matrix}`;
    if (matrix.rows !== packed.rows || matrix.k !== packed.k)
      return `${layer.name} has a weight of [${matrix.rows}, ${matrix.k}], the checkpoint one of [${packed.rows}, ${packed.k}]`;
    if (matrix.factor !== 1) return `${layer.name} multiplies by ${matrix.factor} (alpha), which no code holds`;
    if (columns !== undefined && (layer.node.opType !== "MatMul" || layer.input !== 1))
      return `${layer.name} is no product x W, whose inputs could be put into the order of the checkpoint's columns`;
    if (columns !== undefined && context.opset() < 11)
      return `${layer.name} has its columns in another order, and nodes of opset ${context.opset()} cannot sort them (11 or later can)`;
  }
  const likeness = cosine(model, place.layers[0], packed, columns);
  if (likeness < COSINE_MIN && !ruled)
    return `${place.names[0]} has other values (cosine ${likeness.toFixed(3)}): another layer, or another model; a rule places it all the same`;
  const chosen = chooseTarget(work, place.layers, packed);
  if (typeof chosen === "string") return chosen;
  for (const layer of place.layers) {
    for (const name of layer.node.input) work.unused.add(name);
    work.unused.add(layer.weight!.name);
    const sorted = columns === undefined ? [] : [sortColumns(layer, context, columns)];
    const { nodes } = chosen.target.write(layer, chosen.packed, context);
    if (nodes !== null || sorted.length > 0) work.replaced.set(layer.node, [...sorted, ...(nodes ?? [layer.node])]);
  }
  const nodes = place.layers.map(({ name }) => name);
  return { module, nodes, format: packed.format.name, target: chosen.target.name as "stored", cosine: likeness };
}

/** The inputs of a product in the order of the checkpoint's columns: a Gather before it. */
function sortColumns(layer: Layer, context: TargetContext, columns: Int32Array): NodeProto {
  const { model, names } = context;
  const order = new Uint8Array(BigInt64Array.from(columns, BigInt).buffer);
  const indices = makeTensor(model, names.take(`${layer.weight!.name}_columns`), T.INT64, [columns.length], order);
  layer.scope.graph.initializer.push(indices);
  const output = names.take(`${layer.name}_sorted`);
  const node = makeNode("Gather", [layer.node.input[0], indices.name], [output], {
    name: names.take(`${layer.name}_columns`),
    attributes: [intAttribute("axis", -1)],
  });
  layer.node.input[0] = output;
  return node;
}

/** The first target that holds the codes of a weight for all its layers. */
function chooseTarget(work: Work, layers: readonly Layer[], packed: PackedTensor): { target: Target; packed: PackedTensor } | string {
  const { options, targets, context } = work;
  const wanted = options.target ?? "auto";
  const reasons: string[] = [];
  for (const [name, target] of targets) {
    if (wanted !== "auto" && wanted !== name) continue;
    const held = name === "stored" ? packed : fitted(packed, layerType(layers[0]) === T.FLOAT16);
    if (held === null) {
      reasons.push(`MatMulNBits cannot hold ${packed.format.name} exactly`);
      continue;
    }
    const reason = layers
      .map((layer) =>
        target.opTypes.includes(layer.node.opType) ? target.reason(layer, held.format, context) : `${name} takes no ${layer.node.opType}`,
      )
      .find((r) => r !== undefined);
    if (reason === undefined) return { target, packed: held };
    reasons.push(reason);
  }
  return reasons.join("; ");
}

/** Cosine of the values that a layer has and those that it gets, over rows spread over the matrix. */
function cosine(model: OnnxModel, layer: Layer, packed: PackedTensor, columns: Int32Array | undefined): number {
  const matrix = layerMatrix(layer);
  if (typeof matrix === "string") return 0;
  const { data, stride, offset } = matrixTensor(model, layer, { ...matrix, shape: [matrix.rows, matrix.k] });
  const { rows, k } = packed;
  const row = new Float32Array(k);
  const step = Math.max(1, Math.floor(rows / SAMPLE_ROWS));
  let [xy, xx, yy] = [0, 0, 0];
  for (let r = 0; r < rows; r += step) {
    dequantizeRows(packed, r, 1, row);
    for (let j = 0; j < k; j++) {
      const x = data[offset + r * stride[0] + (columns?.[j] ?? j) * stride[1]];
      xy += x * row[j];
      xx += x * x;
      yy += row[j] * row[j];
    }
  }
  return xx === 0 && yy === 0 ? 1 : xy / Math.sqrt(xx * yy || 1);
}

/** The floats beside the layers: tables and matrices by their nodes, everything else by the names of initializers. */
async function placeFloats(
  model: OnnxModel,
  tensors: NonNullable<ForeignWeights["tensors"]>,
  rules: readonly PlaceRule[],
  left: Map<string, string>,
): Promise<PlaceReport["floats"]> {
  const out: { tensor: string; to: string; changed: boolean }[] = [];
  const isMatrix = (name: string): boolean => tensors.get(name)!.shape.length > 1;
  const matrices = [...tensors.keys()].filter(isMatrix);
  const others = [...tensors.keys()].filter((name) => !isMatrix(name));
  const own = (names: readonly string[]): PlaceRule[] => rules.filter((rule) => hitsOf(names, rule).length > 0);
  const places = modelLayers(model).map((layer) => ({ layer, names: [layer.name, layer.weight.name] }));
  const layers = matchNames(matrices, places, own(matrices));
  for (const [name, { layer }] of layers.found) {
    const { shape } = tensors.get(name)!;
    const k = shape.slice(1).reduce((n, d) => n * d, 1);
    if (layer.rows !== shape[0] || layer.k !== k)
      left.set(name, `${layer.name} has a weight of [${layer.rows}, ${layer.k}], not [${shape.join(", ")}]`);
    else {
      const values = await tensors.get(name)!.values();
      const old = matrixTensor(model, layer, {
        ...(layerMatrix(layer) as Exclude<ReturnType<typeof layerMatrix>, string>),
        shape: [layer.rows, k],
      });
      const same = values.every((v, i) => old.data[old.offset + Math.floor(i / k) * old.stride[0] + (i % k) * old.stride[1]] === v);
      if (!same) writeWeight(model, layer, values);
      out.push({ tensor: name, to: layer.name, changed: !same });
    }
  }
  const initializers = buildScopes(model).flatMap((scope) =>
    [...scope.initializers].flatMap(([name, tensor]) => (isFloatType(tensor.dataType) ? [{ names: [name], tensor }] : [])),
  );
  const vectors = matchNames(others, initializers, own(others), true);
  for (const [name, { tensor }] of vectors.found) out.push(...(await placeVector(model, name, tensors.get(name)!, tensor, left)));
  for (const [name, reason] of [...layers.left, ...vectors.left]) left.set(name, reason);
  return out;
}

async function placeVector(
  model: OnnxModel,
  name: string,
  from: { readonly shape: readonly number[]; values(): Promise<Float32Array> },
  to: TensorProto,
  left: Map<string, string>,
): Promise<PlaceReport["floats"]> {
  const dims = tensorDims(to);
  const flat = (shape: readonly number[]): string => shape.filter((d) => d !== 1).join();
  if (flat(dims) !== flat(from.shape)) {
    left.set(name, `${to.name} is [${dims.join(", ")}], not [${from.shape.join(", ")}]`);
    return [];
  }
  const [values, old] = [await from.values(), readFloats(model, to)];
  const same = values.every((v, i) => old[i] === v);
  if (!same) setFloats(model, to, values);
  return [{ tensor: name, to: to.name, changed: !same }];
}
