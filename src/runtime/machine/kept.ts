// Keys or values of a sequence that stay where they are in the backend's memory: [heads][room][size], of which the
// first tokens are in use. Attention reads them in place; whatever else reads them gets a copy.
import type { EngineMemory, Region } from "../../backends/wasm/memory.ts";
import type { Value } from "../value.ts";

/** A value [1, heads, tokens, size] of float32 whose heads lie `room` tokens apart. Its `data` is a copy. */
export interface Kept extends Value {
  readonly address: undefined;
  readonly at: number;
  readonly room: number;
}

export const isKept = (value: Value | undefined): value is Kept => (value as Partial<Kept> | undefined)?.room !== undefined;

/** Tokens that there is room for at first. */
const FIRST = 64;

export interface KeptCache {
  readonly bytes: number;
  /** The first `tokens` of it. */
  value(tokens: number): Kept;
  /** Writes tokens [1, heads, count, size] after `past` others. @throws LowbitError E_DEVICE where memory runs out */
  append(past: number, given: Value): void;
  free(): void;
}

/** @param most tokens that it will ever hold */
export function keptCache(memory: EngineMemory, heads: number, size: number, most: number): KeptCache {
  let region: Region | null = null;
  let room = 0;
  const rows = (from: Region, space: number, head: number, tokens: number): Float32Array =>
    memory.floats(from.address + 4 * head * space * size, tokens * size);
  const grow = (past: number, total: number): void => {
    if (total <= room) return;
    const wider = Math.max(total, Math.min(most, Math.max(FIRST, 2 * room)));
    const next = memory.allocate(4 * heads * wider * size);
    const old = region;
    if (old !== null) for (let h = 0; h < heads; h++) rows(next, wider, h, past).set(rows(old, room, h, past));
    old?.free();
    [region, room] = [next, wider];
  };
  return {
    get bytes() {
      return region?.bytes ?? 0;
    },
    // where it lies is asked when it is read: a later token may have moved it
    value: (tokens) => ({
      type: "float32",
      dims: [1, heads, tokens, size],
      address: undefined,
      get at() {
        return region?.address ?? 0;
      },
      get room() {
        return room;
      },
      get data() {
        const all = new Float32Array(heads * tokens * size);
        if (region !== null) for (let h = 0; h < heads; h++) all.set(rows(region, room, h, tokens), h * tokens * size);
        return all;
      },
    }),
    append(past, given) {
      const count = given.dims[2];
      grow(past, past + count);
      if (count === 0) return;
      // after memory may have grown: a view before would have ended
      const data = given.data as Float32Array;
      for (let h = 0; h < heads; h++)
        memory
          .floats(region!.address + 4 * (h * room + past) * size, count * size)
          .set(data.subarray(h * count * size, (h + 1) * count * size));
    },
    free() {
      region?.free();
      region = null;
      room = 0;
    },
  };
}
