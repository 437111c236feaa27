// lowbit/tfjs: packed weights in TensorFlow.js, with gradients. Peer: @tensorflow/tfjs-core.
export { packedMatMul, type PackedOptions } from "./matmul.ts";
export { releasePacked, useBackend } from "./weights.ts";
