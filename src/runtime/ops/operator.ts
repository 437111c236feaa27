// What an operator is to the runtime: a row of a table, from inputs to outputs. Operators whose weights are constant
// prepare them once.
import { LowbitError } from "../../../formats/core/errors.ts";
import type { PackedTensor } from "../../../formats/core/types.ts";
import type { Backend, PrepareOptions, SyncLayer } from "../../backends/types.ts";
import type { Filters, IntegerConvPlan, IntegerMatrix, IntegerProduct } from "../../backends/wasm/nn/integer.ts";
import type { NodeProto } from "../../onnx/file/gen/onnx_pb.ts";
import { attributeOf } from "../../onnx/graph/nodes.ts";
import { nodeName } from "../../onnx/graph/scopes.ts";
import type { TensorParts, Value } from "../value.ts";

export type Inputs = readonly (Value | undefined)[];
export type Run = (inputs: Inputs, node: NodeProto) => Value | readonly (Value | undefined)[];

/** How activations enter products with integer weights; "auto": as each node allows (its accuracy_level). */
export type ActivationChoice = "auto" | "float32" | "int16" | "int8" | "int6" | "int4";

/** A constant matrix as codes. `isRows`: the value is [rows, k] as the packed tensor is; else it is [k, rows]. */
export interface Weight {
  readonly isRows: boolean;
  readonly packed: () => PackedTensor;
  /** The product that was made of it while its file was read. */
  readonly made?: SyncLayer;
}

export interface PrepareContext {
  readonly backend: Backend<SyncLayer>;
  /** Where products run that are steps of their own; the same backend, or a device. */
  readonly products: Pick<Backend<SyncLayer>, "prepare">;
  /** The opset of the default domain. */
  readonly opset: number;
  /** The constant behind input i, or undefined. */
  constant(i: number): Value | undefined;
  readonly activations: ActivationChoice;
  /**
   * How a product of the node's first input takes it; `auto`: what "auto" stands for. Channels that the model's record
   * keeps at 8 bits beside fewer (`gather-outliers`) are in it.
   */
  productOptions(auto: Exclude<ActivationChoice, "auto">): PrepareOptions;
  /**
   * The bytes of the constant uint8 tensor behind a name, good until the next such call; undefined where there is none.
   */
  bytes(name: string): Uint8Array | undefined;
  /**
   * The same bytes, or those of float32, read in parts until the node is prepared; undefined where the backend would
   * keep them.
   */
  parts(name: string, type: "uint8" | "float32"): TensorParts | undefined;
  /** Memory for packed codes, good until the next such call where the backend copies what it prepares. */
  scratch(bytes: number): Uint8Array;
  /** Input i as codes with scales, where the model has it so. */
  weight(i: number): Weight | undefined;
  /** The layer of a key, made once: weights that nodes share are packed once. The session disposes of it. */
  layer(key: string, make: () => SyncLayer): SyncLayer;
  /** Something else that the session disposes of. */
  own<Owned extends { dispose(): void }>(owned: Owned): Owned;
}

/**
 * Constant weights of a convolution or product of codes, and its plans by the shape of what comes in. `codes`: less
 * their zero points, by filter or column, for a device.
 */
export type CodeUnit = { readonly codes?: Int16Array | undefined } & (
  | { readonly kind: "conv"; readonly filters: Filters; readonly plans: Map<string, IntegerConvPlan> }
  | { readonly kind: "product"; readonly matrix: IntegerMatrix; readonly plans: Map<number, IntegerProduct> }
);

/** A node made ready: `drops` are inputs whose constants are not read again. */
export interface Prepared {
  readonly run: Run;
  readonly kernel: string;
  readonly drops: readonly number[];
  /** The product that it is, where it is one. */
  readonly layer?: SyncLayer;
  /** The product of codes that it is, where it is one. */
  readonly codes?: CodeUnit;
  readonly rows?: TableRows;
}

/** Rows of a constant table by index: input `ids` of the node, `width` floats each. */
export interface TableRows {
  readonly ids: number;
  readonly width: number;
  readonly read: (ids: readonly number[], out: Float32Array) => void;
}

export interface Operator {
  readonly run: Run;
  /** The node with its constants put where kernels want them; undefined: `run` as it is. */
  prepare?(node: NodeProto, context: PrepareContext): Prepared | undefined;
  /** Why this node is outside what `run` does; undefined where it is inside. */
  missing?(node: NodeProto, opset: number): string | undefined;
}

export type Operators = Readonly<Record<string, Operator>>;

/** Input i of a node. @throws LowbitError E_ONNX */
export function need(inputs: Inputs, i: number, node: NodeProto): Value {
  const value = inputs[i];
  if (value !== undefined) return value;
  throw new LowbitError("E_ONNX", `node ${nodeName(node)} (${node.opType}): expected input ${i}, got none. The model is damaged.`);
}

export const fail = (node: NodeProto, expected: string, got: string): LowbitError =>
  new LowbitError("E_SHAPE", `node ${nodeName(node)} (${node.opType}): expected ${expected}, got ${got}. Check the shapes of the feeds.`);

export const ints = (node: NodeProto, name: string): number[] | undefined => {
  const attribute = attributeOf(node, name);
  return attribute === undefined ? undefined : attribute.ints.map(Number);
};

export const text = (node: NodeProto, name: string, fallback: string): string => {
  const attribute = attributeOf(node, name);
  return attribute?.s === undefined ? fallback : new TextDecoder().decode(attribute.s);
};

/** An axis counted from the front. */
export function axisOf(axis: number, rank: number, node: NodeProto): number {
  if (axis < -rank || axis >= rank + (rank === 0 ? 1 : 0)) throw fail(node, `an axis of ${rank} dimensions`, String(axis));
  return axis < 0 ? axis + rank : axis;
}

export const product = (dims: readonly number[]): number => dims.reduce((a, b) => a * b, 1);
