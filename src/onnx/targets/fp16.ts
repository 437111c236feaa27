// fp16: every float32 value becomes float16, weights and activations, except around operators that have no float16 form or that
// transformers.js keeps in float32. Graph inputs and outputs keep their type (a Cast is put there). Weights are clamped to 1e-7..1e4 in
// magnitude (zero, infinities and NaN stay), as transformers.js does: float16 ends at 65504 and sums must not overflow.
// Each value has up to two names, one per precision; a Cast makes the other where a node asks for it.
import type { AttributeProto, NodeProto, TensorProto } from "../file/gen/onnx_pb.ts";
import {
  AttributeProtoSchema,
  AttributeProto_AttributeType as A,
  TensorProtoSchema,
  TensorProto_DataType as T,
} from "../file/gen/onnx_pb.ts";
import { create } from "@bufbuild/protobuf";
import { checkAborted, pause } from "../file/files.ts";
import type { Scope } from "../graph/graph.ts";
import { attributeFloat, attributeOf, definingScope, intAttribute, isDefaultDomain, makeNode, resolveConstant } from "../graph/graph.ts";
import { encodeHalf, halfTable } from "../file/half.ts";
import type { ElementTypes } from "../graph/infer.ts";
import { inferTypes, tensorElementType } from "../graph/infer.ts";
import { makeTensor } from "../file/model.ts";
import type { OnnxModel } from "../file/model.ts";
import type { LayerReport } from "../options.ts";
import type { Scratch } from "../file/values.ts";
import { ARRAY_MAX, readFloats, tensorBytes } from "../file/values.ts";
import type { Layer } from "../layers.ts";
import type { TargetContext } from "./target.ts";
import { decibels } from "../weights.ts";

/** Operators that transformers.js keeps in float32 (DEFAULT_OP_BLOCK_LIST of its float16 converter). Other domains are always kept. */
export const FP16_BLOCKED_OPS: readonly string[] =
  "NonMaxSuppression TopK RoiAlign Resize CumSum Min Max Upsample RandomNormalLike RandomUniformLike Cast".split(" ");

/** Operators with a float input or output that is float32 only, in some version up to opset 21 (onnx 1.23 schemas), or chosen by `dtype`. */
const NO_HALF = new Set(
  (
    "Celu CumSum DequantizeLinear DynamicQuantizeLinear IsInf NonMaxSuppression QLinearConv QLinearMatMul QuantizeLinear Range Resize " +
    "TfIdfVectorizer Upsample RandomNormal RandomUniform RandomNormalLike RandomUniformLike EyeLike Bernoulli Multinomial Cast CastLike"
  ).split(" "),
);

const CLAMP_LOW = 1e-7;
const CLAMP_HIGH = 1e4;

/** Relative error that a variance may take: 1 / sqrt(variance + epsilon) scales every value. */
const VARIANCE_ERROR = 2 ** -9;

/** Does the constant variance of a BatchNormalization keep its size in float16? Values under 6e-5 are subnormal there, and clamped below 1e-7. */
function varianceFits(context: TargetContext, node: NodeProto): boolean {
  const scope = context.scopes.find(({ graph }) => graph.node.includes(node));
  const variance = scope === undefined ? null : resolveConstant(scope, node.input[4] ?? "");
  if (variance === null || variance.tensor.dataType !== T.FLOAT) return true;
  const epsilon = attributeFloat(node, "epsilon", 1e-5);
  const values = readFloats(context.model, variance.tensor);
  const { codes } = toHalf(values);
  const table = halfTable();
  return values.every((value, i) => Math.abs(table[codes[i]] - value) <= VARIANCE_ERROR * (value + epsilon));
}

interface Half {
  readonly codes: Uint16Array;
  readonly signal: number;
  readonly noise: number;
  readonly clamped: number;
}

function toHalf(values: Float32Array): Half {
  const codes = new Uint16Array(values.length);
  const table = halfTable();
  let signal = 0;
  let noise = 0;
  let clamped = 0;
  for (let i = 0; i < values.length; i++) {
    const value = values[i];
    const magnitude = Math.abs(value);
    let bounded = value;
    if (magnitude < CLAMP_LOW && magnitude > 0) bounded = value > 0 ? CLAMP_LOW : -CLAMP_LOW;
    else if (magnitude > CLAMP_HIGH && magnitude < Infinity) bounded = value > 0 ? CLAMP_HIGH : -CLAMP_HIGH;
    if (bounded !== value && magnitude > 0 && magnitude < Infinity) clamped++;
    const code = encodeHalf(bounded);
    codes[i] = code;
    if (magnitude < Infinity) {
      const error = value - table[code];
      signal += value * value;
      noise += error * error;
    }
  }
  return { codes, signal, noise, clamped };
}

/** The names of a value in each precision; a missing one is made on demand. */
interface Versions {
  half?: string;
  float?: string;
}

/** A constant float tensor: the initializer, or the Constant node that holds it. */
interface FloatConstant {
  readonly tensor: TensorProto;
  readonly node?: NodeProto;
}

export async function convertFp16(
  context: TargetContext,
  layers: readonly Layer[],
  chosen: (layer: Layer) => string | undefined,
): Promise<LayerReport[]> {
  const { model, scopes, names, options, notes } = context;
  const types = inferTypes(scopes, context.opset());
  const blockedOps = new Set(options.blockedOps ?? FP16_BLOCKED_OPS);
  const left = new Map<NodeProto, string>();
  for (const layer of layers) {
    const reason = layer.weight === null ? undefined : chosen(layer);
    if (reason !== undefined) left.set(layer.node, reason);
  }
  const decided = new Map<NodeProto, string | undefined>();
  const blockReason = (node: NodeProto): string | undefined => {
    if (!decided.has(node)) decided.set(node, decide(node));
    return decided.get(node);
  };
  const decide = (node: NodeProto): string | undefined => {
    if (!isDefaultDomain(node)) return `${node.domain} operators stay in float32`;
    if (NO_HALF.has(node.opType)) return `${node.opType} has no float16 form in every opset`;
    if (blockedOps.has(node.opType)) return `${node.opType} is kept in float32`;
    if (node.opType === "LayerNormalization" && node.output.length > 1) return "its statistics are float32";
    if (node.opType === "BatchNormalization" && !varianceFits(context, node)) return "its variance does not survive float16";
    return left.get(node);
  };

  const conversion = fp16Graph(model, scopes, types, (node) => blockReason(node) !== undefined, names.take, options.keepIoTypes ?? true);
  let total = 0;
  for (const { tensor } of conversion.constants) total += tensorBytes(tensor);
  let done = 0;
  let clamped = 0;
  const scratch: Scratch = { bytes: new Uint8Array(0) };
  const figures = new Map<TensorProto, { bytes: number; sqnrDb: number }>();
  for (const { tensor, place } of conversion.constants) {
    const bytes = tensorBytes(tensor);
    if (bytes > 1 << 16) {
      options.onProgress?.({ done, total, layer: tensor.name });
      await pause();
    }
    checkAborted(options.signal);
    const half = toHalf(readFloats(model, tensor, scratch));
    place(new Uint8Array(half.codes.buffer));
    figures.set(tensor, { bytes: bytes / 2, sqnrDb: decibels(half.signal, half.noise) });
    clamped += half.clamped;
    done += bytes;
  }
  if (clamped > 0) notes.push(`${clamped} weights were clamped to magnitudes ${CLAMP_LOW}..${CLAMP_HIGH}`);
  options.onProgress?.({ done: total, total, layer: "" });

  const owners = new Map<TensorProto, string>();
  return layers
    .filter((layer) => layer.weight !== null)
    .map((layer): LayerReport => {
      const { tensor, name } = layer.weight!;
      const base = { name: layer.name, opType: layer.node.opType, weight: name, shape: layer.shape, bytesBefore: layer.bytes };
      const figure = figures.get(tensor);
      const reason = blockReason(layer.node) ?? (figure === undefined ? "the weight is no float32 tensor of less than 2 GiB" : undefined);
      if (reason !== undefined || figure === undefined) return { ...base, format: null, bytesAfter: layer.bytes, sqnrDb: null, reason };
      const owner = owners.get(tensor);
      if (owner === undefined) owners.set(tensor, layer.name);
      return {
        ...base,
        format: "float16",
        bytesAfter: figure.bytes,
        sqnrDb: figure.sqnrDb,
        ...(owner === undefined ? {} : { sharedWith: owner }),
      };
    });
}

interface Fp16Graph {
  /** Constants to convert, and where their codes go. */
  readonly constants: { tensor: TensorProto; place: (bytes: Uint8Array) => void }[];
}

/** Rewrites the graphs; constants are converted afterwards by the caller. */
function fp16Graph(
  model: OnnxModel,
  scopes: readonly Scope[],
  types: ElementTypes,
  blocked: (node: NodeProto) => boolean,
  unique: (base: string) => string,
  keepIo: boolean,
): Fp16Graph {
  const versions = new Map<Scope, Map<string, Versions>>(scopes.map((scope) => [scope, new Map()]));
  const constants = new Map<Scope, Map<string, FloatConstant>>(scopes.map((scope) => [scope, new Map()]));
  const after = new Map<NodeProto, NodeProto[]>();
  const atStart = new Map<Scope, NodeProto[]>(scopes.map((scope) => [scope, []]));
  const atEnd = new Map<Scope, NodeProto[]>(scopes.map((scope) => [scope, []]));
  const converted: Fp16Graph["constants"] = [];

  const isFloat = (scope: Scope, name: string): boolean => types.get(scope)!.get(name) === T.FLOAT;
  const cast = (from: string, to: string, type: T): NodeProto =>
    makeNode("Cast", [from], [to], { name: unique(`${to}_cast`), attributes: [intAttribute("to", type)] });

  // What every float value is called in which precision.
  for (const scope of scopes) {
    const main = scope.parent === null;
    const own = versions.get(scope)!;
    const { graph } = scope;
    const results = new Set(main ? graph.output.map((value) => value.name) : []);
    for (const tensor of graph.initializer) if (tensor.dataType === T.FLOAT) constants.get(scope)!.set(tensor.name, { tensor });
    for (const input of graph.input) {
      if (!isFloat(scope, input.name) || scope.initializers.has(input.name)) continue;
      own.set(input.name, main && keepIo ? { float: input.name } : { half: input.name });
      if (!(main && keepIo)) setElementType(input.type, T.FLOAT16);
    }
    for (const node of graph.node) {
      const constant = floatConstant(node);
      if (constant !== null && !results.has(node.output[0])) {
        constants.get(scope)!.set(node.output[0], { tensor: constant, node });
        continue;
      }
      const kept = blocked(node) || node.opType === "Constant"; // a Constant that is itself a result
      node.output.forEach((name, i) => {
        if (name === "" || !isFloat(scope, name)) return;
        const isOutput = (keepIo || node.opType === "Constant") && results.has(name);
        if (kept) {
          // The float32 result keeps the name only where the outside reads it.
          const float = isOutput ? name : unique(`${name}_fp32`);
          node.output[i] = float;
          own.set(name, { float });
        } else if (isOutput) {
          const half = unique(`${name}_fp16`);
          node.output[i] = half;
          own.set(name, { half, float: name });
          atEnd.get(scope)!.push(cast(half, name, T.FLOAT));
        } else own.set(name, { half: name });
      });
      if (!kept) halveAttributes(node);
    }
  }

  /** The name under which `name` (as seen from `scope`) has the wanted precision. */
  function version(scope: Scope, name: string, want: "half" | "float"): string {
    const owner = name === "" ? null : definingScope(scope, name);
    if (owner === null) return name;
    const constant = constants.get(owner)!.get(name);
    const known = versions.get(owner)!.get(name);
    if (constant !== undefined && known === undefined) return constantVersion(owner, name, constant, want);
    if (known === undefined) return name;
    if (known[want] !== undefined) return known[want];
    const from = (want === "half" ? known.float : known.half)!;
    // The half of a float32 result takes the value's old name, where that is free.
    const to = want === "half" && from !== name ? name : unique(`${name}_${want === "half" ? "fp16" : "fp32"}`);
    known[want] = to;
    const node = cast(from, to, want === "half" ? T.FLOAT16 : T.FLOAT);
    const producer = owner.producers.get(name);
    if (producer === undefined) atStart.get(owner)!.push(node);
    else after.set(producer, [...(after.get(producer) ?? []), node]);
    return to;
  }

  const wanted = new Map<FloatConstant, Versions>();
  const mainOutputs = new Set(scopes[0].graph.output.map((value) => value.name));

  function constantVersion(owner: Scope, name: string, constant: FloatConstant, want: "half" | "float"): string {
    const made = wanted.get(constant) ?? {};
    wanted.set(constant, made);
    if (want === "half" && tensorBytes(constant.tensor) > ARRAY_MAX) {
      made.float = name;
      versions.get(owner)!.set(name, { float: name });
      return version(owner, name, "half");
    }
    return (made[want] ??= want === "float" ? name : unique(`${name}_fp16`));
  }

  for (const scope of scopes) {
    const { graph } = scope;
    for (const node of graph.node) {
      const want = blocked(node) ? "float" : "half";
      // A Cast takes either precision: it reads the one that is there.
      const either = node.opType === "Cast" && isDefaultDomain(node);
      node.input.forEach((name, i) => {
        const owner = name === "" ? null : definingScope(scope, name);
        if (owner === null || !isFloat(owner, name)) return;
        const known = versions.get(owner)!.get(name);
        node.input[i] = either && known !== undefined ? (known.float ?? known.half)! : version(scope, name, want);
      });
    }
    if (scope.parent === null) {
      if (keepIo) continue;
    }
    for (const output of graph.output) {
      const owner = definingScope(scope, output.name);
      if (owner === null || !isFloat(owner, output.name)) continue;
      const inner = scope.parent !== null;
      // An input or constant that is a result of the model keeps its type.
      if (!inner && (scope.producers.get(output.name)?.opType ?? "Constant") === "Constant") continue;
      let name = version(scope, output.name, "half");
      if (!inner && name !== output.name) name = output.name;
      else if (owner !== scope) {
        // A result that is a value of an outer graph: made a value of this one.
        const identity = makeNode("Identity", [name], [unique(`${name}_result`)], { name: unique(`${name}_identity`) });
        atEnd.get(scope)!.push(identity);
        name = identity.output[0];
      }
      output.name = name;
      setElementType(output.type, T.FLOAT16);
    }
  }

  // Constants: converted in place where only float16 is asked for, beside the original where both are.
  for (const scope of scopes) {
    for (const [name, constant] of constants.get(scope)!) {
      const made = wanted.get(constant);
      if (made?.half === undefined) continue;
      const { tensor, node } = constant;
      const half = made.half;
      const bothNeeded = made.float !== undefined || (scope.parent === null && mainOutputs.has(name));
      const dims = tensor.dims.map(Number);
      if (node !== undefined && !bothNeeded) {
        node.output[0] = half;
        converted.push({
          tensor,
          place: (bytes) => {
            const value = makeTensor(model, tensor.name, T.FLOAT16, dims, bytes);
            node.attribute = [create(AttributeProtoSchema, { name: "value", t: value, type: A.TENSOR })];
          },
        });
      } else {
        const index = bothNeeded ? -1 : scope.graph.initializer.indexOf(tensor);
        if (!bothNeeded) scope.graph.input = scope.graph.input.filter((input) => input.name !== name);
        converted.push({
          tensor,
          place: (bytes) => {
            const value = makeTensor(model, half, T.FLOAT16, dims, bytes);
            if (index >= 0) scope.graph.initializer[index] = value;
            else scope.graph.initializer.push(value);
          },
        });
      }
    }
    const { graph } = scope;
    graph.node = [...atStart.get(scope)!, ...graph.node.flatMap((node) => [node, ...(after.get(node) ?? [])]), ...atEnd.get(scope)!];
    graph.valueInfo = graph.valueInfo.filter((value) => tensorElementType(value.type) !== T.FLOAT);
  }
  return { constants: converted };
}

function setElementType(type: { value: { case?: string; value?: unknown } } | undefined, dataType: T): void {
  if (type?.value.case === "tensorType") (type.value.value as { elemType: number }).elemType = dataType;
}

/** The float tensor of a Constant node (value, value_float, value_floats), or null. */
function floatConstant(node: NodeProto): TensorProto | null {
  if (node.opType !== "Constant" || !isDefaultDomain(node)) return null;
  const value = attributeOf(node, "value")?.t;
  if (value !== undefined) return value.dataType === T.FLOAT ? value : null;
  const single = attributeOf(node, "value_float");
  const list = attributeOf(node, "value_floats");
  if (single === undefined && list === undefined) return null;
  const values = single === undefined ? list!.floats : [single.f];
  return create(TensorProtoSchema, {
    name: node.output[0],
    dataType: T.FLOAT,
    dims: single === undefined ? [BigInt(values.length)] : [],
    floatData: values,
  });
}

/** Attributes that choose or hold float32: ConstantOfShape's value. */
function halveAttributes(node: NodeProto): void {
  if (node.opType !== "ConstantOfShape") return;
  const value = attributeOf(node, "value")?.t;
  if (value !== undefined && value.dataType !== T.FLOAT) return;
  const raw =
    value?.rawData !== undefined && value.rawData.length === 4
      ? new DataView(value.rawData.slice().buffer).getFloat32(0, true)
      : value?.floatData[0];
  const code = toHalf(Float32Array.of(raw ?? 0)).codes;
  const tensor = create(TensorProtoSchema, { dataType: T.FLOAT16, dims: [1n], rawData: new Uint8Array(code.buffer) });
  const attribute: AttributeProto = create(AttributeProtoSchema, { name: "value", t: tensor, type: A.TENSOR });
  node.attribute = [...node.attribute.filter((other) => other.name !== "value"), attribute];
}
