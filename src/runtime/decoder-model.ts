// What a decoder needs to know of a model: which steps make the logits, which inputs are caches, and that the model's
// lengths and positions are those of the decoder.
import { LowbitError } from "../../formats/core/errors.ts";
import type { SyncLayer } from "../backends/types.ts";
import type { Plan } from "./compile/plan.ts";
import { runNode, type Step } from "./compile/step.ts";
import type { Value } from "./value.ts";
import { integers } from "./value.ts";

export interface Input {
  readonly name: string;
  readonly type: string;
  readonly shape: readonly (number | string)[];
}

/** A model, as what makes a decoder of it looks at it. */
export interface DecoderModel {
  readonly plan: Plan;
  readonly inputs: readonly Input[];
  readonly outputNames: readonly string[];
}

/** Operators of one kind in a decoder's step, and their time. */
export interface DecoderPart {
  readonly operator: string;
  /** 0: on a device, but without a kernel there: it ran on the processor. */
  readonly kernels: number;
  readonly ms?: number;
}

/** What runs tokens for a decoder. Logits are those of the last token, a view that the next call ends. */
export interface Core {
  /** Runs tokens of a sequence after `past` others. */
  run(ids: readonly bigint[], past: number, sequence: number): Float32Array;
  step(id: number, past: number, sequence: number): Float32Array;
  /** A token for each sequence in one pass; absent where they run one by one. */
  steps?(ids: readonly number[], past: readonly number[]): Float32Array[];
  truncate(n: number, sequence: number): void;
  bytes(): number;
  explain(): readonly DecoderPart[];
  dispose(): void;
}

export const unsupported = (expected: string, got: string): LowbitError =>
  new LowbitError("E_UNSUPPORTED", `decoder: expected ${expected}, got ${got}. Run the session with feeds of its own.`);

export interface Found {
  /** Steps that the logits need beside what attention takes from the decoder itself. */
  readonly steps: readonly Step[];
  readonly attention: readonly Step[];
  readonly ids: string;
  readonly logits: string;
}

const GROUPED = "com.microsoft.GroupQueryAttention";

/** Inputs of GroupQueryAttention that the decoder keeps: past key and value, lengths, total. */
const KEPT = new Set([3, 4, 5, 6, 9]);

export const readsOf = (step: Step): string[] =>
  step.node.input.filter((name, i) => name !== "" && !(step.operator === GROUPED && KEPT.has(i)) && !(isRotary(step) && i === 1));

export const isRotary = (step: Step): boolean => step.operator === "com.microsoft.RotaryEmbedding";

/** Whether a product makes the logits, and nothing else: it runs for the last token only. */
export const isHead = (step: Step, logits: string): step is Step & { readonly layer: SyncLayer } =>
  step.node.output[0] === logits && step.layer !== undefined && step.widths === undefined && step.operator !== "Gemm";

function needed(plan: Plan, names: readonly string[], reads: (step: Step) => readonly string[]): Step[] {
  const wanted = new Set(names);
  const steps: Step[] = [];
  for (const step of [...plan.steps].reverse()) {
    if (!step.node.output.some((name) => wanted.has(name))) continue;
    for (const name of [...reads(step), ...step.guards.map((guard) => guard.name)]) wanted.add(name);
    steps.push(step);
  }
  return steps.reverse();
}

/** What a decoder needs to know of a model. @throws LowbitError E_UNSUPPORTED */
export function find({ plan, inputs, outputNames }: DecoderModel): Found {
  const logits = outputNames.filter((name) => !/^present|^cross|key|value/.test(name));
  if (logits.length !== 1) throw unsupported("one output beside the caches", logits.join(", ") || "none");
  const steps = needed(plan, logits, readsOf);
  const attention = steps.filter(({ operator }) => operator === GROUPED);
  const names = new Set(inputs.map(({ name }) => name));
  if (attention.length === 0 || attention.some(({ node }) => !names.has(node.input[3]) || !names.has(node.input[4])))
    throw unsupported("GroupQueryAttention with past keys and values as inputs", `${attention.length} such nodes`);
  const fed = new Set<string>();
  for (const step of steps) for (const name of readsOf(step)) if (names.has(name)) fed.add(name);
  const positions = new Set(steps.filter(isRotary).map(({ node }) => node.input[1]));
  const ids = [...fed].filter((name) => !positions.has(name));
  if (ids.length !== 1) throw unsupported("one input of tokens beside the caches", ids.join(", ") || "none");
  return { steps, attention, ids: ids[0], logits: logits[0] };
}

/**
 * Runs what computes lengths and positions on small feeds, to be sure that they are the decoder's own.
 * @throws LowbitError E_UNSUPPORTED
 */
export function proveLengths({ plan, inputs }: DecoderModel, found: Found): void {
  const names = found.attention.flatMap(({ node: n }) => [n.input[5], n.input[6]]);
  const steps = needed(plan, names, ({ node: n }) => n.input.filter((name) => name !== ""));
  for (const [past, tokens] of [
    [0, 3],
    [5, 1],
    [4, 2],
  ]) {
    const total = past + tokens;
    const values = new Map<string, Value>();
    for (const { name, type, shape } of inputs) {
      if (type !== "int64" && type !== "int32") continue;
      const length = /mask/.test(name) ? total : tokens;
      const list = Array.from({ length }, (_, i) => (/mask/.test(name) ? 1 : /position/.test(name) ? past + i : 0));
      values.set(name, {
        type,
        dims: shape.length === 2 ? [1, length] : [length],
        data: type === "int64" ? BigInt64Array.from(list, BigInt) : Int32Array.from(list),
      });
    }
    const read = (name: string): Value | undefined => values.get(name) ?? plan.constants.get(name);
    for (const step of steps)
      runNode(step.run, step.node, read).forEach((value, i) => value !== undefined && values.set(step.node.output[i], value));
    for (const { node: n } of found.attention) {
      const [last, all] = [n.input[5], n.input[6]].map((name) => integers(read(name)!)[0]);
      if (last !== total - 1 || all !== total)
        throw unsupported(`lengths ${total - 1} and ${total} for ${total} tokens`, `${last} and ${all}`);
    }
  }
}

/** Values that the numbers of the tokens decide, not only how many there are. */
export function dependents({ steps, ids }: Found): Set<string> {
  const names = new Set([ids]);
  for (const step of steps)
    if (step.operator !== "Shape" && step.operator !== "Size" && readsOf(step).some((name) => names.has(name)))
      for (const name of step.node.output) if (name !== "") names.add(name);
  return names;
}

/** The fewest rows of rotary tables. */
export function tableRows(plan: Plan, steps: readonly Step[]): number {
  let rows = Infinity;
  for (const step of steps) {
    const i = step.operator === GROUPED ? 7 : isRotary(step) ? 2 : -1;
    const table = i < 0 ? undefined : plan.constants.get(step.node.input[i] ?? "");
    if (table !== undefined) rows = Math.min(rows, table.dims[0]);
  }
  return Math.min(rows, 2 ** 20);
}

/** After which step of a pass each value is let go. */
export function lifetimes({ steps, logits }: Found): string[][] {
  const seen = new Set([logits]);
  const made = new Set(steps.flatMap(({ node }) => node.output));
  return [...steps]
    .reverse()
    .map((step) => {
      const frees = [...new Set([...readsOf(step), ...step.node.output])].filter((name) => made.has(name) && !seen.has(name));
      for (const name of frees) seen.add(name);
      return frees;
    })
    .reverse();
}
