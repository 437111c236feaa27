// The memory of a WebAssembly backend for operators beside its products: internal, what src/runtime is built on. Not
// exported by any entry point.
//
// A model's activations lie in one memory, `engineMemory(backend)`, and every operator works on addresses in it: byte
// offsets, multiples of 4, 0 is none. Packed products run in place (`placed(layer).runAt(x, m, y)`); further kernels
// are families (kernels/wasm/engine/family.ts, a `work` function by `writeWork`) that `run` dispatches on the same
// threads. Nothing is copied between operators.
//
//   const memory = engineMemory(await wasm({ threads: 2 }));
//   const region = memory.allocate(4 * (k + n));                   // an arena: lay out tensors in it as you like
//   memory.floats(region.address, k).set(values);                  // a view: make it, use it, drop it
//   placed(layer).runAt(region.address, 1, region.address + 4 * k);
//   memory.run(memory.kernel(norms, { shared: memory.shared, eps: 1e-6 }), rows, Int32Array.of(x, y, width), 0);
//
// Views end: any allocation, product or job may grow a memory that is not shared, and its views then have length 0.
// Make one where it is used, or compare `memory.buffer` with that of the last time. Contents and addresses stay.
import { LowbitError } from "../../../formats/core/errors.ts";
import type { Kernel } from "../../../kernels/wasm/engine/engine.ts";
import { kernel, type Family } from "../../../kernels/wasm/engine/family.ts";
import type { WasmFeatures } from "../../../kernels/wasm/engine/features.ts";
import type { Runtime } from "../../../kernels/wasm/engine/runtime.ts";
import { disposed } from "../layer.ts";
import { streamsOf } from "./streams.ts";
import type { SyncLayer } from "../types.ts";

/** Bytes of a backend's memory that belong to the caller, at a multiple of 64. Their content is undefined at first. */
export interface Region {
  readonly address: number;
  readonly bytes: number;
  /** Gives them back. Safe to call twice, and after the backend is gone. */
  free(): void;
}

export interface EngineMemory {
  readonly threads: number;
  /** What kernels may use: part of their specs, as `shared` is. */
  readonly features: WasmFeatures;
  readonly shared: boolean;
  /** How many parts of memory kernels read side by side: what this machine does best. */
  readonly streams: 2 | 4;
  /** The memory as it is now; another object once it has grown, but where it is shared. */
  readonly buffer: ArrayBufferLike;
  /** @throws LowbitError E_DEVICE where memory runs out, E_DISPOSED */
  allocate(bytes: number): Region;
  /** Scratch space by name, which later calls with this name get again: for what an operator needs until it returns. */
  scratch(name: string, bytes: number): number;
  floats(address: number, length: number): Float32Array;
  /** A kernel, compiled once per process. */
  kernel<Spec extends object>(family: Family<Spec>, spec: Spec): Kernel;
  /**
   * Runs `items` of a kernel on all threads (one on the calling one) and returns when all are done. `args`: its
   * arguments, at most 64 words. `panelBytes`: scratch that each thread gets, the second parameter of `work`. @throws
   * LowbitError E_DEVICE, E_DISPOSED
   */
  run(kernel: Kernel, items: number, args: Int32Array, panelBytes?: number): void;
  /** Wakes the other threads, where they sleep: called some 50 us before `run`, while a caller prepares its work. */
  wake(): void;
}

/** Some columns of a result [m, n] as a matrix of their own, [m, width] float32 from `address` on. */
export interface ResultPart {
  readonly address: number;
  readonly width: number;
}

/** A prepared weight [n, k] that runs in place. */
export interface PlacedLayer {
  /**
   * y[m, n] = x[m, k] * w^T for float32 at addresses of the backend's memory, rows one after the other, the same
   * numbers as `run`. x and y must not overlap. y is written directly where rows are whole tiles (one row of n a
   * multiple of 16 always is), else through scratch space; x is read where it lies unless its groups need padding. A
   * weight that found no room beside the activations works from a memory of its own, with copies. The same product
   * again (x, m, y) allocates nothing, but where x is staged, y is copied or, with one row of float32 activations, what
   * runs depends on their size. `y` as parts: its columns in their order, all n, through scratch space.
   * @throws LowbitError E_DISPOSED, E_DEVICE
   */
  runAt(x: number, m: number, y: number | readonly ResultPart[]): void;
}

const runtimes = new WeakMap<object, Runtime>();
const layers = new WeakMap<object, PlacedLayer>();

/** Makes a backend's memory known to `engineMemory`. */
export const shareMemory = (backend: object, runtime: Runtime): void => void runtimes.set(backend, runtime);

/** Makes a layer known to `placed`. */
export const placeLayer = (layer: SyncLayer, runAt: PlacedLayer["runAt"]): void => void layers.set(layer, { runAt });

/** The layer as it runs in its backend's memory. @throws TypeError for a layer of another backend */
export function placed(layer: SyncLayer): PlacedLayer {
  const found = layers.get(layer);
  if (found === undefined) throw new TypeError("placed layer: expected a layer prepared with a WebAssembly backend.");
  return found;
}

/** Whether `engineMemory` takes a backend. */
export const hasEngineMemory = (backend: object): boolean => runtimes.has(backend);

/** The memory of a backend. @throws TypeError for a backend that is not one of `wasm()` */
export function engineMemory(backend: object): EngineMemory {
  const runtime = runtimes.get(backend);
  if (runtime === undefined) throw new TypeError("engine memory: expected a WebAssembly backend, as wasm() makes them.");
  const home = (): ReturnType<Runtime["home"]> => {
    if (!runtime.live) throw disposed();
    return runtime.home();
  };
  return {
    threads: runtime.threads,
    features: runtime.features,
    shared: runtime.shared,
    get streams() {
      return streamsOf(runtime, home());
    },
    get buffer() {
      return home().buffer;
    },
    allocate(bytes) {
      const { arena } = home();
      const address = arena.allocate(bytes);
      if (address === 0)
        throw new LowbitError(
          "E_DEVICE",
          `WebAssembly memory: expected ${bytes} bytes for activations beside ${arena.used} in use, got none. Allocate them before weights are prepared, or run fewer rows at once.`,
        );
      let own = true;
      const free = (): void => {
        if (own && runtime.live) arena.free(address);
        own = false;
      };
      return { address, bytes, free };
    },
    scratch: (name, bytes) => home().scratch(`operator ${name}`, bytes),
    floats: (address, length) => new Float32Array(home().buffer, address, length),
    kernel,
    wake: () => runtime.pool?.wake(),
    run: (built, items, args, panelBytes = 0) => runtime.work(home(), built, items, args, panelBytes),
  };
}
