// What operators run on in a backend's memory: slots (tensors in the arena, float32 but where it is said), constants
// placed once, jobs of kernels. While it records, all that it runs is kept as a list that can be repeated: addresses do
// not move.
import type { Kernel } from "../../../kernels/wasm/engine/engine.ts";
import type { EngineMemory, Region } from "../../backends/wasm/memory.ts";
import type { NodeProto } from "../../onnx/file/gen/onnx_pb.ts";
import type { Inputs } from "../ops/operator.ts";
import type { ElementType, NumberArray, Value } from "../value.ts";
import { sizeOf } from "../value.ts";
import { createArena, type Arena } from "./arena.ts";

/** Element types of slots. */
export type SlotType = Exclude<ElementType, "int64" | "bool" | "uint32">;

type View = new (buffer: ArrayBufferLike, address: number, length: number) => NumberArray;
const VIEWS: Readonly<Record<SlotType, View>> = {
  float32: Float32Array,
  int32: Int32Array,
  int16: Int16Array,
  uint16: Uint16Array,
  int8: Int8Array,
  uint8: Uint8Array,
};
const BYTES: Readonly<Record<SlotType, 1 | 2 | 4>> = { float32: 4, int32: 4, int16: 2, uint16: 2, int8: 1, uint8: 1 };

/** Bytes of an element. */
export const slotBytes = (type: SlotType): 1 | 2 | 4 => BYTES[type];

/** A value in the arena. Its `data` is a view: read it at once, any job may end it. */
export interface Slot extends Value {
  readonly type: SlotType;
  readonly address: number;
  /** The block of the arena that it lies in. */
  readonly base: number;
}

/** Float32 values that are worth a kernel: in the arena, or large enough to be copied into it. */
export const isPlaceable = (value: Value | undefined): value is Value =>
  value?.type === "float32" && (isSlot(value) || sizeOf(value.dims) >= 256);

/** Elements of a value: a look at a slot's data would make what is emitted depend on it. */
export const elementsOf = (value: Pick<Value, "dims">): number => sizeOf(value.dims);

export const isSlot = (value: Value | undefined): value is Slot => value !== undefined && (value as Partial<Slot>).address !== undefined;

/** Slots of float32, which is what most kernels work on. */
export const isFloatSlot = (value: Value | undefined): value is Slot => isSlot(value) && value.type === "float32";

/**
 * An operator on kernels: slots (and values of other types that calls write), or undefined where these shapes and types
 * are none of its kernel (then its loops run).
 */
export type Emit = (m: Machine, inputs: Inputs, node: NodeProto) => readonly (Value | undefined)[] | undefined;

export interface Job {
  readonly items: number;
  readonly args: Int32Array;
  readonly panelBytes?: number;
}

/** A recorded run: calls in order, each with the operator it belongs to. */
export type Recording = { readonly operator: string; readonly run: () => void }[];

/** What an emission did: to be repeated while its inputs lie where they lay. */
export interface Trace {
  /** Blocks of the arena that it took, and uses of blocks that it added and gave back, in order. */
  readonly moves: readonly ArenaMove[];
  /** Its jobs and calls, in order. */
  readonly runs: readonly (() => void)[];
}

type ArenaMove =
  { readonly kind: "take"; readonly bytes: number; readonly address: number } | { readonly kind: "use" | "free"; readonly address: number };

export interface Machine {
  readonly memory: EngineMemory;
  readonly arena: Arena;
  /** Default float32. */
  slot(dims: readonly number[], type?: SlotType): Slot;
  /** The same memory under another shape, from element `offset` on. */
  view(slot: Slot, dims: readonly number[], offset?: number): Slot;
  /** Gives a value's memory back once no view of it is left. Other values: nothing. */
  free(value: Value): void;
  /** The address of a value of a slot's type: a slot's own; constants are copied once, other values each time. */
  place(value: Value): number;
  /** Marks a value whose data never changes. */
  constant(value: Value): void;
  job(kernel: Kernel, job: Job): void;
  /**
   * A job whose arguments depend on a number that moves (the tokens in a cache): `make` of it, linear in every word.
   */
  moving(kernel: Kernel, at: () => number, make: (at: number) => Job): void;
  call(run: () => void): void;
  /** Frees copies that `place` made for one step. */
  settle(): void;
  /** Frees all slots. */
  reset(): void;
  /** The operator that is recorded from now on. */
  name(operator: string): void;
  /** Collects what runs from now on; null ends it. */
  record(into: Recording | null): void;
  /** Whether it collects. */
  readonly isRecording: boolean;
  /** Whether a value was said never to change. */
  isConstant(value: Value): boolean;
  /** Marks a value that is this one as long as its step repeats. */
  fix(value: Value): void;
  /** Whether a value is a constant, or this one as long as its step repeats. */
  isFixed(value: Value): boolean;
  /**
   * Runs an emission. Its trace is null where it depends on more than the places of its inputs: it looked at the data
   * of a slot outside of a call, or copied values into the arena.
   */
  trace<T>(emit: () => T): { readonly made: T; readonly trace: Trace | null };
  /** Does again what a trace did; false, and nothing is changed, where its blocks would lie elsewhere now. */
  repeat(trace: Trace): boolean;
  dispose(): void;
}

/** A float32 constant that lies in a backend's memory and nowhere else. */
export const constantSlot = (memory: EngineMemory, { address }: Region, dims: readonly number[]): Slot => ({
  type: "float32",
  dims,
  address,
  base: address,
  get data() {
    return memory.floats(address, sizeOf(dims));
  },
});

/** Whether nothing is given back but what was taken or used before: what `undo` can take back. */
function isOwn(moves: readonly ArenaMove[]): boolean {
  const held = new Map<number, number>();
  for (const { kind, address } of moves) {
    const left = (held.get(address) ?? 0) + (kind === "free" ? -1 : 1);
    if (left < 0) return false;
    held.set(address, left);
  }
  return true;
}

export function createMachine(memory: EngineMemory): Machine {
  const arena = createArena(memory);
  const uses = new Map<number, number>();
  const constants = new Map<object, Region | null>();
  const pending: Slot[] = [];
  const constant = new WeakSet<Value>();
  const fixed = new WeakSet<Value>();
  let recording: Recording | null = null;
  /** Under way: what an emission does, and whether that depends on more than places. */
  let tracing: { moves: ArenaMove[]; runs: (() => void)[]; depends: boolean } | null = null;
  let isCalling = false;
  let operator = "";
  const make = (type: SlotType, dims: readonly number[], address: number, base: number): Slot => {
    const size = sizeOf(dims);
    let view: NumberArray | undefined;
    return {
      type,
      dims,
      address,
      base,
      // a new view for each look was a part of every step; memory that grew has another buffer
      get data() {
        if (tracing !== null && !isCalling) tracing.depends = true;
        const { buffer } = memory;
        return view?.buffer === buffer ? view : (view = new VIEWS[type](buffer, address, size));
      },
    };
  };
  const slot = (dims: readonly number[], type: SlotType = "float32"): Slot => {
    const bytes = BYTES[type] * sizeOf(dims);
    const address = arena.allocate(bytes);
    uses.set(address, 1);
    tracing?.moves.push({ kind: "take", bytes, address });
    return make(type, dims, address, address);
  };
  const write = (address: number, data: NumberArray): void =>
    new Uint8Array(memory.buffer, address, data.byteLength).set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
  const call = (run: () => void): void => {
    isCalling = true;
    try {
      run();
    } finally {
      isCalling = false;
    }
    tracing?.runs.push(run);
    recording?.push({ operator, run });
  };
  const use = (address: number): void => void uses.set(address, (uses.get(address) ?? 0) + 1);
  /** One use less; the block is free after the last. */
  const leave = (address: number): void => {
    const left = uses.get(address);
    if (left === undefined) return;
    if (left > 1) uses.set(address, left - 1);
    else {
      uses.delete(address);
      arena.free(address);
    }
  };
  /** Takes back the first moves of a trace. */
  const undo = (moves: readonly ArenaMove[]): void => {
    const taken = new Set<number>();
    const change = new Map<number, number>();
    for (const { kind, address } of moves) {
      if (kind === "take") taken.add(address);
      else if (!taken.has(address)) change.set(address, (change.get(address) ?? 0) + (kind === "use" ? 1 : -1));
    }
    for (const address of taken) if (uses.delete(address)) arena.free(address);
    for (const [address, by] of change) uses.set(address, uses.get(address)! - by);
  };
  return {
    memory,
    arena,
    slot,
    view(of, dims, offset = 0) {
      use(of.base);
      tracing?.moves.push({ kind: "use", address: of.base });
      return make(of.type, dims, of.address + BYTES[of.type] * offset, of.base);
    },
    free(value) {
      if (!isSlot(value)) return;
      leave(value.base);
      tracing?.moves.push({ kind: "free", address: value.base });
    },
    place(value) {
      if (isSlot(value)) return value.address;
      const known = constants.get(value.data);
      if (known !== undefined && known !== null) return known.address;
      const data = value.data as NumberArray;
      if (known === null) {
        const region = memory.allocate(Math.max(4, data.byteLength));
        write(region.address, data);
        constants.set(data, region);
        return region.address;
      }
      if (tracing !== null) tracing.depends = true;
      const copy = slot(value.dims, value.type as SlotType);
      write(copy.address, data);
      pending.push(copy);
      return copy.address;
    },
    constant(value) {
      constant.add(value);
      if (Object.hasOwn(BYTES, value.type) && !constants.has(value.data)) constants.set(value.data, null);
    },
    job(kernel, { items, args, panelBytes = 0 }) {
      if (items > 0) call(() => memory.run(kernel, items, args, panelBytes));
    },
    moving(kernel, at, make) {
      if (tracing !== null) tracing.depends = true;
      const { items, args, panelBytes = 0 } = make(at());
      memory.run(kernel, items, args, panelBytes);
      if (recording === null) return;
      const [zero, one] = [make(0).args, make(1).args];
      const words = [...zero.keys()].filter((i) => zero[i] !== one[i]).map((i) => ({ i, from: zero[i], by: one[i] - zero[i] }));
      const run = (): void => {
        const n = at();
        for (const { i, from, by } of words) args[i] = from + by * n;
        memory.run(kernel, items, args, panelBytes);
      };
      recording.push({ operator, run });
    },
    call,
    settle() {
      for (const copy of pending.splice(0)) this.free(copy);
    },
    reset() {
      pending.length = 0;
      for (const address of uses.keys()) arena.free(address);
      uses.clear();
    },
    name(of) {
      operator = of;
    },
    record(into) {
      recording = into;
    },
    get isRecording() {
      return recording !== null;
    },
    isConstant: (value) => constant.has(value),
    fix: (value) => void fixed.add(value),
    isFixed: (value) => constant.has(value) || fixed.has(value),
    trace(emit) {
      const own = (tracing = { moves: [] as ArenaMove[], runs: [] as (() => void)[], depends: false });
      try {
        const made = emit();
        return { made, trace: own.depends || !isOwn(own.moves) ? null : own };
      } finally {
        tracing = null;
      }
    },
    repeat({ moves, runs }) {
      for (const [i, move] of moves.entries()) {
        if (move.kind === "use") use(move.address);
        if (move.kind === "free") leave(move.address);
        if (move.kind !== "take") continue;
        const address = arena.allocate(move.bytes);
        if (address !== move.address) {
          arena.free(address);
          undo(moves.slice(0, i));
          return false;
        }
        uses.set(address, 1);
      }
      for (const run of runs) run();
      return true;
    },
    dispose() {
      arena.dispose();
      for (const region of constants.values()) region?.free();
      constants.clear();
    },
  };
}
