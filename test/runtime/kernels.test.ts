// Operators on the kernels of the backend's memory against onnxruntime-node: values large enough to be placed there, rows that are no whole vectors, tails, broadcasts.
import { expect, test } from "vitest";
import { loadModel } from "../../src/runtime/index.ts";
import { raw, type AttributeValue } from "../onnx/build.ts";
import { compare } from "./judge.ts";
import { bytesOf, f32, numbers, type Case } from "./make.ts";

const elementwise: Record<string, [number, number]> = {
  Neg: [-2, 2], Abs: [-2, 2], Sqrt: [0, 3], Exp: [-5, 5], Sigmoid: [-9, 9], Tanh: [-4, 4], Erf: [-4, 4], Floor: [-4, 4], Ceil: [-4, 4], Reciprocal: [0.5, 2],
  Relu: [-2, 2], HardSwish: [-5, 5], "com.microsoft.Gelu": [-4, 4], "com.microsoft.FastGelu": [-4, 4], "com.microsoft.QuickGelu": [-4, 4],
}; // prettier-ignore

/** On kernels, and equal to onnxruntime's within 1e-5. */
async function onKernels(name: string, one: Case): Promise<void> {
  const bytes = bytesOf(name, one);
  const session = await loadModel(bytes);
  await compare(bytes, one.feeds, 1e-5, session);
  expect(session.explain().steps.map(({ kernel }) => kernel)).toEqual(["kernel"]);
  // once more: memory of the first run is used again
  await compare(bytes, one.feeds, 1e-5, session);
  await session.release();
}

test.each(Object.entries(elementwise))("%s", async (name, [low, high]) => {
  await onKernels(name, { feeds: { x: f32(1, [3, 5, 37], low, high) } });
  await onKernels(name, { feeds: { x: f32(2, [1, 20001], low, high) } });
});

const BROADCASTS: [number[], number[]][] = [
  [[3, 5, 37], [3, 5, 37]],
  [[3, 5, 37], [37]],
  [[3, 5, 37], [1, 5, 37]],
  [[3, 5, 37], []],
  [[3, 5, 37], [3, 5, 1]],
  [[37], [3, 5, 37]],
  [[1, 1, 300], [2, 4, 300]],
]; // prettier-ignore
test.each(["Add", "Sub", "Mul", "Div", "Min", "Max"])("%s, broadcast", async (name) => {
  for (const [a, b] of BROADCASTS) await onKernels(name, { feeds: { x: f32(1, a), z: f32(2, b, 0.5, 2) } });
});

test("shapes that no kernel reads run as loops", async () => {
  const bytes = bytesOf("Add", { feeds: { x: f32(1, [30, 1, 37]), z: f32(2, [5, 1]) } });
  const session = await loadModel(bytes);
  await compare(bytes, { x: f32(1, [30, 1, 37]), z: f32(2, [5, 1]) }, 1e-6, session);
  expect(session.explain().steps[0].kernel).toBe("loops");
  await session.release();
});

const norm = (names: string[], skip: boolean, outputs: string[], attributes: Record<string, AttributeValue> = {}): Case => ({
  feeds: { x: f32(1, [3, 5, 37]), ...(skip ? { s: f32(2, [3, 5, 37]) } : {}) },
  initializer: names.map((name, i) => raw(name, [37], numbers(i + 3, 37))),
  outputs,
  attributes: { epsilon: 1e-4, ...attributes },
});
test.each([
  ["LayerNormalization", norm(["w", "b"], false, ["y"])],
  ["LayerNormalization", norm(["w"], false, ["y"])],
  ["SimplifiedLayerNormalization", norm(["w"], false, ["y"])],
  ["RMSNormalization", { ...norm(["w"], false, ["y"]), opset: 23 }],
  ["com.microsoft.SkipLayerNormalization", norm(["w", "b"], true, ["y"])],
  ["com.microsoft.SkipLayerNormalization", norm(["w", "b", "add"], true, ["y", "", "", "sum"])],
  ["com.microsoft.SkipSimplifiedLayerNormalization", norm(["w"], true, ["y", "", "", "sum"])],
  ["com.microsoft.SkipSimplifiedLayerNormalization", norm(["w", "add"], true, ["y"])],
  ["Softmax", { feeds: { x: f32(1, [3, 5, 37], -9, 9) } }],
] satisfies [string, Case][])("%s %#", onKernels);
