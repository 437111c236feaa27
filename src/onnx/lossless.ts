// losslessInitializers: the bfloat16 initializers of a model as lossless tensors (src/tensor/lossless-tensor.ts).
import type { LosslessTensor } from "../../formats/core/huffman.ts";
import { losslessTensor } from "../tensor/lossless-tensor.ts";
import { TensorProto_DataType } from "./file/gen/onnx_pb.ts";
import { tensorDims, type OnnxModel } from "./file/model.ts";
import { readCodes16 } from "./file/values.ts";

/**
 * The BFLOAT16 initializers of a model's graph by name, Huffman-coded one at a time; in the model's own layout, so
 * that the weight of a MatMul is [k, n].
 * @throws LowbitError E_ONNX for damaged data
 * @example const weights = losslessInitializers(readModel("model.onnx"));
 */
export function losslessInitializers(model: OnnxModel): Map<string, LosslessTensor> {
  const out = new Map<string, LosslessTensor>();
  for (const tensor of model.proto.graph?.initializer ?? []) {
    if (tensor.dataType !== (TensorProto_DataType.BFLOAT16 as number)) continue;
    const dims = tensorDims(tensor);
    if (dims.includes(0)) continue;
    out.set(tensor.name, losslessTensor(Uint16Array.from(readCodes16(model, tensor)), dims.length === 0 ? [1] : dims));
  }
  return out;
}
