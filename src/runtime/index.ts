// lowbit/runtime: ONNX models on packed weights.
export { loadModel } from "./session.ts";
export type { ExplainedStep, LoadOptions, RuntimeTensor, Session, SessionExplanation, ValueMetadata } from "./session.ts";
export type { ElementType } from "./value.ts";
export type { Decoder, DecoderOptions, GenerateOptions } from "./decoder.ts";
export type { DecoderPart } from "./decoder-model.ts";
export { greedy, sampler, type Sampler, type SampleOptions } from "./sample.ts";
