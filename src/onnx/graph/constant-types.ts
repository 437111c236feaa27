// What a constant is: a strided view onto a stored tensor, or numbers that are worked out from stored ones.
import type { NodeProto, SparseTensorProto, TensorProto } from "../file/gen/onnx_pb.ts";
import type { Scope } from "./scopes.ts";
import type { Layout } from "./views.ts";

/** A constant as it is stored: its tensor, and where it is defined. */
export interface Constant {
  readonly tensor: TensorProto;
  readonly scope: Scope;
  /** The name under which `scope` defines it. */
  readonly name: string;
  /** The Constant node that holds it; undefined for an initializer. */
  readonly node?: NodeProto;
}

/**
 * Where the numbers of a constant come from. The same object for every reader of the same numbers: a key for caches.
 */
export type ConstantSource =
  | { readonly kind: "stored"; readonly tensor: TensorProto }
  | { readonly kind: "sparse"; readonly tensor: SparseTensorProto; readonly dims: readonly number[] }
  /** The numbers of `from`, in its order, rounded to another element type. */
  | { readonly kind: "cast"; readonly from: ConstantSource; readonly to: number }
  /** The numbers of `from`, in the order in which it is read. */
  | { readonly kind: "copy"; readonly from: ConstantView }
  | {
      readonly kind: "dequantize";
      readonly codes: ConstantView;
      readonly scales: ConstantView;
      readonly zeroPoints: ConstantView | null;
      readonly axis: number;
      /** 0: one scale per tensor or per element of the axis. */
      readonly block: number;
    };

/**
 * A constant as a node reads it. `tensor`, `scope`, `name` and `node` are those of the tensor in the file (codes, where
 * DequantizeLinear follows). Element [i, j, ...] is number `offset + i * strides[0] + j * strides[1] + ...` of
 * `source`.
 */
export interface ConstantView extends Constant, Layout {
  /** Element type as read: after Cast and DequantizeLinear. */
  readonly dataType: number;
  readonly source: ConstantSource;
  /**
   * The value before the last node of the way, and that node; undefined where the stored tensor is read as it is. See
   * `constantPath`.
   */
  readonly from?: ConstantView;
  readonly via?: NodeProto;
  /** How many sources are behind `source`: bounded, so that reading one may recurse. */
  readonly depth: number;
}
