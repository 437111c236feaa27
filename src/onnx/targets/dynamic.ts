// Weights of 8 bits with activations quantized at run time, the layout of transformers.js and of onnxruntime's
// quantize_dynamic: DynamicQuantizeLinear -> MatMulInteger or ConvInteger -> Cast -> Mul (scales) -> Add (bias).
// Embeddings hold codes with a scale per row.
// Source: ONNX DynamicQuantizeLinear-11, MatMulInteger-10, ConvInteger-10; onnxruntime quantization/operators.
import { create } from "@bufbuild/protobuf";
import { LowbitError } from "../../../formats/core/errors.ts";
import { unpack } from "../../../formats/core/packed.ts";
import type { Codes } from "../../../formats/core/pack.ts";
import type { BlockFormat, Format, PackedTensor } from "../../../formats/core/types.ts";
import { defineBlock } from "../../../formats/define/index.ts";
import { float32 } from "../../../formats/float32.ts";
import type { NodeProto, TensorProto } from "../file/gen/onnx_pb.ts";
import { TensorProtoSchema, TensorProto_DataType as T } from "../file/gen/onnx_pb.ts";
import { makeTensor } from "../file/model.ts";
import { readFloats } from "../file/values.ts";
import type { Scope } from "../graph/graph.ts";
import { attributeOf, intAttribute, makeNode, resolveConstant } from "../graph/graph.ts";
import { raiseOpset } from "../graph/opset.ts";
import { gathersRows, type Layer } from "../layers.ts";
import { layerMatrix, layerType } from "../weights.ts";
import { basisOf } from "./basis.ts";
import { dynamicAdvice } from "./dynamic-advice.ts";
import { levelsOf, oneZeroPoint, transposed } from "./dynamic-codes.ts";
import { lstmReason, lstmWriter } from "./dynamic-lstm.ts";
import { castNode, productNodes, productReason } from "./product.ts";
import type { Target, TargetContext, Written } from "./target.ts";
import { madeBytes, perWeight } from "./target.ts";

/** DynamicQuantizeLinear is an operator of opset 11. */
const OPSET = 11;
/** Conv attributes that ConvInteger takes too: all of them. */
const CONV_ATTRIBUTES = ["auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"];

interface Made {
  readonly codes: string;
  readonly scale: string;
  readonly zeroPoint: string;
  readonly bytes: number;
}

/** Why the target cannot hold a format; undefined where it can. */
function formatReason(format: Format): string | undefined {
  if (format.kind !== "block" || format.element.kind !== "int" || format.element.bits !== 8)
    return `the integer operators hold 8-bit integers, not ${format.name}`;
  const [{ span, format: scale }] = format.scales;
  if (format.scales.length !== 1 || scale !== float32 || (span !== "row" && span !== "tensor"))
    return `the integer operators have one float32 scale per tensor or output channel; ${format.name} has others`;
  if (format.offset !== undefined && (format.offset.role !== "zeroPoint" || format.offset.levels[0].span !== span))
    return `the offsets of ${format.name} are no zero points beside its scales`;
  return undefined;
}

export function dynamicTarget(): Target {
  const products = perWeight<Made>();
  const convolutions = perWeight<Made>();
  const rowsMade = perWeight<Made>();
  const activations = new Map<Scope, Map<string, Made>>();
  const biases = new Map<TensorProto, Map<number, string>>();
  const lstm = lstmWriter();

  /** The quantized form of a value, made once per graph; `nodes` receives the node that makes it. */
  function quantizedActivation(layer: Layer, context: TargetContext, value: string, nodes: NodeProto[]): Made {
    const known = activations.get(layer.scope) ?? new Map<string, Made>();
    activations.set(layer.scope, known);
    let made = known.get(value);
    if (made === undefined) {
      const { names } = context;
      made = {
        codes: names.take(`${value}_quantized`),
        scale: names.take(`${value}_scale`),
        zeroPoint: names.take(`${value}_zero_point`),
        bytes: 0,
      };
      known.set(value, made);
      const name = names.take(`${value}_QuantizeLinear`);
      nodes.push(makeNode("DynamicQuantizeLinear", [value], [made.codes, made.scale, made.zeroPoint], { name }));
    }
    return made;
  }

  /** Stores codes, scales and zero points of the given dims; one entry is a scalar. */
  function store(
    layer: Layer,
    context: TargetContext,
    parts: {
      dims: readonly number[];
      codes: Codes;
      scales: Float32Array;
      scaleDims: readonly number[];
      zeros: Uint8Array | null;
      type: number;
    },
  ): Made {
    const { model, names } = context;
    const { name, scope } = layer.weight!;
    const bytes = (data: Codes | Float32Array) => new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    const tensors: TensorProto[] = [
      makeTensor(model, names.take(`${name}_quantized`), parts.type, parts.dims, bytes(parts.codes)),
      makeTensor(model, names.take(`${name}_scale`), T.FLOAT, parts.scales.length === 1 ? [] : parts.scaleDims, bytes(parts.scales)),
    ];
    const { zeros } = parts;
    if (zeros !== null)
      tensors.push(makeTensor(model, names.take(`${name}_zero_point`), parts.type, zeros.length === 1 ? [] : [zeros.length], zeros));
    scope.graph.initializer.push(...tensors);
    const [codes, scale, zeroPoint = ""] = tensors.map((tensor) => tensor.name);
    return { codes, scale, zeroPoint, bytes: madeBytes(tensors) };
  }

  /** The product or convolution, from a float value to the float result named `output`. */
  function integerNodes(layer: Layer, context: TargetContext, op: string, made: Made, x: string, output: string): NodeProto[] {
    const { names } = context;
    const nodes: NodeProto[] = [];
    const act = quantizedActivation(layer, context, x, nodes);
    const integers = names.take(`${output}_quantized`);
    const floats = names.take(`${output}_quantized_cast`);
    const scale = names.take(`${layer.name}_quant_scales`);
    const attributes =
      op === "ConvInteger" ? CONV_ATTRIBUTES.map((name) => attributeOf(layer.node, name)).filter((a) => a !== undefined) : [];
    nodes.push(
      makeNode(op, [act.codes, made.codes, act.zeroPoint, made.zeroPoint], [integers], {
        name: names.take(`${layer.name}_quant`),
        attributes,
      }),
      makeNode("Cast", [integers], [floats], { name: names.take(`${layer.name}_quant_cast`), attributes: [intAttribute("to", T.FLOAT)] }),
      makeNode("Mul", [act.scale, made.scale], [scale], { name: names.take(`${layer.name}_quant_scales_mul`) }),
      makeNode("Mul", [floats, scale], [output], { name: names.take(`${layer.name}_quant_output_scale_mul`) }),
    );
    return nodes;
  }

  function writeProduct(layer: Layer, packed: PackedTensor, context: TargetContext): Written {
    const { rows, k } = packed;
    const made = products(packed, () =>
      store(layer, context, { ...levelsOf(packed), dims: [k, rows], codes: transposed(unpack(packed), rows, k), scaleDims: [rows] }),
    );
    const nodes = productNodes(
      layer,
      context,
      packed,
      (x, output) => integerNodes(layer, context, "MatMulInteger", made, x, output),
      T.FLOAT,
    );
    return { nodes, codes: made.codes, bytes: made.bytes };
  }

  function writeConv(layer: Layer, packed: PackedTensor, context: TargetContext): Written {
    if (basisOf(packed) !== null)
      throw new LowbitError(
        "E_UNSUPPORTED",
        `layer ${layer.name}: expected an algorithm that keeps the basis of a convolution's inputs, got ${packed.recipe.algorithm}. Take gptq, or the target stored.`,
      );
    const { node, shape } = layer;
    const { names } = context;
    const ones = shape.slice(2).map(() => 1);
    const made = convolutions(packed, () => {
      const levels = levelsOf(packed);
      const codes = unpack(packed) as Uint8Array;
      // onnxruntime's ConvInteger takes one zero point
      const zero = oneZeroPoint(codes, levels.zeros, packed.k);
      return store(layer, context, { ...levels, dims: shape, codes, zeros: Uint8Array.of(zero), scaleDims: [shape[0], ...ones] });
    });
    const nodes: NodeProto[] = [];
    const type = layerType(layer);
    let x = node.input[0];
    if (type !== T.FLOAT) {
      const cast = names.take(`${x}_cast`);
      nodes.push(castNode(context, x, cast, T.FLOAT, `${layer.name}_cast`));
      x = cast;
    }
    const bias = node.input[2] ?? "";
    const output = node.output[0];
    const result = type === T.FLOAT ? output : names.take(`${output}_float`);
    const inner = bias === "" ? result : names.take(`${output}_convolved`);
    nodes.push(...integerNodes(layer, context, "ConvInteger", made, x, inner));
    if (bias !== "") {
      const term = reshapedBias(layer, context, bias, ones, nodes);
      nodes.push(makeNode("Add", [inner, term], [result], { name: names.take(`${layer.name}_bias`) }));
    }
    if (result !== output) nodes.push(castNode(context, result, output, type, `${layer.name}_cast_back`));
    return { nodes, codes: made.codes, bytes: made.bytes };
  }

  /** The bias as float32 [1, C, 1, ...]: a new constant where it is one, else a Reshape. */
  function reshapedBias(layer: Layer, context: TargetContext, bias: string, ones: readonly number[], nodes: NodeProto[]): string {
    const { model, names } = context;
    const constant = resolveConstant(layer.scope, bias);
    if (constant !== null && constant.tensor.dataType === layerType(layer)) {
      const known = biases.get(constant.tensor) ?? new Map<number, string>();
      biases.set(constant.tensor, known);
      let name = known.get(ones.length);
      if (name === undefined) {
        const values = readFloats(model, constant.tensor);
        name = names.take(`${constant.name}_reshaped`);
        const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
        constant.scope.graph.initializer.push(makeTensor(model, name, T.FLOAT, [1, values.length, ...ones], bytes));
        known.set(ones.length, name);
      }
      return name;
    }
    const shape = create(TensorProtoSchema, {
      name: names.take(`${layer.name}_bias_shape`),
      dataType: T.INT64,
      dims: [BigInt(ones.length + 2)],
      rawData: new Uint8Array(BigInt64Array.from([1n, -1n, ...ones.map(BigInt)]).buffer),
    });
    layer.scope.graph.initializer.push(shape);
    const output = names.take(`${bias}_reshaped`);
    nodes.push(makeNode("Reshape", [bias, shape.name], [output], { name: names.take(`${layer.name}_bias_reshape`) }));
    if (layerType(layer) === T.FLOAT) return output;
    const cast = names.take(`${bias}_cast`);
    nodes.push(castNode(context, output, cast, T.FLOAT, `${layer.name}_bias_cast`));
    return cast;
  }

  /**
   * Codes by row, then their scale: one for the table (as onnxruntime's tool), or the row's own, so that an outlier
   * costs its row only.
   */
  function writeGather(layer: Layer, packed: PackedTensor, context: TargetContext): Written {
    const { node, shape } = layer;
    const { names } = context;
    const byRow = (packed.format as BlockFormat).scales[0].span === "row";
    const ones = shape.slice(1).map(() => 1);
    const made = rowsMade(packed, () => {
      const { scales, zeros, type } = levelsOf(packed);
      const scaleDims = [shape[0], ...ones];
      return store(layer, context, { dims: shape, codes: unpack(packed), scales, scaleDims, zeros: byRow ? null : zeros, type });
    });
    const rows = names.take(`${node.output[0]}_quantized`);
    const type = layerType(layer);
    const result = type === T.FLOAT ? node.output[0] : names.take(`${node.output[0]}_float`);
    const nodes = [
      makeNode("Gather", [made.codes, node.input[1]], [rows], { name: names.take(`${layer.name}_quant`), attributes: node.attribute }),
    ];
    if (byRow) {
      const floats = names.take(`${rows}_cast`);
      const scale = names.take(`${node.output[0]}_scale`);
      nodes.push(
        castNode(context, rows, floats, T.FLOAT, `${layer.name}_quant_cast`),
        makeNode("Gather", [made.scale, node.input[1]], [scale], { name: names.take(`${layer.name}_scale`), attributes: node.attribute }),
        makeNode("Mul", [floats, scale], [result], { name: names.take(`${layer.name}_quant_scale_mul`) }),
      );
    } else {
      const name = names.take(`${layer.name}_DequantizeLinear`);
      nodes.push(makeNode("DequantizeLinear", [rows, made.scale, made.zeroPoint], [result], { name }));
    }
    if (result !== node.output[0]) nodes.push(castNode(context, result, node.output[0], type, `${layer.name}_cast_back`));
    return { nodes, codes: made.codes, bytes: made.bytes };
  }

  return {
    name: "dynamic",
    opTypes: ["MatMul", "Gemm", "Conv", "Gather", "LSTM"],
    defaultOpTypes: ["MatMul", "Gemm", "Conv", "Gather", "LSTM"],
    adapt(layer, format) {
      // rows of a table are along axis 0, and its scales by row have no zero point
      const byRow = format.kind === "block" && layer.node.opType === "Gather" && format.scales[0].span === "row";
      if (!byRow || (gathersRows(layer) && layer.shape.length === 2)) return format;
      const { element, offset } = format;
      const levels = [{ format: element, span: "tensor" as const }];
      return defineBlock({
        element,
        scales: [{ format: float32, span: "tensor" }],
        ...(offset === undefined ? {} : { offset: { role: "zeroPoint" as const, levels } }),
        rangeRule: format.rangeRule,
      });
    },
    reason(layer, format, context) {
      const reason = formatReason(format);
      if (reason !== undefined) return reason;
      const { node } = layer;
      if (node.opType === "MatMul" || node.opType === "Gemm") return productReason(layer, context);
      const matrix = layerMatrix(layer);
      if (typeof matrix === "string") return matrix;
      if (node.opType === "Conv" && layer.shape.length < 3) return "the weight has no spatial dimension";
      return node.opType === "LSTM" ? lstmReason(layer) : undefined;
    },
    advice: dynamicAdvice,
    prepare(layers, context) {
      const before = context.opset();
      const parts = lstm.prepare(layers, context);
      if (before >= OPSET || layers.length === 0) return parts;
      const failure = raiseOpset(context, OPSET);
      if (failure === undefined) {
        context.notes.push(`opset raised from ${before} to ${OPSET}: DynamicQuantizeLinear needs it`);
        return parts;
      }
      return () => `DynamicQuantizeLinear needs opset ${OPSET}, the model has ${before}, and ${failure}`;
    },
    write(layer, weight, context) {
      if (layer.node.opType === "LSTM") return lstm.write(layer, weight, context);
      if (layer.node.opType === "Conv") return writeConv(layer, weight, context);
      return layer.node.opType === "Gather" ? writeGather(layer, weight, context) : writeProduct(layer, weight, context);
    },
  };
}
