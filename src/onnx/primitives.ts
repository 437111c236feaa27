// What those need who change a model themselves: its layers, their weights and biases as matrices, and values of the
// graph as outputs.
import { create } from "@bufbuild/protobuf";
import { LowbitError } from "../../formats/core/errors.ts";
import type { PackedTensor } from "../../formats/core/types.ts";
import { dequantizeOriginal } from "../quantize/mrgptq.ts";
import { matrixView, readRows, tensor, type Tensor } from "../tensor/tensor.ts";
import { addInitializer, floatTensor, freshName, insertAfter, renameOutput, writeConstant } from "./edit.ts";
import { ValueInfoProtoSchema, type NodeProto } from "./file/gen/onnx_pb.ts";
import type { OnnxModel } from "./file/model.ts";
import { tensorDims } from "./file/model.ts";
import { isFloatType, readFloats } from "./file/values.ts";
import {
  attributeFloat,
  buildScopes,
  isDefaultDomain,
  makeNode,
  nodeReads,
  resolveConstant,
  constantResolver,
  constantView,
  type ConstantView,
  type Scope,
} from "./graph/graph.ts";
import { findLayers, type Layer } from "./layers.ts";
import { commonStride, fromMatrix, toMatrix, weightLayout } from "./matrix.ts";

/** A node with a constant weight, which is seen as a matrix [rows, k]: rows are the outputs, k is contracted. */
export interface ModelLayer extends Layer {
  readonly weight: NonNullable<Layer["weight"]>;
  readonly opType: string;
  readonly rows: number;
  /** Length of the vectors that a row is multiplied with; C / group * kernel for a Conv. */
  readonly k: number;
  /** Parts of rows / groups rows that see inputs of their own (grouped and depthwise convolutions). */
  readonly groups: number;
  /** Name of the value that the weight multiplies: what calibration looks at. For Gather the indices. */
  readonly activation: string;
  /** Name of the value that the node makes now, before an Add that holds its bias. */
  readonly output: string;
}

const modelLayer = (layer: Layer): ModelLayer => {
  const { rows, k, groups } = weightLayout(layer);
  const { node, input } = layer;
  return {
    ...layer,
    weight: layer.weight!,
    opType: node.opType,
    rows,
    k,
    groups,
    activation: node.input[input === 0 ? 1 : 0] ?? "",
    get output() {
      return node.output[0] ?? "";
    },
  };
};

/**
 * The layers of a model that have a constant float weight, in order of its nodes: MatMul, Gemm, Conv, ConvTranspose,
 * Gather, and every other node with a large constant. They stay true while weights and biases are written; after other
 * changes of the graph ask again.
 * @example for (const layer of modelLayers(model)) console.log(layer.name, layer.rows, layer.k);
 */
export function modelLayers(model: OnnxModel): ModelLayer[] {
  return layersOf(buildScopes(model), model);
}

/** `modelLayers` of scopes that are there already. */
export const layersOf = (scopes: readonly Scope[], model: OnnxModel): ModelLayer[] =>
  findLayers(scopes, model)
    .filter((layer) => layer.weight !== null && layer.shape.every((size) => size > 0) && layer.shape.length > 0)
    .map(modelLayer);

/** The constant of a layer as it is now (another one after a shared weight was written). */
function weightOf(model: OnnxModel, layer: ModelLayer): ConstantView {
  const constant = constantResolver(model)(layer.scope, layer.node.input[layer.input] ?? "");
  if (constant === null)
    throw new LowbitError(
      "E_ONNX",
      `layer ${layer.name}: expected a constant weight, got none. The graph was changed: ask modelLayers again.`,
    );
  return constant;
}

/**
 * The weight of a layer, [rows, k] float32. A view of the model's bytes where the storage allows it: do not write to
 * it.
 * @throws LowbitError E_ONNX where the layer's node has changed
 * @example
 * const [conv] = modelLayers(model);
 * readWeight(model, conv).shape // [32, 9]: a row for each output channel
 */
export function readWeight(model: OnnxModel, layer: ModelLayer): Tensor<Float32Array> {
  const weight = weightOf(model, layer);
  const layout = weightLayout(layer, weight);
  const { data } = constantView(model, weight);
  const stride = [commonStride(layout.rowOffsets), commonStride(layout.columnOffsets)];
  if (stride[0] === undefined || stride[1] === undefined) return tensor(Float32Array.from(toMatrix(data, layout)), [layout.rows, layout.k]);
  return { data, shape: [layout.rows, layout.k], stride: [stride[0], stride[1]], offset: layout.rowOffsets[0] };
}

/** The weight of a layer as a row-major copy [rows * k] in float64. */
export function readMatrix(model: OnnxModel, layer: ModelLayer): Float64Array<ArrayBuffer> {
  const weight = weightOf(model, layer);
  return toMatrix(constantView(model, weight).data, weightLayout(layer, weight));
}

function rowMajor(layer: ModelLayer, values: ArrayLike<number> | Tensor | PackedTensor): ArrayLike<number> {
  if ("codes" in values) return dequantizeOriginal(values);
  if (!("stride" in values)) return values;
  const view = matrixView(values);
  if (view.rows !== layer.rows || view.k !== layer.k)
    throw new LowbitError(
      "E_SHAPE",
      `layer ${layer.name}: expected a weight of [${layer.rows}, ${layer.k}], got [${values.shape.join(", ")}].`,
    );
  const out = new Float32Array(layer.rows * layer.k);
  readRows(view, 0, view.rows, out);
  return out;
}

/**
 * Writes the weight of a layer, in the type it is stored in. Other nodes that read the same constant keep the old
 * values: the layer gets a constant of its own then.
 * @param values row-major [rows * k], a tensor [rows, k], or a packed one, whose values are written (rotations and
 * channel scales undone)
 * @throws LowbitError E_SHAPE for another number of values, E_VALUE for values that are not finite
 * @example
 * for (const layer of modelLayers(model))
 *   writeWeight(model, layer, quantize(readWeight(model, layer), format("int4_b32"))); // simulated, in float32
 */
export function writeWeight(model: OnnxModel, layer: ModelLayer, values: ArrayLike<number> | Tensor | PackedTensor): void {
  const matrix = rowMajor(layer, values);
  if (matrix.length !== layer.rows * layer.k)
    throw new LowbitError("E_SHAPE", `layer ${layer.name}: expected ${layer.rows} x ${layer.k} values, got ${matrix.length}.`);
  for (let i = 0; i < matrix.length; i++) {
    if (!Number.isFinite(matrix[i]))
      throw new LowbitError("E_VALUE", `layer ${layer.name}: expected finite weights, got ${matrix[i]} at index ${i}.`);
  }
  writeConstant(model, layer.scope, layer.node, layer.input, fromMatrix(matrix, weightLayout(layer)), layer.shape, layer.weight.dataType);
}

/** Where a layer's bias is: an input of its own node, or of the Add behind it. */
interface BiasPlace {
  readonly node: NodeProto;
  readonly input: number;
  /** The layer adds `factor` times the constant. */
  readonly factor: number;
}

const OWN_BIAS: ReadonlySet<string> = new Set(["Conv", "ConvTranspose", "Gemm"]);

/** Outputs that one bias value belongs to: channels of a convolution, rows of everything else. */
const biasLength = (layer: ModelLayer): number => layer.rows / weightLayout(layer).rowSpan;

function biasPlace(layer: ModelLayer): BiasPlace | null {
  const { node, scope } = layer;
  if (OWN_BIAS.has(node.opType) && isDefaultDomain(node)) {
    if ((node.input[2] ?? "") === "") return null;
    return { node, input: 2, factor: node.opType === "Gemm" ? attributeFloat(node, "beta", 1) : 1 };
  }
  if (node.opType !== "MatMul" || layer.input !== 1) return null;
  if (scope.graph.output.some((output) => output.name === layer.output)) return null;
  const readers = scope.graph.node.filter((other) => nodeReads(other).has(layer.output));
  const [add] = readers;
  if (readers.length !== 1 || add.opType !== "Add" || !isDefaultDomain(add)) return null;
  const input = add.input[0] === layer.output ? 1 : 0;
  const constant = resolveConstant(scope, add.input[input]);
  if (constant === null || !isFloatType(constant.tensor.dataType)) return null;
  const dims = tensorDims(constant.tensor);
  return dims.at(-1) === layer.rows && dims.slice(0, -1).every((size) => size === 1) ? { node: add, input, factor: 1 } : null;
}

/** Whether a layer has a place for a bias: `writeBias` works. */
export const takesBias = (layer: ModelLayer): boolean =>
  isDefaultDomain(layer.node) &&
  (layer.node.opType === "MatMul" ? layer.input === 1 && layer.shape.length <= 2 : OWN_BIAS.has(layer.opType) && layer.input === 1);

/**
 * The bias of a layer, one value per output: of Conv, ConvTranspose and Gemm their own, of a MatMul that of the Add
 * behind it. null without one.
 * @throws LowbitError E_UNSUPPORTED where it is computed, or differs from row to row of the input
 * @example
 * const [conv] = modelLayers(model);
 * readBias(model, conv)!.length // 32
 */
export function readBias(model: OnnxModel, layer: ModelLayer): Float64Array<ArrayBuffer> | null {
  const place = biasPlace(layer);
  if (place === null) return null;
  const constant = resolveConstant(layer.scope, place.node.input[place.input]);
  const length = biasLength(layer);
  const dims = constant === null ? [] : tensorDims(constant.tensor);
  const values = constant === null ? [] : readFloats(model, constant.tensor);
  if (constant === null || !(values.length === 1 || (values.length === length && dims.at(-1) === length)))
    throw new LowbitError(
      "E_UNSUPPORTED",
      `layer ${layer.name}: expected a constant bias of ${length} values, got ${constant === null ? "a computed one" : `[${dims.join(", ")}]`}.`,
    );
  return Float64Array.from({ length }, (_, i) => place.factor * values[values.length === 1 ? 0 : i]);
}

/**
 * Writes the bias of a layer; one without gets it: as an input of its own node, or of an Add behind a MatMul.
 * @param values one per output @throws LowbitError E_SHAPE, E_UNSUPPORTED for operators without a bias
 * @example
 * const [conv] = modelLayers(model);
 * writeBias(model, conv, readBias(model, conv)!.map((b) => b / 2));
 */
export function writeBias(model: OnnxModel, layer: ModelLayer, values: ArrayLike<number>): void {
  const { node, scope } = layer;
  const length = biasLength(layer);
  if (values.length !== length) throw new LowbitError("E_SHAPE", `layer ${layer.name}: expected ${length} biases, got ${values.length}.`);
  if (!takesBias(layer))
    throw new LowbitError("E_UNSUPPORTED", `layer ${layer.name}: expected an operator with a bias, got ${layer.opType}. Leave it out.`);
  const place = biasPlace(layer);
  if (place !== null && place.factor !== 0) {
    readBias(model, layer); // refuses what is no constant
    const stored = Float64Array.from(values, (value) => value / place.factor);
    const old = tensorDims(resolveConstant(scope, place.node.input[place.input])!.tensor);
    writeConstant(model, scope, place.node, place.input, stored, old.at(-1) === length ? old : [length]);
    return;
  }
  const made = floatTensor(model, `${layer.name}_bias`, [length], values, layer.weight.dataType);
  const bias = addInitializer(scope, made, model);
  if (OWN_BIAS.has(node.opType)) {
    if (place !== null) node.attribute = node.attribute.filter((attribute) => attribute.name !== "beta");
    node.input[2] = bias;
    return;
  }
  const output = layer.output;
  renameOutput(scope, node, 0, freshName(model, `${output}_product`));
  insertAfter(scope, node, [makeNode("Add", [node.output[0], bias], [output], { name: freshName(model, `${layer.name}_add_bias`) })]);
}

/**
 * Makes values of the main graph outputs of the model, so that a runtime gives them. Names that are outputs already
 * stay as they are.
 * @returns the names that became outputs
 * @throws LowbitError E_ONNX for names that the main graph does not compute
 * @example addOutputs(model, modelLayers(model).map((layer) => layer.activation));
 */
export function addOutputs(model: OnnxModel, names: readonly string[]): string[] {
  const [main, ...inner] = buildScopes(model);
  const have = new Set(main.graph.output.map((output) => output.name));
  const added: string[] = [];
  for (const name of new Set(names)) {
    if (have.has(name)) continue;
    if (!main.producers.has(name) && !main.inputs.has(name) && !main.initializers.has(name)) {
      const inside = inner.find((scope) => scope.producers.has(name));
      throw new LowbitError(
        "E_ONNX",
        inside === undefined
          ? `addOutputs: expected the name of a value of the graph, got ${JSON.stringify(name)}. Run lowbit inspect to see the layers.`
          : `addOutputs: expected a value of the main graph, got ${JSON.stringify(name)} of ${inside.path}. Values inside If, Loop and Scan cannot be outputs.`,
      );
    }
    added.push(name);
  }
  for (const name of added) main.graph.output.push(create(ValueInfoProtoSchema, { name }));
  return added;
}
