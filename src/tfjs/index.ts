// lowbit/tfjs: packed weights and training in low precision in TensorFlow.js. Peer: @tensorflow/tfjs-core.
export { packedMatMul, type PackedOptions } from "./matmul.ts";
export { releasePacked, useBackend } from "./weights.ts";
export { fakeQuantize, movingRange, type FakeQuantizeOptions, type MovingRange } from "./fake.ts";
export { quantizeAware, type QuantizeAware, type QuantizeAwareOptions } from "./aware.ts";
export { quartetMatMul, type QuartetOptions } from "./quartet.ts";
export { dfp16MatMul } from "./dfp16.ts";
export { quantizeTfjsModel, type QuantizeTfjsOptions, type QuantizeTfjsReport } from "./model/quantize.ts";
export { loadTfjsModel } from "./model/load.ts";
export { packedConv2d, type PackedConv2dOptions } from "./conv2d.ts";
