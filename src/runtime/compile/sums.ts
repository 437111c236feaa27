// Products of codes whose integer sums become float32 at once: ConvInteger or MatMulInteger, Cast, Mul by scales and,
// where there is one, Add of a bias are one step, and no sum leaves its kernel as an integer.
import { create } from "@bufbuild/protobuf";
import { NodeProtoSchema, TensorProto_DataType as T } from "../../onnx/file/gen/onnx_pb.ts";
import { attributeInt } from "../../onnx/graph/nodes.ts";
import { emitCodes } from "../machine/integers.ts";
import type { Emit } from "../machine/machine.ts";
import type { Value } from "../value.ts";
import { linksOf, tied } from "./flat.ts";
import type { Unfreed } from "./step.ts";

/** A constant that has a number for each filter (its other dimensions are 1) or column. */
const isBias = (value: Value | undefined, conv: boolean): boolean =>
  value?.type === "float32" && (conv ? value.dims.length >= 3 && value.dims.slice(-2).every((d) => d === 1) : value.dims.length === 1);

/** The fused steps, where the last of each stood. */
export function fuseSums(steps: readonly Unfreed[], outputs: readonly string[], constant: (name: string) => Value | undefined): Unfreed[] {
  const { makers, only } = linksOf(steps, outputs);
  /** The only step that reads a step's result, if it is this operator. */
  const next = (step: Unfreed, operator: string): Unfreed | undefined => {
    const found = only(step.node.output[0]);
    return found?.operator === operator && tied(found, step) ? found : undefined;
  };
  const other = (step: Unfreed, name: string): string => step.node.input[step.node.input[0] === name ? 1 : 0];
  const taken = new Set<Unfreed>();
  const fused = new Map<Unfreed, Unfreed>();
  for (const step of steps) {
    if (step.codes === undefined || (step.operator !== "ConvInteger" && step.operator !== "MatMulInteger")) continue;
    const cast = next(step, "Cast");
    const scaled = cast && next(cast, "Mul");
    if (cast === undefined || scaled === undefined || attributeInt(cast.node, "to", 0) !== Number(T.FLOAT)) continue;
    const added = next(scaled, "Add");
    const bias = added && other(added, scaled.node.output[0]);
    const isAdded = bias !== undefined && isBias(constant(bias), step.operator === "ConvInteger");
    const last = isAdded ? added! : scaled;
    const parts = [step, cast, scaled, ...(isAdded ? [added!] : [])];
    const { input, name, attribute } = step.node;
    const factor = other(scaled, cast.node.output[0]);
    // the product of two scales, one of them constant, is made where it is used
    const made = makers.get(factor);
    const apart = made !== undefined && next(made, "Mul") === scaled && made.operator === "Mul" && tied(made, step);
    const scales = apart && made.node.input.some((of) => constant(of) !== undefined) ? made.node.input : [factor];
    if (scales.length > 1) parts.unshift(made!);
    const given = [input[0], input[2] ?? "", scales[0], isAdded ? bias : "", scales[1] ?? ""];
    const node = create(NodeProtoSchema, {
      opType: "Scaled",
      domain: "lowbit",
      name,
      input: given,
      output: [last.node.output[0]],
      attribute,
    });
    for (const part of parts) taken.add(part);
    const unit = step.codes;
    const emit: Emit = (m, inputs, of) => {
      const y = emitCodes(m, "lowbit.Scaled", unit, inputs, of);
      return y && [y];
    };
    const { run, kernel, guards } = step;
    fused.set(last, { run, kernel, guards, node, operator: "lowbit.Scaled", fused: { parts, emit, form: { kind: "scaled", unit } } });
  }
  return steps.flatMap((step) => fused.get(step) ?? (taken.has(step) ? [] : [step]));
}
