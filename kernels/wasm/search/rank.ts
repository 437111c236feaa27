// After a scan: the candidates of all threads become one list per query, cut to the best, and where a later stage holds
// the vectors as bytes with a factor each, they are scored again by it with the query in float32 and cut to the best of
// that. One item is one query.
import { ModuleBuilder, type Emit, type FunctionBuilder, type FunctionRef, type Local } from "../engine/asm.ts";
import { family } from "../engine/family.ts";
import { writeWork } from "../engine/items.ts";
import { foldLanes } from "../nn/rows.ts";
import { STATE, writeTopK } from "./topk.ts";

export interface RankSpec {
  /**
   * null: only merge. Else how bytes of the later stage are integers: two's complement once these bits are turned over.
   */
  readonly rescore: { readonly flip: number; readonly vectors: number; readonly stride: number; readonly offset: boolean } | null;
  readonly shared: boolean;
}

/**
 * Arguments, words. States lie [slot][query]; the list of a query becomes that of slot 0. chunks: for each run of rows
 * its first row and the addresses of codes, factors and offsets, 16 bytes, by row. query: float32, padded to whole
 * vectors of 16. results: a state for each query.
 */
export const RANK_ARGUMENTS = [
  "queries", "slots", "states", "stateBytes", "chunks", "chunkCount", "query", "queryBytes", "results", "resultBytes",
] as const; // prettier-ignore
type RankArgument = (typeof RANK_ARGUMENTS)[number];

export const CHUNK_BYTES = 16;

/** dot(codes, query): the sum of products of a row of bytes with a float32 query. */
function writeDot(m: ModuleBuilder, flip: number, vectors: number): FunctionRef {
  return m.func(null, ["i32", "i32"], ["f32"], (f) => {
    const [p, q] = [0, 1].map((i) => f.param(i));
    const [x, low, high] = f.locals("v128", 3);
    const acc = f.locals("v128", 4);
    const left = f.local("i32");
    f.set(left, f.i32(vectors));
    f.doWhile(() => {
      const bytes = f.load("v128.load", p);
      f.set(x, flip === 0 ? bytes : f.op("v128.xor", bytes, f.constant8(flip)));
      f.set(low, f.op("i16x8.extend_low_i8x16_s", x));
      f.set(high, f.op("i16x8.extend_high_i8x16_s", x));
      [low, high].forEach((half, h) =>
        ["low", "high"].forEach((part, i) => {
          const value = f.op("f32x4.convert_i32x4_s", f.op(`i32x4.extend_${part}_i16x8_s`, half));
          const a = acc[2 * h + i];
          f.set(a, f.op("f32x4.add", a, f.op("f32x4.mul", value, f.load("v128.load", q, 32 * h + 16 * i))));
        }),
      );
      f.bump(p, 16);
      f.bump(q, 64);
      f.bump(left, -1);
    }, left);
    f.set(acc[0], f.op("f32x4.add", f.op("f32x4.add", acc[0], acc[1]), f.op("f32x4.add", acc[2], acc[3])));
    foldLanes(f, "f32x4.add", acc[0]);
    f.run(f.lane("f32x4.extract_lane", 0, acc[0]));
  });
}

/** Calls `each(key address, row)` for the candidates of a state. */
function eachCandidate(f: FunctionBuilder, state: Local, each: (key: Local, row: Emit) => void): void {
  const [left, key, row] = f.locals("i32", 3);
  f.set(left, f.load("i32.load", state, STATE.count));
  f.set(key, state);
  f.set(row, f.op("i32.add", state, f.op("i32.shl", f.load("i32.load", state, STATE.limit), f.i32(3))));
  f.while(left, () => {
    each(key, f.load("i32.load", row, STATE.keys));
    f.bump(key, 8);
    f.bump(row, 4);
    f.bump(left, -1);
  });
}

/** A module whose `work` ranks. */
export function rankModule(spec: RankSpec): Uint8Array<ArrayBuffer> {
  const m = new ModuleBuilder({ shared: spec.shared });
  const { offer, enter, cut } = writeTopK(m);
  const { rescore } = spec;
  const dot = rescore === null ? null : writeDot(m, rescore.flip, rescore.vectors);
  writeWork(m, (f, args) => {
    const field = (name: RankArgument): Emit => f.load("i32.load", args, 4 * RANK_ARGUMENTS.indexOf(name));
    const [own, other, slot, result, query, row, chunk, local] = f.locals("i32", 8);
    const score = f.local("f32");
    return (item) => {
      f.set(own, f.op("i32.add", field("states"), f.op("i32.mul", item, field("stateBytes"))));
      f.set(other, own);
      f.set(slot, f.i32(1));
      f.while(f.op("i32.lt_u", slot, field("slots")), () => {
        f.set(other, f.op("i32.add", other, f.op("i32.mul", field("queries"), field("stateBytes"))));
        eachCandidate(f, other, (key, at) => f.run(f.call(enter, own, f.load("i64.load", key, STATE.keys), at)));
        f.bump(slot, 1);
      });
      f.run(f.call(cut, own));
      if (rescore === null || dot === null) return;
      f.set(result, f.op("i32.add", field("results"), f.op("i32.mul", item, field("resultBytes"))));
      f.set(query, f.op("i32.add", field("query"), f.op("i32.mul", item, field("queryBytes"))));
      eachCandidate(f, own, (key, at) => {
        f.set(row, at);
        f.set(chunk, f.op("i32.add", field("chunks"), f.op("i32.mul", f.op("i32.sub", field("chunkCount"), f.i32(1)), f.i32(CHUNK_BYTES))));
        f.while(f.op("i32.lt_u", row, f.load("i32.load", chunk)), () => f.bump(chunk, -CHUNK_BYTES));
        f.set(local, f.op("i32.sub", row, f.load("i32.load", chunk)));
        const codes = f.op("i32.add", f.load("i32.load", chunk, 4), f.op("i32.mul", local, f.i32(rescore.stride)));
        const word = (at4: number): Emit =>
          f.load("f32.load", f.op("i32.add", f.load("i32.load", chunk, at4), f.op("i32.shl", local, f.i32(2))));
        f.set(score, f.op("f32.mul", f.call(dot, codes, query), word(8)));
        if (rescore.offset) f.set(score, f.op("f32.add", score, word(12)));
        f.run(f.call(offer, result, score, f.op("i32.xor", f.load("i32.load", key, STATE.keys), f.i32(-1)), row));
      });
      f.run(f.call(cut, result));
    };
  });
  return m.bytes();
}

export const rank = family("search-rank", rankModule);
