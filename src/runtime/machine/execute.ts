// Runs the steps of a plan: on kernels where an operator has one for these values, else by its loops. Values live in
// the arena from the step that makes them to the last that reads them.
import { TURN_MS, turn } from "../../backends/turn.ts";
import type { SyncLayer } from "../../backends/types.ts";
import { attributeFloat, attributeInt } from "../../onnx/graph/nodes.ts";
import type { Plan } from "../compile/plan.ts";
import type { Step, Unfreed } from "../compile/step.ts";
import { biasOf, letGo, putResults, runNode } from "../compile/step.ts";
import { operators } from "../ops/index.ts";
import type { Inputs } from "../ops/operator.ts";
import type { Value } from "../value.ts";
import { runAttention } from "./attention.ts";
import { emitJoined, emitProduct, emitters } from "./kernels.ts";
import { emitCodes } from "./integers.ts";
import { elementsOf, isSlot, type Emit, type Machine, type Slot, type Trace } from "./machine.ts";
import { lookUp } from "./moves.ts";
import { emitAgain } from "./repeat.ts";
import type { Replay } from "./replay.ts";

const EMITTERS = emitters(operators);

const asOne = (slot: Slot | undefined): Slot[] | undefined => slot && [slot];

/** The kernel form of a step: of a prepared product, of attention, of an operator with a kernel. */
function emitterOf(step: Unfreed): Emit | undefined {
  const { layer, operator, widths, codes, rows } = step;
  if (codes !== undefined) return (m, inputs, node) => asOne(emitCodes(m, operator, codes, inputs, node));
  if (layer !== undefined && widths !== undefined) return (m, inputs) => emitJoined(m, layer, widths, inputs);
  if (layer !== undefined) {
    if (operator === "Gemm") return gemm(layer);
    return (m, inputs) => {
      const y = emitProduct(m, layer, inputs[0], biasOf(step, inputs));
      return y && [y];
    };
  }
  if (rows !== undefined) return lookUp(rows);
  return operator === "com.microsoft.GroupQueryAttention" ? runAttention : EMITTERS.get(operator);
}

/** Gemm without scaling, its addend a row or a number. */
const gemm =
  (layer: SyncLayer): Emit =>
  (m, inputs, node) => {
    const plain = attributeFloat(node, "alpha", 1) === 1 && attributeFloat(node, "beta", 1) === 1 && attributeInt(node, "transA", 0) === 0;
    const c = inputs[2];
    if (!plain || (c !== undefined && elementsOf(c) !== 1 && c.dims.join() !== String(layer.n))) return undefined;
    const y = emitProduct(m, layer, inputs[0], c);
    return y && [y];
  };

/**
 * Results of loops that are views of the arena are copied out of it; an input that is handed on is one more use of its
 * memory.
 */
function keepOut(m: Machine, value: Value | undefined): Value | undefined {
  if (isSlot(value)) return m.view(value, value.dims);
  return value !== undefined && value.data.buffer === m.memory.buffer ? { ...value, data: value.data.slice() } : value;
}

/** A slot as a plain value, good until memory moves; its data is looked at once, by whoever asks for more than dims. */
function still(value: Value | undefined): Value | undefined {
  if (!isSlot(value)) return value;
  let data: Value["data"] | undefined;
  return {
    type: value.type,
    dims: value.dims,
    get data() {
      return (data ??= value.data);
    },
  };
}

interface StepResult {
  readonly results: readonly (Value | undefined)[];
  readonly kernel: boolean;
  /** A fused step whose parts ran one by one. */
  readonly apart?: true;
  /** What it did, where that is what it did the last time. */
  readonly repeated?: Trace | undefined;
}

/**
 * Emits a step, or what it did the last time. Where its kernel does not take these inputs its loops run; undefined
 * without loops. What loops make of shapes alone stays the same, and so does what follows from it.
 */
function emitStep(
  m: Machine,
  step: Unfreed,
  inputs: Inputs,
  emit: Emit | undefined,
  loops?: () => readonly (Value | undefined)[],
): StepResult | undefined {
  let repeated: Trace | undefined;
  let looped: readonly (Value | undefined)[] | undefined;
  const results = emitAgain(
    m,
    step,
    inputs,
    () => {
      const emitted = emit?.(m, inputs, step.node);
      m.settle();
      return emitted ?? (looped = loops?.());
    },
    (trace, again) => {
      if (again) repeated = trace;
      else for (const value of looped ?? []) if (value !== undefined && !isSlot(value)) m.fix(value);
    },
  );
  return results && { results, kernel: looped === undefined && (repeated === undefined || results.some(isSlot)), repeated };
}

/** Runs one step. @returns its outputs in order, and whether a kernel made them */
export function runStep(m: Machine | null, step: Unfreed, read: (name: string) => Value | undefined): StepResult {
  if (m === null) return { results: runNode(step.run, step.node, read), kernel: false };
  if (step.fused !== undefined) return runFused(m, step, step.fused, read);
  const inputs = step.node.input.map((name) => (name === "" ? undefined : read(name)));
  // loops read element by element: a slot makes a view at every look, and no loop moves memory
  const from = step.kernel === "loops" ? (name: string) => still(read(name)) : read;
  return emitStep(m, step, inputs, emitterOf(step), () => runNode(step.run, step.node, from).map((value) => keepOut(m, value)))!;
}

/** Fused steps as one kernel, or one by one. */
function runFused(
  m: Machine,
  step: Unfreed,
  { parts, emit }: NonNullable<Unfreed["fused"]>,
  read: (name: string) => Value | undefined,
): StepResult {
  const inputs = step.node.input.map((name) => (name === "" ? undefined : read(name)));
  const again = emitStep(m, step, inputs, emit);
  if (again !== undefined) return again;
  const values = new Map<string, Value>();
  let kernel = true;
  for (const part of parts) {
    const done = runStep(m, part, (name) => values.get(name) ?? read(name));
    putResults(values, part.node, done.results, m.free);
    kernel &&= done.kernel;
  }
  const kept = new Set(step.node.output);
  for (const [name, value] of values) if (!kept.has(name)) m.free(value);
  return { results: step.node.output.map((name) => values.get(name)), kernel, apart: true };
}

/** How a step ran; "processor": in JavaScript's memory, with values that were read back from a device. */
export type How = "kernel" | "loops" | "one by one" | "processor";

export interface Execution {
  readonly machine: Machine | null;
  readonly plan: Plan;
  readonly fed: ReadonlyMap<string, Value>;
  /** Called after each step, with its milliseconds. */
  readonly note?: (step: Step, how: How, ms: number) => void;
  readonly aborted?: () => void;
  /** What is remembered from run to run; the steps that it repeats are not noted. */
  readonly replay?: Replay | undefined;
  /** The results of a step that is run in another way; undefined: as usual. */
  readonly instead?: (step: Step, read: (name: string) => Value | undefined) => readonly (Value | undefined)[] | undefined;
}

interface Run {
  readonly values: Map<string, Value>;
  /** Runs a step. @returns what it repeated, null if it is to be looked at each time */
  run(step: Step): Trace | null;
  read(name: string): Value | undefined;
}

/** A run of a plan, step by step. */
function begin({ machine, plan, fed, note, instead }: Execution): Run {
  const values = new Map<string, Value>(fed);
  const read = (name: string): Value | undefined => values.get(name) ?? plan.constants.get(name);
  const free = (value: Value): void => machine?.free(value);
  const run = (step: Step): Trace | null => {
    if (!step.guards.every(({ name, is }) => (read(name)?.data[0] === 1) === is)) return null;
    const start = performance.now();
    const other = instead?.(step, read);
    const done: StepResult = other === undefined ? runStep(machine, step, read) : { results: other, kernel: true };
    const { results, kernel, apart } = done;
    note?.(step, apart ? "one by one" : kernel ? "kernel" : "loops", performance.now() - start);
    putResults(values, step.node, results, free);
    letGo(values, step.frees, free);
    return step.guards.length > 0 ? null : (done.repeated ?? null);
  };
  return { values, run, read };
}

/**
 * Runs a plan's steps on fed values, with a turn of the event loop between steps where they take longer than a frame.
 * The caller sees to it that no other run of the machine comes in between, and resets the machine when it has read the
 * results.
 */
export async function execute(execution: Execution): Promise<(name: string) => Value | undefined> {
  const { values, run, read } = begin(execution);
  const { plan, replay, aborted } = execution;
  let since = performance.now();
  const pace = async (): Promise<void> => {
    await turn();
    aborted?.();
    since = performance.now();
  };
  for (const [i, step] of plan.steps.entries()) {
    const ending = replay?.ending(i, values);
    if (ending !== undefined) {
      for (const calls of ending.calls) {
        if (performance.now() - since > TURN_MS) await pace();
        for (const call of calls) call();
      }
      for (const [name, value] of ending.values) values.set(name, value);
      return read;
    }
    if (performance.now() - since > TURN_MS) await pace();
    const repeated = run(step);
    replay?.ran(i, repeated);
  }
  replay?.end(plan.steps.length, values, (i) => plan.steps[i].node.output);
  return read;
}

/** `execute` at once. */
export function executeNow(execution: Execution): (name: string) => Value | undefined {
  const { run, read } = begin(execution);
  for (const step of execution.plan.steps) run(step);
  return read;
}
