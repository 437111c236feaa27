// After a scan: the candidates of all threads become one list per query, cut to the best, and where a later stage holds
// the vectors as the scan kernel reads them, they are scored again by it and cut to the best of that. One item is one
// query, or a part of the list of one.
import { ModuleBuilder, type Emit, type FunctionBuilder, type FunctionRef, type Local } from "../engine/asm.ts";
import { family } from "../engine/family.ts";
import { writeWork } from "../engine/items.ts";
import { SCAN_ROWS, type ScanSpec } from "./layout.ts";
import { writeSums } from "./sums.ts";
import { STATE, writeTopK } from "./topk.ts";

export interface RankSpec {
  /** null: only merge. Else products of kind dot, of a style whose query has no offset, or of kind hamming. */
  readonly rescore: ScanSpec | null;
  readonly shared: boolean;
}

/**
 * Arguments, words. States lie [slot][query]; the list of a query becomes that of slot 0. chunks: for each run of rows
 * CHUNK_BYTES, its first row and the addresses of codes, factors and offsets, by row. query: as a scan by `rescore`
 * reads it. results: states as [part][query]; parts more than one only where there is one slot.
 */
export const RANK_ARGUMENTS = [
  "queries", "slots", "states", "stateBytes", "chunks", "chunkCount", "query", "queryBytes", "results", "resultBytes", "parts",
] as const; // prettier-ignore
type RankArgument = (typeof RANK_ARGUMENTS)[number];

export const CHUNK_BYTES = 16;

/** Bytes that caches fetch at once. */
const LINE = 64;

const keyOf = (f: FunctionBuilder, state: Local, i: Local): Emit => f.op("i32.add", state, f.op("i32.shl", i, f.i32(3)));

/** Row number `i` of a list. */
const rowOf = (f: FunctionBuilder, state: Local, i: Local): Emit => {
  const rows = f.op("i32.add", state, f.op("i32.shl", f.load("i32.load", state, STATE.limit), f.i32(3)));
  return f.load("i32.load", f.op("i32.add", rows, f.op("i32.shl", i, f.i32(2))), STATE.keys);
};

/**
 * rescore(args, from, query, into, part): scores the rows of a part of a list again, four at a time, and offers them to
 * another.
 */
function writeRescore(m: ModuleBuilder, spec: ScanSpec, offer: FunctionRef): FunctionRef {
  return m.func(null, ["i32", "i32", "i32", "i32", "i32"], [], (f) => {
    const [args, from, query, into, part] = [0, 1, 2, 3, 4].map((i) => f.param(i));
    const field = (name: RankArgument): Emit => f.load("i32.load", args, 4 * RANK_ARGUMENTS.indexOf(name));
    const [i, last, at, row, chunk, local, touched] = f.locals("i32", 7);
    const p = f.locals("i32", SCAN_ROWS);
    const [score, factors, offsets] = f.locals("v128", 3);
    const sums = writeSums(f, spec, p, query, score, f.get(f.constant32(0)));
    /** Row `at` of the list as lane `lane`: its address, factor and offset. */
    const place = (lane: number): void => {
      f.set(row, rowOf(f, from, at));
      const end = f.op("i32.mul", f.op("i32.sub", field("chunkCount"), f.i32(1)), f.i32(CHUNK_BYTES));
      f.set(chunk, f.op("i32.add", field("chunks"), end));
      f.while(f.op("i32.lt_u", row, f.load("i32.load", chunk)), () => f.bump(chunk, -CHUNK_BYTES));
      f.set(local, f.op("i32.sub", row, f.load("i32.load", chunk)));
      f.set(p[lane], f.op("i32.add", f.load("i32.load", chunk, 4), f.op("i32.mul", local, f.i32(spec.stride))));
      const word = (table: number): Emit => f.op("i32.add", f.load("i32.load", chunk, table), f.op("i32.shl", local, f.i32(2)));
      f.set(factors, f.loadLane("v128.load32_lane", word(8), 0, lane, factors));
      if (spec.offset) f.set(offsets, f.loadLane("v128.load32_lane", word(12), 0, lane, offsets));
    };
    const eachLane = (then: (lane: number) => void): void => {
      for (let lane = 0; lane < SCAN_ROWS; lane++) {
        f.set(at, f.op("i32.add", i, f.i32(lane)));
        then(lane);
      }
    };
    const count = f.load("i32.load", from, STATE.count);
    const share = f.op("i32.div_u", f.op("i32.add", count, f.op("i32.sub", field("parts"), f.i32(1))), field("parts"));
    f.set(i, f.op("i32.mul", part, share));
    f.set(last, f.op("i32.add", i, share));
    f.set(last, f.op("i32.sub", f.op("select", last, count, f.op("i32.lt_u", last, count)), f.i32(1)));
    // rows lie anywhere: all are asked for before the first is needed, so that misses are waited for together
    f.set(at, i);
    f.set(touched, f.i32(0));
    f.while(f.op("i32.le_s", at, last), () => {
      place(0);
      for (let line = 0; line < spec.stride; line += LINE) f.set(touched, f.op("i32.add", touched, f.load("i32.load8_u", p[0], line)));
      f.bump(at, 1);
    });
    f.store("i32.store", into, STATE.scores, touched);
    f.while(f.op("i32.le_s", i, last), () => {
      eachLane((lane) => {
        // lanes beyond the list repeat its last row
        f.set(at, f.op("select", at, last, f.op("i32.lt_s", at, last)));
        place(lane);
      });
      sums();
      f.set(score, f.op("f32x4.mul", score, factors));
      if (spec.offset) f.set(score, f.op("f32x4.add", score, offsets));
      eachLane((lane) =>
        f.if(f.op("i32.le_s", at, last), () => {
          const id = f.op("i32.xor", f.load("i32.load", keyOf(f, from, at), STATE.keys), f.i32(-1));
          f.run(f.call(offer, into, f.lane("f32x4.extract_lane", lane, score), id, rowOf(f, from, at)));
        }),
      );
      f.bump(i, SCAN_ROWS);
    });
  });
}

/** A module whose `work` ranks. */
export function rankModule(spec: RankSpec): Uint8Array<ArrayBuffer> {
  const m = new ModuleBuilder({ shared: spec.shared });
  const { offer, enter, cut } = writeTopK(m);
  const rescore = spec.rescore === null ? null : writeRescore(m, spec.rescore, offer);
  writeWork(m, (f, args) => {
    const field = (name: RankArgument): Emit => f.load("i32.load", args, 4 * RANK_ARGUMENTS.indexOf(name));
    const [own, other, slot, result, query, i, part, number] = f.locals("i32", 8);
    return (whole) => {
      f.set(part, f.op("i32.div_u", whole, field("queries")));
      f.set(number, f.op("i32.rem_u", whole, field("queries")));
      const item = number;
      f.set(own, f.op("i32.add", field("states"), f.op("i32.mul", item, field("stateBytes"))));
      f.set(other, own);
      f.set(slot, f.i32(1));
      f.while(f.op("i32.lt_u", slot, field("slots")), () => {
        f.set(other, f.op("i32.add", other, f.op("i32.mul", field("queries"), field("stateBytes"))));
        f.set(i, f.i32(0));
        f.while(f.op("i32.lt_u", i, f.load("i32.load", other, STATE.count)), () => {
          f.run(f.call(enter, own, f.load("i64.load", keyOf(f, other, i), STATE.keys), rowOf(f, other, i)));
          f.bump(i, 1);
        });
        f.bump(slot, 1);
      });
      // a list that is taken in parts is a joined one
      f.if(f.op("i32.eq", field("parts"), f.i32(1)), () => f.run(f.call(cut, own)));
      if (rescore === null) return;
      f.set(result, f.op("i32.add", field("results"), f.op("i32.mul", whole, field("resultBytes"))));
      f.set(query, f.op("i32.add", field("query"), f.op("i32.mul", item, field("queryBytes"))));
      f.run(f.call(rescore, args, own, query, result, part));
      f.run(f.call(cut, result));
    };
  });
  return m.bytes();
}

export const rank = family("search-rank", rankModule);
