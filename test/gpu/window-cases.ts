// Shapes of convolution and pooling: groups, dilations, padding of every kind, filters that no kernel's set divides,
// one dimension; each on a part of one input, so that it is on the device when the operator begins.
import { encode, graph, model, node, raw, T, value, weights, type AttributeValue } from "../onnx/build.ts";
import type { RuntimeTensor } from "../../src/runtime/index.ts";

export interface WindowCase {
  readonly op: string;
  readonly x: number[];
  /** Constants behind it; what they hold are small numbers, positive where `positive`. */
  readonly more?: readonly number[][];
  readonly positive?: boolean;
  /** Of Resize, of Pad. */
  readonly scales?: readonly number[];
  readonly pads?: readonly number[];
  readonly attributes?: Record<string, AttributeValue>;
}

const ints = (...values: number[]): { ints: number[] } => ({ ints: values });

export const WINDOWS: readonly WindowCase[] = [
  { op: "Conv", x: [1, 3, 7, 9], more: [[5, 3, 3, 2], [5]], attributes: { pads: ints(1, 0, 2, 1), strides: ints(2, 1) } },
  { op: "Conv", x: [2, 4, 6, 5], more: [[4, 1, 3, 3], [4]], attributes: { group: 4n, dilations: ints(1, 2), pads: ints(1, 2, 1, 2) } },
  { op: "Conv", x: [1, 6, 5, 4], more: [[9, 2, 1, 1]], attributes: { group: 3n } },
  { op: "Conv", x: [2, 6, 4, 4], more: [[10, 3, 2, 2]], attributes: { group: 2n, pads: ints(1, 0, 0, 1) } },
  { op: "Conv", x: [2, 3, 11], more: [[4, 3, 4], [4]], attributes: { strides: ints(3), pads: ints(2, 1) } },
  { op: "Conv", x: [1, 4, 5, 5], more: [[16, 1, 3, 3]], attributes: { group: 4n, strides: ints(2, 2), auto_pad: "SAME_LOWER" } },
  { op: "ConvTranspose", x: [2, 4, 3, 5], more: [[4, 5, 2, 3], [5]], attributes: { strides: ints(2, 3), pads: ints(0, 1, 1, 0) } },
  {
    op: "ConvTranspose",
    x: [1, 6, 4, 3],
    more: [[6, 2, 3, 2], [6]],
    attributes: { group: 3n, dilations: ints(1, 2), strides: ints(2, 1) },
  },
  { op: "ConvTranspose", x: [2, 3, 8], more: [[3, 2, 4]], attributes: { strides: ints(2), output_padding: ints(1), pads: ints(1, 1) } },
  { op: "Resize", x: [1, 3, 4, 5], scales: [1, 1, 2, 1.5], attributes: { mode: "nearest", coordinate_transformation_mode: "asymmetric" } },
  { op: "Resize", x: [1, 2, 5, 6], scales: [1, 1, 1.7, 0.6], attributes: { mode: "linear" } },
  { op: "Resize", x: [1, 2, 5, 6], scales: [1, 1, 2, 1.3], attributes: { mode: "cubic", exclude_outside: 1n } },
  { op: "Pad", x: [2, 3, 4, 5], pads: [0, 1, 2, 0, 0, 0, 1, 3] },
  { op: "Pad", x: [2, 3, 4, 5], pads: [0, 0, 2, 1, 0, 0, -1, 3], attributes: { mode: "reflect" } },
  { op: "MaxPool", x: [2, 3, 7, 6], attributes: { kernel_shape: ints(3, 2), strides: ints(2, 1), pads: ints(1, 0, 1, 1) } },
  { op: "MaxPool", x: [1, 5, 13], attributes: { kernel_shape: ints(3), dilations: ints(2), strides: ints(2) } },
  { op: "AveragePool", x: [1, 4, 6, 7], attributes: { kernel_shape: ints(3, 4), pads: ints(1, 2, 0, 1), strides: ints(2, 3) } },
  { op: "AveragePool", x: [1, 4, 6, 7], attributes: { kernel_shape: ints(2, 3), pads: ints(1, 1, 1, 1), count_include_pad: 1n } },
  { op: "GlobalAveragePool", x: [2, 5, 3, 7] },
  { op: "GlobalMaxPool", x: [2, 5, 9] },
  { op: "BatchNormalization", x: [2, 5, 3, 7], more: [[5], [5], [5], [5]], positive: true, attributes: { epsilon: 0.01 } },
  { op: "Cast", x: [3, 7], attributes: { to: 1n } },
  { op: "HardSigmoid", x: [2, 5, 9], attributes: { alpha: 0.3, beta: 0.6 } },
];

const product = (dims: readonly number[]): number => dims.reduce((a, b) => a * b, 1);

/** A model with an output for each case, `y0` and so on. No number is above 0: a maximum that begins there is found. */
export function windowModel(cases: readonly WindowCase[]): { readonly bytes: Uint8Array; readonly feeds: Record<string, RuntimeTensor> } {
  const count = cases.reduce((sum, { x }) => sum + product(x), 0);
  const [initializer, nodes] = [[] as ReturnType<typeof raw>[], [] as ReturnType<typeof node>[]];
  initializer.push(raw("sizes", [cases.length], BigInt64Array.from(cases, ({ x }) => BigInt(product(x))), T.INT64)); // prettier-ignore
  nodes.push(node("Neg", ["all"], ["less"]), node("Split", ["less", "sizes"], cases.map((_, i) => `part${i}`))); // prettier-ignore
  cases.forEach(({ op, x, more = [], positive, scales, pads, attributes = {} }, i) => {
    initializer.push(raw(`shape${i}`, [x.length], BigInt64Array.from(x, BigInt), T.INT64));
    nodes.push(node("Reshape", [`part${i}`, `shape${i}`], [`x${i}`]));
    const names = more.map((dims, j) => {
      const data = weights(product(dims), 7 * i + j).map((v) => (positive === true ? Math.abs(v) + 0.1 : 3 * v));
      initializer.push(raw(`c${i}_${j}`, dims, data));
      return `c${i}_${j}`;
    });
    if (scales !== undefined) {
      initializer.push(raw(`scales${i}`, [scales.length], Float32Array.from(scales)));
      names.push("", `scales${i}`);
    }
    if (pads !== undefined) {
      initializer.push(
        raw(`pads${i}`, [pads.length], BigInt64Array.from(pads, BigInt), T.INT64),
        raw(`value${i}`, [], Float32Array.of(2.5)),
      );
      names.push(`pads${i}`, `value${i}`);
    }
    nodes.push(node(op, [`x${i}`, ...names], [`y${i}`], attributes));
  });
  const output = cases.map(({ x }, i) => value(`y${i}`, T.FLOAT, x.map((_, a) => `d${a}_${i}`))); // prettier-ignore
  const bytes = encode(model(graph({ input: [value("all", T.FLOAT, [count])], output, initializer, node: nodes }), { opset: 17 }));
  const all = {
    type: "float32",
    dims: [count],
    data: Float32Array.from({ length: count }, (_, i) => 2 + Math.sin(1.7 * i + 2 * Math.sin(i))),
  };
  return { bytes, feeds: { all } };
}

/** Convolutions whose results chains read: alone, beside a residual, once more later, squared, as outputs. */
export function chainedModel(): { readonly bytes: Uint8Array; readonly feeds: Record<string, RuntimeTensor> } {
  const [n, c, h] = [2, 5, 6];
  const dims = [n, c, h, h];
  const initializer = ["a", "b", "c", "d", "e"].flatMap((name, i) => [
    raw(`w${name}`, [c, c, 3, 3], weights(c * c * 9, i + 1)),
    raw(`b${name}`, [c], weights(c, i + 11)),
  ]);
  initializer.push(raw("channel", [c, 1, 1], weights(c, 31)), raw("half", [], Float32Array.of(0.5)));
  const conv = (x: string, name: string) => node("Conv", [x, `w${name}`, `b${name}`], [name], { pads: ints(1, 1, 1, 1) });
  const nodes = [
    ...[conv("x", "a"), node("Relu", ["a"], ["a1"])],
    ...[conv("a1", "b"), node("Sigmoid", ["b"], ["b1"]), node("Mul", ["b1", "b"], ["b2"]), node("Add", ["b2", "a1"], ["b3"])],
    ...[conv("b3", "c"), node("Tanh", ["c"], ["y0"]), conv("c", "d"), node("Mul", ["d", "d"], ["d1"])],
    ...[conv("d1", "e"), node("Mul", ["e", "channel"], ["y1"]), node("Mul", ["e", "half"], ["y2"])],
  ];
  const output = ["y0", "y1", "y2", "d", "b3"].map((name) => value(name, T.FLOAT, dims));
  const bytes = encode(model(graph({ input: [value("x", T.FLOAT, dims)], output, initializer, node: nodes }), { opset: 17 }));
  const count = product(dims);
  return { bytes, feeds: { x: { type: "float32", dims, data: Float32Array.from({ length: count }, (_, i) => Math.sin(1.7 * i)) } } };
}
