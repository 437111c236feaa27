// The WebAssembly JavaScript API as far as it is used here, typed without the DOM library, and memory: one engine
// memory is an arena with a first-fit allocator; a backend that needs more than 4 GiB holds several.
import { LowbitError } from "../../../formats/core/errors.ts";

export interface WasmMemory {
  readonly buffer: ArrayBuffer;
  grow(pages: number): number;
}

export type WasmFunction = (...args: number[]) => number | void;

export interface WasmModule {
  readonly [brand: symbol]: never;
}

interface WasmApi {
  validate(bytes: Uint8Array<ArrayBuffer>): boolean;
  Module: new (bytes: Uint8Array<ArrayBuffer>) => WasmModule;
  Instance: new (module: WasmModule, imports: { m: { m: WasmMemory } }) => { readonly exports: Record<string, WasmFunction> };
  Memory: new (descriptor: { initial: number; maximum: number; shared?: boolean }) => WasmMemory;
}

/** The engine's WebAssembly object; undefined where there is none. */
export const engine = (globalThis as unknown as { WebAssembly: WasmApi }).WebAssembly;

const PAGE = 65536;
const MAX_PAGES = 65536;
const ALIGN = 64;

/** A memory with an allocator. Addresses are byte offsets, multiples of 64; 0 is never handed out. */
export interface Arena {
  readonly memory: WasmMemory;
  readonly shared: boolean;
  /** Bytes in use. */
  readonly used: number;
  /** End of all that was ever in use: zeros lie beyond it. */
  readonly mark: number;
  /** Address of `bytes` fresh bytes (content undefined), or 0 where this arena cannot hold them. */
  allocate(bytes: number): number;
  free(address: number): void;
}

export function createArena(shared: boolean, limitBytes = MAX_PAGES * PAGE): Arena {
  let memory: WasmMemory;
  const maximum = Math.max(1, Math.min(MAX_PAGES, Math.ceil(limitBytes / PAGE)));
  try {
    // the import asks for a maximum of 65536 pages at most; a smaller limit is kept by the allocator
    memory = new engine.Memory({ initial: 1, maximum: MAX_PAGES, ...(shared ? { shared } : {}) });
  } catch (cause) {
    throw new LowbitError("E_DEVICE", "WebAssembly memory: expected to reserve one, got a refusal. Dispose of other backends first.", {
      cause,
    });
  }
  const sizes = new Map<number, number>();
  /** The last bytes are not handed out: a kernel's pointer to the end of what it reads would wrap to 0 at 4 GiB. */
  const top = maximum * PAGE - ALIGN;
  let pages = 1;
  /** End of what free ranges and allocations cover. */
  let end = Math.min(PAGE, top);
  /** Free ranges, ascending, never adjacent. */
  let free: { at: number; size: number }[] = [{ at: ALIGN, size: end - ALIGN }];
  let used = 0;
  let mark = 0;
  return {
    get mark() {
      return mark;
    },
    memory,
    shared,
    get used() {
      return used;
    },
    allocate(bytes) {
      const size = Math.max(ALIGN, Math.ceil(bytes / ALIGN) * ALIGN);
      let slot = free.findIndex((range) => range.size >= size);
      if (slot < 0) {
        const last = free.at(-1);
        const tail = last !== undefined && last.at + last.size === end ? last.size : 0;
        if (end - tail + size > top) return 0;
        const needed = Math.ceil((end - tail + size) / PAGE);
        // growing by halves, or 64 MiB, keeps the number of moves of a memory that is not shared small
        const wanted = Math.min(Math.max(needed, pages + Math.min(pages >> 1, MOST_SPARE)), maximum);
        try {
          memory.grow(wanted - pages);
        } catch {
          return 0;
        }
        pages = wanted;
        const more = Math.min(pages * PAGE, top) - end;
        if (tail > 0) last!.size += more;
        else free.push({ at: end, size: more });
        end += more;
        slot = free.length - 1;
      }
      const range = free[slot];
      const at = range.at;
      range.at += size;
      range.size -= size;
      if (range.size === 0) free.splice(slot, 1);
      sizes.set(at, size);
      used += size;
      mark = Math.max(mark, at + size);
      return at;
    },
    free(address) {
      const size = sizes.get(address);
      if (size === undefined) throw new RangeError(`arena: ${address} is no allocation`);
      sizes.delete(address);
      used -= size;
      let i = free.findIndex((range) => range.at > address);
      if (i < 0) i = free.length;
      free.splice(i, 0, { at: address, size });
      const merged: typeof free = [];
      for (const range of free) {
        const previous = merged.at(-1);
        if (previous !== undefined && previous.at + previous.size === range.at) previous.size += range.size;
        else merged.push(range);
      }
      free = merged;
    },
  };
}

/** Pages that a memory grows by beyond what is needed, at most. */
const MOST_SPARE = 1024;

/** A compiled kernel module and its bytes, which workers compile again. */
export interface Kernel {
  readonly id: number;
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly module: WasmModule;
}

/** A kernel with its arguments, as `Runtime.work` takes them. */
export interface Job {
  readonly kernel: Kernel;
  readonly items: number;
  readonly args: Int32Array;
  readonly panelBytes: number;
}

/** An arena with the instances and scratch space that live in it. */
export interface Space {
  readonly index: number;
  readonly arena: Arena;
  exports(kernel: Kernel): Record<string, WasmFunction>;
  /** Address of scratch space `name` of at least `bytes`; its content is lost when it grows. */
  scratch(name: string, bytes: number): number;
  /** How often scratch space was made or moved: addresses that were known before hold while this number does. */
  readonly moves: number;
  /** The block of a job's arguments: scratch space of `bytes`, as a view that stays the same while it can. */
  argumentBlock(bytes: number): Int32Array;
  /**
   * A record of jobs while one is made, else null. Whoever does more for a product than jobs of fixed arguments, and so
   * cannot be repeated by them, sets it to null.
   */
  record: Job[] | null;
  readonly buffer: ArrayBuffer;
}
