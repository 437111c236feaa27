// Norms that a pattern put together, on their kernel.
import { attributeFloat, attributeInt } from "../../onnx/graph/nodes.ts";
import { emitNorm } from "./kernels.ts";
import { elementsOf, isPlaceable, type Emit } from "./machine.ts";
import type { Value } from "../value.ts";

export type NormKind = "rms" | "layer";

const isRow = (value: Value | undefined, width: number): boolean =>
  value === undefined || (value.type === "float32" && elementsOf(value) === width && value.dims.at(-1) === width);

/** Whether dimensions are others without some of their leading ones. */
export const isWithin = (inner: readonly number[], outer: readonly number[]): boolean => {
  const more = outer.length - inner.length;
  return more >= 0 && outer.slice(0, more).every((d) => d === 1) && inner.join() === outer.slice(more).join();
};

/**
 * The norm of x, or of x + skip + addend, along its last axis: inputs x, scale, shift, skip, addend; outputs its result
 * and the sum.
 */
export const fusedNorm =
  (kind: NormKind): Emit =>
  (m, [x, scale, shift, skip, addend], node) => {
    if (x === undefined || scale === undefined || !(isPlaceable(x) || isPlaceable(skip))) return undefined;
    const rank = x.dims.length;
    const axis = attributeInt(node, "axis", -1);
    const width = x.dims.at(-1) ?? 0;
    if ((axis !== -1 && axis !== rank - 1) || rank === 0 || ![scale, shift, addend].every((row) => isRow(row, width))) return undefined;
    // the sum has x's dimensions: rows of positions are one for all sequences, where there is one sequence
    if (skip !== undefined && !isWithin(skip.dims, x.dims)) return undefined;
    const rows = { ...(shift && { shift }), ...(skip && { skip }), ...(addend && { addend }) };
    const keep = (node.output[1] ?? "") !== "";
    const made = emitNorm(m, { kind, x, scale, ...rows, epsilon: attributeFloat(node, "epsilon", 1e-5), width }, keep);
    return made && (keep ? [made[0], made[1]] : [made[0]]);
  };
