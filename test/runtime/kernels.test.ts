// Operators on the kernels of the backend's memory against onnxruntime-node: values large enough to be placed there,
// rows that are no whole vectors, tails, broadcasts.
import { expect, test } from "vitest";
import { loadModel } from "../../src/runtime/index.ts";
import { raw, T, type AttributeValue } from "../onnx/build.ts";
import { compare } from "./judge.ts";
import { bytesOf, f32, ints, numbers, type Case } from "./make.ts";

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
  [[2, 5, 6, 7], [2, 5, 1, 1]],
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

const int64 = (values: number[]) => ({ type: "int64", dims: [values.length], data: BigInt64Array.from(values, BigInt) });
const constant64 = (name: string, values: number[]) => raw(name, [values.length], int64(values).data, T.INT64);
/** Behind a Neg, so that what is moved lies in the arena. */
const x4 = { x: f32(1, [3, 4, 5, 37]) };
test.each([
  ["Transpose", { feeds: x4, attributes: { perm: ints(0, 2, 1, 3) } }],
  ["Transpose", { feeds: x4, attributes: { perm: ints(3, 1, 0, 2) } }],
  [
    "Slice",
    {
      feeds: x4,
      initializer: [constant64("st", [1, -1]), constant64("en", [4, -99]), constant64("ax", [1, 3]), constant64("sp", [2, -3])],
    },
  ],
  ["Expand", { feeds: { x: f32(1, [3, 1, 5, 37]) }, initializer: [constant64("s", [2, 1, 4, 1, 1])] }],
  ["Split", { feeds: x4, initializer: [constant64("p", [7, 30])], attributes: { axis: -1n }, outputs: ["y", "z"] }],
  ["Split", { feeds: x4, initializer: [constant64("p", [1, 3])], attributes: { axis: 1n }, outputs: ["y", "z"] }],
] satisfies [string, Case][])("%s %#", async (name, one) => {
  const bytes = bytesOf(name, one, "Neg");
  const session = await loadModel(bytes);
  await compare(bytes, one.feeds, 1e-6, session);
  expect(session.explain().steps.map(({ kernel }) => kernel)).toEqual(["kernel", "kernel"]);
  await session.release();
});

test.each([
  ["Concat", { feeds: { x: f32(1, [3, 4, 37]), z: f32(2, [3, 1, 37]) }, attributes: { axis: 1n } }],
  ["Concat", { feeds: { x: f32(1, [3, 4, 37]), z: f32(2, [3, 4, 2]) }, attributes: { axis: -1n } }],
  ["ReduceMean", { feeds: { x: f32(1, [3, 5, 37]) }, attributes: { axes: ints(-1) } }],
  ["ReduceMean", { feeds: { x: f32(1, [3, 5, 37]) }, attributes: { axes: ints(0, 1), keepdims: 0n } }],
  ["ReduceMax", { feeds: { x: f32(1, [3, 5, 37]) }, attributes: { axes: ints(1) } }],
  ["ReduceMin", { feeds: { x: f32(1, [3, 5, 37]) }, attributes: {} }],
  ["ReduceSum", { feeds: { x: f32(1, [3, 5, 37]) }, initializer: [constant64("ax", [2])] }],
  ["MatMul", { feeds: { x: f32(1, [3, 2, 13, 37]), z: f32(2, [3, 2, 37, 11]) } }],
  ["MatMul", { feeds: { x: f32(1, [3, 1, 13, 37]), z: f32(2, [2, 37, 11]) } }],
  ["MatMul", { feeds: { x: f32(1, [3, 1, 37]), z: f32(2, [37, 11]) } }],
  [
    "Conv",
    {
      feeds: { x: f32(1, [2, 4, 9, 11]), w: f32(2, [6, 2, 3, 2]), b: f32(3, [6]) },
      attributes: { group: 2n, strides: ints(2, 1), pads: ints(1, 0, 1, 1), dilations: ints(1, 2) },
    },
  ],
  [
    "Conv",
    {
      feeds: { x: f32(1, [1, 6, 9, 11]), w: f32(2, [6, 1, 3, 3]) },
      attributes: { group: 6n, auto_pad: "SAME_UPPER", strides: ints(2, 2) },
    },
  ],
  ["Conv", { feeds: { x: f32(1, [2, 4, 50]), w: f32(2, [6, 4, 3]) }, attributes: { auto_pad: "SAME_LOWER", strides: ints(2) } }],
  [
    "MaxPool",
    { feeds: { x: f32(1, [2, 4, 9, 11]) }, attributes: { kernel_shape: ints(3, 2), strides: ints(2, 1), pads: ints(1, 0, 1, 1) } },
  ],
  ["MaxPool", { feeds: { x: f32(1, [2, 4, 50]) }, attributes: { kernel_shape: ints(3), strides: ints(2) } }],
  ["AveragePool", { feeds: { x: f32(1, [2, 4, 9, 11]) }, attributes: { kernel_shape: ints(3, 2), pads: ints(1, 0, 1, 1) } }],
  [
    "AveragePool",
    { feeds: { x: f32(1, [2, 4, 9, 11]) }, attributes: { kernel_shape: ints(3, 2), pads: ints(1, 0, 1, 1), count_include_pad: 1n } },
  ],
  ["GlobalAveragePool", { feeds: { x: f32(1, [2, 4, 9, 11]) } }],
] satisfies [string, Case][])("%s %#", onKernels);
