// Static quantization: weights in the file and activations at run time as integers, with ranges that calibration data
// give. QDQ form: pairs of QuantizeLinear and DequantizeLinear, from which the runtime makes integer kernels.
import { LowbitError } from "../../formats/core/errors.ts";
import { nearest } from "../../formats/registry.ts";
import { readFeeds, type CalibrationData } from "./calibrate/sources.ts";
import { isMainValue } from "./calibrate/taps.ts";
import { convertFloats, convertWith, pick, runPasses, type ConvertResult } from "./convert.ts";
import { findReaders } from "./edit.ts";
import type { NodeProto } from "./file/gen/onnx_pb.ts";
import type { OnnxModel } from "./file/model.ts";
import { buildScopes, isDefaultDomain, nodeName, sortNodes, type Scope } from "./graph/graph.ts";
import { findLayers, unknownReason, type Layer } from "./layers.ts";
import { weightLayout } from "./matrix.ts";
import type { ActivationChoice, LayerReport, LayerRule, QuantizeOptions } from "./options.ts";
import { nameFilter, nameMatcher } from "./patterns.ts";
import { exactPattern } from "./sensitivity.ts";
import { outputValue, quantizedInputs, writeActivations, type ActivationPlan } from "./targets/static/activations.ts";
import { STATIC_DEFAULT, STATIC_OPERATORS } from "./targets/static/operators.ts";
import { ACTIVATION_TYPES, type ActivationType, type ValueRange } from "./targets/static/parameters.ts";
import { writeQOperators } from "./targets/static/qoperator.ts";
import { collectRanges, type ObservedRange } from "./targets/static/ranges.ts";
import { GPTQ_INPUTS, staticFormat, staticWeights } from "./targets/static/weights.ts";
import type { Feeds } from "./verify/feeds.ts";
import type { WeightStore } from "./journal/store.ts";
import { leftAlone } from "./write-layers.ts";

/** Options of static quantization: those of `quantizeModel`. */
export type StaticOptions = Omit<QuantizeOptions, "target" | "calibration" | "budget" | "targetSqnr">;

/** With "mixed", a value whose 8-bit codes leave less than this (dB) above their error gets 16 bits. */
const MIXED_SQNR = 36;
/** Vectors of a layer that weights are fitted to, unless told otherwise: 8-bit codes do not need more. */
const MAX_TOKENS = 16384;

interface Survey {
  /** Nodes to quantize, with their layer where they have a weight. */
  readonly nodes: ReadonlyMap<NodeProto, Layer | null>;
  /** Values whose ranges are needed. */
  readonly values: string[];
  /** Inputs and outputs of operators that only move or pick values: they share scale and zero point. In order. */
  readonly moves: readonly (readonly [from: string, to: string])[];
  /** Why other layers stay, by name. */
  readonly reasons: ReadonlyMap<string, string>;
}

/** Why a node stays: by its name, its operator or a rule. */
function keptBy(options: StaticOptions, scope: Scope, names: readonly string[]): (node: NodeProto) => string | undefined {
  const { include, exclude } = options;
  const filter = nameFilter(pick({ include, exclude }), names);
  const keep = (options.keep ?? []).map((pattern) => ({ pattern, matches: nameMatcher("keep", pattern, scope.graph.node.map(nodeName)) }));
  const ops = new Set(options.keepOps);
  const rules = (options.rules ?? []).map((rule, i) => ({ rule, matches: nameMatcher(`rules[${i}].match`, rule.match, names) }));
  return (node) => {
    const name = nodeName(node);
    const first = rules.find(({ matches }) => matches(name));
    if (first?.rule.keep) return first.rule.reason ?? `kept by the rule ${String(first.rule.match)}`;
    const pattern = keep.find(({ matches }) => matches(name))?.pattern;
    if (pattern !== undefined) return `kept by ${String(pattern)}`;
    return ops.has(node.opType) ? `kept: ${node.opType} is among keepOps` : filter(name);
  };
}

/** What of the model is quantized, and the values whose ranges are needed. */
function survey(model: OnnxModel, options: StaticOptions): Survey {
  const scopes = buildScopes(model);
  const [scope] = scopes;
  const readers = findReaders(scopes).get(scope)!;
  const types = new Set(options.opTypes ?? STATIC_DEFAULT);
  for (const type of types) {
    if (STATIC_OPERATORS.has(type)) continue;
    throw new LowbitError(
      "E_UNSUPPORTED",
      `opTypes: expected operators that static quantization knows (${[...STATIC_OPERATORS.keys()].join(", ")}), got ${type}. Leave it out.`,
    );
  }
  const layers = findLayers(scopes, model);
  const layerOf = new Map(layers.map((layer) => [layer.node, layer]));
  const candidates = scope.graph.node.filter((node) => isDefaultDomain(node) && types.has(node.opType));
  const kept = keptBy(options, scope, [...new Set([...candidates.map(nodeName), ...layers.map(({ name }) => name)])]);
  const nodes = new Map<NodeProto, Layer | null>();
  const values = new Set<string>();
  const moves: [string, string][] = [];
  for (const node of candidates) {
    const operator = STATIC_OPERATORS.get(node.opType)!;
    const layer = layerOf.get(node) ?? null;
    // a layer whose weight is computed has no integer kernel worth it
    if (kept(node) !== undefined || (operator.weight !== undefined && (layer?.weight ?? null) === null)) continue;
    nodes.set(node, operator.weight === undefined ? null : layer);
    for (const value of quantizedInputs(scope, node, operator)) values.add(value);
    if (wantsOutput(options, node)) values.add(outputValue(readers, node));
    if (operator.output === "input") moves.push([node.input[0], outputValue(readers, node)]);
  }
  const reasons = new Map<string, string>();
  for (const layer of layers) {
    const { node, scope: own, weight, name } = layer;
    if (nodes.get(node)) continue;
    const reason =
      own.parent !== null
        ? `it lies in ${own.path}: activations inside If, Loop and Scan cannot be watched`
        : weight === null
          ? "the weight is not constant"
          : !types.has(node.opType)
            ? STATIC_OPERATORS.has(node.opType)
              ? `${node.opType} is not quantized unless opTypes (--op-types) names it`
              : unknownReason(layer, "static quantization")
            : kept(node);
    if (reason !== undefined) reasons.set(name, reason);
  }
  return { nodes, values: [...values].filter((name) => isMainValue(model, name)), moves, reasons };
}

/** Is the output of a node quantized? A QLinearMatMul gives integers, the product of a QDQ pair floats. */
const wantsOutput = ({ inputsOnly = false, outputs = "qdq" }: StaticOptions, node: NodeProto): boolean =>
  !inputsOnly && (outputs === "qoperator" || STATIC_OPERATORS.get(node.opType)!.output !== "float");

/**
 * Are all activations of a node 8-bit? With 16 bits it computes in float: rounding its output would only lose, and
 * onnxruntime 1.30 has rewritten such pairs wrongly (the PP-OCRv4 recogniser at opset 21: 32 dB without optimisation,
 * -1 dB with it).
 */
function hasKernel(scopes: readonly Scope[], node: NodeProto, typeOf: (value: string) => ActivationType): boolean {
  const values = [...quantizedInputs(scopes[0], node, STATIC_OPERATORS.get(node.opType)!), node.output[0]];
  return values.every((value) => ACTIVATION_TYPES.get(typeOf(value))!.bits === 8);
}

/** The type of each value, and its range for that type. */
function typesOf(
  observed: ReadonlyMap<string, ObservedRange | ValueRange>,
  moves: Survey["moves"],
  options: StaticOptions,
): { types: Map<string, ActivationType>; ranges: Map<string, ValueRange> } {
  const { activations = "uint8", activationTypes = {} } = options;
  for (const name of Object.keys(activationTypes))
    if (!observed.has(name))
      throw new LowbitError(
        "E_ONNX",
        `activationTypes: expected values that are quantized, got ${JSON.stringify(name)}. Nearest: ${nearest(name, [...observed.keys()]).join(", ")}.`,
      );
  const types = new Map<string, ActivationType>();
  const ranges = new Map<string, ValueRange>();
  for (const [name, range] of observed) {
    const noise = "noise" in range ? range.noise : 0;
    const chosen = activations !== "mixed" ? activations : noise > 10 ** (-MIXED_SQNR / 10) ? "uint16" : "uint8";
    const type = Object.hasOwn(activationTypes, name) ? activationTypes[name] : chosen;
    types.set(name, type);
    ranges.set(name, ACTIVATION_TYPES.get(type)!.bits === 16 && "full" in range ? range.full : range);
  }
  for (const [from, to] of moves) {
    const [type, range] = [types.get(from), ranges.get(from)];
    if (type === undefined || range === undefined || !types.has(to)) continue;
    types.set(to, type);
    ranges.set(to, range);
  }
  return { types, ranges };
}

function checkTypes({ activations = "uint8", activationTypes = {}, outputs }: StaticOptions): void {
  const names: readonly ActivationChoice[] = [...ACTIVATION_TYPES.keys(), "mixed"];
  if (!names.includes(activations)) throw new RangeError(`activations: expected ${names.join(", ")}, got ${String(activations)}`);
  for (const [name, type] of Object.entries(activationTypes))
    if (!ACTIVATION_TYPES.has(type))
      throw new RangeError(`activationTypes.${name}: expected ${[...ACTIVATION_TYPES.keys()].join(", ")}, got ${String(type)}`);
  const wide = [activations, ...Object.values(activationTypes)].find((type) => type !== "uint8" && type !== "int8");
  if (outputs === "qoperator" && wide !== undefined)
    throw new RangeError(
      `activations: expected uint8 or int8 with outputs "qoperator", got ${wide}: its operators have no 16 bits. Take "qdq".`,
    );
}

/** A rule for each layer: format and quantizer by what multiplies it. */
function weightRules(nodes: Survey["nodes"], typeOf: (value: string) => ActivationType, options: StaticOptions): LayerRule[] {
  const rules: LayerRule[] = [];
  for (const [node, layer] of nodes) {
    if (layer === null) continue;
    const { k, groups } = weightLayout(layer);
    const fitted = options.algorithm === undefined && groups === 1 && k > 1 && k <= GPTQ_INPUTS && layer.shape.length >= 2;
    rules.push({
      match: exactPattern(layer.name),
      target: "qdq",
      format: options.format ?? staticFormat(typeOf(node.input[layer.input === 0 ? 1 : 0]), k),
      ...(fitted && node.opType !== "ConvTranspose" ? { algorithm: staticWeights } : {}),
    });
  }
  return rules;
}

/** A rule that names a format means it for DequantizeLinear, as everything here. */
const inPairs = (rule: LayerRule): LayerRule => (rule.format === undefined ? rule : { target: "qdq", ...rule });

/** Weights of the chosen layers as codes behind DequantizeLinear. */
async function convertWeights(
  model: OnnxModel,
  { nodes, reasons }: Survey,
  feeds: readonly Feeds[] | null,
  rules: readonly LayerRule[],
  options: StaticOptions,
  store?: WeightStore,
): Promise<ConvertResult> {
  const { activations: _a, activationTypes: _t, observer: _o, outputs: _q, inputsOnly: _u, symmetricActivations: _s, ...rest } = options;
  const { passes: _p, dtype: _d, include: _i, exclude: _e, keep: _k, keepOps: _ko, ...plain } = rest;
  const layers = [...nodes.values()].filter((layer) => layer !== null);
  if (layers.length === 0) return { layers: staying(model, reasons), notes: [] };
  const chosen = new Set(layers.map(({ name }) => name));
  // the rest keeps its weights: other operators, and inner graphs, whose activations cannot be watched
  const others = new Set(
    findLayers(buildScopes(model), model)
      .map(({ name }) => name)
      .filter((name) => !chosen.has(name)),
  );
  const asked = {
    ...plain,
    opTypes: [...new Set(layers.map(({ node }) => node.opType))],
    format: options.format ?? staticFormat("uint8", Infinity),
    target: "qdq",
    rules: [...(options.rules ?? []).map(inPairs), ...rules],
    ...(others.size === 0 ? {} : { exclude: [...others].map(exactPattern) }),
    ...(feeds === null ? {} : { calibration: feeds }),
    calibrate: { maxTokens: MAX_TOKENS, ...options.calibrate },
  };
  const result = await convertWith(model, asked as QuantizeOptions, store);
  const explained = result.layers.map((layer) => {
    const reason = others.has(layer.name) ? reasons.get(layer.name) : undefined;
    return reason === undefined ? layer : { ...layer, reason };
  });
  return { layers: explained, notes: result.notes };
}

/**
 * Quantizes weights and activations of a model, in place, for kernels on integers. Calibration runs the model in
 * onnxruntime-node.
 * @param data calibration data, or the ranges themselves by name of the value (weights are then rounded to nearest)
 * @param store where the weights of an earlier run are, and new ones go
 * @returns layers as `quantizeModel` reports them, and notes
 * @throws LowbitError E_CALIBRATION for data that do not fit or hold NaN, E_UNSUPPORTED for operators without a rule,
 * E_RUNTIME; TypeError, RangeError
 * @example await staticQuantize(model, "calibration.npz", { activations: "uint8", observer: "mse" });
 */
export async function staticQuantize(
  model: OnnxModel,
  data: CalibrationData | ReadonlyMap<string, ValueRange>,
  options: StaticOptions = {},
  store?: WeightStore,
): Promise<ConvertResult> {
  checkTypes(options);
  const { observer = "mse", signal, calibrate, symmetricActivations = false } = options;
  const notes: string[] = [];
  sortNodes(buildScopes(model));
  const feeds =
    data instanceof Map ? null : await readFeeds(model, data as CalibrationData, pick({ maxBatches: calibrate?.maxBatches, signal }));
  if (feeds !== null) await runPasses(model, { ...options, calibration: feeds } as QuantizeOptions, notes);
  const found = survey(model, options);
  if (found.nodes.size === 0 && options.allowUnchanged) return { layers: await unchanged(model, found, options, notes), notes };
  if (found.nodes.size === 0)
    throw new LowbitError(
      "E_UNSUPPORTED",
      `static quantization: expected operators with a constant weight in the main graph, got none${because(found.reasons)}. Choose others with opTypes, or give weights alone 16 bits: format "int16_row", target "qdq".`,
    );
  const observed =
    feeds === null
      ? (data as ReadonlyMap<string, ValueRange>)
      : await collectRanges(model, feeds, found.values, observer, { ...pick({ signal, threads: calibrate?.threads }) });
  const { types, ranges } = typesOf(observed, found.moves, options);
  const typeOf = (value: string): ActivationType => types.get(value) ?? "uint8";
  const result = await convertWeights(model, found, feeds, weightRules(found.nodes, typeOf, options), options, store);
  const left = new Set(result.layers.filter(({ format }) => format === null).map(({ name }) => name));
  // a layer that could not be quantized keeps its float inputs
  const nodes = [...found.nodes].filter(([node, layer]) => layer === null || !left.has(nodeName(node))).map(([node]) => node);
  const scopes = buildScopes(model);
  const plan: ActivationPlan = {
    symmetric: symmetricActivations,
    nodes: new Set(nodes),
    ranges,
    types,
    outputs: new Set(nodes.filter((node) => wantsOutput(options, node) && hasKernel(scopes, node, typeOf))),
  };
  const written = writeActivations(model, plan, result.notes);
  const layers = options.outputs === "qoperator" ? asOperators(model, result, notes) : result.layers;
  notes.push(...result.notes, describeTypes(written, plan, options));
  if (options.dtype === "fp16") layers.push(...(await halve(model, options, notes, layers)));
  return { layers, notes };
}

/** Reports of layers none of which is quantized. */
const staying = (model: OnnxModel, reasons: Survey["reasons"]): LayerReport[] =>
  findLayers(buildScopes(model), model).map((layer) => leftAlone(layer, reasons.get(layer.name)!));

/** All layers as they are, or as float16. */
async function unchanged(model: OnnxModel, { reasons }: Survey, options: StaticOptions, notes: string[]): Promise<LayerReport[]> {
  const layers = staying(model, reasons);
  return options.dtype === "fp16" ? [...layers, ...(await convertFloats(model, options as QuantizeOptions, notes, layers))] : layers;
}

/** A reason why layers stay, in brackets. */
function because(reasons: ReadonlyMap<string, string>): string {
  const [first] = reasons;
  return first === undefined ? "" : ` (${first[0]}: ${first[1]})`;
}

/** QLinear operators in place of pairs; reports of layers say so. */
function asOperators(model: OnnxModel, result: ConvertResult, notes: string[]): LayerReport[] {
  const { replaced, left } = writeQOperators(model);
  notes.push(`${replaced.size} operators on integers (QOperator)`);
  if (left.length > 0) notes.push(`as QDQ pairs, because no integer operator takes them: ${left.join(", ")}`);
  return result.layers.map((layer) => (replaced.has(layer.name) ? { ...layer, target: "qoperator" } : layer));
}

function describeTypes(written: readonly string[], { types }: ActivationPlan, { observer = "mse" }: StaticOptions): string {
  const by = typeof observer === "string" ? observer : observer.method;
  const counts = new Map<string, number>();
  for (const type of written.map((value) => types.get(value) ?? "uint8")) counts.set(type, (counts.get(type) ?? 0) + 1);
  const most = [...counts].sort((a, b) => b[1] - a[1]).map(([type, n]) => (counts.size === 1 ? type : `${n} to ${type}`));
  return `${written.length} activations quantized to ${most.join(", ")}; ranges by ${by}`;
}

/** What is left of floats becomes float16; nodes on codes, and their neighbours, stay as kernels want them. */
function halve(model: OnnxModel, options: StaticOptions, notes: string[], layers: readonly LayerReport[]): Promise<LayerReport[]> {
  const pairs = ["QuantizeLinear", "DequantizeLinear"];
  const scopes = buildScopes(model);
  const inside = scopes[0].graph.node.filter((node) => {
    if (pairs.includes(node.opType)) return true;
    return isDefaultDomain(node) && node.input.some((name) => scopes[0].producers.get(name)?.opType === "DequantizeLinear");
  });
  const keep = [...(options.keep ?? []), ...inside.map(nodeName).map(exactPattern)];
  return convertFloats(model, { ...options, keep } as QuantizeOptions, notes, layers);
}
