// LayerNormalization and RMS norms as exporters spell them out, and the sum of a residual that a norm reads:
//   d = x - ReduceMean(x);  d / Sqrt(ReduceMean(d ^ 2) + epsilon) * scale + shift
//   x / Sqrt(ReduceMean(x ^ 2) + epsilon) * scale
import { attributeFloat, attributeInt, floatAttribute, intAttribute } from "../../../onnx/graph/nodes.ts";
import { fusedNorm, type NormKind } from "../../machine/fused.ts";
import { ints } from "../../ops/operator.ts";
import type { Unfreed } from "../step.ts";
import type { Match, View } from "./view.ts";

/** A norm: the value that is normed, and what is done to it. */
interface Norm {
  readonly kind: NormKind;
  readonly x: string;
  readonly scale: string;
  readonly shift: string;
  readonly epsilon: number;
  readonly axis: number;
  readonly parts: readonly Unfreed[];
  readonly output: string;
}

/** The operand of a step beside `name`; undefined where it is not one of two. */
export const beside = ({ node }: Unfreed, name: string): string | undefined =>
  node.input.length !== 2 || node.input[0] === node.input[1] ? undefined : node.input[0] === name ? node.input[1] : node.input[1] === name ? node.input[0] : undefined; // prettier-ignore

/** The mean along one axis, kept: its axis. */
function meanAxis(view: View, step: Unfreed): number | undefined {
  if (step.operator !== "ReduceMean" || attributeInt(step.node, "keepdims", 1) !== 1) return undefined;
  const axes = (step.node.input[1] ?? "") === "" ? ints(step.node, "axes") : view.list(step.node.input[1]);
  return axes?.length === 1 ? axes[0] : undefined;
}

/** x of x ^ 2. */
function squared(step: Unfreed | undefined): string | undefined {
  if (step === undefined) return undefined;
  if (step.operator === "lowbit.Square") return step.node.input[0];
  const { input } = step.node;
  return step.operator === "Mul" && input[0] === input[1] ? input[0] : undefined;
}

/** From Sqrt backwards: sqrt(mean(x ^ 2) + epsilon). */
function rootOfSquares(view: View, root: Unfreed): { x: string; epsilon: number; axis: number; parts: Unfreed[] } | undefined {
  const sum = view.maker(root.node.input[0]);
  if (sum?.operator !== "Add") return undefined;
  for (const side of [0, 1]) {
    const epsilon = view.number(sum.node.input[1 - side]);
    const mean = view.maker(sum.node.input[side]);
    const axis = mean === undefined ? undefined : meanAxis(view, mean);
    const square = axis === undefined ? undefined : view.maker(mean!.node.input[0]);
    const x = squared(square);
    if (epsilon === undefined || x === undefined) continue;
    return { x, epsilon, axis: axis!, parts: [square!, mean!, sum, root] };
  }
  return undefined;
}

/** What divides x by the root: x / root, x * (1 / root), x * Reciprocal(root). */
function division(view: View, root: string, x: string): { parts: Unfreed[]; output: string } | undefined {
  const next = view.reader(root);
  if (next === undefined) return undefined;
  if (next.operator === "Div" && next.node.input[0] === x && next.node.input[1] === root)
    return { parts: [next], output: next.node.output[0] };
  const inverse =
    next.operator === "Reciprocal" || (next.operator === "Div" && next.node.input[1] === root && view.number(next.node.input[0]) === 1);
  const product = inverse ? view.reader(next.node.output[0]) : undefined;
  if (product?.operator !== "Mul" || beside(product, next.node.output[0]) !== x) return undefined;
  return { parts: [next, product], output: product.node.output[0] };
}

/** An operation with a constant row that follows. */
function rowAfter(view: View, operator: string, name: string): { step: Unfreed; row: string } | undefined {
  const step = view.reader(name);
  const row = step?.operator === operator ? beside(step, name) : undefined;
  const value = view.constant(row);
  return value?.data instanceof Float32Array && value.data.length === value.dims.at(-1) && value.data.length > 1
    ? { step: step!, row: row! }
    : undefined;
}

function spelledNorm(view: View, root: Unfreed): Norm | undefined {
  const squares = root.operator === "Sqrt" ? rootOfSquares(view, root) : undefined;
  if (squares === undefined) return undefined;
  const divided = division(view, root.node.output[0], squares.x);
  const scale = divided && rowAfter(view, "Mul", divided.output);
  if (divided === undefined || scale === undefined) return undefined;
  const parts = [...squares.parts, ...divided.parts, scale.step];
  const rms = { ...squares, kind: "rms" as const, scale: scale.row, shift: "", output: scale.step.node.output[0], parts };
  // the mean taken away before makes it a LayerNormalization
  const centred = view.maker(squares.x);
  const mean = centred?.operator === "Sub" ? view.maker(centred.node.input[1]) : undefined;
  const isCentred = mean !== undefined && meanAxis(view, mean) === squares.axis && mean.node.input[0] === centred!.node.input[0];
  if (!isCentred) return rms;
  const shift = rowAfter(view, "Add", rms.output);
  return {
    ...rms,
    kind: "layer",
    x: mean.node.input[0],
    shift: shift?.row ?? "",
    parts: [mean, centred!, ...parts, ...(shift === undefined ? [] : [shift.step])],
    output: shift?.step.node.output[0] ?? rms.output,
  };
}

const PLAIN: ReadonlyMap<string, NormKind> = new Map([
  ["LayerNormalization", "layer"],
  ["SimplifiedLayerNormalization", "rms"],
  ["RMSNormalization", "rms"],
]);

/** One node that is a norm already, with its first output only. */
function plainNorm(step: Unfreed): Norm | undefined {
  const { node, operator } = step;
  const kind = PLAIN.get(operator);
  if (kind === undefined || node.output.slice(1).some((name) => name !== "")) return undefined;
  const [x, scale, shift = ""] = node.input;
  return {
    ...{ kind, x, scale, shift: kind === "layer" ? shift : "", parts: [step], output: node.output[0] },
    epsilon: attributeFloat(node, "epsilon", 1e-5),
    axis: attributeInt(node, "axis", -1),
  };
}

/** Norms that a step is the heart of, the widest match first: with the sum of a residual and a bias, without. */
export function norms(view: View, step: Unfreed): Match[] {
  const plain = plainNorm(step);
  const norm = plain ?? spelledNorm(view, step);
  if (norm === undefined) return [];
  const { kind, x, scale, shift, epsilon, axis, parts, output } = norm;
  const attribute = [floatAttribute("epsilon", epsilon), intAttribute("axis", axis)];
  const name = kind === "rms" ? "RMSNorm" : "LayerNorm";
  const match = (prefix: string, inputs: readonly string[], more: readonly Unfreed[], sum: string): Match => {
    const all = [...more, ...parts];
    const keep = sum !== "" && (view.isOutput(sum) || view.readers(sum).some((reader) => !all.includes(reader)));
    return {
      ...{ name: prefix + name, parts: all, input: inputs, output: keep ? [output, sum] : [output], attribute },
      emit: fusedNorm(kind),
      form: { kind: "norm", norm: kind },
    };
  };
  const found: Match[] = [];
  const sum = view.maker(x);
  if (sum?.operator === "Add" && sum.node.input.every((of) => view.constant(of) === undefined) && sum.node.input[0] !== sum.node.input[1])
    for (const side of [0, 1]) {
      const biased = view.maker(sum.node.input[side]);
      const other = sum.node.input[1 - side];
      const at = biased?.operator === "Add" ? biased.node.input.findIndex((of) => view.constant(of) !== undefined) : -1;
      if (at < 0 || view.reader(biased!.node.output[0]) !== sum) continue;
      found.push(match("Skip", [biased!.node.input[1 - at], scale, shift, other, biased!.node.input[at]], [biased!, sum], x));
    }
  if (sum?.operator === "Add") found.push(match("Skip", [sum.node.input[0], scale, shift, sum.node.input[1], ""], [sum], x));
  if (plain === undefined) found.push(match("", [x, scale, shift, "", ""], [], ""));
  return found;
}
