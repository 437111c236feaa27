// Keys or values of a sequence that stay where they are in the backend's memory: [heads][room][size], of which the
// first tokens are in use. Attention reads them in place; whatever else reads them gets a copy.
import type { EngineMemory, Region } from "../../backends/wasm/memory.ts";
import { TensorProto_DataType } from "../../onnx/file/gen/onnx_pb.ts";
import { roundTo, type Value } from "../value.ts";

/** A value [1, heads, tokens, size] of float32 in a cache. Its `data` is a copy, good for as long as it is held. */
export interface Kept extends Value {
  readonly cache: KeptCache;
}

/** Whether a value lies in a cache that is still in the backend's memory. */
export const isKept = (value: Value | undefined): value is Kept => (value as Partial<Kept> | undefined)?.cache?.room !== undefined;

/** Tokens that there is room for at first. */
const FIRST = 64;

export interface KeptCache {
  readonly heads: number;
  readonly size: number;
  readonly bytes: number;
  readonly address: number;
  /** Tokens from a head to the next; undefined once it was given back. */
  readonly room: number | undefined;
  /** Its first `tokens`. */
  value(tokens: number): Kept;
  /** Makes room for `total` tokens, of which `past` are kept. @throws LowbitError E_DEVICE where memory runs out */
  reserve(past: number, total: number): void;
  /** Writes tokens [1, heads, count, size] after `past` others. @throws LowbitError E_DEVICE where memory runs out */
  append(past: number, given: Value): void;
  /** Rounds tokens from `from` to `to` to values of float16. */
  round(from: number, to: number): void;
  /** Gives the memory back; `keep` tokens stay readable by the values that were made of them. */
  free(keep?: number): void;
}

/** @param most tokens that it will ever hold */
export function keptCache(memory: EngineMemory, heads: number, size: number, most = Infinity): KeptCache {
  let region: Region | null = null;
  let room: number | undefined = 0;
  let stored: { readonly data: Float32Array; readonly tokens: number } | null = null;
  const rows = (from: Region, space: number, head: number, tokens: number): Float32Array =>
    memory.floats(from.address + 4 * head * space * size, tokens * size);
  const copy = (tokens: number): Float32Array => {
    const all = new Float32Array(heads * tokens * size);
    for (let h = 0; h < heads; h++) {
      const at = stored === null ? undefined : h * stored.tokens * size;
      if (at !== undefined) all.set(stored!.data.subarray(at, at + tokens * size), h * tokens * size);
      else if (region !== null) all.set(rows(region, room!, h, tokens), h * tokens * size);
    }
    return all;
  };
  const cache: KeptCache = {
    heads,
    size,
    get bytes() {
      return region?.bytes ?? 0;
    },
    get address() {
      return region?.address ?? 0;
    },
    get room() {
      return room;
    },
    value: (tokens) => ({
      type: "float32",
      dims: [1, heads, tokens, size],
      cache,
      get data() {
        return copy(tokens);
      },
    }),
    reserve(past, total) {
      if (total <= room!) return;
      const wider = Math.max(total, Math.min(most, Math.max(FIRST, 2 * room!)));
      const next = memory.allocate(4 * heads * wider * size);
      const old = region;
      if (old !== null) for (let h = 0; h < heads; h++) rows(next, wider, h, past).set(rows(old, room!, h, past));
      old?.free();
      [region, room] = [next, wider];
    },
    append(past, given) {
      const count = given.dims[2];
      cache.reserve(past, past + count);
      if (count === 0) return;
      // after memory may have grown: a view before would have ended
      const data = given.data as Float32Array;
      for (let h = 0; h < heads; h++)
        memory
          .floats(region!.address + 4 * (h * room! + past) * size, count * size)
          .set(data.subarray(h * count * size, (h + 1) * count * size));
    },
    round(from, to) {
      for (let h = 0; h < heads && from < to; h++) {
        const own = memory.floats(region!.address + 4 * (h * room! + from) * size, (to - from) * size);
        own.set(roundTo(own, TensorProto_DataType.FLOAT16));
      }
    },
    free(keep = 0) {
      if (room === undefined) return;
      if (keep > 0) stored = { data: copy(keep), tokens: keep };
      region?.free();
      region = null;
      room = undefined;
    },
  };
  return cache;
}
