// Nodes and constants of the integer graph as they are written.
import { create } from "@bufbuild/protobuf";
import { clone } from "../file/copy.ts";
import type { Dyadic, DyadicVector } from "../../quantize/integer/index.ts";
import type { AttributeProto, NodeProto, TensorProto } from "../file/gen/onnx_pb.ts";
import { NodeProtoSchema, TensorProto_DataType as T } from "../file/gen/onnx_pb.ts";
import type { OnnxModel } from "../file/model.ts";
import { makeTensor } from "../file/model.ts";
import type { Names } from "../graph/graph.ts";
import { makeNode } from "../graph/graph.ts";
import { INTEGER_DOMAIN } from "./functions.ts";

/** Codes of a value: their name in the integer graph, and the value of one. */
export interface Codes {
  readonly name: string;
  readonly scale: number;
}

/** The range that wide codes keep to, so that sums and squares stay within their types. */
export const WIDE = 32767;
export const NARROW = 127;
/** The zero point of narrow codes. */
export const ZERO = 128;

export class Emitter {
  readonly nodes: NodeProto[] = [];
  readonly initializers: TensorProto[] = [];
  readonly functions = new Set<string>();
  readonly #model: OnnxModel;
  readonly #names: Names;
  readonly #scalars = new Map<string, string>();

  constructor(model: OnnxModel, names: Names) {
    this.#model = model;
    this.#names = names;
  }

  name(base: string): string {
    return this.#names.take(base);
  }

  tensor(base: string, dataType: T, dims: readonly number[], data: ArrayBufferView): string {
    const name = this.name(base);
    this.initializers.push(makeTensor(this.#model, name, dataType, dims, new Uint8Array(data.buffer, data.byteOffset, data.byteLength)));
    return name;
  }

  /** An int64 constant, one for all who want the same scalar. */
  int(value: number | bigint): string {
    const key = String(value);
    const known = this.#scalars.get(key);
    if (known !== undefined) return known;
    const name = this.tensor(`integer.${key}`, T.INT64, [], BigInt64Array.of(BigInt(value)));
    this.#scalars.set(key, name);
    return name;
  }

  ints(base: string, values: ArrayLike<number | bigint>, dims: readonly number[] = [values.length]): string {
    return this.tensor(base, T.INT64, dims, BigInt64Array.from(values as ArrayLike<number>, BigInt));
  }

  byte(value: number): string {
    const known = this.#scalars.get(`u${value}`) ?? this.tensor(`integer.u${value}`, T.UINT8, [], Uint8Array.of(value));
    this.#scalars.set(`u${value}`, known);
    return known;
  }

  float(base: string, value: number): string {
    return this.tensor(base, T.FLOAT, [], Float32Array.of(value));
  }

  /** A standard operator of one output. */
  op(opType: string, input: readonly string[], base: string, attributes: readonly AttributeProto[] = []): string {
    const out = this.name(base);
    this.nodes.push(makeNode(opType, input, [out], { name: this.name(`${out}/${opType}`), attributes }));
    return out;
  }

  /** One of the integer functions. @returns its outputs */
  call(name: string, input: readonly string[], base: string, outputs = 1): string[] {
    this.functions.add(name);
    const out = Array.from({ length: outputs }, (_, i) => this.name(i === 0 ? base : `${base}/${i}`));
    this.nodes.push(makeNode(name, input, out, { name: this.name(`${out[0]}/${name}`), domain: INTEGER_DOMAIN }));
    return out;
  }

  /** A node of the float graph with other inputs and outputs. */
  copy(node: NodeProto, input: readonly string[], output: readonly string[]): void {
    const made = clone(NodeProtoSchema, node);
    made.input = [...input];
    made.output = [...output];
    made.name = this.name(`${output.find((name) => name !== "")!}/${node.opType}`);
    this.nodes.push(create(NodeProtoSchema, made));
  }

  /** The multiplier of a factor as an int64 constant. */
  factor({ multiplier }: Dyadic): string {
    return this.int(multiplier);
  }

  factors(base: string, { multipliers }: DyadicVector, dims?: readonly number[]): string {
    return this.ints(`${base}.multiplier`, multipliers, dims);
  }
}
