// Static quantization: weights in the file and activations at run time as integers, with ranges that calibration data give. QDQ form: pairs of
// QuantizeLinear and DequantizeLinear, from which the runtime makes integer kernels.
import { LowbitError } from "../../formats/core/errors.ts";
import { defineBlock } from "../../formats/define/index.ts";
import { float32 } from "../../formats/float32.ts";
import { uint8 } from "../../formats/uint8.ts";
import { readFeeds, type CalibrationData } from "./calibrate/sources.ts";
import { isMainValue } from "./calibrate/taps.ts";
import { findReaders } from "./edit.ts";
import type { OnnxModel } from "./file/model.ts";
import { buildScopes, isDefaultDomain, nodeName } from "./graph/graph.ts";
import { findLayers } from "./layers.ts";
import type { QuantizeOptions } from "./options.ts";
import { nameFilter } from "./patterns.ts";
import { convertModel, type ConvertResult } from "./convert.ts";
import { outputValue, quantizedInputs, writeActivations, type ActivationPlan } from "./targets/static/activations.ts";
import { STATIC_DEFAULT, STATIC_OPERATORS } from "./targets/static/operators.ts";
import { ACTIVATION_TYPES, type ActivationType, type ValueRange } from "./targets/static/parameters.ts";
import { collectRanges, type RangeObserver } from "./targets/static/ranges.ts";

export interface StaticOptions extends Omit<QuantizeOptions, "dtype" | "target"> {
  /** Codes of activations. Default uint8. 16 bits run as float kernels in onnxruntime: nearly exact, not faster. */
  readonly activations?: ActivationType;
  /** Types of single values, by name. */
  readonly activationTypes?: Readonly<Record<string, ActivationType>>;
  /** How ranges follow from calibration. Default "minMax". */
  readonly observer?: RangeObserver;
  /** Zero points in the middle of the codes; default false. */
  readonly symmetricActivations?: boolean;
  /**
   * Quantize outputs of convolutions and Gemm too, as integer kernels need it; default true. false: only what quantized operators read is rounded,
   * which is nearer to the float model, but convolutions then compute in float.
   */
  readonly outputs?: boolean;
  /** Operators; default Conv, MatMul, Gemm. */
  readonly opTypes?: readonly string[];
}

/**
 * Weights by default: 255 codes around the zero point 127, a scale per output channel. Unsigned, because onnxruntime multiplies uint8 with int8 in sums of
 * 16 bits that saturate on x86 processors without VNNI (from 25 dB and more down to 14 dB on ordinary weights), and uint8 with uint8 exactly.
 */
const WEIGHTS = defineBlock({
  element: uint8,
  scales: [{ format: float32, span: "row" }],
  offset: { role: "zeroPoint", levels: [{ format: uint8, span: "row" }] },
  rangeRule: "narrow",
});

/** What of the model is quantized, and the values whose ranges are needed. */
function survey(model: OnnxModel, options: StaticOptions): { nodes: Set<string>; values: string[]; names: string[] } {
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
  const layers = new Map(findLayers([scope], model).map((layer) => [layer.node, layer]));
  const candidates = scope.graph.node.filter((node) => isDefaultDomain(node) && types.has(node.opType));
  const filter = nameFilter(options as QuantizeOptions, [...new Set(candidates.map(nodeName))]);
  const nodes = new Set<string>();
  const values = new Set<string>();
  const names: string[] = [];
  for (const node of candidates) {
    const operator = STATIC_OPERATORS.get(node.opType)!;
    if (filter(nodeName(node)) !== undefined) continue;
    // a layer whose weight is computed, and a Gemm or Conv that is not constant, have no integer kernel worth it
    if (operator.weight !== undefined && (layers.get(node)?.weight ?? null) === null) continue;
    nodes.add(node.output[0]);
    names.push(nodeName(node));
    for (const value of quantizedInputs(scope, node, operator)) values.add(value);
    if ((options.outputs ?? true) && operator.output !== "float") values.add(outputValue(readers, node));
  }
  return { nodes, values: [...values].filter((name) => isMainValue(model, name)), names };
}

/**
 * Quantizes weights and activations of a model, in place, for kernels on integers. Calibration runs the model in onnxruntime-node.
 * @param data calibration data, or the ranges themselves by name of the value
 * @returns layers as `quantizeModel` reports them, and notes
 * @throws LowbitError E_CALIBRATION for data that do not fit or hold NaN, E_UNSUPPORTED for operators without a rule, E_RUNTIME; TypeError, RangeError
 * @example await staticQuantize(model, "calibration.npz", { activations: "uint8", observer: "mse" });
 */
export async function staticQuantize(
  model: OnnxModel,
  data: CalibrationData | ReadonlyMap<string, ValueRange>,
  options: StaticOptions = {},
): Promise<ConvertResult> {
  const {
    activations = "uint8",
    activationTypes = {},
    observer = "minMax",
    symmetricActivations = false,
    outputs = true,
    ...rest
  } = options;
  for (const type of [activations, ...Object.values(activationTypes)])
    if (!ACTIVATION_TYPES.has(type))
      throw new RangeError(`activations: expected ${[...ACTIVATION_TYPES.keys()].join(", ")}, got ${String(type)}`);
  const { nodes, values, names } = survey(model, options);
  if (nodes.size === 0)
    throw new LowbitError(
      "E_UNSUPPORTED",
      "static quantization: expected operators with a constant weight in the main graph, got none. Choose others with opTypes.",
    );
  const { signal } = rest;
  const ranges =
    data instanceof Map
      ? (data as ReadonlyMap<string, ValueRange>)
      : await collectRanges(
          model,
          await readFeeds(model, data as CalibrationData, signal === undefined ? {} : { signal }),
          values,
          observer,
        );
  const types = new Map(Object.entries(activationTypes));
  const plan: ActivationPlan = { type: activations, symmetric: symmetricActivations, nodes, ranges, outputs, types };
  const weighted = new Set(["Conv", "ConvTranspose", "MatMul", "Gemm"]);
  const opTypes = (rest.opTypes ?? STATIC_DEFAULT).filter((type) => weighted.has(type));
  // inner graphs keep their weights: their activations cannot be watched
  const inner = new Set(findLayers(buildScopes(model).slice(1), model).map(({ name }) => name));
  const exclude = [...(rest.exclude ?? []), ...[...inner].filter((name) => !names.includes(name))];
  const result =
    opTypes.length === 0
      ? { layers: [], notes: [] }
      : await convertModel(model, {
          ...rest,
          opTypes,
          format: rest.format ?? WEIGHTS,
          target: "qdq",
          ...(exclude.length === 0 ? {} : { exclude }),
        });
  const count = writeActivations(model, plan, result.notes);
  result.notes.push(
    `${count} activations quantized to ${activations}, ranges by ${typeof observer === "string" ? observer : observer.method}`,
  );
  return result;
}
