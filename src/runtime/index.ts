// lowbit/runtime: ONNX models on packed weights.
export { loadModel } from "./session.ts";
export type { ExplainedStep, LoadOptions, RuntimeTensor, Session, SessionExplanation, ValueMetadata } from "./session.ts";
export type { ElementType } from "./value.ts";
