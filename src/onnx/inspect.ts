// inspectModel: what is in a model and what could be quantized, without changing or loading weights. Node only (it takes a path).
import { buildScopes } from "./graph.ts";
import { tensorElementType } from "./infer.ts";
import { inputPaths, readModel } from "./io.ts";
import { fileSize } from "./files.ts";
import { findLayers } from "./modes/mode.ts";
import type { OnnxModel } from "./model.ts";
import { allTensors } from "./model.ts";
import type { ValueInfoProto } from "./gen/onnx_pb.ts";
import { dataTypeName } from "./types.ts";
import { tensorBytes } from "./values.ts";

/** A graph input or output: element type and dims (a name where symbolic, "?" where unknown). */
export interface ValueSummary {
  readonly name: string;
  readonly type: string;
  readonly dims: readonly (number | string)[];
}

export interface LayerSummary {
  readonly name: string;
  readonly opType: string;
  /** "" where both operands are computed. */
  readonly weight: string;
  readonly dataType: string;
  readonly shape: readonly number[];
  readonly bytes: number;
  /** The graph that holds the node: "" for the main one. */
  readonly graph: string;
}

export interface ModelSummary {
  readonly fileBytes: number;
  /** The model file and its external data. */
  readonly files: readonly string[];
  readonly irVersion: number;
  readonly opsets: Readonly<Record<string, number>>;
  readonly producer: string;
  readonly inputs: readonly ValueSummary[];
  readonly outputs: readonly ValueSummary[];
  /** Nodes by operator (with its domain where it is not ONNX's), subgraphs included. */
  readonly operators: Readonly<Record<string, number>>;
  /** Bytes of tensors by element type. */
  readonly tensorBytes: Readonly<Record<string, number>>;
  readonly layers: readonly LayerSummary[];
}

function summarizeValue(value: ValueInfoProto): ValueSummary {
  const type = value.type?.value.case === "tensorType" ? value.type.value.value : undefined;
  const dims = (type?.shape?.dim ?? []).map((dim) =>
    dim.value.case === "dimValue" ? Number(dim.value.value) : dim.value.case === "dimParam" ? dim.value.value || "?" : "?",
  );
  return { name: value.name, type: dataTypeName(tensorElementType(value.type)), dims };
}

/** What a model holds. @throws LowbitError E_ONNX on a damaged model */
export function summarizeModel(model: OnnxModel): Omit<ModelSummary, "fileBytes" | "files"> {
  const scopes = buildScopes(model);
  const { proto } = model;
  const operators: Record<string, number> = {};
  for (const { graph } of scopes) {
    for (const node of graph.node) {
      const name = node.domain === "" || node.domain === "ai.onnx" ? node.opType : `${node.domain}.${node.opType}`;
      operators[name] = (operators[name] ?? 0) + 1;
    }
  }
  const bytes: Record<string, number> = {};
  for (const tensor of allTensors(proto)) {
    const name = dataTypeName(tensor.dataType);
    bytes[name] = (bytes[name] ?? 0) + tensorBytes(tensor);
  }
  return {
    irVersion: Number(proto.irVersion),
    opsets: Object.fromEntries(proto.opsetImport.map((entry) => [entry.domain || "ai.onnx", Number(entry.version)])),
    producer: [proto.producerName, proto.producerVersion].filter((part) => part !== "").join(" "),
    inputs: proto.graph!.input.filter((value) => !scopes[0].initializers.has(value.name)).map(summarizeValue),
    outputs: proto.graph!.output.map(summarizeValue),
    operators: Object.fromEntries(Object.entries(operators).sort(([a], [b]) => (a < b ? -1 : 1))),
    tensorBytes: bytes,
    layers: findLayers(scopes).map((layer) => ({
      name: layer.name,
      opType: layer.node.opType,
      weight: layer.weight?.name ?? "",
      dataType: layer.weight === null ? "" : dataTypeName(layer.weight.tensor.dataType),
      shape: layer.shape,
      bytes: layer.bytes,
      graph: layer.scope.path,
    })),
  };
}

/**
 * Reads a model file and says what is in it. Node only.
 * @throws LowbitError E_IO where a file cannot be read, E_ONNX where the model is damaged
 */
export function inspectModel(input: string): ModelSummary {
  const model = readModel(input);
  try {
    const files = inputPaths(model);
    return { fileBytes: files.reduce((sum, path) => sum + fileSize(path), 0), files, ...summarizeModel(model) };
  } finally {
    model.close();
  }
}
