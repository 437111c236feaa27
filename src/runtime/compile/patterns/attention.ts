// Attention as exporters spell it out, from its Softmax: softmax(q k^T * scale + mask) v. Reshape and Transpose may
// split queries, keys and values into heads, the scale may lie on the scores or on queries and keys (torch), Unsqueeze,
// Expand and Reshape may repeat heads of keys, batch and heads may be one dimension (BART), IsNaN and Where may guard
// rows without a key. What transposes is read and written in place.
import { attributeInt } from "../../../onnx/graph/nodes.ts";
import { fusedAttention, fusedRotary, type Layout, type Repeat, type Spelled } from "../../machine/fused-attention.ts";
import { ints } from "../../ops/operator.ts";
import type { Unfreed } from "../step.ts";
import { beside } from "./norms.ts";
import type { Match, View } from "./view.ts";

/** A step whose one result only the match reads. */
function own(view: View, name: string | undefined): Unfreed | undefined {
  const step = view.maker(name);
  return step !== undefined && step.layer === undefined && view.reader(name!) !== undefined ? step : undefined;
}

const perm = (step: Unfreed | undefined): string => (step?.operator === "Transpose" ? (ints(step.node, "perm") ?? []).join() : "");

/** Collects parts and inputs while a side of the pattern is walked. */
interface Walk {
  readonly view: View;
  readonly parts: Unfreed[];
  readonly input: string[];
  /** Numbers that multiply or divide the scores: their places among the inputs. */
  readonly scales: { readonly at: number; readonly divides: boolean }[];
}

const SCALARS: ReadonlySet<string> = new Set(["Sqrt", "Div", "Reciprocal", "Pow", "Cast"]);

/** The side of Mul or Div that is no number, where the other one is: for all that is known before a run. */
function scaled({ view, parts, input, scales }: Walk, step: Unfreed): string | undefined {
  const divides = step.operator === "Div";
  if (step.operator !== "Mul" && !divides) return undefined;
  const isNumber = (name: string): boolean =>
    view.number(name) !== undefined || (view.constant(name) === undefined && SCALARS.has(view.maker(name)?.operator ?? ""));
  const [a, b] = step.node.input;
  const [value, number] = isNumber(b) ? [a, b] : !divides && isNumber(a) ? [b, a] : [undefined, undefined];
  if (value === undefined || a === b) return undefined;
  scales.push({ at: input.push(number) - 1, divides });
  parts.push(step);
  return value;
}

/** From an operand of a product back to where its heads lie, and how. `turned`: keys, as they enter their product. */
function heads(walk: Walk, name: string, turned: boolean): { name: string; layout: Layout; repeat?: Repeat } | undefined {
  const { view, parts, input } = walk;
  let at = name;
  let layout: Layout = "head";
  let repeat: Repeat | undefined;
  for (let step = own(view, at); step !== undefined; step = own(view, at)) {
    const order = perm(step);
    const value = scaled(walk, step);
    if (value !== undefined) at = value;
    else if (turned && (order === "0,1,3,2" || order === "0,2,1")) {
      turned = false;
      parts.push(step);
      at = step.node.input[0];
    } else if (turned && order === "0,2,3,1") {
      parts.push(step);
      return { name: step.node.input[0], layout: "token" };
    } else if (!turned && order === "0,2,1,3" && layout === "head") {
      layout = "token";
      parts.push(step);
      return { name: step.node.input[0], layout, ...(repeat && { repeat }) };
    } else if (!turned && repeat === undefined && step.operator === "Reshape") {
      const expand = own(view, step.node.input[0]);
      const lifted = expand?.operator === "Expand" ? own(view, expand.node.input[0]) : undefined;
      if (lifted?.operator !== "Unsqueeze") break;
      const axes = view.list(lifted.node.input[1]) ?? ints(lifted.node, "axes");
      if (axes?.join() !== "2") break;
      parts.push(step, expand!, lifted);
      repeat = { expand: input.push(expand!.node.input[1]) - 1, reshape: input.push(step.node.input[1]) - 1 };
      at = lifted.node.input[0];
    } else break;
  }
  return turned ? undefined : { name: at, layout, ...(repeat && { repeat }) };
}

/** The scores before a mask: the operand of an Add, or of a Where that keeps it, that comes from a product. */
function masked(walk: Walk, name: string): { scores: string; mask: number; none?: number; folds: boolean } {
  const { view, parts, input } = walk;
  const plain = { scores: name, mask: -1, folds: false };
  let step = own(view, name);
  // [batch * heads, tokens, keys] as [batch, heads, tokens, keys] for the mask
  const back = step?.operator === "Reshape" ? step : undefined;
  if (back !== undefined) step = own(view, back.node.input[0]);
  const isScores = (of: string | undefined): boolean => {
    let at = own(view, of);
    if (back !== undefined) at = at?.operator === "Reshape" ? own(view, at.node.input[0]) : undefined;
    for (let n = 0; n < 3 && (at?.operator === "Mul" || at?.operator === "Div"); n++)
      at = own(view, at.node.input[0]) ?? own(view, at.node.input[1]);
    return at?.operator === "MatMul" && at.layer === undefined;
  };
  const take = (scores: string, mask: string): typeof plain => {
    parts.push(step!);
    let inner = scores;
    if (back !== undefined) {
      const out = own(view, scores)!;
      parts.push(back, out);
      inner = out.node.input[0];
    }
    return { scores: inner, mask: input.push(mask) - 1, folds: back !== undefined };
  };
  if (step?.operator === "Add") {
    for (const side of [0, 1]) {
      const [scores, mask] = [step.node.input[side], step.node.input[1 - side]];
      if (isScores(scores) && view.number(mask) === undefined) return take(scores, mask);
    }
  }
  if (step?.operator === "Where") {
    const [condition, scores, none] = step.node.input;
    // where a row is masked throughout, adding keeps what replacing does only for the lowest of numbers
    const value = view.number(none);
    if (value !== undefined && value < -1e38 && isScores(scores)) return { ...take(scores, condition), none: value };
  }
  return plain;
}

/** Softmax, and the guard for rows without a key. */
function probabilities(view: View, softmax: Unfreed): { name: string; parts: Unfreed[]; guarded: boolean } {
  const [name] = softmax.node.output;
  const readers = view.readers(name);
  const test = readers.find(({ operator }) => operator === "IsNaN");
  const where = readers.find(({ operator }) => operator === "Where");
  const guarded =
    readers.length === 2 &&
    test !== undefined &&
    where !== undefined &&
    where.node.input[0] === test.node.output[0] &&
    view.number(where.node.input[1]) === 0 &&
    where.node.input[2] === name;
  return guarded ? { name: where.node.output[0], parts: [test, where], guarded } : { name, parts: [], guarded: false };
}

/** Attention whose Softmax a step is, with the Transpose of its result and without. */
export function attention(view: View, softmax: Unfreed): Match[] {
  if (softmax.operator !== "Softmax") return [];
  const axis = attributeInt(softmax.node, "axis", -1);
  const p = probabilities(view, softmax);
  const context = view.reader(p.name);
  if (context?.operator !== "MatMul" || context.layer !== undefined || context.node.input[0] !== p.name) return [];
  const walk: Walk = { view, parts: [softmax, ...p.parts, context], input: [], scales: [] };
  const { scores, mask, none, folds } = masked(walk, softmax.node.input[0]);
  let name = scores;
  let product = own(view, name);
  for (let value = product && scaled(walk, product); value !== undefined; value = product && scaled(walk, product)) {
    name = value;
    product = own(view, name);
  }
  if (product?.operator !== "MatMul") return [];
  walk.parts.push(product);
  const q = heads(walk, product.node.input[0], false);
  const k = heads(walk, product.node.input[1], true);
  const scales = walk.scales.length;
  const v = heads(walk, context.node.input[1], false);
  // a scale of values is none of scores; queries of one head for several keys are no repetition
  if (q === undefined || k === undefined || v === undefined || q.repeat !== undefined || walk.scales.length !== scales) return [];
  const spelled: Omit<Spelled, "y"> = {
    ...{ axis, mask, none, folds, guarded: p.guarded, scales: walk.scales },
    ...{ q: { at: walk.input.push(q.name) - 1, layout: q.layout } },
    ...{ k: { at: walk.input.push(k.name) - 1, layout: k.layout, ...(k.repeat && { repeat: k.repeat }) } },
    ...{ v: { at: walk.input.push(v.name) - 1, layout: v.layout, ...(v.repeat && { repeat: v.repeat }) } },
  };
  const match = (layout: Layout, parts: readonly Unfreed[]): Match => ({
    ...{ name: "Attention", parts, input: walk.input, output: [parts.at(-1)!.node.output[0]] },
    emit: fusedAttention({ ...spelled, y: layout }),
    form: { kind: "attention", of: { ...spelled, y: layout } },
  });
  const turned = view.reader(context.node.output[0]);
  const plain = match("head", [...walk.parts.filter((part) => part !== context), context]);
  return perm(turned) === "0,2,1,3" ? [match("token", [...walk.parts, turned!]), plain] : [plain];
}

const LIMIT = 2 ** 31 - 1;

/** Slice of the last axis from `start` to `end`, step 1. */
function slice(view: View, name: string): { step: Unfreed; x: string; start: number; end: number } | undefined {
  const step = own(view, name);
  if (step?.operator !== "Slice") return undefined;
  const [x, ...rest] = step.node.input;
  const [starts, ends, axes, steps] = rest.map((of) => view.list(of));
  const [start, end, axis] = [starts, ends, axes].map((list) => (list?.length === 1 ? list[0] : undefined));
  if (start === undefined || end === undefined || (axis !== 3 && axis !== -1) || (steps !== undefined && steps.join() !== "1"))
    return undefined;
  return { step, x, start, end: Math.min(end, LIMIT) };
}

/** x cos + [-x2, x1] sin, of heads [batch, heads, tokens, size] that turn whole. */
export function rotary(view: View, sum: Unfreed): Match[] {
  if (sum.operator !== "Add") return [];
  for (const side of [0, 1]) {
    const [straight, across] = [own(view, sum.node.input[side]), own(view, sum.node.input[1 - side])];
    if (straight?.operator !== "Mul" || across?.operator !== "Mul") continue;
    const turned = across.node.input.map((of) => own(view, of)).find((step) => step?.operator === "Concat");
    const axis = turned === undefined ? 0 : attributeInt(turned.node, "axis", 0);
    if (turned === undefined || turned.node.input.length !== 2 || (axis !== -1 && axis !== 3)) continue;
    const negated = own(view, turned.node.input[0]);
    const high = negated?.operator === "Neg" ? slice(view, negated.node.input[0]) : undefined;
    const low = slice(view, turned.node.input[1]);
    if (high === undefined || low === undefined || high.x !== low.x || low.start !== 0 || high.start !== low.end) continue;
    const sin = beside(across, turned.node.output[0]);
    const cos = beside(straight, low.x);
    if (sin === undefined || cos === undefined) continue;
    const parts = [high.step, low.step, negated!, turned, straight, across, sum];
    const make = (layout: Layout, x: string, more: readonly Unfreed[]): Match => ({
      ...{ name: "Rotary", parts: [...more, ...parts], input: [x, cos, sin], output: [sum.node.output[0]] },
      emit: fusedRotary(layout, low.end, high.end),
      form: { kind: "rotary", layout, half: low.end, end: high.end },
    });
    const split = view.maker(low.x);
    const plain = make("head", low.x, []);
    return perm(split) === "0,2,1,3" ? [make("token", split!.node.input[0], [split!]), plain] : [plain];
  }
  return [];
}
