// Raising the default opset of a model (7 to 10) to 11, node by node: attributes that became inputs, operators that
// were renamed.
// Source: the operator schemas of onnx 1.23 with history, and what onnxruntime computes for each opset
// (test/onnx/opset.test.ts runs every operator that changed, before and after). What cannot be said in opset 11 is an
// obstacle: the caller leaves the model as it is.
import { create } from "@bufbuild/protobuf";
import type { AttributeProto, NodeProto } from "../file/gen/onnx_pb.ts";
import {
  AttributeProtoSchema,
  AttributeProto_AttributeType as A,
  TensorProtoSchema,
  TensorProto_DataType as T,
} from "../file/gen/onnx_pb.ts";
import { encodeHalf } from "../file/half.ts";
import type { OnnxModel } from "../file/model.ts";
import { lateObstacle, lateRewrite } from "./opset-late.ts";
import { readFloats } from "../file/values.ts";
import { resolveConstant } from "./constants.ts";
import type { ElementTypes } from "./infer.ts";
import { inferTypes } from "./infer.ts";
import type { Names } from "./nodes.ts";
import { attributeInt, attributeOf, intAttribute, makeNode } from "./nodes.ts";
import { isKnownOperator } from "./schemas.ts";
import type { Scope } from "./scopes.ts";
import { definingScope, isDefaultDomain, nodeName } from "./scopes.ts";

export interface OpsetContext {
  readonly model: OnnxModel;
  readonly scopes: readonly Scope[];
  readonly names: Names;
}

/** What rewriting a node needs besides. */
interface Raise extends OpsetContext {
  readonly from: number;
  readonly types: ElementTypes;
}

const LOWEST = 7;
/** Rewrites to this version are here, later ones in opset-late.ts. */
const MIDDLE = 11;

/** Operators that runtimes have up to opset 9 or so: experiments that never became ONNX. */
const EXPERIMENTS: ReadonlySet<string> = new Set(["Affine", "Crop", "ImageScaler", "ParametricSoftplus", "ScaledTanh"]);
/** Types that constants are written in. */
const BYTES: ReadonlyMap<number, (values: readonly number[]) => ArrayBuffer> = new Map([
  [T.FLOAT, (values) => Float32Array.from(values).buffer],
  [T.DOUBLE, (values) => Float64Array.from(values).buffer],
  [T.FLOAT16, (values) => Uint16Array.from(values, encodeHalf).buffer],
]);

const modeOf = (node: NodeProto): string => new TextDecoder().decode(attributeOf(node, "mode")?.s ?? new Uint8Array(0)) || "nearest";

const typeOf = (raise: Raise, scope: Scope, name: string): number => {
  const owner = definingScope(scope, name);
  return owner === null ? 0 : (raise.types.get(owner)!.get(name) ?? 0);
};

/** Why a node cannot be rewritten; undefined where it can or need not be. */
function obstacle(raise: Raise, scope: Scope, node: NodeProto): string | undefined {
  const { from } = raise;
  const name = nodeName(node);
  if (EXPERIMENTS.has(node.opType)) return `${node.opType} (${name}) is not an operator of opset 11`;
  if (!isKnownOperator(node)) return `${node.opType} (${name}) is no operator that this package knows`;
  switch (node.opType) {
    case "Scan":
      return from < 9 ? `Scan of opset 8 (${name}) has another meaning` : undefined;
    case "MeanVarianceNormalization":
      return from < 9 ? `MeanVarianceNormalization of opset ${from} (${name}) has another meaning` : undefined;
    case "BatchNormalization":
      return from < 9 && attributeInt(node, "spatial", 1) !== 1 ? `BatchNormalization with spatial=0 (${name}) is gone` : undefined;
    case "Upsample":
    case "Resize":
      if (!["nearest", "linear"].includes(modeOf(node))) return `${node.opType} with mode ${modeOf(node)} (${name}) is unknown`;
      return attributeOf(node, "scales") === undefined && !node.input[1] ? `${node.opType} (${name}) has no scales` : undefined;
    case "Clip":
    case "Pad":
      return BYTES.has(typeOf(raise, scope, node.input[0] ?? ""))
        ? undefined
        : `the element type of the input of ${node.opType} (${name}) is not known`;
    case "Dropout": {
      const mask = node.output[1] ?? "";
      const known = mask === "" || from >= 10 || BYTES.has(typeOf(raise, scope, mask));
      return known ? undefined : `the element type of the mask of Dropout (${name}) is not known`;
    }
    default:
      return undefined;
  }
}

/**
 * Raises the default opset to `to`: by the steps to 11, then by those beyond (opset-late.ts). Returns undefined when
 * done; else the reason, and the model is as before.
 */
export function raiseOpset(context: OpsetContext, to: number): string | undefined {
  const entries = context.model.proto.opsetImport.filter((set) => set.domain === "" || set.domain === "ai.onnx");
  const [from] = entries.map((set) => Number(set.version));
  if (from === undefined || from < LOWEST) return `opset ${from ?? 0} is older than ${LOWEST}`;
  if (entries.some((set) => Number(set.version) !== from)) return "it imports two versions of the default opset";
  const step = { names: context.names, from, to };
  const raise: Raise = { ...context, from, types: inferTypes(context.scopes, from) };
  for (const scope of context.scopes) {
    for (const node of scope.graph.node) {
      if (!isDefaultDomain(node)) continue;
      const reason = (from < MIDDLE ? obstacle(raise, scope, node) : undefined) ?? lateObstacle(step, node);
      if (reason !== undefined) return reason;
    }
  }
  for (const scope of context.scopes) {
    const nodes = scope.graph.node;
    scope.graph.node = nodes.flatMap((node) => {
      if (!isDefaultDomain(node)) return [node];
      const made = from < MIDDLE ? rewrite(raise, scope, node) : [node];
      return made.flatMap((one) => (isDefaultDomain(one) ? lateRewrite(step, scope, one) : [one]));
    });
    for (const node of scope.graph.node) for (const output of node.output) if (output !== "") scope.producers.set(output, node);
  }
  for (const entry of entries) entry.version = BigInt(to);
  return undefined;
}

/** A new initializer of the node's graph. */
function constant(raise: Raise, scope: Scope, base: string, dataType: number, dims: readonly number[], bytes: ArrayBufferLike): string {
  const name = raise.names.take(base);
  const tensor = create(TensorProtoSchema, { name, dataType, dims: dims.map(BigInt), rawData: new Uint8Array(bytes) });
  scope.graph.initializer.push(tensor);
  scope.initializers.set(name, tensor);
  return name;
}

const stringAttribute = (name: string, value: string): AttributeProto =>
  create(AttributeProtoSchema, { name, s: new TextEncoder().encode(value), type: A.STRING });

const dropAttributes = (node: NodeProto, ...gone: string[]): void => {
  node.attribute = node.attribute.filter((attribute) => !gone.includes(attribute.name));
};

function setInput(node: NodeProto, index: number, name: string): void {
  while (node.input.length < index) node.input.push("");
  node.input[index] = name;
}

/** Attributes that became inputs. 64-bit numbers stay 64-bit numbers: 2^63 - 1 means "to the end". */
function attributesToInputs(raise: Raise, scope: Scope, node: NodeProto): void {
  const ints = (index: number, name: string, values: readonly bigint[] | undefined): void => {
    if (values === undefined) return;
    const bytes = BigInt64Array.from(values).buffer;
    setInput(node, index, constant(raise, scope, `${nodeName(node)}_${name}`, T.INT64, [values.length], bytes));
  };
  const scalar = (index: number, name: string, value: number | undefined): void => {
    if (value === undefined) return;
    const dataType = typeOf(raise, scope, node.input[0]);
    setInput(node, index, constant(raise, scope, `${nodeName(node)}_${name}`, dataType, [], BYTES.get(dataType)!([value])));
  };
  if (node.opType === "Slice" && raise.from < 10) {
    ints(1, "starts", attributeOf(node, "starts")?.ints ?? []);
    ints(2, "ends", attributeOf(node, "ends")?.ints ?? []);
    ints(3, "axes", attributeOf(node, "axes")?.ints);
    dropAttributes(node, "starts", "ends", "axes");
  } else if (node.opType === "TopK" && raise.from < 10) {
    ints(1, "k", [attributeOf(node, "k")?.i ?? 0n]);
    dropAttributes(node, "k");
  } else if (node.opType === "Clip") {
    scalar(1, "min", attributeOf(node, "min")?.f);
    scalar(2, "max", attributeOf(node, "max")?.f);
    dropAttributes(node, "min", "max");
  } else if (node.opType === "Pad") {
    ints(1, "pads", attributeOf(node, "pads")?.ints ?? []);
    scalar(2, "value", attributeOf(node, "value")?.f || undefined);
    dropAttributes(node, "pads", "value");
  }
}

/** The nodes that a node becomes; it may be changed itself. */
function rewrite(raise: Raise, scope: Scope, node: NodeProto): NodeProto[] {
  switch (node.opType) {
    case "Slice":
    case "TopK":
    case "Clip":
    case "Pad":
      attributesToInputs(raise, scope, node);
      return [node];
    case "Upsample":
    case "Resize":
      return resize(raise, scope, node);
    case "Scatter":
      node.opType = "ScatterElements";
      return [node];
    case "BatchNormalization":
      dropAttributes(node, "spatial");
      return [node];
    case "Dropout": {
      const mask = node.output[1] ?? "";
      if (raise.from >= 10 || mask === "") return [node];
      // The mask was of the data's type; now it is bool.
      node.output[1] = raise.names.take(`${mask}_bool`);
      const to = intAttribute("to", typeOf(raise, scope, mask));
      return [node, makeNode("Cast", [node.output[1]], [mask], { name: raise.names.take(`${mask}_cast`), attributes: [to] })];
    }
    default:
      return [node];
  }
}

/**
 * Upsample and Resize of opset 10: x_original = x_resized / scale. The nearest pixel is the floor where an axis grows
 * and the ceiling where it shrinks (so onnxruntime has it), which opset 11 says for all axes at once: where both may
 * happen, one Resize shrinks, another grows.
 */
function resize(raise: Raise, scope: Scope, node: NodeProto): NodeProto[] {
  const { names } = raise;
  const base = nodeName(node);
  const attribute = attributeOf(node, "scales");
  const input = attribute === undefined ? node.input[1] : undefined;
  const stored = input === undefined ? null : resolveConstant(scope, input);
  const scales =
    attribute?.floats ?? (stored?.tensor.dataType === T.FLOAT ? Array.from(readFloats(raise.model, stored.tensor)) : undefined);
  const floats = (suffix: string, values: readonly number[]): string =>
    constant(raise, scope, `${base}_${suffix}`, T.FLOAT, [values.length], Float32Array.from(values).buffer);
  const roi = floats("roi", []);
  const mode = stringAttribute("mode", modeOf(node));
  const coordinates = stringAttribute("coordinate_transformation_mode", "asymmetric");
  const make = (from: string, by: string, to: string, nearest: string, name: string): NodeProto =>
    makeNode("Resize", [from, roi, by], [to], {
      name,
      attributes: [mode, coordinates, ...(modeOf(node) === "linear" ? [] : [stringAttribute("nearest_mode", nearest)])],
    });
  const [x] = node.input;
  const [y] = node.output;
  const all = (): string => input ?? floats("scales", scales!);
  if (modeOf(node) === "linear" || scales?.every((scale) => scale >= 1)) return [make(x, all(), y, "floor", node.name)];
  if (scales?.every((scale) => scale <= 1)) return [make(x, all(), y, "ceil", node.name)];
  const one = floats("one", [1]);
  const between = names.take(`${y}_smaller`);
  const split = (op: string): { nodes: NodeProto[]; name: string } => {
    const name = names.take(`${base}_${op === "Min" ? "shrink" : "grow"}`);
    return { name, nodes: [makeNode(op, [all(), one], [name], { name: names.take(`${name}_scales`) })] };
  };
  const shrink =
    scales === undefined
      ? split("Min")
      : {
          nodes: [],
          name: floats(
            "shrink",
            scales.map((scale) => Math.min(scale, 1)),
          ),
        };
  const grow =
    scales === undefined
      ? split("Max")
      : {
          nodes: [],
          name: floats(
            "grow",
            scales.map((scale) => Math.max(scale, 1)),
          ),
        };
  return [
    ...shrink.nodes,
    ...grow.nodes,
    make(x, shrink.name, between, "ceil", names.take(`${base}_smaller`)),
    make(between, grow.name, y, "floor", node.name),
  ];
}
