// lowbit/interop: what others have comes in, what they need goes out. GGUF, safetensors of anyone, quantized
// checkpoints, npy and npz.
export { readGguf, type GgufFile, type GgufTensor } from "./gguf/read.ts";
export { ggufBytes, writeGguf, type GgufContent, type GgufData, type GgufModel } from "./gguf/write.ts";
export type { GgufEntry, GgufScalar, GgufValue, GgufValueType } from "./gguf/metadata.ts";
export { ggufTypeByName, ggufTypes, type GgufType } from "./gguf/types.ts";
export type { ByteSource, RangeReader } from "./source.ts";
export { floatModel } from "./gguf/convert.ts";
export { byImportance, ggufTargets, quantizeGguf, type FloatModel, type GgufQuantizeOptions } from "./gguf/quantize.ts";
export { llamaGguf, type LlamaConfig, type LlamaModel, type TokenizerJson } from "./gguf/llama.ts";
export { readImatrix } from "./gguf/imatrix.ts";
export type { FloatTensor } from "./floats.ts";
export { readSafetensors, type SafeTensor, type SafetensorsFile } from "./safetensors/read.ts";
export { safetensorsBytes, writeSafetensors, type SafeContent, type SafetensorsModel } from "./safetensors/write.ts";
export { loadLossless, type LoadLosslessOptions } from "./safetensors/lossless.ts";
export { checkpointOf, importCheckpoint, type Checkpoint } from "./checkpoints/import.ts";
export type { ImportedLayer } from "./checkpoints/methods.ts";
export { npyBytes, parseNpy, readNpy, writeNpy, type NpyArray, type NpyData, type NpyInput } from "./npy/npy.ts";
export { npzBytes, readNpz, writeNpz, type NpzArrays, type NpzFile, type NpzOptions } from "./npy/npz.ts";
