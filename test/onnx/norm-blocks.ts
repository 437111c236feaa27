// Normalizations in every spelling that exporters use, and a block of a model around one: for tests of passes.
import { create } from "@bufbuild/protobuf";
import { OperatorSetIdProtoSchema, type NodeProto, type TensorProto } from "../../src/onnx/file/gen/onnx_pb.ts";
import { applyPasses, readModelBytes, writeModelBytes, type PassRequest } from "../../src/onnx/index.ts";
import { differenceFrom, referenceRun } from "../../src/onnx/passes/check.ts";
import { encode, graph, model, node, raw, T, value, weights, type AttributeValue } from "./build.ts";
import { keep } from "./kept.ts";

export const D = 16;

export class Builder {
  readonly nodes: NodeProto[] = [];
  readonly init = new Map<string, TensorProto>();
  #seed = 1;
  op(type: string, input: string[], output: string | string[], attributes: Record<string, AttributeValue> = {}, domain = ""): string {
    const outputs = [output].flat();
    this.nodes.push(Object.assign(node(type, input, outputs, attributes, `${outputs[0]}/node`), { domain }));
    return outputs[0];
  }
  tensor(name: string, dims: number[], map = (v: number): number => v): string {
    const count = dims.reduce((a, b) => a * b, 1);
    if (!this.init.has(name)) this.init.set(name, raw(name, dims, weights(count, this.#seed++).map(map)));
    return name;
  }
  scalar(name: string, v: number): string {
    this.init.set(name, raw(name, [], Float32Array.of(v)));
    return name;
  }
  gain = (name: string): string => this.tensor(`${name}.gain`, [D], (v) => 1 + 3 * v);
  bias = (name: string): string => this.tensor(`${name}.bias`, [D]);
}

export type Spelling = (b: Builder, x: string, name: string) => string;
export interface Form {
  readonly kind: "layer" | "rms";
  readonly opset: number;
  readonly norm: Spelling;
}

export const mean = (b: Builder, x: string, out: string, axes: "attribute" | "input" | "positive"): string => {
  if (axes !== "input") return b.op("ReduceMean", [x], out, { axes: { ints: [axes === "positive" ? 2 : -1] }, keepdims: 1n });
  b.init.set("last", raw("last", [1], BigInt64Array.of(-1n), T.INT64));
  return b.op("ReduceMean", [x, "last"], out);
};
export const square = (b: Builder, x: string, out: string, by: "Pow" | "Mul"): string =>
  by === "Mul" ? b.op("Mul", [x, x], out) : b.op("Pow", [x, b.scalar("two", 2)], out);
/** Mean of squares -> 1 / sqrt(. + eps), times x. */
export const DIVISIONS: Record<string, (b: Builder, m: string, x: string, name: string) => string> = {
  "sqrt, div": (b, m, x, n) => b.op("Div", [x, b.op("Sqrt", [b.op("Add", [m, b.scalar("eps", 1e-3)], `${n}/e`)], `${n}/s`)], `${n}/n`),
  "eps first": (b, m, x, n) => b.op("Div", [x, b.op("Sqrt", [b.op("Add", [b.scalar("eps", 1e-3), m], `${n}/e`)], `${n}/s`)], `${n}/n`),
  "sqrt, reciprocal, mul": (b, m, x, n) =>
    b.op("Mul", [x, b.op("Reciprocal", [b.op("Sqrt", [b.op("Add", [m, b.scalar("eps", 1e-3)], `${n}/e`)], `${n}/s`)], `${n}/r`)], `${n}/n`), // prettier-ignore
  "sqrt, 1 / ., mul in the other order": (b, m, x, n) =>
    b.op("Mul", [b.op("Div", [b.scalar("one", 1), b.op("Sqrt", [b.op("Add", [m, b.scalar("eps", 1e-3)], `${n}/e`)], `${n}/s`)], `${n}/r`), x], `${n}/n`), // prettier-ignore
  "pow -0.5, mul": (b, m, x, n) =>
    b.op("Mul", [b.op("Pow", [b.op("Add", [m, b.scalar("eps", 1e-3)], `${n}/e`), b.scalar("minus", -0.5)], `${n}/r`), x], `${n}/n`),
};
const rms =
  (division: string, by: "Pow" | "Mul", axes: "attribute" | "input" | "positive", gainFirst = false): Spelling =>
  (b, x, name) => {
    const m = mean(b, square(b, x, `${name}/q`, by), `${name}/m`, axes);
    const normal = DIVISIONS[division](b, m, x, name);
    return b.op("Mul", gainFirst ? [b.gain(name), normal] : [normal, b.gain(name)], name);
  };
const layer =
  (division: string, by: "Pow" | "Mul", axes: "attribute" | "input" | "positive", twice = false): Spelling =>
  (b, x, name) => {
    const centered = b.op("Sub", [x, mean(b, x, `${name}/mean`, axes)], `${name}/c`);
    const again = twice ? b.op("Sub", [x, mean(b, x, `${name}/mean2`, axes)], `${name}/c2`) : centered;
    const normal = DIVISIONS[division](b, mean(b, square(b, centered, `${name}/q`, by), `${name}/m`, axes), again, name);
    return b.op("Add", [b.bias(name), b.op("Mul", [normal, b.gain(name)], `${name}/g`)], name);
  };

export const FORMS: Record<string, Form> = {
  LayerNormalization: { kind: "layer", opset: 17, norm: (b, x, n) => b.op("LayerNormalization", [x, b.gain(n), b.bias(n)], n, { axis: 2n }) }, // prettier-ignore
  "LayerNormalization without a bias": { kind: "layer", opset: 17, norm: (b, x, n) => b.op("LayerNormalization", [x, b.gain(n)], n, { epsilon: 1e-3 }) }, // prettier-ignore
  "LayerNormalization of opset 18": { kind: "layer", opset: 18, norm: (b, x, n) => b.op("LayerNormalization", [x, b.gain(n), b.bias(n)], n, { axis: -1n }) }, // prettier-ignore
  SimplifiedLayerNormalization: { kind: "rms", opset: 17, norm: (b, x, n) => b.op("SimplifiedLayerNormalization", [x, b.gain(n)], n, { axis: -1n, epsilon: 1e-3 }) }, // prettier-ignore
  RMSNormalization: { kind: "rms", opset: 23, norm: (b, x, n) => b.op("RMSNormalization", [x, b.gain(n)], n, { axis: -1n, epsilon: 1e-3 }) }, // prettier-ignore
  "rms: sqrt, div": { kind: "rms", opset: 17, norm: rms("sqrt, div", "Pow", "attribute") },
  "rms: eps first": { kind: "rms", opset: 17, norm: rms("eps first", "Mul", "attribute", true) },
  "rms: reciprocal": { kind: "rms", opset: 18, norm: rms("sqrt, reciprocal, mul", "Pow", "input") },
  "rms: 1 over": { kind: "rms", opset: 17, norm: rms("sqrt, 1 / ., mul in the other order", "Pow", "attribute") },
  "rms: pow": { kind: "rms", opset: 18, norm: rms("pow -0.5, mul", "Mul", "input") },
  "layer: sqrt, div": { kind: "layer", opset: 17, norm: layer("sqrt, div", "Pow", "positive") },
  "layer: reciprocal": { kind: "layer", opset: 18, norm: layer("sqrt, reciprocal, mul", "Mul", "input") },
  "layer: centred twice": { kind: "layer", opset: 17, norm: layer("pow -0.5, mul", "Pow", "attribute", true) },
};

/** x -> product -> [norm -> product -> ReLU -> product] + -> norm -> head. */
export function block(norm: Spelling, opset: number, last: (b: Builder, s: string, d: string) => string): Uint8Array {
  const b = new Builder();
  const start = b.op("Add", [b.op("MatMul", ["x", b.tensor("wa", [D, D])], "a"), b.tensor("ba", [D])], "s0");
  const up = b.op("MatMul", [norm(b, start, "n1"), b.tensor("wu", [D, 24])], "u");
  const down = b.op("MatMul", [b.op("Relu", [up], "r"), b.tensor("wd", [24, D])], "d");
  b.op("MatMul", [last(b, start, down), b.tensor("wy", [D, 5])], "y");
  const proto = model(
    graph({
      input: [value("x", T.FLOAT, ["b", 3, D])],
      output: [value("y", T.FLOAT, [])],
      initializer: [...b.init.values()],
      node: b.nodes,
    }),
    { opset, ir: 9 },
  );
  // exporters write the ranks of values, which a positive axis needs
  for (const { output } of b.nodes) proto.graph!.valueInfo.push(value(output[0], T.FLOAT, ["b", 3, "n"]));
  proto.graph!.valueInfo = proto.graph!.valueInfo.filter(({ name }) => name !== "y");
  proto.opsetImport.push(create(OperatorSetIdProtoSchema, { domain: "com.microsoft", version: 1n }));
  return encode(proto);
}
export const added =
  (norm: Spelling) =>
  (b: Builder, s: string, d: string): string =>
    norm(b, b.op("Add", [s, d], "s1"), "n2");

export const feeds = [1, 2].map((seed) => ({
  x: { type: "float32", data: weights(2 * 3 * D, seed + 40).map((v) => 5 * v), dims: [2, 3, D] },
}));
export async function applied(bytes: Uint8Array, passes: PassRequest[], options = {}) {
  const opened = readModelBytes(bytes);
  const reference = await referenceRun(opened, feeds);
  const notes = await applyPasses(opened, passes, { verify: false, ...options });
  if (!("calibration" in options)) keep(opened, ...notes);
  const after = readModelBytes(writeModelBytes(opened));
  return { model: after, notes, difference: (await differenceFrom(reference, after)).relative };
}
export const operators = ({ proto }: ReturnType<typeof readModelBytes>): string[] => proto.graph!.node.map(({ opType }) => opType);
