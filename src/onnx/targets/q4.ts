// q4: MatMul and Gemm with constant weights become com.microsoft.MatMulNBits, 4 bits, blocks along K (onnxruntime's contrib operator).
// Layout: B uint8 [N, ceil(K/block), block/2], low nibble first; scales [N * ceil(K/block)]; zero points uint8, two per byte, rows padded.
// Names and flat shapes are those of onnxruntime's own tool. Convolutions and embeddings stay as they are: the operator has neither.
import type { NodeProto, TensorProto } from "../file/gen/onnx_pb.ts";
import { OperatorSetIdProtoSchema, TensorProto_DataType as T } from "../file/gen/onnx_pb.ts";
import { create } from "@bufbuild/protobuf";
import { intAttribute, makeNode } from "../graph/graph.ts";
import { makeTensor } from "../file/model.ts";
import { dataTypeName } from "../file/types.ts";
import { productReason, productShape, scaled, withBias } from "./gemm.ts";
import type { Layer } from "../layers.ts";
import type { Conversion, Mode, ModeContext } from "./mode.ts";
import { decibels, madeBytes, notFinite, weightCache } from "./mode.ts";
import { nbitsFormat, nbitsInputs } from "./nbits.ts";
import { isLowbitError } from "../../../formats/core/errors.ts";
import { quantizeMeasured, type Measured } from "../../tensor/quantize/measure.ts";
import type { Scratch } from "../file/values.ts";
import { readFloats } from "../file/values.ts";

interface Made {
  readonly inputs: readonly string[];
  readonly bytes: number;
  readonly format: string;
  readonly sqnrDb: number;
}

/** Adds the operator set of onnxruntime's contrib operators. */
export function importMicrosoft(context: ModeContext): void {
  const { opsetImport } = context.model.proto;
  if (!opsetImport.some((entry) => entry.domain === "com.microsoft")) {
    opsetImport.push(create(OperatorSetIdProtoSchema, { domain: "com.microsoft", version: 1n }));
  }
}

export function q4Mode(): Mode {
  const cache = weightCache<Made>();
  const scratch: Scratch = { bytes: new Uint8Array(0) };

  function make(layer: Layer, context: ModeContext): Made {
    const { model, names, options } = context;
    const weight = layer.weight!;
    const { k, n, strideK, strideN, alpha } = productShape(layer);
    const blockSize = options.blockSize ?? 32;
    const half = weight.tensor.dataType === T.FLOAT16;
    const format = nbitsFormat(blockSize, options.symmetric ?? true, half);
    const values = scaled(readFloats(model, weight.tensor, scratch), alpha);
    // The arithmetic of onnxruntime's tool, so that the file is the same, byte for byte.
    let measured: Measured;
    try {
      measured = quantizeMeasured({ data: values, shape: [n, k], stride: [strideN, strideK], offset: 0 }, format, { arithmetic: "ort" });
    } catch (error) {
      throw isLowbitError(error) && error.code === "E_VALUE" ? notFinite(layer, values) : error;
    }
    const inputs = nbitsInputs(measured.packed);
    const base = weight.name;
    const tensors: TensorProto[] = [
      makeTensor(model, names.take(`${base}_Q4`), T.UINT8, [n, inputs.blocks, blockSize / 2], inputs.codes),
      makeTensor(model, names.take(`${base}_scales`), half ? T.FLOAT16 : T.FLOAT, [n * inputs.blocks], inputs.scales),
    ];
    if (inputs.zeroPoints !== null) {
      tensors.push(makeTensor(model, names.take(`${base}_zero_points`), T.UINT8, [inputs.zeroPoints.length], inputs.zeroPoints));
    }
    weight.scope.graph.initializer.push(...tensors);
    return {
      inputs: tensors.map((tensor) => tensor.name),
      bytes: madeBytes(tensors),
      format: format.name,
      sqnrDb: decibels(measured.signal, measured.noise),
    };
  }

  return {
    opTypes: ["MatMul", "Gemm"],
    reason(layer, context) {
      const type = layer.weight?.tensor.dataType;
      const product = productReason(layer, context);
      if (product !== undefined) return product;
      if (type !== T.FLOAT && type !== T.FLOAT16) return `MatMulNBits takes float and float16 weights, not ${dataTypeName(type!)}`;
      return undefined;
    },
    convert(layer, context): Conversion {
      const { k, n, alpha, strideK } = productShape(layer);
      const made = cache.get(layer.weight!.tensor, `${strideK === 1 ? "nk" : "kn"}*${alpha}`, () => make(layer, context));
      importMicrosoft(context);
      const { options, names } = context;
      const attributes = [
        intAttribute("K", k),
        intAttribute("N", n),
        intAttribute("bits", 4),
        intAttribute("block_size", options.blockSize ?? 32),
      ];
      if (options.accuracyLevel !== undefined) attributes.push(intAttribute("accuracy_level", options.accuracyLevel));
      const nodes = withBias(layer, context, (output): NodeProto[] => [
        makeNode("MatMulNBits", [layer.node.input[0], ...made.inputs], [output], {
          name: names.take(`${layer.name}_Q4`),
          domain: "com.microsoft",
          attributes,
        }),
      ]);
      return { nodes, codes: made.inputs[0], format: made.format, bytesAfter: made.bytes, sqnrDb: made.sqnrDb };
    },
  };
}
