// Raising the default opset of a model (7 to 10) to 11, node by node: attributes that became inputs, operators that were renamed.
// Source: the operator schemas of onnx 1.23 with history. Every operator that changed between 7 and 11 is in one of three groups: the old
// form is legal in 11 (not listed here), it is rewritten (REWRITE), or it cannot be (the caller leaves the model as it is and says so).
import { create } from "@bufbuild/protobuf";
import type { NodeProto } from "../file/gen/onnx_pb.ts";
import {
  AttributeProtoSchema,
  AttributeProto_AttributeType as A,
  TensorProtoSchema,
  TensorProto_DataType as T,
} from "../file/gen/onnx_pb.ts";
import type { Names, Scope } from "./graph.ts";
import { attributeOf, isDefaultDomain, nodeName } from "./graph.ts";
import type { OnnxModel } from "../file/model.ts";
import { allTensors } from "../file/model.ts";

export interface OpsetContext {
  readonly model: OnnxModel;
  readonly scopes: readonly Scope[];
  readonly names: Names;
}

const LOWEST = 7;

const ints = (node: NodeProto, name: string): number[] | undefined => attributeOf(node, name)?.ints.map(Number);

/** Why a node of opset `from` cannot be rewritten to 11; undefined where it can or need not be. */
function obstacle(node: NodeProto, from: number): string | undefined {
  const name = nodeName(node);
  if (node.opType === "Scan" && from < 9) return `Scan of opset 8 (${name}) has another meaning`;
  if (node.opType === "BatchNormalization" && from < 9 && Number(attributeOf(node, "spatial")?.i ?? 1n) !== 1)
    return `BatchNormalization with spatial=0 (${name}) is gone`;
  if (node.opType === "Upsample" && !["", "nearest", "linear"].includes(modeOf(node)))
    return `Upsample with mode ${modeOf(node)} (${name}) is unknown`;
  return undefined;
}

const modeOf = (node: NodeProto): string => new TextDecoder().decode(attributeOf(node, "mode")?.s ?? new Uint8Array(0));

const stringAttribute = (name: string, value: string) =>
  create(AttributeProtoSchema, { name, s: new TextEncoder().encode(value), type: A.STRING });

/**
 * Raises the default opset to `to` (11). Returns undefined when done; else the reason, and the model is as before.
 */
export function raiseOpset(context: OpsetContext, to: number): string | undefined {
  const entry = context.model.proto.opsetImport.find((set) => set.domain === "" || set.domain === "ai.onnx");
  const from = Number(entry?.version ?? 0n);
  if (entry === undefined || from < LOWEST) return `opset ${from} is older than ${LOWEST}`;
  // Bounds and pad values become constants of the value's type, which only a float32 model tells without type inference.
  for (const tensor of allTensors(context.model.proto)) {
    if (tensor.dataType === T.FLOAT16 || tensor.dataType === T.BFLOAT16 || tensor.dataType === T.DOUBLE)
      return "it holds other floats than float32";
  }
  for (const { graph } of context.scopes) {
    for (const node of graph.node) {
      const reason = isDefaultDomain(node) ? obstacle(node, from) : undefined;
      if (reason !== undefined) return reason;
    }
  }
  for (const scope of context.scopes) {
    for (const node of scope.graph.node) if (isDefaultDomain(node)) rewrite(node, from, scope, context.names);
  }
  entry.version = BigInt(to);
  return undefined;
}

function rewrite(node: NodeProto, from: number, scope: Scope, names: Names): void {
  const constant = (suffix: string, dataType: T, values: readonly number[], scalar: boolean): string => {
    const name = names.take(`${nodeName(node)}_${suffix}`);
    const bytes = dataType === T.INT64 ? BigInt64Array.from(values, BigInt).buffer : Float32Array.from(values).buffer;
    scope.graph.initializer.push(
      create(TensorProtoSchema, { name, dataType, dims: scalar ? [] : [BigInt(values.length)], rawData: new Uint8Array(bytes) }),
    );
    return name;
  };
  const drop = (...gone: string[]): void => {
    node.attribute = node.attribute.filter((attribute) => !gone.includes(attribute.name));
  };
  const setInput = (index: number, name: string): void => {
    while (node.input.length < index) node.input.push("");
    node.input[index] = name;
  };

  if (node.opType === "Slice" && from < 10) {
    setInput(1, constant("starts", T.INT64, ints(node, "starts") ?? [], false));
    setInput(2, constant("ends", T.INT64, ints(node, "ends") ?? [], false));
    const axes = ints(node, "axes");
    if (axes !== undefined) setInput(3, constant("axes", T.INT64, axes, false));
    drop("starts", "ends", "axes");
  } else if (node.opType === "TopK" && from < 10) {
    setInput(1, constant("k", T.INT64, [Number(attributeOf(node, "k")?.i ?? 0n)], false));
    drop("k");
  } else if (node.opType === "Clip") {
    const min = attributeOf(node, "min");
    const max = attributeOf(node, "max");
    if (min !== undefined) setInput(1, constant("min", T.FLOAT, [min.f], true));
    if (max !== undefined) setInput(2, constant("max", T.FLOAT, [max.f], true));
    drop("min", "max");
  } else if (node.opType === "Pad") {
    setInput(1, constant("pads", T.INT64, ints(node, "pads") ?? [], false));
    const value = attributeOf(node, "value");
    if (value !== undefined && value.f !== 0) setInput(2, constant("value", T.FLOAT, [value.f], true));
    drop("pads", "value");
  } else if (node.opType === "Upsample" || node.opType === "Resize") {
    const scales = attributeOf(node, "scales");
    const input = scales === undefined ? node.input[1] : constant("scales", T.FLOAT, scales.floats, false);
    node.opType = "Resize";
    setInput(1, constant("roi", T.FLOAT, [], false));
    setInput(2, input);
    drop("scales");
    // The formulas of opsets 7 to 10: x_original = x_resized / scale, rounded down for nearest.
    node.attribute.push(stringAttribute("coordinate_transformation_mode", "asymmetric"));
    if (modeOf(node) !== "linear") node.attribute.push(stringAttribute("nearest_mode", "floor"));
  } else if (node.opType === "Scatter") node.opType = "ScatterElements";
  else if (node.opType === "BatchNormalization" && from < 9) drop("spatial");
}
