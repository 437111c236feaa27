// What a backend needs to run kernels: arenas of memory, compiled modules (cached by their whole spec), scratch space,
// and a pool of workers where there is one. Jobs are "work" functions that share out items (items.ts), so one thread
// and many run the same code.
import { LowbitError } from "../../../formats/core/errors.ts";
import { createArena, engine, type Kernel, type Space, type WasmFunction } from "./engine.ts";
import type { WasmFeatures } from "./features.ts";
import { jobBytes, writeJob } from "./items.ts";
import type { Pool } from "./pool.ts";

export interface Runtime {
  readonly features: WasmFeatures;
  readonly shared: boolean;
  readonly threads: number;
  readonly spaces: readonly Space[];
  readonly pool: Pool | null;
  /** Does tuning measure what runs fastest? What it chose, families keep themselves. */
  readonly tune: boolean;
  /** The first memory, made if there is none. */
  home(): Space;
  /** Space and address of `bytes` for a weight. @throws LowbitError E_DEVICE when memory runs out */
  allocate(bytes: number): { space: Space; address: number };
  /**
   * Runs `items` of a kernel on all threads, a single one on the calling thread.
   * @throws LowbitError E_DEVICE for a worker that died
   */
  work(space: Space, kernel: Kernel, items: number, args: Int32Array, panelBytes: number): void;
  dispose(): void;
  readonly live: boolean;
}

export interface RuntimeOptions {
  readonly features: WasmFeatures;
  readonly pool: Pool | null;
  readonly tune?: boolean;
  /** Most bytes per memory; default 4 GiB. */
  readonly memoryLimit?: number;
}

/** Room kept in a memory for scratch space beside weights. */
const SCRATCH_RESERVE = 64 * 1024 * 1024;

export function createRuntime(options: RuntimeOptions): Runtime {
  const { pool, features } = options;
  const shared = pool !== null;
  const limit = options.memoryLimit ?? 65536 * 65536;
  let spaces: Space[] = [];
  let live = true;
  const outOfMemory = (bytes: number): LowbitError =>
    new LowbitError(
      "E_DEVICE",
      `WebAssembly memory: expected ${bytes} bytes, got none (a memory holds at most ${limit}). Split the weight by rows, or dispose of others.`,
    );

  const addSpace = (): Space => {
    const arena = createArena(shared, limit);
    const instances = new Map<number, Record<string, WasmFunction>>();
    const blocks = new Map<string, { address: number; bytes: number }>();
    let moves = 0;
    let block = new Int32Array(0);
    const space: Space = {
      index: spaces.length,
      arena,
      record: null,
      get moves() {
        return moves;
      },
      argumentBlock(bytes) {
        const address = space.scratch("arguments", bytes);
        const { buffer } = arena.memory;
        if (block.buffer !== buffer || block.byteOffset !== address || block.byteLength !== bytes)
          block = new Int32Array(buffer, address, bytes / 4);
        return block;
      },
      get buffer() {
        return arena.memory.buffer;
      },
      exports(k) {
        let found = instances.get(k.id);
        if (found === undefined) {
          found = new engine.Instance(k.module, { m: { m: arena.memory } }).exports;
          instances.set(k.id, found);
        }
        return found;
      },
      scratch(name, bytes) {
        const known = blocks.get(name);
        if (known !== undefined && known.bytes >= bytes) return known.address;
        if (known !== undefined) arena.free(known.address);
        blocks.delete(name);
        const address = arena.allocate(bytes);
        if (address === 0) throw outOfMemory(bytes);
        blocks.set(name, { address, bytes });
        moves++;
        return address;
      },
    };
    spaces.push(space);
    pool?.addMemory(space.index, arena.memory);
    return space;
  };

  return {
    features,
    shared,
    threads: pool === null ? 1 : pool.threads,
    pool,
    tune: options.tune === true,
    get spaces() {
      return spaces;
    },
    get live() {
      return live;
    },
    home: () => (spaces.length > 0 ? spaces[0] : addSpace()),
    allocate(bytes) {
      // a weight that would leave no room for activations goes to a memory of its own
      for (const space of spaces) {
        if (space.arena.used + bytes + Math.min(SCRATCH_RESERVE, limit / 4) > limit) continue;
        const address = space.arena.allocate(bytes);
        if (address !== 0) return { space, address };
      }
      if (bytes + Math.min(SCRATCH_RESERVE, limit / 4) > limit || (pool !== null && spaces.length > 0 && !pool.manyMemories))
        throw outOfMemory(bytes);
      const space = addSpace();
      const address = space.arena.allocate(bytes);
      if (address === 0) throw outOfMemory(bytes);
      return { space, address };
    },
    work(space, k, items, args, panelBytes) {
      // also where this thread alone works: a worker that was given up may still write to memory that is in use
      pool?.check();
      const threads = pool === null || items === 1 ? 1 : pool.threads;
      space.record?.push({ kernel: k, items, args, panelBytes });
      const panelStride = Math.ceil(panelBytes / 64) * 64;
      const panels = panelBytes === 0 ? 0 : space.scratch("panels", panelStride * threads);
      const own = space.exports(k);
      // last: whatever takes memory may end a view. As large as a job of all threads needs, so that it stays one block
      // and one view, and a job allocates nothing
      const block = space.argumentBlock(jobBytes(pool === null ? 1 : pool.threads));
      const at = block.byteOffset;
      writeJob(block, args, items, threads);
      if (pool === null || threads === 1) own.work(at, panels, 0);
      else pool.run(space, k, at, panels, panelStride, own.work);
    },
    dispose() {
      if (!live) return;
      live = false;
      spaces = [];
      pool?.close();
    },
  };
}
