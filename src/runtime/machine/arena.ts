// The arena of activations: blocks in a backend's memory that values live in from the step that makes them to the last
// one that reads them. It keeps what it has taken from the backend until it is disposed of, so that addresses stay
// good: a recorded run can be repeated.
import type { EngineMemory, Region } from "../../backends/wasm/memory.ts";

export interface Arena {
  /** Bytes taken from the backend. */
  readonly bytes: number;
  /** Address of a block, a multiple of 64. @throws LowbitError E_DEVICE */
  allocate(bytes: number): number;
  free(address: number): void;
  /** What is free: addresses and bytes, by turns, ascending. */
  ranges(): readonly number[];
  dispose(): void;
}

const ALIGN = 64;
/** The least that is taken at once. */
const STEP = 1 << 20;

interface Range {
  at: number;
  size: number;
}

export function createArena(memory: EngineMemory): Arena {
  const regions: Region[] = [];
  const sizes = new Map<number, number>();
  /** Ascending, never adjacent within a region. */
  let free: Range[] = [];
  const give = (at: number, size: number): void => {
    let i = free.findIndex((range) => range.at > at);
    if (i < 0) i = free.length;
    const [before, after] = [free[i - 1], free[i]];
    if (before !== undefined && before.at + before.size === at) {
      before.size += size;
      if (after !== undefined && before.at + before.size === after.at) {
        before.size += after.size;
        free.splice(i, 1);
      }
    } else if (after !== undefined && at + size === after.at) {
      after.at = at;
      after.size += size;
    } else free.splice(i, 0, { at, size });
  };
  return {
    get bytes() {
      return regions.reduce((sum, region) => sum + region.bytes, 0);
    },
    allocate(bytes) {
      const size = Math.max(ALIGN, Math.ceil(bytes / ALIGN) * ALIGN);
      // the smallest that fits: large blocks stay whole
      let best: Range | undefined;
      for (const range of free) if (range.size >= size && (best === undefined || range.size < best.size)) best = range;
      if (best === undefined) {
        const region = memory.allocate(Math.max(size, STEP));
        regions.push(region);
        give(region.address, Math.max(size, STEP));
        best = free.find((range) => range.at <= region.address && range.at + range.size >= region.address + size)!;
      }
      const { at } = best;
      best.at += size;
      best.size -= size;
      if (best.size === 0) free = free.filter((range) => range !== best);
      sizes.set(at, size);
      return at;
    },
    free(address) {
      const size = sizes.get(address);
      if (size === undefined) throw new RangeError(`arena: ${address} is no block`);
      sizes.delete(address);
      give(address, size);
    },
    ranges: () => free.flatMap(({ at, size }) => [at, size]),
    dispose() {
      for (const region of regions) region.free();
      regions.length = 0;
      free = [];
      sizes.clear();
    },
  };
}
