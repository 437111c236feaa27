// Runs the steps of a plan on a device: what has a kernel there is recorded; shapes, indices and masks are computed in
// JavaScript at once; an operator without a kernel runs on the processor, with its inputs read back. One command buffer
// goes to the device for a run, and one more for each time that something is read back.
import type { NodeProto } from "../../onnx/file/gen/onnx_pb.ts";
import { PICK } from "../compile/flat.ts";
import type { Plan } from "../compile/plan.ts";
import { biasOf, letGo, putResults, runNode, type Form, type Step, type Unfreed } from "../compile/step.ts";
import { chainOperands, EXPRESSIONS } from "../machine/chains.ts";
import { runStep, type How } from "../machine/execute.ts";
import { isSlot, type Machine } from "../machine/machine.ts";
import { operators } from "../ops/index.ts";
import { empty, type NumberArray, type Value } from "../value.ts";
import { fusedAttention, fusedRotary, groupQuery } from "./attention.ts";
import { elementwise, emitChain, emitJoined, emitLayer, gemm, isFloat, multiply, where, type DeviceEmit } from "./emit.ts";
import { deviceLayer } from "./layers.ts";
import { CODES, qlinear, scaled } from "./codes.ts";
import { WINDOWS } from "./windows.ts";
import { copyStrided } from "./copy.ts";
import { isKept, keptView } from "./kept.ts";
import { fusedNorm, MOVES, ofShape, sameValues } from "./moves.ts";
import { countOf, isCodes, isTensor, type Held, type Recorder, type Tensor } from "./recorder.ts";

const run = (name: string) => operators.get(name)!.run;

/** Operators that keep the values and change their shape. */
const SHAPES = ["Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Dropout"];

/** The result of the branch that ran. */
const pick: DeviceEmit = (r, [condition, yes, no]) => {
  if (condition === undefined || isTensor(condition)) return undefined;
  const value = condition.data[0] === 1 ? yes : no;
  return value && [isTensor(value) ? r.view(value, value.dims) : value];
};

/** Operators that have a kernel on the device, by name. */
export const DEVICE_EMITS: ReadonlyMap<string, DeviceEmit> = new Map<string, DeviceEmit>([
  ...[...EXPRESSIONS.keys()].map((name): [string, DeviceEmit] => [name, elementwise]),
  ...SHAPES.map((name): [string, DeviceEmit] => [name, sameValues(run(name))]),
  ...["Shape", "Size"].map((name): [string, DeviceEmit] => [name, ofShape(run(name))]),
  ...MOVES,
  ...WINDOWS,
  ...CODES,
  ["MatMul", multiply],
  ["Where", where],
  [PICK, pick],
  ["com.microsoft.GroupQueryAttention", groupQuery],
]);

function formEmit(form: Form): DeviceEmit {
  switch (form.kind) {
    case "chain":
      return (r, inputs) => {
        const operands = chainOperands(inputs, form.operands);
        const y = operands && emitChain(r, form.build, operands);
        return y && [y];
      };
    case "norm":
      return fusedNorm(form.norm);
    case "rotary":
      return fusedRotary(form.layout, form.half, form.end);
    case "scaled":
      return scaled(form.unit);
    case "attention":
      return fusedAttention(form.of);
  }
}

/** The kernel form of a step; undefined where it has none. */
export function deviceEmit(step: Unfreed): DeviceEmit | undefined {
  const { layer, widths, operator, fused, codes } = step;
  if (fused !== undefined) return fused.form && formEmit(fused.form);
  if (codes !== undefined) return operator.startsWith("QLinear") ? qlinear(codes) : undefined;
  if (layer === undefined) return DEVICE_EMITS.get(operator);
  const placed = deviceLayer(layer);
  if (widths !== undefined) return (r, inputs) => emitJoined(r, placed, widths, inputs);
  if (operator === "Gemm") return gemm(placed);
  return (r, inputs) => {
    const y = emitLayer(r, placed, inputs[0], biasOf(step, inputs));
    return y && [y];
  };
}

/** Values of as many elements go to the device for an operator that has a kernel there. */
const WORTH = 256;

/** Tables of constants (sines, masks) stay where they can be looked at. */
const isWorth = (inputs: readonly (Held | undefined)[], { operator, layer, node }: Unfreed, plan: Plan): boolean =>
  layer !== undefined ||
  inputs.some(isTensor) ||
  (operator !== "Gather" &&
    inputs.some((value, i) => (isFloat(value) || isCodes(value)) && countOf(value) >= WORTH && !plan.constants.has(node.input[i])));

/** What was read back, in the array of its type. */
function valueOf(type: Tensor["type"], dims: readonly number[], data: Float32Array): Value {
  if (type === "float32") return { type, dims, data };
  const value = empty(type, dims);
  (value.data as NumberArray).set(data);
  return value;
}

export interface DeviceRun {
  readonly recorder: Recorder;
  /** What operators run on that have no kernel on the device; null: loops. */
  readonly host: Machine | null;
  readonly plan: Plan;
  readonly fed: ReadonlyMap<string, Held>;
  readonly note?: (step: Step, how: How, ms: number) => void;
  readonly aborted?: () => void;
  /** The results of a step that is run in another way; undefined: as usual. */
  readonly instead?: (step: Step, read: (name: string) => Held | undefined) => readonly Held[] | undefined;
}

/** Results as plain values: views of the machine's memory are copied. */
function settled(machine: Machine | null, results: readonly (Value | undefined)[]): (Value | undefined)[] {
  const out = results.map((value) => (isSlot(value) ? { type: value.type, dims: value.dims, data: value.data.slice() } : value));
  machine?.reset();
  return out;
}

/** Inputs that a step reads where they lie, caches too. */
function readInPlace({ operator, fused }: Unfreed): readonly number[] {
  if (operator === "Shape" || operator === "Size") return [0];
  const form = fused?.form;
  return form?.kind === "attention" ? [form.of.q.at, form.of.k.at, form.of.v.at] : [];
}

/** What a run left: values by name, as they lie, and in JavaScript. */
export interface DeviceResults {
  read(name: string): Held | undefined;
  bring(values: readonly Held[]): Promise<readonly Value[]>;
}

/** Runs a plan on fed values. @returns the values of `fetches`, in JavaScript */
export async function runOnDevice(given: DeviceRun, fetches: readonly string[]): Promise<ReadonlyMap<string, Value>> {
  const { read, bring } = await executeOnDevice(given);
  const values = await bring(fetches.map((name) => read(name)!));
  return new Map(fetches.map((name, i) => [name, values[i]]));
}

/** Runs a plan on fed values: the last commands may wait for `bring`. */
export async function executeOnDevice(given: DeviceRun): Promise<DeviceResults> {
  const { recorder: r, host, plan, fed, note, aborted, instead } = given;
  const values = new Map<string, Held>(fed);
  /** Values of tensors that were read back. */
  const copies = new Map<Tensor, Value>();
  const readFrom = (own: ReadonlyMap<string, Held> | null) => (name: string) =>
    own?.get(name) ?? values.get(name) ?? plan.constants.get(name);

  const bring = async (tensors: readonly Tensor[]): Promise<void> => {
    const wanted = [...new Set(tensors)].filter((tensor) => !copies.has(tensor));
    if (wanted.length === 0) return;
    const data = await r.flush(wanted);
    aborted?.();
    wanted.forEach((tensor, i) => copies.set(tensor, valueOf(tensor.type, tensor.dims, data[i])));
  };
  const asValue = (held: Held | undefined): Value | undefined => (isTensor(held) ? copies.get(held) : held);
  /** Caches as tensors of their own. */
  const wholes = new Map<Held, Tensor>();
  const whole = (held: Held | undefined): Held | undefined => {
    if (!isKept(held)) return held;
    const known = wholes.get(held) ?? copyStrided(r, held, keptView(held));
    wholes.set(held, known);
    return known;
  };

  /** One step. @returns its results and how it ran */
  const runOne = async (
    step: Unfreed,
    read: (name: string) => Held | undefined,
  ): Promise<{ results: readonly (Held | undefined)[]; how: How }> => {
    const inPlace = readInPlace(step);
    const plain = (name: string): Held | undefined => whole(read(name));
    const inputs = step.node.input.map((name, i) => (name === "" ? undefined : inPlace.includes(i) ? read(name) : plain(name)));
    const emit = deviceEmit(step);
    r.name(step.operator);
    if (emit !== undefined && isWorth(inputs, step, plan)) {
      const made = emit(r, inputs, step.node);
      if (made !== undefined) return { results: made, how: "kernel" };
    }
    if (step.fused !== undefined && inputs.some(isTensor)) return { results: await runParts(step.node, step.fused.parts, read), how: "one by one" }; // prettier-ignore
    await bring(inputs.filter(isTensor));
    // what is wrong with the input of a product is its loops' to say
    if (step.layer !== undefined) return { results: runNode(step.run, step.node, (name) => asValue(plain(name))), how: "loops" };
    const { results } = runStep(host, step, (name) => asValue(plain(name)));
    return { results: settled(host, results), how: inputs.some(isTensor) ? "processor" : "loops" };
  };

  const runParts = async (
    node: NodeProto,
    parts: readonly Unfreed[],
    read: (name: string) => Held | undefined,
  ): Promise<readonly (Held | undefined)[]> => {
    const own = new Map<string, Held>();
    r.ending([]);
    for (const part of parts) {
      const { results } = await runOne(part, (name) => own.get(name) ?? read(name));
      putResults(own, part.node, results, r.free);
    }
    const kept = new Set(node.output);
    for (const [name, value] of own) if (!kept.has(name)) r.free(value);
    return node.output.map((name) => own.get(name));
  };

  const read = readFrom(null);
  for (const step of plan.steps) {
    const guards = step.guards.map(({ name }) => read(name)).filter(isTensor);
    await bring(guards);
    if (!step.guards.every(({ name, is }) => (asValue(read(name))?.data[0] === 1) === is)) continue;
    const start = performance.now();
    r.ending(step.frees.map((name) => values.get(name)));
    const other = instead?.(step, (name) => whole(read(name)));
    const { results, how } = other === undefined ? await runOne(step, read) : { results: other, how: "kernel" as const };
    note?.(step, how, performance.now() - start);
    putResults(values, step.node, results, r.free);
    letGo(values, step.frees, (value) => {
      r.free(value);
      if (isTensor(value)) copies.delete(value);
    });
  }
  return {
    read,
    async bring(wanted) {
      await bring(wanted.filter(isTensor));
      return wanted.map((held) => asValue(held)!);
    },
  };
}
