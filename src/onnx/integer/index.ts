// integerOnly: a transformer encoder as a graph in which every operator between input and output works on integers
// (I-ViT, arXiv 2207.01405), in standard ONNX operators.
import { create } from "@bufbuild/protobuf";
import { LowbitError } from "../../../formats/core/errors.ts";
import { checkAborted, type RunOptions } from "../../quantize/steps.ts";
import type { CalibrationData } from "../calibrate/sources.ts";
import { readFeeds } from "../calibrate/sources.ts";
import { OperatorSetIdProtoSchema } from "../file/gen/onnx_pb.ts";
import { readModelBytes, writeModelBytes } from "../file/io.ts";
import type { OnnxModel } from "../file/model.ts";
import { buildScopes, collectNames, opsetVersion, sortNodes } from "../graph/graph.ts";
import { raiseOpset } from "../graph/opset.ts";
import { collectRanges, type RangeObserver } from "../targets/static/ranges.ts";
import { analyze, needsOf, type Analysis, type Need } from "./analyze.ts";
import { floatOperators } from "./check.ts";
import { Emitter } from "./emit.ts";
import { INTEGER_DOMAIN, integerFunctions } from "./functions.ts";
import type { Magnitude } from "./codes.ts";
import { Writer } from "./write.ts";

/** Data and choices of a model in integers only. */
export interface IntegerOnlyOptions extends RunOptions {
  /** Inputs of the model, as `quantizeModel` takes them: ranges of activations are those that they give. */
  readonly calibration: CalibrationData;
  /**
   * "table" (default): softmax and activations by tables of exact values; "shift": Shiftmax and ShiftGELU as published,
   * whose approximations models were trained with.
   */
  readonly functions?: "table" | "shift";
  /** How ranges of 8-bit codes are made of what was seen; default "mse". */
  readonly observer?: RangeObserver;
  /** 16-bit codes hold this times the largest value that calibration saw; default 1.5. */
  readonly headroom?: number;
}

/** What a model in integers only is made of. */
export interface IntegerOnlyReport {
  /** Nodes of the graph by operator; functions with their domain. */
  readonly operators: ReadonlyMap<string, number>;
  /** Operators at the inputs and outputs, which turn floats into codes and codes into floats. */
  readonly boundary: readonly string[];
}

/** From here on ReduceMax takes its axes as an input. */
const OPSET = 18;
/** From here on models may have functions. */
const IR_VERSION = 8n;

/**
 * Turns a transformer encoder (float32, unfused: MatMul, Gemm, Conv, normalisations as operators or spelled out,
 * Softmax, element-wise activations, masks, moves) into an integer one: 8-bit products, 16-bit sums and normalisations,
 * factors `c / 2^t`. Float inputs are quantized where they enter, float outputs made of codes where they leave; ids
 * need neither. The integer functions are model-local ones (domain `lowbit.integer`) of standard integer operators.
 * @returns the model's bytes, which onnxruntime and `lowbit/runtime` run alike
 * @throws LowbitError E_UNSUPPORTED for operators without an integer form, naming them; E_CALIBRATION, E_RUNTIME
 * @example const { bytes } = await integerOnly(await readFile("encoder.onnx"), { calibration: "data.npz" });
 */
export async function integerOnly(
  model: Uint8Array | OnnxModel,
  options: IntegerOnlyOptions,
): Promise<{ bytes: Uint8Array; report: IntegerOnlyReport }> {
  const { functions = "table", headroom = 1.5, observer = "mse", signal } = options;
  if (functions !== "table" && functions !== "shift")
    throw new RangeError(`functions: expected "table" or "shift", got ${String(functions)}`);
  if (!(typeof headroom === "number" && headroom >= 1 && headroom <= 100))
    throw new RangeError(`headroom: expected a number from 1 to 100, got ${String(headroom)}`);
  if (options.calibration === undefined)
    throw new LowbitError("E_CALIBRATION", "integerOnly: expected calibration data, got none. Give inputs of the model with calibration.");
  const own = readModelBytes(model instanceof Uint8Array ? model : writeModelBytes(model));
  raise(own);
  sortNodes(buildScopes(own));
  const analysis = analyze(own);
  const needs = needsOf(analysis);
  const feeds = await readFeeds(own, options.calibration, signal === undefined ? {} : { signal });
  checkAborted(signal, "integerOnly");
  const ranges = await collectRanges(own, feeds, measured(analysis, needs), observer, signal === undefined ? {} : { signal });
  const magnitudes = new Map<string, Magnitude>();
  for (const [name, { min, max, full }] of ranges)
    magnitudes.set(name, { full: Math.max(-full.min, full.max), narrow: Math.max(-min, max) || Math.max(-full.min, full.max) });
  const emitter = new Emitter(own, collectNames(buildScopes(own)));
  new Writer(own, analysis, needs, magnitudes, { functions, headroom }, emitter).run();
  replaceGraph(own, emitter);
  const { floats, boundary, operators } = floatOperators(own);
  if (floats.length > 0)
    throw new LowbitError(
      "E_ONNX",
      `integerOnly: expected integers only, got ${floats.join(", ")}. Report this model: its graph was read wrongly.`,
    );
  return { bytes: writeModelBytes(own), report: { operators, boundary } };
}

function raise(model: OnnxModel): void {
  const scopes = buildScopes(model);
  const opset = opsetVersion(model);
  if (opset >= OPSET) return;
  const reason = raiseOpset({ model, scopes, names: collectNames(scopes) }, OPSET);
  if (reason !== undefined)
    throw new LowbitError(
      "E_UNSUPPORTED",
      `integerOnly: expected a model that can be raised to opset ${OPSET}, got one where ${reason}. Export it anew.`,
    );
}

/** Values whose ranges set scales. */
function measured({ made, masks, isFloat }: Analysis, needs: ReadonlyMap<string, ReadonlySet<Need>>): string[] {
  const names = new Set<string>();
  for (const [name, how] of made) {
    if (!isFloat(name) || !needs.has(name) || masks.has(name) || how.kind === "constant" || how.kind === "softmax") continue;
    if (how.kind === "move" && how.from.length === 1) continue; // the numbers of its source
    if ((how.kind === "add" || how.kind === "where") && (masks.has(how.a) || masks.has(how.b))) continue;
    names.add(name);
  }
  return [...names];
}

function replaceGraph(model: OnnxModel, emitter: Emitter): void {
  const graph = model.proto.graph!;
  graph.node = emitter.nodes;
  const read = new Set([...graph.node.flatMap((node) => node.input), ...graph.output.map(({ name }) => name)]);
  const before = graph.initializer;
  graph.initializer = [...before.filter(({ name }) => read.has(name)), ...emitter.initializers];
  const defaults = new Set(before.map(({ name }) => name));
  const kept = new Set(graph.initializer.map(({ name }) => name));
  // inputs that gave defaults to weights are none of the integer model
  graph.input = graph.input.filter(({ name }) => kept.has(name) || !defaults.has(name));
  graph.valueInfo = [];
  const { proto } = model;
  const functions = integerFunctions(opsetVersion(model));
  proto.functions = [...proto.functions, ...[...emitter.functions].sort().map((name) => functions.get(name)!)];
  proto.opsetImport = [
    ...proto.opsetImport.filter(({ domain }) => domain !== INTEGER_DOMAIN),
    create(OperatorSetIdProtoSchema, { domain: INTEGER_DOMAIN, version: 1n }),
  ];
  if (proto.irVersion < IR_VERSION) proto.irVersion = IR_VERSION;
  sortNodes(buildScopes(model));
}

export { floatOperators, type IntegerCheck } from "./check.ts";
