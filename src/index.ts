// lowbit: packed tensors and products. Formats are in lowbit/formats, quantizers in lowbit/quantize, ONNX in
// lowbit/onnx.
export { transpose, type Tensor, type TensorData } from "./tensor/tensor.ts";
export { tensor, toNdarray, type TensorLike } from "./tensor/like.ts";
export { quantize, type QuantizeOptions, type WeightQuantizer } from "./tensor/quantize/index.ts";
export { unpack } from "../formats/core/packed.ts";
export { dequantize, type DequantizeOptions } from "./tensor/dequantize.ts";
export { fromBytes, fromSafetensors, toBytes, toSafetensors } from "./tensor/container.ts";
export { compressBfloat16, decompressBfloat16 } from "./tensor/lossless.ts";
export { losslessBits, losslessTensor, prepareLossless, unpackLossless, type LosslessBackend } from "./tensor/lossless-tensor.ts";
export type { LosslessTensor } from "../formats/core/huffman.ts";
export { fitLogScales, type LogScaleOptions } from "./tensor/quantize/log-scales.ts";
export { dotInt16 } from "./tensor/dfp.ts";
export { matmul, prepareMatmul, type MatmulOptions } from "./tensor/matmul.ts";
export { prepareConv2d, type CodeScale, type Conv2dLayer, type Conv2dOptions, type ImageShape } from "./tensor/conv2d.ts";
export { packCodes, unpackCodes } from "../formats/core/pack.ts";
export { LowbitError, isLowbitError, type LowbitErrorCode } from "../formats/core/errors.ts";
export type {
  Activations,
  AsyncLayer,
  Backend,
  BulkCodec,
  Explanation,
  MixedChannels,
  PrepareOptions,
  SyncLayer,
} from "./backends/types.ts";
export type { Arithmetic as QuantizeArithmetic } from "./tensor/quantize/scales.ts";
export type { BlockFormat, Format, NumberFormat, OpaqueFormat, PackedTensor, QuantConfig } from "../formats/core/types.ts";
export { wasm, type WasmBackend, type WasmOptions } from "./backends/wasm/backend.ts";
export type { SparseOptions } from "./backends/wasm/sparse.ts";
export type { TuneReport, Tuning } from "./backends/wasm/tuning.ts";
export { workerScript } from "./backends/wasm/threads.ts";
export type { IntegerLayer } from "./backends/wasm/ops.ts";
export { gatherRows } from "./tensor/gather.ts";
export type { BitplaneLayer } from "./backends/wasm/bitplane.ts";
