// convertModel: a model in memory, quantized in place. Passes first; then every layer is decided (choose.ts), its
// weight quantized (weights.ts, decide.ts) and written (targets); then floats become float16 where the dtype asks for
// it.
import type { Format } from "../../formats/core/types.ts";
import { calibrateModel, readFeeds } from "./calibrate/index.ts";
import { weightsAhead } from "./ahead.ts";
import { decider, type Decision } from "./choose.ts";
import { decideInto } from "./decide.ts";
import { applyPasses, type LayerCalibration } from "./passes/index.ts";
import { modelLayers, readBias, writeBias } from "./primitives.ts";
import { dequantizeWeights } from "./dequantize/index.ts";
import { dtypeRow } from "./dtypes.ts";
import type { NodeProto } from "./file/gen/onnx_pb.ts";
import type { OnnxModel } from "./file/model.ts";
import {
  buildScopes,
  collectNames,
  describeQuantized,
  opsetVersion,
  quantizedKind,
  removeUnused,
  sortNodes,
  type Names,
  type Scope,
} from "./graph/graph.ts";
import { findLayers, type Layer } from "./layers.ts";
import { resolveAlgorithm } from "./algorithms.ts";
import { isExperts, sequentialReason } from "./calibrate/experts.ts";
import { activationOf, vectorView } from "./calibrate/vectors.ts";
import type { AlgorithmChoice, LayerRule, LayerReport, QuantizeOptions } from "./options.ts";
import { checkOptions } from "./option-table.ts";
import { nameFilter } from "./patterns.ts";
import { convertFp16 } from "./targets/fp16.ts";
import type { TargetContext } from "./targets/target.ts";
import { inFormat, layerWeights, type LayerQuantizer, type Rounding } from "./weights.ts";
import { writeLayers } from "./write-layers.ts";
import { memoryStore, type DecidedWeight, type WeightStore } from "./journal/store.ts";
import { boundTogether, firstReaders } from "./shared-weights.ts";

/** Layers and notes of a conversion; the model has been changed in place. */
export interface ConvertResult {
  readonly layers: LayerReport[];
  readonly notes: string[];
  /** Rules that a budget or a target found; with them the same file is made again without the search. */
  readonly rules?: readonly LayerRule[];
}

const NEAREST: LayerQuantizer = {};
const ORT = new Map<string, LayerQuantizer>();

/**
 * Rounding to nearest; of a dtype's own weights by the rules of onnxruntime's tools, so that files are the same byte
 * for byte.
 */
export function nearestOf({ dtype, format }: Pick<Decision, "dtype" | "format">, options: QuantizeOptions = {}): LayerQuantizer {
  if (dtype === null || format.kind !== "block") return NEAREST;
  const { rangeRule, element } = format;
  const reduceRange = options.reduceRange ?? false;
  const key = `${element.kind} ${rangeRule} ${reduceRange}`;
  let made = ORT.get(key);
  // one object for one rule: weights that two layers share are recognised by it
  if (made === undefined)
    ORT.set(key, (made = { arithmetic: "ort", ...(element.kind === "int" ? { rangeRule } : {}), ...(reduceRange ? { reduceRange } : {}) }));
  return made;
}

/**
 * Quantizes a model in place. @throws LowbitError E_ONNX on a damaged graph, E_VALUE on weights that are not finite,
 * E_ABORTED
 * @example
 * const model = readModelBytes(bytes);
 * const { layers } = await convertModel(model, { format: "int8_row", exclude: ["/14/Gemm"] });
 * layers.filter(({ format }) => format !== null).length // 4
 */
export const convertModel = (model: OnnxModel, options: QuantizeOptions): Promise<ConvertResult> => convertWith(model, options);

/**
 * convertModel with a store of weights: those of an earlier run are taken, new ones are kept there.
 * @throws ShardMade once the weights of a shard are made
 */
export async function convertWith(model: OnnxModel, options: QuantizeOptions, store: WeightStore = memoryStore()): Promise<ConvertResult> {
  checkOptions(options);
  const dtype = options.dtype === undefined ? null : dtypeRow(options.dtype)!;
  const notes: string[] = [];
  if (sortNodes(buildScopes(model))) notes.push("nodes sorted: a value was used before the node that makes it");
  if (options.requantize) notes.push(...dequantizeWeights(model));
  await runPasses(model, options, notes);
  const scopes = buildScopes(model);
  const already = quantizedKind(scopes);
  if (already !== null && !options.requantize)
    notes.push(
      `the model is quantized already (${describeQuantized(already)}): only what is float can still be made smaller; requantize (--requantize) begins again from its dequantized weights`,
    );
  const layers = dtype?.target === null ? [] : await convertLayers(model, scopes, options, notes, store);
  if (dtype?.target && dtype.half && layers.length > 0 && layers.every(({ format }) => format === null)) {
    const reasons = [...new Set(layers.map(({ reason }) => reason))].slice(0, 2).join("; ");
    notes.push(`${dtype.name}: no layer got its codes (${reasons}): what changed is float16, as the dtype fp16 has it`);
  }
  if (dtype?.half) layers.push(...(await convertFloats(model, options, notes, layers)));
  if (model.proto.functions.length > 0) notes.push(`${model.proto.functions.length} model-local functions were left alone`);
  if (layers.some((layer) => layer.format !== null)) modernizeInputs(model, notes);
  return { layers, notes };
}

/** The rewrites before: they keep the function of the float model. */
export async function runPasses(model: OnnxModel, options: QuantizeOptions, notes: string[]): Promise<void> {
  if (options.passes === undefined) return;
  const { calibration, calibrate, signal } = options;
  // read once: an iterable may be usable once only
  const feeds =
    calibration === undefined ? undefined : await readFeeds(model, calibration, pick({ maxBatches: calibrate?.maxBatches, signal }));
  const statistics: LayerCalibration | undefined =
    feeds &&
    (async (at, layers, { hessian }) => {
      const found = await calibrateModel(at, feeds, { ...pick({ ...calibrate, signal }), layers: [...layers], hessian });
      return new Map([...found.layers].flatMap(([name, { statistics: of }]) => (of.length === 1 ? [[name, of[0]] as const] : [])));
    });
  notes.push(
    ...(await applyPasses(model, options.passes, {
      ...(statistics === undefined ? {} : { calibration: statistics }),
      ...(feeds === undefined ? {} : { feeds: feeds.slice(0, 2) }),
      ...(signal === undefined ? {} : { signal }),
    })),
  );
}

/** An object without its undefined fields. */
export const pick = <T extends object>(fields: T): { [K in keyof T]?: NonNullable<T[K]> } =>
  Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined)) as never;

/** Does the layer's weight come from a quantizer that looks at data, or one of its own? */
const isDecided = ({ algorithm }: Decision): boolean => algorithm !== undefined && algorithm !== "rtn";

/**
 * The algorithm of a layer: its decision's. One that looks at data and was asked for the whole model leaves tables and
 * recurrent weights, which multiply no vectors that calibration knows, to a search of their scales.
 */
function algorithmOf(layer: Layer, { algorithm }: Decision, options: QuantizeOptions): AlgorithmChoice {
  const whole = algorithm === options.algorithm && resolveAlgorithm(algorithm!).needs !== "nothing";
  return whole && blindReason(layer, options) !== undefined ? "mse" : algorithm!;
}

/** Algorithms whose weights need other inputs than the model's: experts share theirs, and groups of a convolution. */
const OWN_BASIS: ReadonlySet<string> = new Set(["awq", "mrgptq"]);

/** Why an algorithm for the whole model cannot have a layer; undefined where it can. */
function blindReason(layer: Layer, { algorithm, sequential }: QuantizeOptions): string | undefined {
  const view = vectorView(layer);
  if (typeof view === "string") return view;
  if (algorithm === undefined) return undefined;
  const { name, needs } = resolveAlgorithm(algorithm);
  if (view.groups > 1 && OWN_BASIS.has(name)) return `${name} would give every ${isExperts(layer) ? "expert" : "group"} a basis of its own`;
  if (!isExperts(layer)) return undefined;
  return (sequential ?? needs === "drift") ? sequentialReason(layer) : undefined;
}

/** The weights of layers with an algorithm, and the biases that go with them. */
async function algorithmWeights(
  model: OnnxModel,
  decisionOf: (layer: Layer) => Decision,
  options: QuantizeOptions,
  notes: string[],
  { store, first }: { readonly store: WeightStore; readonly first: ReadonlyMap<Layer, Layer> },
): Promise<void> {
  const chosen = [...first.keys()];
  if (chosen.length === 0) return;
  const { sequential, calibration, statistics, calibrate, signal, onProgress } = options;
  const total = chosen.reduce((sum, layer) => sum + layer.bytes, 0);
  const searched = chosen.filter((layer) => algorithmOf(layer, decisionOf(layer), options) !== decisionOf(layer).algorithm);
  for (const layer of searched) notes.push(`${layer.name}: scales searched without data: ${blindReason(layer, options)}`);
  await decideInto(
    store,
    model,
    chosen,
    (layer) => ({ format: decisionOf(layer).format, algorithm: algorithmOf(layer, decisionOf(layer), options) }),
    calibration,
    {
      ...pick({ sequential, signal, statistics, ...calibrate }),
      undoes: ["rotation", "channelScales"],
      onProgress: ({ stage, done, total: steps, layer }) =>
        onProgress?.({ done: (total * done) / (steps || 1), total, layer: layer === undefined ? stage : `${layer} (${stage})` }),
    },
  );
  const own = modelLayers(model);
  for (const layer of sequential || chosen.some((one) => resolveAlgorithm(algorithmOf(one, decisionOf(one), options)).needs === "drift")
    ? new Set(first.values())
    : []) {
    const { biasShift } = store.get(layer)!;
    if (biasShift === undefined) continue;
    const target = own.find(({ node, input }) => node === layer.node && input === layer.input)!;
    const bias = readBias(model, target);
    writeBias(
      model,
      target,
      biasShift.map((shift, i) => shift + (bias?.[i] ?? 0)),
    );
  }
}

/** The weights of layers with an algorithm, one object for all that share it: targets know by it what is one weight. */
function decidedWeights(store: WeightStore, first: ReadonlyMap<Layer, Layer>, formatOf: (layer: Layer) => Format) {
  const left = new Map<Layer, number>();
  for (const one of first.values()) left.set(one, (left.get(one) ?? 0) + 1);
  const kept = new Map<Layer, DecidedWeight>();
  return (layer: Layer): DecidedWeight => {
    const one = first.get(layer)!;
    const weight = kept.get(one) ?? inFormat(store.get(one)!, formatOf(layer));
    const more = left.get(one)! - 1;
    left.set(one, more);
    if (more > 0) kept.set(one, weight);
    else kept.delete(one);
    return weight;
  };
}

/**
 * The dtype's second half: floats that are left become float16. Reports of layers come from here only where nothing
 * else made them.
 */
export async function convertFloats(
  model: OnnxModel,
  options: QuantizeOptions,
  notes: string[],
  before: readonly LayerReport[],
): Promise<LayerReport[]> {
  const scopes = buildScopes(model);
  const found = findLayers(scopes, model);
  const context = newContext(model, scopes, options, notes, () => {
    throw new Error("float16 has no format by layer");
  });
  const filter = before.length > 0 ? () => undefined : nameFilter(options, [...new Set(found.map((layer) => layer.name))]);
  const types = options.opTypes === undefined || before.length > 0 ? undefined : new Set(options.opTypes);
  const chosen = (layer: Layer): string | undefined =>
    types !== undefined && !types.has(layer.node.opType) ? "not among opTypes" : filter(layer.name);
  const reports = await convertFp16(context, found, chosen);
  if (before.length === 0) return reports;
  const known = new Set(before.filter((layer) => layer.format !== null).map((layer) => layer.name));
  const left = new Map(before.filter((layer) => layer.format === null).map((layer) => [layer.name, layer]));
  for (const report of reports) {
    const place = left.get(report.name);
    if (place !== undefined && report.format !== null && !known.has(report.name)) Object.assign(place, report, { reason: undefined });
  }
  return [];
}

/**
 * Before IR version 4 every initializer had to be a graph input too; new ones are not, so the model becomes IR 4 with
 * plain initializers.
 */
export function modernizeInputs(model: OnnxModel, notes: string[]): void {
  if (model.proto.irVersion >= 4n) return;
  const graph = model.proto.graph!;
  const initializers = new Set(graph.initializer.map((tensor) => tensor.name));
  graph.input = graph.input.filter((input) => !initializers.has(input.name));
  notes.push(`IR version raised from ${model.proto.irVersion} to 4: weights are no longer graph inputs`);
  model.proto.irVersion = 4n;
}

/** Nodes that read constants only, to stand before all others of their graph. */
type Early = Map<Scope, NodeProto[]>;

export function newContext(
  model: OnnxModel,
  scopes: readonly Scope[],
  options: QuantizeOptions,
  notes: string[],
  formatOf: (layer: Layer) => Format,
  early: Early = new Map(),
  owns?: TargetContext["owns"],
): TargetContext {
  let names: Names | undefined;
  return {
    model,
    scopes,
    // asked for late: biases may have been added since
    get names() {
      return (names ??= collectNames(scopes));
    },
    options,
    opset: () => opsetVersion(model),
    notes,
    formatOf,
    before(scope, nodes) {
      early.set(scope, [...(early.get(scope) ?? []), ...nodes]);
    },
    ...(owns === undefined ? {} : { owns }),
  };
}

/** Every layer by its decision: reports, and the nodes of the graph replaced. */
async function convertLayers(
  model: OnnxModel,
  scopes: readonly Scope[],
  options: QuantizeOptions,
  notes: string[],
  store: WeightStore,
): Promise<LayerReport[]> {
  const found = findLayers(scopes, model);
  const early: Early = new Map();
  const decisionOf = (layer: Layer): Decision => decide.of(layer) as Decision;
  const context = newContext(
    model,
    scopes,
    options,
    notes,
    (layer) => decisionOf(layer).format,
    early,
    (packed) => weights.owns(packed),
  );
  const decide = decider(context, found);
  const todo = found.filter((layer) => typeof decide.of(layer) !== "string");
  const late = decide.targets().map((target) => ({
    target,
    reason: target.prepare?.(
      todo.filter((layer) => decisionOf(layer).target === target),
      context,
    ),
  }));
  const reasonOf = (layer: Layer): string | undefined => {
    const decision = decide.of(layer);
    return typeof decision === "string" ? decision : late.find(({ target }) => target === decision.target)?.reason?.(layer);
  };
  const isFlat = (layer: Layer): boolean => decisionOf(layer).target.isFlat?.(layer, decisionOf(layer).format) ?? false;
  const asked = todo.filter((layer) => isDecided(decisionOf(layer)));
  // algorithms work row by row: they would begin every row with a block of its own
  for (const { name } of asked.filter(isFlat))
    notes.push(`${name}: rounded to nearest: its rows are no whole blocks, and here a block goes on in the next row`);
  const looking = asked.filter((layer) => !isFlat(layer));
  const first = firstReaders(looking, (layer) => ({
    format: decisionOf(layer).format,
    algorithm: algorithmOf(layer, decisionOf(layer), options),
  }));
  const bound = boundTogether(looking, (layer) => `${layer.scope.path} ${activationOf(layer)}`, first);
  store.begin(model, todo, (layer) => bound.get(layer) ?? layer.weight?.source ?? layer);
  await algorithmWeights(model, decisionOf, options, notes, { store, first });
  const decidedWeight = decidedWeights(store, first, (layer) => decisionOf(layer).format);
  const roundingOf = (layer: Layer): Rounding => {
    return { layer, format: decisionOf(layer).format, quantizer: nearestOf(decisionOf(layer), options), flat: isFlat(layer) };
  };
  const weights = layerWeights(model, todo, store);
  const rounded = todo.filter((layer) => !first.has(layer) && !store.has(layer) && store.takes(layer) && reasonOf(layer) === undefined);
  const ahead = weightsAhead(model, rounded.map(roundingOf));
  const weightOf = async (layer: Layer): Promise<DecidedWeight> =>
    first.has(layer) ? decidedWeight(layer) : weights.quantize(roundingOf(layer), await ahead?.take(layer));
  const total = todo.reduce((sum, layer) => sum + layer.bytes, 0);
  try {
    const written = await writeLayers(found, { context, total, store, reasonOf, targetOf: (layer) => decisionOf(layer).target, weightOf });
    for (const target of decide.targets()) target.finish?.(context);
    replaceNodes(scopes, written.replaced, early);
    tidy(context, written.unused);
    options.onProgress?.({ done: total, total, layer: "" });
    return written.reports;
  } finally {
    await ahead?.close();
  }
}

export function replaceNodes(scopes: readonly Scope[], replaced: ReadonlyMap<NodeProto, NodeProto[]>, early: Early): void {
  for (const scope of scopes) {
    const { graph } = scope;
    if (graph.node.some((node) => replaced.has(node))) graph.node = graph.node.flatMap((node) => replaced.get(node) ?? [node]);
    const first = early.get(scope);
    if (first !== undefined) graph.node = [...first, ...graph.node];
  }
}

/** Takes away what nothing reads any more: weights, and a bias that was given a new shape. */
export function tidy(context: TargetContext, unused: ReadonlySet<string>): void {
  const inputs = removeUnused(context.scopes, unused);
  // Before IR version 4 initializers had to be inputs, and nobody could feed them.
  if (inputs.length === 0 || context.model.proto.irVersion < 4n) return;
  const some = `${inputs.slice(0, 3).join(", ")}${inputs.length > 3 ? `, ... (${inputs.length} in all)` : ""}`;
  context.notes.push(`weights that were graph inputs with a default can no longer be fed: ${some}`);
}
