// lowbit/runtime: ONNX models on packed weights.
export { loadModel, type DeviceLoadOptions, type LoadOptions, type ModelSource } from "./load.ts";
export type { OnnxRuntime } from "./foreign.ts";
export type { Progress } from "../quantize/steps.ts";
export type { DeviceDecoder } from "./webgpu/decoder.ts";
export type { DeviceSession, ExplainedStep, Session, SessionExplanation } from "./session.ts";
export type { ElementType, RuntimeTensor, ValueMetadata } from "./value.ts";
export type { Decoder, DecoderOptions, GenerateOptions } from "./decoder.ts";
export type { DecoderPart } from "./decoder-model.ts";
export { greedy, sampler, type Sampler, type SampleOptions } from "./sample.ts";
