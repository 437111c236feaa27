// A session with the interface of onnxruntime's InferenceSession, on a plan.
import { LowbitError } from "../../formats/core/errors.ts";
import { engineMemory, hasEngineMemory } from "../backends/wasm/memory.ts";
import type { Backend, SyncLayer } from "../backends/types.ts";
import type { ValueInfoProto } from "../onnx/file/gen/onnx_pb.ts";
import type { OnnxModel } from "../onnx/file/model.ts";
import type { Plan } from "./compile/plan.ts";
import type { Step } from "./compile/step.ts";
import { createDecoder, type Decoder, type DecoderInit, type DecoderOptions } from "./decoder.ts";
import { execute, type How } from "./machine/execute.ts";
import { createReplay } from "./machine/replay.ts";
import { createMachine, type Machine } from "./machine/machine.ts";
import type { Sequence } from "./machine/sequence.ts";
import { heldValue, sessionCaches } from "./session-caches.ts";
import type { BoundaryType, RuntimeTensor, Value, ValueMetadata } from "./value.ts";
import type { DeviceDecoder } from "./webgpu/decoder.ts";
import { isArrayOf, isHalfArray, metadataType, narrow, sizeOf, widen } from "./value.ts";

/** One step of a model's plan: an operator or several fused ones, and the kernel that runs them. */
export interface ExplainedStep {
  readonly name: string;
  /** Of the model, or "lowbit.NAME" of several that are fused. */
  readonly operator: string;
  /**
   * A kernel, "loops", or "one by one" where a fused step met shapes that its kernel does not take. On a WebGPU backend
   * "processor": it has no kernel there, its inputs were read back. "onnxruntime": a part of the model that runs there,
   * `operator` lists what it has.
   */
  readonly kernel: string;
  /** Milliseconds of all runs together; only with `profile`. */
  readonly ms?: number;
}

/** Which kernel runs which step of a model, and what could not run here. */
export interface SessionExplanation {
  /** "onnxruntime": the whole model runs there. */
  readonly runtime: "lowbit" | "onnxruntime";
  /** Why onnxruntime, in parts or as a whole: what is missing here. */
  readonly missing: readonly string[];
  readonly steps: readonly ExplainedStep[];
  /** Nodes computed while loading. */
  readonly folded: number;
  /** Nodes that no output needs. */
  readonly dead: number;
}

/** A loaded model: `run` as often as needed, then `release`. What onnxruntime's InferenceSession has, it has. */
export interface Session {
  readonly inputNames: readonly string[];
  readonly outputNames: readonly string[];
  readonly inputMetadata: readonly ValueMetadata[];
  readonly outputMetadata: readonly ValueMetadata[];
  /**
   * @param fetches the outputs wanted; default all
   * @throws TypeError for feeds that are missing, unknown or of another type; LowbitError E_SHAPE, E_VALUE, E_DISPOSED
   */
  run(feeds: Readonly<Record<string, RuntimeTensor>>, fetches?: readonly string[]): Promise<Record<string, RuntimeTensor>>;
  explain(): SessionExplanation;
  /**
   * The model as a decoder, its keys and values kept in place.
   * @throws LowbitError E_UNSUPPORTED where it has no caches, or attention that its kernel does not take; E_DEVICE,
   * E_DISPOSED; RangeError
   */
  decoder(options?: DecoderOptions): Decoder;
  /** Frees the weights. Safe to call twice. */
  release(): Promise<void>;
}

/** A session on a WebGPU backend. */
export interface DeviceSession extends Omit<Session, "decoder"> {
  /**
   * The model as a decoder, its keys and values on the device.
   * @throws LowbitError E_UNSUPPORTED where it has no caches, or `cache` is of fewer bits and its attention is spelled
   * out; E_DEVICE, E_DISPOSED; RangeError
   */
  decoder(options?: DecoderOptions): DeviceDecoder;
}

export type Described = Pick<Session, "inputNames" | "outputNames" | "inputMetadata" | "outputMetadata"> & {
  readonly optional: ReadonlySet<string>;
  /** Inputs without a shape: any fits. */
  readonly shapeless: ReadonlySet<string>;
  /** Whether open sizes of one name must agree. */
  readonly agree: boolean;
};

function metadata({ name, type }: ValueInfoProto): ValueMetadata {
  const tensor = type?.value.case === "tensorType" ? type.value.value : undefined;
  const shape = (tensor?.shape?.dim ?? []).map(({ value }) =>
    value.case === "dimValue" ? Number(value.value) : value.case === "dimParam" ? value.value : "",
  );
  return { name, isTensor: true, type: metadataType(tensor?.elemType ?? 0), shape };
}

export function describe(model: OnnxModel): Omit<Described, "agree"> {
  const graph = model.proto.graph!;
  const optional = new Set(graph.initializer.map(({ name }) => name));
  const inputs = graph.input.filter(({ name }) => !optional.has(name));
  return {
    inputNames: inputs.map(({ name }) => name),
    outputNames: graph.output.map(({ name }) => name),
    inputMetadata: inputs.map(metadata),
    outputMetadata: graph.output.map(metadata),
    optional,
    shapeless: new Set(inputs.filter(({ type }) => !hasShape(type)).map(({ name }) => name)),
  };
}

const hasShape = (type: ValueInfoProto["type"]): boolean => type?.value.case === "tensorType" && type.value.value.shape !== undefined;

const show = (names: readonly string[]): string => names.map((name) => JSON.stringify(name)).join(", ");

type OwnInput = ValueMetadata & { readonly type: BoundaryType };

/** One feed against the model's input. */
function checkFeed({ name, type, shape }: OwnInput, feed: RuntimeTensor, open: Map<string, number>, described: Described): Value {
  const what = `feed ${JSON.stringify(name)}`;
  const held = heldValue(feed);
  const { dims } = feed;
  const data = held === undefined ? feed.data : undefined;
  const isArray = held !== undefined || (type === "float16" ? isHalfArray(data) : isArrayOf(type, data));
  if (feed.type !== type || !isArray)
    throw new TypeError(`${what}: expected ${type} in its typed array, got ${feed.type} in ${data?.constructor?.name ?? String(data)}.`);
  const wanted = `[${shape.map((d) => (d === "" ? "?" : d)).join(", ")}]`;
  const fits =
    described.shapeless.has(name) ||
    (dims.length === shape.length &&
      shape.every((d, i) => {
        if (typeof d === "number") return d === dims[i];
        if (d === "" || !described.agree) return true;
        const known = open.get(d) ?? dims[i];
        open.set(d, known);
        return known === dims[i];
      }));
  if (!fits) {
    const known = [...open].map(([symbol, size]) => `${symbol} = ${size}`).join(", ");
    const where = known === "" ? "" : ` with ${known}`;
    throw new LowbitError("E_SHAPE", `${what}: expected ${wanted}${where}, got [${dims.join(", ")}]. Reshape it.`);
  }
  if (held !== undefined) return held;
  const values = data as Value["data"];
  if (sizeOf(dims, what) !== values.length)
    throw new LowbitError(
      "E_SHAPE",
      `${what}: expected ${sizeOf(dims)} elements for [${dims.join(", ")}], got ${values.length}. Check dims.`,
    );
  return type === "float16"
    ? { type: "float32", dims: [...dims], data: widen(values as Uint16Array) }
    : { type, dims: [...dims], data: values };
}

/** @throws TypeError for feeds that are missing or unknown */
export function checkNames({ inputNames, optional }: Described, feeds: Readonly<Record<string, RuntimeTensor>>): void {
  if (typeof feeds !== "object" || feeds === null) throw new TypeError(`run feeds: expected an object of tensors, got ${String(feeds)}.`);
  const absent = inputNames.filter((name) => !Object.hasOwn(feeds, name));
  if (absent.length > 0) throw new TypeError(`run feeds: expected ${show(inputNames)}, got no ${show(absent)}. Feed every input.`);
  const strange = Object.keys(feeds).filter((name) => !inputNames.includes(name));
  if (strange.length > 0) {
    const why = strange.some((name) => optional.has(name)) ? " Inputs with a default value cannot be fed." : "";
    throw new TypeError(`run feeds: expected ${show(inputNames)}, got also ${show(strange)}.${why}`);
  }
}

function checkFeeds(described: Described, feeds: Readonly<Record<string, RuntimeTensor>>): Map<string, Value> {
  checkNames(described, feeds);
  const open = new Map<string, number>();
  return new Map(described.inputMetadata.map((input) => [input.name, checkFeed(input as OwnInput, feeds[input.name], open, described)]));
}

export function checkFetches(outputNames: readonly string[], fetches: readonly string[]): void {
  const strange = fetches.filter((name) => !outputNames.includes(name));
  if (strange.length > 0) throw new TypeError(`run fetches: expected some of ${show(outputNames)}, got ${show(strange)}.`);
}

export const disposed = (): LowbitError =>
  new LowbitError("E_DISPOSED", "session: expected one in use, got a released one. Load the model again.");

/** What runs a plan in place of the backend's memory: a device. */
export interface Engine {
  /** @returns the values of `fetches` */
  run(
    fed: ReadonlyMap<string, Value>,
    how: {
      readonly fetches: readonly string[];
      readonly note: (step: Step, how: How, ms: number) => void;
      readonly aborted: () => void;
    },
  ): Promise<(name: string) => Value | undefined>;
  decoder(init: {
    readonly inputs: readonly ValueMetadata[];
    readonly outputNames: readonly string[];
    readonly options: DecoderOptions;
    readonly check: () => void;
  }): DeviceDecoder;
  dispose(): void;
}

/** The backend's memory as a machine; null for backends without one, where all operators run as loops. */
function machineOf(backend: Backend<SyncLayer>): Machine | null {
  return hasEngineMemory(backend) ? createMachine(engineMemory(backend)) : null;
}

const kernelOf = ({ kernel }: Step, how: How | undefined): string =>
  how === undefined || how === "loops" || (how === "kernel" && kernel !== "loops") ? kernel : how;

/** Where a plan runs. */
export interface Place {
  readonly host: Backend<SyncLayer>;
  /** Where its products with constant weights run: the host, or a device. */
  readonly products: Pick<Backend<SyncLayer>, "prepare">;
  engine?(plan: Plan): Engine;
}

function hostDecoder(backend: Backend<SyncLayer>, plan: Plan, init: Omit<DecoderInit, "machine" | "plan">): Decoder {
  const machine = machineOf(backend);
  if (machine === null)
    throw new LowbitError(
      "E_UNSUPPORTED",
      "decoder: expected a WebAssembly backend, got another. Load the model with backend: await wasm().",
    );
  for (const value of plan.constants.values()) machine.constant(value);
  return createDecoder({ machine, plan, ...init });
}

export interface OwnSession {
  readonly backend: Backend<SyncLayer>;
  readonly profile: boolean;
  readonly engine?: Engine | undefined;
}

export function ownSession(described: Described, plan: Plan, { backend, profile, engine }: OwnSession): Session | DeviceSession {
  const seen = new Map<Step, { how: How; ms: number }>();
  const machine = engine === undefined ? machineOf(backend) : null;
  for (const value of plan.constants.values()) machine?.constant(value);
  // a step's time is known only where it runs as a step
  const replay = machine === null || profile ? undefined : createReplay(machine);
  const decoders = new Set<Decoder | DeviceDecoder>();
  let released = false;
  let last: Promise<unknown> = Promise.resolve();
  const { optional: _, shapeless: __, agree: ___, ...names } = described;
  const halves = new Set(names.outputMetadata.filter(({ type }) => type === "float16").map(({ name }) => name));
  const checkLive = (): void => {
    if (released) throw disposed();
  };
  const note = (step: Step, how: How, ms: number): void => {
    const before = seen.get(step);
    seen.set(step, { how, ms: (before?.ms ?? 0) + ms });
  };
  const caches = machine === null ? null : sessionCaches(machine, plan, names.inputMetadata, names.outputNames);
  const answer = async (given: ReadonlyMap<string, Value>, fetches: readonly string[]): Promise<Record<string, RuntimeTensor>> => {
    let sequence: Sequence | null = null;
    try {
      checkLive();
      sequence = caches?.begin(given, fetches) ?? null;
      const fed = sequence === null ? given : new Map([...given, ...sequence.past()]);
      const read =
        engine === undefined
          ? await execute({
              ...{ machine, plan, fed, note, aborted: checkLive },
              ...(sequence === null ? { replay } : { instead: sequence.instead }),
            })
          : await engine.run(given, { fetches, note, aborted: checkLive });
      const kept = sequence === null ? null : caches!.end(sequence, read);
      // Values share memory: what leaves is the caller's own.
      return Object.fromEntries(
        fetches.map((name) => {
          const tensor = kept?.get(name);
          if (tensor !== undefined) return [name, tensor];
          const value = read(name)!;
          const dims = [...value.dims];
          return halves.has(name)
            ? [name, { type: "float16", dims, data: narrow(value.data as Float32Array) }]
            : [name, { type: value.type, dims, data: value.data.slice() }];
        }),
      );
    } catch (error) {
      if (sequence !== null) caches!.failed(sequence);
      throw error;
    } finally {
      machine?.reset();
    }
  };
  return {
    ...names,
    // async, so that what is wrong rejects as onnxruntime's sessions do; runs wait for each other
    async run(feeds, fetches = names.outputNames) {
      checkLive();
      checkFetches(names.outputNames, fetches);
      const given = checkFeeds(described, feeds);
      const turn = last.then(() => answer(given, fetches));
      last = turn.catch(() => undefined);
      return turn;
    },
    explain: () => ({
      runtime: "lowbit",
      missing: [],
      steps: plan.steps.map((step) => ({
        name: step.node.name,
        operator: step.operator,
        kernel: kernelOf(step, seen.get(step)?.how),
        ...(profile ? { ms: seen.get(step)?.ms ?? 0 } : {}),
      })),
      folded: plan.folded,
      dead: plan.dead,
    }),
    decoder(options: DecoderOptions = {}): never {
      checkLive();
      const { inputMetadata: inputs, outputNames } = names;
      const init = { inputs, outputNames, options, check: checkLive };
      const decoder = engine === undefined ? hostDecoder(backend, plan, { ...init, profile }) : engine.decoder(init);
      decoders.add(decoder);
      // which of the two it is, the backend's type says
      return decoder as never;
    },
    async release() {
      if (released) return;
      released = true;
      await last;
      caches?.release();
      for (const decoder of decoders) decoder.dispose();
      machine?.dispose();
      engine?.dispose();
      for (const layer of plan.layers) layer.dispose();
    },
  };
}
