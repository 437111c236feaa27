// Patterns of exporters as one step each: norms first, then rotary embedding, then attention, which they lie around. A
// pattern is an optimisation, never a requirement: what differs from it, or is read from outside, stays as it is, and a
// step that its kernel does not take at a run's shapes runs part by part.
import { create } from "@bufbuild/protobuf";
import { NodeProtoSchema } from "../../../onnx/file/gen/onnx_pb.ts";
import type { Value } from "../../value.ts";
import { fuseChains } from "../fuse.ts";
import type { Unfreed } from "../step.ts";
import { attention, rotary } from "./attention.ts";
import { norms } from "./norms.ts";
import { canLeave, fusedStep, viewOf, type Match, type View } from "./view.ts";

const POWERS: ReadonlyMap<number, string> = new Map([
  [2, "Square"],
  [3, "Cube"],
]);

/** Pow by a constant that a product or two make (as onnxruntime does), so that chains and norms know it. */
function powers(steps: readonly Unfreed[], view: View): Unfreed[] {
  return steps.map((step) => {
    const exponent = step.operator === "Pow" ? view.number(step.node.input[1]) : undefined;
    const opType = exponent === undefined ? undefined : POWERS.get(exponent);
    if (opType === undefined) return step;
    const { name, input, output } = step.node;
    const power = view.constant(input[1]);
    // the result has the shape of x where the exponent is one number of no more dimensions
    if (power!.dims.length > 0 && power!.dims.length !== 1) return step;
    const node = create(NodeProtoSchema, { opType, domain: "lowbit", name, input: [input[0]], output });
    return { ...step, node, operator: `lowbit.${opType}`, run: ([x]) => step.run([x, power], step.node) };
  });
}

const PASSES: readonly ((view: View, step: Unfreed) => Match[])[] = [norms, rotary, attention];

/** Steps with patterns as one step each. `constant`: the value of a constant, undefined for others. */
export function fusePatterns(
  steps: readonly Unfreed[],
  outputs: readonly string[],
  constant: (name: string) => Value | undefined,
): Unfreed[] {
  let list = powers(steps, viewOf(steps, outputs, constant));
  const kept = new Set(outputs);
  for (const pass of PASSES) {
    const view = viewOf(list, outputs, constant);
    const places = new Map(list.map((step, i) => [step, i]));
    const taken = new Set<Unfreed>();
    const ends = new Map<Unfreed, Unfreed>();
    for (const step of list) {
      if (taken.has(step)) continue;
      const match = pass(view, step).find((found) => found.parts.every((part) => !taken.has(part)) && canLeave(view, found, kept, places));
      if (match === undefined) continue;
      const parts = [...new Set(match.parts)].sort((a, b) => places.get(a)! - places.get(b)!);
      for (const part of parts) taken.add(part);
      ends.set(parts.at(-1)!, fusedStep(match, fuseChains(parts, match.output, constant)));
    }
    list = list.flatMap((step) => ends.get(step) ?? (taken.has(step) ? [] : [step]));
  }
  return list;
}
