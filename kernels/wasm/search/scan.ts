// Scans packed vectors, row by row as they are stored, against queries, and keeps the best: score = (sum of products) *
// factor of the row + offset of the row. Row-major codes, dense, least significant bit first, each row padded to whole
// vectors of 16 bytes; the query is laid out to fit them: for every vector of codes and every field of its bytes the 16
// query values that meet it.
//
//   dot      integer codes of 1, 2, 4 or 8 bits times a query of one or two integer planes (the second holds what the
//            first leaves)
//   hamming  1-bit codes against a 1-bit query
//   float    rows of float32, or of floats of 8 and 16 bits, times a float32 query; float32 also for formats that are
//            decoded panel by panel
//
// Work is shared out in items of rows; within one, every query passes over its rows while they are in the cache. The
// four rows that are computed together lie a quarter of an item apart: four streams come from memory 1.3 to 1.7 times
// as fast as one. With a filter, a bit for each row, they are neighbours, so that blocks which it leaves out are not
// read.
import { ModuleBuilder, type Emit, type FunctionBuilder, type FunctionRef, type Local } from "../engine/asm.ts";
import { family } from "../engine/family.ts";
import { writeWork } from "../engine/items.ts";
import { SCAN_ARGUMENTS, SCAN_ROWS, type ScanArgument, type ScanSpec } from "./layout.ts";
import { writeDiffering, writeSums } from "./sums.ts";
import { STATE, writeTopK } from "./topk.ts";

/** enter(args, state, score, row): offers a row. */
function writeEnter(m: ModuleBuilder, offer: FunctionRef): FunctionRef {
  return m.func(null, ["i32", "i32", "f32", "i32"], [], (f) => {
    const [args, state, score, row] = [0, 1, 2, 3].map((i) => f.param(i));
    const [ids, id] = f.locals("i32", 2);
    const field = fields(f, args);
    f.if(f.op("i32.lt_u", row, field("rows")), () => {
      const number = f.op("i32.add", field("firstRow"), row);
      f.set(ids, field("ids"));
      f.if(
        ids,
        () => f.set(id, f.load("i32.load", f.op("i32.add", ids, f.op("i32.shl", row, f.i32(2))))),
        () => f.set(id, number),
      );
      f.run(f.call(offer, state, score, id, number));
    });
  });
}

const fields =
  (f: FunctionBuilder, args: Local) =>
  (name: ScanArgument): Emit =>
    f.load("i32.load", args, 4 * SCAN_ARGUMENTS.indexOf(name));

/** What a block of four rows is given. */
interface Block {
  readonly f: FunctionBuilder;
  readonly spec: ScanSpec;
  readonly args: Local;
  readonly query: Local;
  readonly state: Local;
  /** Addresses of the codes of four rows. */
  readonly p: readonly Local[];
  /** The first of them, and rows between them. */
  readonly row: Local;
  readonly gap: Local;
  /** Which of them may be found. */
  readonly bits: Local;
  readonly enter: FunctionRef;
}

/** Offers row `lane` of a block. */
const enterLane = ({ f, args, state, row, gap, enter }: Block, lane: number, score: Emit): void =>
  f.run(f.call(enter, args, state, score, lane === 0 ? row : f.op("i32.add", row, f.op("i32.mul", gap, f.i32(lane)))));

/** Products of four rows, compared at once. */
function productBlock(b: Block): { begin: () => void; block: () => void } {
  const { f, spec, args, query, state, p, row, gap, bits } = b;
  const [score, gathered] = f.locals("v128", 2);
  const [word, distance] = f.locals("i32", 2);
  const field = fields(f, args);
  /** A word of each of the four rows. */
  const gather = (name: "factors" | "offsets" | "sums"): Emit => {
    return () => {
      f.set(word, f.op("i32.add", field(name), f.op("i32.shl", row, f.i32(2))));
      f.set(gathered, f.load("v128.load32_zero", word));
      for (let lane = 1; lane < SCAN_ROWS; lane++) {
        f.bump(word, distance);
        f.set(gathered, f.loadLane("v128.load32_lane", word, 0, lane, gathered));
      }
      f.run(gathered);
    };
  };
  const sums = writeSums(f, spec, p, query, score, gather("sums"));
  const block = (): void => {
    sums();
    f.set(score, f.op("f32x4.mul", score, gather("factors")));
    if (spec.offset) f.set(score, f.op("f32x4.add", score, gather("offsets")));
    const reached = f.op("i32x4.bitmask", f.op("f32x4.ge", score, f.load("v128.load32_splat", state, STATE.threshold)));
    f.set(bits, f.op("i32.and", bits, reached));
    f.if(bits, () => {
      for (let lane = 0; lane < SCAN_ROWS; lane++)
        f.if(f.op("i32.and", bits, f.i32(1 << lane)), () => enterLane(b, lane, f.lane("f32x4.extract_lane", lane, score)));
    });
  };
  return { begin: () => f.set(distance, f.op("i32.shl", gap, f.i32(2))), block };
}

/** Blocks that a scan of bits leaves out at once. */
const SKIPPED = 2;

/** Differing bits of four rows, one after the other. */
function hammingBlock(b: Block): { begin: () => void; block: () => void; skip?: (left: Local) => void } {
  const { f, spec, args, query, state, p, row, gap, bits } = b;
  const differing = writeDiffering(f, spec, query);
  const [count, limit, within] = f.locals("i32", 3);
  const [score, factor] = f.locals("f32", 2);
  const field = fields(f, args);
  const product = (): Emit =>
    f.op(
      "f32.mul",
      f.op("f32.convert_i32_s", f.op("i32.sub", f.op("i32.shl", count, f.i32(1)), f.load("i32.load", query, 4))),
      f.load("f32.load", query),
    );
  /** The most bits with which a row can reach the threshold, one more for rounding. */
  const setLimit = (): void => {
    const bitsOf = f.op("f32.div", f.load("f32.load", state, STATE.threshold), f.op("f32.mul", factor, f.load("f32.load", query)));
    const half = f.op("f32.mul", f.op("f32.add", bitsOf, f.op("f32.convert_i32_s", f.load("i32.load", query, 4))), f.f32(0.5));
    f.set(score, f.op("f32.add", half, f.f32(1)));
    f.set(score, f.op("select", score, f.f32(1e9), f.op("f32.lt", score, f.f32(1e9))));
    f.set(limit, f.op("i32.trunc_f32_s", f.op("f32.max", score, f.f32(-1))));
  };
  const begin = (): void => {
    differing.begin();
    if (!spec.flat) return;
    f.set(factor, f.load("f32.load", field("factors")));
    setLimit();
  };
  const lane = (l: number): void => {
    f.set(count, differing.count(p[l]));
    const allowed = (then: () => void): void => f.if(f.op("i32.and", bits, f.i32(1 << l)), then);
    if (spec.flat) {
      f.if(f.op("i32.le_s", count, limit), () =>
        allowed(() => {
          enterLane(b, l, f.op("f32.mul", product(), factor));
          setLimit();
        }),
      );
      return;
    }
    const word = (name: "factors" | "offsets"): Emit => {
      const at = l === 0 ? f.get(row) : f.op("i32.add", row, f.op("i32.mul", gap, f.i32(l)));
      return f.load("f32.load", f.op("i32.add", field(name), f.op("i32.shl", at, f.i32(2))));
    };
    f.set(score, f.op("f32.mul", product(), word("factors")));
    if (spec.offset) f.set(score, f.op("f32.add", score, word("offsets")));
    f.if(f.op("f32.ge", score, f.load("f32.load", state, STATE.threshold)), () => allowed(() => enterLane(b, l, f.get(score))));
  };
  /**
   * To a block before or with the next row within the limit, or to the last one: nearly all of a scan, in registers.
   */
  const skip = (left: Local): void => {
    const more = f.op("i32.gt_s", left, f.i32(SKIPPED));
    f.if(more, () => {
      f.set(row, f.op("i32.add", row, left));
      f.doWhile(
        () => {
          // negative where all rows of these blocks lie beyond the limit
          for (let block = 0; block < SKIPPED; block++)
            p.forEach((at, l) => {
              const spare = f.op("i32.sub", limit, differing.count(at, block * spec.stride));
              f.set(within, block + l === 0 ? spare : f.op("i32.and", within, spare));
            });
          for (const at of p) f.bump(at, SKIPPED * spec.stride);
          f.bump(left, -SKIPPED);
        },
        f.op("i32.and", f.op("i32.shr_s", within, f.i32(31)), more),
      );
      f.if(f.op("i32.ge_s", within, f.i32(0)), () => {
        for (const at of p) f.bump(at, -SKIPPED * spec.stride);
        f.bump(left, SKIPPED);
      });
      f.set(row, f.op("i32.sub", row, left));
    });
  };
  return { begin, block: () => p.forEach((_, l) => lane(l)), ...(spec.flat ? { skip } : {}) };
}

/** scan(args, query, state, row, end): rows from a multiple of eight on, against one query. */
function writeScan(m: ModuleBuilder, spec: ScanSpec, enter: FunctionRef): FunctionRef {
  return m.func(null, ["i32", "i32", "i32", "i32", "i32"], [], (f) => {
    const [args, query, state, row, end] = [0, 1, 2, 3, 4].map((i) => f.param(i));
    const p = f.locals("i32", SCAN_ROWS);
    const [mask, bits, left, gap, step] = f.locals("i32", 5);
    const field = fields(f, args);
    const common: Block = { f, spec, args, query, state, p, row, gap, bits, enter };
    const { begin, block, skip = null } = spec.kind === "hamming" ? hammingBlock(common) : { ...productBlock(common) };
    f.set(mask, field("mask"));
    f.set(left, f.op("i32.shr_u", f.op("i32.add", f.op("i32.sub", end, row), f.i32(SCAN_ROWS - 1)), f.i32(2)));
    f.set(gap, f.op("select", f.i32(1), left, mask));
    f.set(step, f.op("select", f.i32(SCAN_ROWS), f.i32(1), mask));
    const stride = f.i32(spec.stride);
    p.forEach((at, lane) => {
      if (lane === 0) f.set(at, f.op("i32.add", field("codes"), f.op("i32.mul", row, stride)));
      else f.set(at, f.op("i32.add", p[lane - 1], f.op("i32.mul", gap, stride)));
    });
    begin();
    f.while(left, () => {
      if (skip !== null) f.if(f.op("i32.eqz", mask), () => skip(left));
      f.set(bits, f.i32(15));
      f.if(mask, () => {
        const byte = f.load("i32.load8_u", f.op("i32.add", mask, f.op("i32.shr_u", row, f.i32(3))));
        f.set(bits, f.op("i32.and", f.op("i32.shr_u", byte, f.op("i32.and", row, f.i32(4))), f.i32(15)));
      });
      f.if(bits, block);
      for (const at of p) f.bump(at, f.op("i32.mul", step, stride));
      f.bump(row, step);
      f.bump(left, -1);
    });
  });
}

/**
 * A module whose `work` scans; its arguments are SCAN_ARGUMENTS. Each thread takes the next slot of states when it
 * begins.
 */
export function scanModule(spec: ScanSpec): Uint8Array<ArrayBuffer> {
  const m = new ModuleBuilder({ shared: spec.shared });
  const { offer } = writeTopK(m);
  const scan = writeScan(m, spec, writeEnter(m, offer));
  writeWork(m, (f, args) => {
    const field = fields(f, args);
    const [own, from, to, left, query, state] = f.locals("i32", 6);
    const slot = f.atomic("i32.atomic.rmw.add", field("slots"), 0, f.i32(1));
    f.set(own, f.op("i32.add", field("states"), f.op("i32.mul", slot, f.op("i32.mul", field("queries"), field("stateBytes")))));
    return (item) => {
      f.set(from, f.op("i32.mul", item, field("itemRows")));
      f.set(to, f.op("i32.add", from, field("rowsPerItem")));
      f.set(to, f.op("select", to, field("rows"), f.op("i32.lt_u", to, field("rows"))));
      f.set(left, field("queries"));
      f.set(query, field("query"));
      f.set(state, own);
      f.doWhile(() => {
        f.run(f.call(scan, args, query, state, from, to));
        f.set(query, f.op("i32.add", query, field("queryBytes")));
        f.set(state, f.op("i32.add", state, field("stateBytes")));
        f.bump(left, -1);
      }, left);
    };
  });
  return m.bytes();
}

export const scan = family("scan", scanModule);
