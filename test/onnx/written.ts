// Models written down operator by operator: each gives the name of what it makes, weights are drawn one after the other.
import type { NodeProto, TensorProto } from "../../src/onnx/file/gen/onnx_pb.ts";
import { node, raw, T, weights, type AttributeValue } from "./build.ts";

export class Written {
  readonly nodes: NodeProto[] = [];
  readonly tensors: TensorProto[] = [];
  #seed: number;

  constructor(seed = 1) {
    this.#seed = seed;
  }

  weight(name: string, dims: number[], gain = 1): string {
    const count = dims.reduce((a, b) => a * b, 1);
    this.tensors.push(raw(name, dims, weights(count, this.#seed++).map((v) => gain * v))); // prettier-ignore
    return name;
  }

  floats(name: string, list: readonly number[], dims = [list.length]): string {
    this.tensors.push(raw(name, dims, Float32Array.from(list)));
    return name;
  }

  number(name: string, v: number): string {
    return this.floats(name, [v], []);
  }

  ints(name: string, list: readonly number[], dims = [list.length]): string {
    this.tensors.push(raw(name, dims, BigInt64Array.from(list, BigInt), T.INT64));
    return name;
  }

  put(opType: string, input: string[], output: string, attributes: Record<string, AttributeValue> = {}): string {
    this.nodes.push(node(opType, input, [output], attributes, output));
    return output;
  }

  linear(x: string, name: string, k: number, n: number, gain = 1.5): string {
    const product = this.put("MatMul", [x, this.weight(`${name}.w`, [k, n], gain)], `${name}/product`);
    return this.put("Add", [product, this.weight(`${name}.b`, [n])], name);
  }

  norm(x: string, name: string, width: number, gain = 4): string {
    return this.put("LayerNormalization", [x, this.weight(`${name}.w`, [width], gain), this.weight(`${name}.b`, [width])], name, { axis: -1n }); // prettier-ignore
  }
}
