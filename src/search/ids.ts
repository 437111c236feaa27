// Ids of rows: distinct integers below 2^32 - 1, mostly 0, 1, 2 ..., and which rows are still there. A table from id to
// row is made only where it is needed.
import { LowbitError } from "../../formats/core/errors.ts";

/** 2^32 - 1 is no id: it marks none. */
const END = 0xffffffff;

export interface Ids {
  /** Rows, removed ones included. */
  readonly rows: number;
  /** Vectors that are there. */
  readonly size: number;
  readonly all: Uint32Array;
  /** Bit of each row that is there; null where all are. */
  readonly live: Uint8Array | null;
  has(id: number): boolean;
  /**
   * Checks ids of new vectors.
   * @throws LowbitError E_VALUE for one that is taken or given twice, RangeError for one that is none
   */
  check(ids: ArrayLike<number>): Uint32Array;
  add(ids: Uint32Array): void;
  /** Marks all rows whose bit is not set as removed: right after the first `add`. */
  restore(live: Uint8Array): void;
  /** Marks the row of an id as removed; false where there is none. */
  remove(id: number): boolean;
  /** Rows that may be found: those there, and in the filter where there is one. null: all. */
  mask(filter: Uint8Array | undefined): Uint8Array | null;
}

export function makeIds(): Ids {
  let all = new Uint32Array(0);
  let rows = 0;
  let removed = 0;
  let live: Uint8Array | null = null;
  /** Is every row its own id? */
  let plain = true;
  let table: Map<number, number> | null = null;
  const isLive = (row: number): boolean => live === null || ((live[row >> 3] >> (row & 7)) & 1) === 1;
  const rowOf = (id: number): number => {
    if (plain) return id < rows && isLive(id) ? id : -1;
    if (table === null) {
      table = new Map();
      for (let row = 0; row < rows; row++) if (isLive(row)) table.set(all[row], row);
    }
    return table.get(id) ?? -1;
  };
  const drop = (row: number): void => {
    if (live === null) {
      live = new Uint8Array(Math.ceil(rows / 8)).fill(255);
      if (rows % 8 !== 0) live[live.length - 1] = (1 << (rows % 8)) - 1;
    }
    live[row >> 3] &= ~(1 << (row & 7));
    removed++;
  };
  return {
    get rows() {
      return rows;
    },
    get size() {
      return rows - removed;
    },
    get all() {
      return all.subarray(0, rows);
    },
    get live() {
      return live;
    },
    has: (id) => rowOf(id) >= 0,
    check(ids) {
      const out = new Uint32Array(ids.length);
      let ascending = true;
      for (let i = 0; i < ids.length; i++) {
        const id = ids[i];
        if (!(Number.isInteger(id) && id >= 0 && id < END))
          throw new RangeError(
            `search ids[${i}]: expected an integer from 0 to ${END - 1}, got ${id}. Keep other names in a table of your own.`,
          );
        out[i] = id;
        if (i > 0 && id <= out[i - 1]) ascending = false;
      }
      const twice = (id: number): LowbitError =>
        new LowbitError("E_VALUE", `search ids: expected ids that are new, got ${id} again. Remove it first, or give another.`);
      if (!ascending) {
        const seen = new Set<number>();
        for (const id of out) {
          if (seen.has(id)) throw twice(id);
          seen.add(id);
        }
      }
      if (rows > 0) for (const id of out) if (rowOf(id) >= 0) throw twice(id);
      return out;
    },
    add(ids) {
      const total = rows + ids.length;
      if (total > all.length) {
        const grown = new Uint32Array(rows === 0 ? total : Math.max(total, Math.ceil(1.25 * all.length), 1024));
        grown.set(all.subarray(0, rows));
        all = grown;
      }
      all.set(ids, rows);
      for (let i = 0; i < ids.length; i++) {
        if (ids[i] !== rows + i) {
          if (plain) table = null;
          plain = false;
        }
        table?.set(ids[i], rows + i);
      }
      if (live !== null) {
        const grown: Uint8Array = new Uint8Array(Math.ceil(total / 8));
        grown.set(live);
        for (let row = rows; row < total; row++) grown[row >> 3] |= 1 << (row & 7);
        live = grown;
      }
      rows = total;
    },
    restore(there) {
      for (let row = 0; row < rows; row++) if (((there[row >> 3] >> (row & 7)) & 1) === 0) drop(row);
      table = null;
    },
    remove(id) {
      const row = rowOf(id);
      if (row < 0) return false;
      drop(row);
      table?.delete(id);
      return true;
    },
    mask(filter) {
      if (filter === undefined) return live;
      const out = new Uint8Array(Math.ceil(rows / 8));
      if (plain) out.set(filter.subarray(0, out.length));
      else
        for (let row = 0; row < rows; row++) {
          const id = all[row];
          if (id >>> 3 < filter.length && ((filter[id >>> 3] >> (id & 7)) & 1) === 1) out[row >> 3] |= 1 << (row & 7);
        }
      if (rows % 8 !== 0) out[out.length - 1] &= (1 << (rows % 8)) - 1;
      if (live !== null) for (let i = 0; i < out.length; i++) out[i] &= live[i];
      return out;
    },
  };
}

/**
 * A bitmap of ids for the option `filter`: bit (id mod 8) of byte floor(id / 8).
 * @throws RangeError for what is no id
 * @example
 * idBitmap([0, 9]) // [0b1, 0b10]
 * index.search(query, { k: 5, filter: idBitmap([3, 14, 15]) }).ids.length // 3
 */
export function idBitmap(ids: Iterable<number>): Uint8Array {
  const list = [...ids];
  let most = -1;
  for (const id of list) {
    if (!(Number.isInteger(id) && id >= 0 && id < END))
      throw new RangeError(`idBitmap: expected integers from 0 to ${END - 1}, got ${id}.`);
    most = Math.max(most, id);
  }
  const out = new Uint8Array(Math.ceil((most + 1) / 8));
  for (const id of list) out[id >>> 3] |= 1 << (id & 7);
  return out;
}
