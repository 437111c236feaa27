// int8, uint8 and q8: dynamic quantization, the layout of transformers.js. Activations are quantized to uint8 at run time, per tensor:
// DynamicQuantizeLinear -> MatMulInteger or ConvInteger -> Cast -> Mul (scales) -> Add (bias). Embeddings (Gather) hold uint8 rows and a
// DequantizeLinear after them. Weights: int8, uint8, or (q8) uint8 where the model has Conv, GroupQueryAttention or MultiHeadAttention.
import { create } from "@bufbuild/protobuf";
import type { NodeProto, TensorProto } from "../file/gen/onnx_pb.ts";
import { TensorProtoSchema, TensorProto_DataType as T } from "../file/gen/onnx_pb.ts";
import type { Scope } from "../graph/graph.ts";
import { attributeOf, intAttribute, makeNode, resolveConstant } from "../graph/graph.ts";
import { makeTensor } from "../file/model.ts";
import { raiseOpset } from "../graph/opset.ts";
import { dataTypeName } from "../file/types.ts";
import type { Scratch } from "../file/values.ts";
import { readFloats } from "../file/values.ts";
import { productReason, productShape, scaled, withBias } from "./gemm.ts";
import type { Int8Weight } from "./int8.ts";
import { quantizeInt8, transposed } from "./int8.ts";
import type { Layer } from "../layers.ts";
import type { Conversion, Mode, ModeContext } from "./mode.ts";
import { decibels, madeBytes, notFinite, weightCache } from "./mode.ts";

/** DynamicQuantizeLinear is an operator of opset 11. */
const OPSET = 11;
/** Conv attributes that ConvInteger takes too: all of them. */
const CONV_ATTRIBUTES = ["auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"];
const UNSIGNED_IF = new Set(["Conv", "GroupQueryAttention", "MultiHeadAttention"]);

interface Made {
  readonly codes: string;
  readonly scale: string;
  readonly zeroPoint: string;
  readonly bytes: number;
  readonly format: string;
  readonly sqnrDb: number;
}

interface Activation {
  readonly codes: string;
  readonly scale: string;
  readonly zeroPoint: string;
}

export function dynamicMode(): Mode {
  const cache = weightCache<Made>();
  const scratch: Scratch = { bytes: new Uint8Array(0) };
  const activations = new Map<Scope, Map<string, Activation>>();

  /** The quantized form of a value, made once per graph; `nodes` receives the node that makes it. */
  function quantizedActivation(layer: Layer, context: ModeContext, value: string, nodes: NodeProto[]): Activation {
    const known = activations.get(layer.scope) ?? new Map<string, Activation>();
    activations.set(layer.scope, known);
    let activation = known.get(value);
    if (activation === undefined) {
      const { names } = context;
      activation = {
        codes: names.take(`${value}_quantized`),
        scale: names.take(`${value}_scale`),
        zeroPoint: names.take(`${value}_zero_point`),
      };
      known.set(value, activation);
      nodes.push(
        makeNode("DynamicQuantizeLinear", [value], [activation.codes, activation.scale, activation.zeroPoint], {
          name: names.take(`${value}_QuantizeLinear`),
        }),
      );
    }
    return activation;
  }

  /** Stores a quantized weight beside the original; scales and zero points have the given dims ([] for one per tensor). */
  function store(
    layer: Layer,
    context: ModeContext,
    weight: Int8Weight,
    signed: boolean,
    dims: readonly number[],
    scaleDims: readonly number[],
    format: string,
  ): Made {
    const { model, names } = context;
    const { name, scope } = layer.weight!;
    // A value that is not finite leaves no finite sum of squares.
    if (!Number.isFinite(weight.signal)) throw notFinite(layer, readFloats(model, layer.weight!.tensor));
    const type = signed ? T.INT8 : T.UINT8;
    const zeroDims = weight.zeroPoints.length === 1 ? [] : [weight.zeroPoints.length];
    const tensors: TensorProto[] = [
      makeTensor(model, names.take(`${name}_quantized`), type, dims, weight.codes),
      makeTensor(
        model,
        names.take(`${name}_scale`),
        T.FLOAT,
        weight.scales.length === 1 ? [] : scaleDims,
        new Uint8Array(weight.scales.buffer),
      ),
      makeTensor(model, names.take(`${name}_zero_point`), type, zeroDims, weight.zeroPoints),
    ];
    scope.graph.initializer.push(...tensors);
    const [codes, scale, zeroPoint] = tensors.map((tensor) => tensor.name);
    return { codes, scale, zeroPoint, bytes: madeBytes(tensors), format, sqnrDb: decibels(weight.signal, weight.noise) };
  }

  const weightKind = (context: ModeContext): { signed: boolean; symmetric: boolean; perChannel: boolean } => {
    const signed = context.options.dtype === "int8" || (context.options.dtype === "q8" && !hasUnsignedOps(context.scopes));
    return { signed, symmetric: context.options.symmetric ?? signed, perChannel: context.options.perChannel ?? false };
  };

  const formatName = (signed: boolean, symmetric: boolean, perChannel: boolean): string =>
    `${signed ? "int8" : "uint8"}_${perChannel ? "row" : "tensor"}${symmetric && signed ? "" : "_zp"}`;

  /** The product or convolution, from quantized operands to the float result named `output`. */
  function integerNodes(
    layer: Layer,
    context: ModeContext,
    op: string,
    made: Made,
    attributes: NodeProto["attribute"],
    output: string,
  ): NodeProto[] {
    const { names } = context;
    const nodes: NodeProto[] = [];
    const x = quantizedActivation(layer, context, layer.node.input[0], nodes);
    const integers = names.take(`${output}_quantized`);
    const floats = names.take(`${output}_quantized_cast`);
    const scale = names.take(`${layer.name}_quant_scales`);
    nodes.push(
      makeNode(op, [x.codes, made.codes, x.zeroPoint, made.zeroPoint], [integers], { name: names.take(`${layer.name}_quant`), attributes }),
      makeNode("Cast", [integers], [floats], { name: names.take(`${layer.name}_quant_cast`), attributes: [intAttribute("to", T.FLOAT)] }),
      makeNode("Mul", [x.scale, made.scale], [scale], { name: names.take(`${layer.name}_quant_scales_mul`) }),
      makeNode("Mul", [floats, scale], [output], { name: names.take(`${layer.name}_quant_output_scale_mul`) }),
    );
    return nodes;
  }

  function convertProduct(layer: Layer, context: ModeContext): Conversion {
    const { k, n, strideK, alpha } = productShape(layer);
    const kind = weightKind(context);
    const made = cache.get(layer.weight!.tensor, `${strideK === 1 ? "nk" : "kn"}*${alpha}`, () => {
      const values = scaled(readFloats(context.model, layer.weight!.tensor, scratch), alpha);
      const matrix = strideK === 1 && n > 1 ? transposed(values, n, k) : values;
      const quantized = quantizeInt8(matrix, kind.perChannel ? 1 : matrix.length, { ...kind, channels: kind.perChannel ? n : 1 });
      return store(layer, context, quantized, kind.signed, [k, n], [n], formatName(kind.signed, kind.symmetric, kind.perChannel));
    });
    const nodes = withBias(layer, context, (output) => integerNodes(layer, context, "MatMulInteger", made, [], output));
    return { nodes, codes: made.codes, format: made.format, bytesAfter: made.bytes, sqnrDb: made.sqnrDb };
  }

  function convertConv(layer: Layer, context: ModeContext): Conversion {
    const { shape, node } = layer;
    const kind = weightKind(context);
    const channels = shape[0];
    const ones = shape.slice(2).map(() => 1);
    // onnxruntime's ConvInteger takes one zero point: per channel is symmetric (uint8: zero point 127), as its error message asks.
    const symmetric = kind.symmetric || kind.perChannel;
    const made = cache.get(layer.weight!.tensor, "conv", () => {
      const values = readFloats(context.model, layer.weight!.tensor, scratch);
      const quantized = quantizeInt8(values, kind.perChannel ? values.length / channels : values.length, {
        signed: kind.signed,
        symmetric,
        channels: kind.perChannel ? channels : 1,
      });
      // Every channel has the same zero point: one is enough.
      const zeroPoints = quantized.zeroPoints.slice(0, 1);
      return store(
        layer,
        context,
        { ...quantized, zeroPoints },
        kind.signed,
        shape,
        [channels, ...ones],
        formatName(kind.signed, symmetric, kind.perChannel),
      );
    });
    const attributes = CONV_ATTRIBUTES.map((name) => attributeOf(node, name)).filter((attribute) => attribute !== undefined);
    const bias = node.input[2] ?? "";
    if (bias === "")
      return {
        nodes: integerNodes(layer, context, "ConvInteger", made, attributes, node.output[0]),
        codes: made.codes,
        format: made.format,
        bytesAfter: made.bytes,
        sqnrDb: made.sqnrDb,
      };
    const inner = context.names.take(`${node.output[0]}_convolved`);
    const nodes = integerNodes(layer, context, "ConvInteger", made, attributes, inner);
    nodes.push(
      makeNode("Add", [inner, reshapedBias(layer, context, bias, ones, nodes)], [node.output[0]], {
        name: context.names.take(`${layer.name}_bias`),
      }),
    );
    return { nodes, codes: made.codes, format: made.format, bytesAfter: made.bytes, sqnrDb: made.sqnrDb };
  }

  const biases = weightCache<string>();
  /** The bias as [1, C, 1, ...]: a new constant where it is one, else a Reshape. */
  function reshapedBias(layer: Layer, context: ModeContext, bias: string, ones: readonly number[], nodes: NodeProto[]): string {
    const { model, names } = context;
    const constant = resolveConstant(layer.scope, bias);
    if (constant !== null && constant.tensor.dataType === T.FLOAT) {
      return biases.get(constant.tensor, String(ones.length), () => {
        const values = readFloats(model, constant.tensor);
        const name = names.take(`${constant.name}_reshaped`);
        constant.scope.graph.initializer.push(
          makeTensor(
            model,
            name,
            T.FLOAT,
            [1, values.length, ...ones],
            new Uint8Array(values.buffer, values.byteOffset, values.byteLength),
          ),
        );
        return name;
      });
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
    return output;
  }

  function convertGather(layer: Layer, context: ModeContext): Conversion {
    const { node, shape } = layer;
    const { names } = context;
    // Always uint8 with a zero point, one scale: the table's rows are activations (so onnxruntime's tool has it, in every mode).
    const made = cache.get(layer.weight!.tensor, "gather", () => {
      const values = readFloats(context.model, layer.weight!.tensor, scratch);
      const quantized = quantizeInt8(values, values.length, { channels: 1, signed: false, symmetric: false });
      return store(layer, context, quantized, false, shape, [], formatName(false, false, false));
    });
    const rows = names.take(`${node.output[0]}_quantized`);
    const nodes = [
      makeNode("Gather", [made.codes, node.input[1]], [rows], { name: names.take(`${layer.name}_quant`), attributes: node.attribute }),
      makeNode("DequantizeLinear", [rows, made.scale, made.zeroPoint], [node.output[0]], {
        name: names.take(`${layer.name}_DequantizeLinear`),
      }),
    ];
    return { nodes, codes: made.codes, format: made.format, bytesAfter: made.bytes, sqnrDb: made.sqnrDb };
  }

  return {
    opTypes: ["MatMul", "Gemm", "Conv", "Gather"],
    reason(layer, context) {
      const { node, weight } = layer;
      if (node.opType === "MatMul" || node.opType === "Gemm") {
        const product = productReason(layer, context);
        if (product !== undefined) return product;
      } else if (weight === null) return "the weight is not constant";
      if (weight!.tensor.dataType !== T.FLOAT)
        return `DynamicQuantizeLinear takes float activations, and the weight is ${dataTypeName(weight!.tensor.dataType)}`;
      if (layer.shape.includes(0)) return "the weight is empty";
      if (node.opType === "Conv" && layer.shape.length < 3) return "the weight has no spatial dimension";
      return undefined;
    },
    prepare(_layers, context) {
      const before = context.opset();
      if (before >= OPSET) return undefined;
      const failure = raiseOpset(context, OPSET);
      if (failure === undefined) {
        context.notes.push(`opset raised from ${before} to ${OPSET}: DynamicQuantizeLinear needs it`);
        return undefined;
      }
      return () => `DynamicQuantizeLinear needs opset ${OPSET}, the model has ${before}, and ${failure}`;
    },
    convert(layer, context) {
      if (layer.node.opType === "Conv") return convertConv(layer, context);
      if (layer.node.opType === "Gather") return convertGather(layer, context);
      return convertProduct(layer, context);
    },
  };
}

function hasUnsignedOps(scopes: readonly Scope[]): boolean {
  return scopes.some((scope) => scope.graph.node.some((node) => UNSIGNED_IF.has(node.opType)));
}
