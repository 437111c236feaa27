// A step of a plan: a node, or several as one, and how it runs.
import type { SyncLayer } from "../../backends/types.ts";
import type { NodeProto } from "../../onnx/file/gen/onnx_pb.ts";
import type { Value as Expression } from "../../../kernels/wasm/nn/values.ts";
import type { Layout, Spelled } from "../machine/fused-attention.ts";
import type { NormKind } from "../machine/fused.ts";
import type { Emit } from "../machine/machine.ts";
import type { CodeUnit, Run, TableRows } from "../ops/operator.ts";
import type { Value } from "../value.ts";
import type { Guard } from "./flat.ts";

/** What a fused step computes, for backends that print kernels of their own. */
export type Form =
  /** Of the first `operands` inputs; the rest are numbers that the expression holds. */
  | { readonly kind: "chain"; readonly build: (args: readonly Expression[]) => Expression; readonly operands: number }
  /** `lowbit.Scaled`. */
  | { readonly kind: "scaled"; readonly unit: CodeUnit }
  | { readonly kind: "attention"; readonly of: Spelled }
  | { readonly kind: "norm"; readonly norm: NormKind }
  | { readonly kind: "rotary"; readonly layout: Layout; readonly half: number; readonly end: number };

export interface Step {
  readonly node: NodeProto;
  readonly operator: string;
  readonly run: Run;
  /** The kernel of a prepared layer, or "loops". */
  readonly kernel: string;
  /** The product with a constant weight that it is. */
  readonly layer?: SyncLayer;
  /** The product of codes that it is. */
  readonly codes?: CodeUnit;
  /** Columns of its parts, where it is several products joined. */
  readonly widths?: readonly number[];
  /** The rows of a constant table that it looks up. */
  readonly rows?: TableRows;
  /** Steps that it is made of, in order, and their kernel; `form` where it is none of a WebAssembly backend alone. */
  readonly fused?: { readonly parts: readonly Unfreed[]; readonly emit: Emit; readonly form?: Form };
  /** Conditions of the branches that the node is in. */
  readonly guards: readonly Guard[];
  /** Values that nothing reads after this step. */
  readonly frees: readonly string[];
}

export type Unfreed = Omit<Step, "frees">;

const asList = (result: Value | readonly (Value | undefined)[]): readonly (Value | undefined)[] =>
  Array.isArray(result) ? result : [result as Value];

/** The bias of a product with a constant weight, where it is one of its inputs. */
export const biasOf = <V>({ operator }: Unfreed, inputs: readonly (V | undefined)[]): V | undefined =>
  operator === "com.microsoft.MatMulNBits" ? inputs[5] : undefined;

/** Puts results under the names of a node's outputs; those that have none are let go. */
export function putResults<V>(
  values: Map<string, V>,
  { output }: NodeProto,
  results: readonly (V | undefined)[],
  free: (value: V) => void,
): void {
  output.forEach((name, i) => {
    const value = results[i];
    if (value === undefined) return;
    if (name === "") free(value);
    else values.set(name, value);
  });
}

/** Lets go of values that nothing reads any more. */
export function letGo<V>(values: Map<string, V>, names: readonly string[], free: (value: V) => void): void {
  for (const name of names) {
    const value = values.get(name);
    if (value !== undefined) free(value);
    values.delete(name);
  }
}

/** Runs one node by its loops. @returns its outputs in order */
export const runNode = (run: Run, node: NodeProto, values: (name: string) => Value | undefined): readonly (Value | undefined)[] =>
  asList(
    run(
      node.input.map((name) => (name === "" ? undefined : values(name))),
      node,
    ),
  );
