// Decodes bfloat16 weights whose exponents are Huffman codes (formats/core/huffman.ts) on all threads: two rows of
// codes at a time, several symbols by one look-up of 11 bits, then exponents and bytes of sign and mantissa are joined.
// Either as rows, or as the records of a product of 16-bit floats (kernels/wasm/float): 16 rows x pairs of k. Idea:
// DFloat11 (arXiv 2504.11651); a scalar core has long words and quick tables instead of its counting pass.
import { family } from "../engine/family.ts";
import { ModuleBuilder, type Emit, type FunctionBuilder, type FunctionRef, type Local } from "../engine/asm.ts";
import { writeWork } from "../engine/items.ts";
import { COUNTS_AT, LOOKUP_BITS, SYMBOLS_AT } from "./tables.ts";

export interface DecodeSpec {
  readonly output: "rows" | "records";
  readonly shared: boolean;
}

/**
 * Arguments of `work`. An item is 2 rows, or a record block of 16, from row `first` on. `starts`: u32 by row,
 * `stream`, `plain` (sign and mantissa): bytes; `table`: tables.ts. `stride`: bytes of out from row to row, or from
 * block to block; what k leaves of a block is zeros.
 */
export const DECODE_ARGUMENTS = [
  "starts",
  "stream",
  "plain",
  "table",
  "out",
  "rows",
  "k",
  "first",
  "stride",
  "span",
  "groupBytes",
] as const;

/** Look-ups of at most 11 bits that a word of at least 57 holds. */
const TURNS = 5;
/** Symbols that a turn may write beyond a row's end, and what a vector may read there. */
const SLACK = 64;

/** Bytes of exponents of a row in a thread's scratch space. */
export const exponentBytes = (k: number): number => Math.ceil((k + SLACK) / 64) * 64;
/** Scratch of a thread. */
export const decodeScratch = (spec: DecodeSpec, k: number): number => (spec.output === "rows" ? 2 : 4) * exponentBytes(k);

/** A stream at work: `at` is its bit position. */
interface Stream {
  readonly at: Local;
  readonly word: Local;
  readonly used: Local;
  readonly out: Local;
  readonly entry: Local;
}

/** One code bit by bit, from bit `bit` of the byte at `byte` on: symbol + 256 * length. */
function slowCode(m: ModuleBuilder): FunctionRef {
  return m.func(null, ["i32", "i32", "i32"], ["i32"], (f) => {
    const [byte, bit, table] = [0, 1, 2].map((i) => f.param(i));
    const [code, first, index, count, length, found] = f.locals("i32", 6);
    const next = f.op(
      "i32.shr_u",
      f.load("i32.load8_u", f.op("i32.add", byte, f.op("i32.shr_u", bit, f.i32(3)))),
      f.op("i32.and", bit, f.i32(7)),
    );
    f.doWhile(
      () => {
        f.bump(length, 1);
        f.set(code, f.op("i32.or", code, f.op("i32.and", next, f.i32(1))));
        f.bump(bit, 1);
        f.set(count, f.load("i32.load", f.op("i32.add", table, f.op("i32.shl", length, f.i32(2))), COUNTS_AT));
        f.if(
          f.op("i32.lt_u", f.op("i32.sub", code, first), count),
          () => {
            f.set(found, f.op("i32.add", f.op("i32.add", table, index), f.op("i32.sub", code, first)));
            f.set(found, f.op("i32.or", f.load("i32.load8_u", found, SYMBOLS_AT), f.op("i32.shl", length, f.i32(8))));
          },
          () => {
            f.bump(index, count);
            f.set(first, f.op("i32.shl", f.op("i32.add", first, count), f.i32(1)));
            f.set(code, f.op("i32.shl", code, f.i32(1)));
          },
        );
      },
      // a complete code ends within 24 bits; damaged data end too, a bit at a time
      f.op("i32.and", f.op("i32.eqz", found), f.op("i32.lt_u", length, f.i32(24))),
    );
    f.run(f.op("i32.or", found, f.op("i32.shl", f.op("i32.eqz", found), f.i32(8))));
  });
}

/** Decodes k exponents of two rows: (stream a, stream b, table, out a, out b, k). */
function pairDecoder(m: ModuleBuilder, slow: FunctionRef): FunctionRef {
  return m.func(null, ["i32", "i32", "i32", "i32", "i32", "i32"], [], (f) => {
    const [startA, startB, table, outA, outB, k] = [0, 1, 2, 3, 4, 5].map((i) => f.param(i));
    const [baseA, baseB, endA, endB] = f.locals("i32", 4);
    const stream = (out: Local): Stream => ({
      at: f.local("i32"),
      word: f.local("i64"),
      used: f.local("i32"),
      out,
      entry: f.local("i64"),
    });
    const [a, b] = [stream(outA), stream(outB)];
    f.set(baseA, startA);
    f.set(baseB, startB);
    f.set(endA, f.op("i32.add", outA, k));
    f.set(endB, f.op("i32.add", outB, k));
    const fill = (s: Stream, base: Local): void => {
      const address = f.op("i32.add", base, f.op("i32.shr_u", s.at, f.i32(3)));
      f.set(s.word, f.op("i64.shr_u", f.load("i64.load", address), f.op("i64.extend_i32_u", f.op("i32.and", s.at, f.i32(7)))));
    };
    const turn = (s: Stream): void => {
      const index = f.op("i32.shl", f.op("i32.and", f.op("i32.wrap_i64", s.word), f.i32(2 ** LOOKUP_BITS - 1)), f.i32(3));
      f.set(s.entry, f.load("i64.load", f.op("i32.add", table, index)));
      f.store("i64.store", s.out, 0, s.entry);
      f.set(s.used, f.op("i32.wrap_i64", f.op("i64.shr_u", s.entry, f.op("i64.extend_i32_u", f.i32(48)))));
      f.set(s.word, f.op("i64.shr_u", s.word, f.op("i64.extend_i32_u", f.op("i32.and", s.used, f.i32(63)))));
      f.bump(s.at, f.op("i32.and", s.used, f.i32(63)));
      f.bump(s.out, f.op("i32.shr_u", s.used, f.i32(8)));
    };
    const long = (s: Stream, base: Local): void =>
      // nothing by look-up: the rest of the turns found nothing either
      f.if(f.op("i32.eqz", s.used), () => {
        const byte = f.op("i32.add", base, f.op("i32.shr_u", s.at, f.i32(3)));
        f.set(s.used, f.call(slow, byte, f.op("i32.and", s.at, f.i32(7)), table));
        f.store("i32.store8", s.out, 0, s.used);
        f.bump(s.out, 1);
        f.bump(s.at, f.op("i32.shr_u", s.used, f.i32(8)));
      });
    f.while(f.op("i32.and", f.op("i32.lt_u", a.out, endA), f.op("i32.lt_u", b.out, endB)), () => {
      fill(a, baseA);
      fill(b, baseB);
      for (let i = 0; i < TURNS; i++) {
        turn(a);
        turn(b);
      }
      long(a, baseA);
      long(b, baseB);
    });
    for (const [s, base, end] of [[a, baseA, endA], [b, baseB, endB]] as const)
      f.while(f.op("i32.lt_u", s.out, end), () => {
        fill(s, base);
        for (let i = 0; i < TURNS; i++) turn(s);
        long(s, base);
      }); // prettier-ignore
  });
}

/** Low and high bytes of the words of exponents e and bytes s. */
function joined(f: FunctionBuilder, e: Local, s: Local): { low: Emit; high: Emit } {
  const [sign, rest] = [f.constant8(0x80), f.constant8(0x7f)];
  const low = f.op("v128.or", f.op("v128.and", s, rest), f.op("v128.and", f.op("i16x8.shl", e, f.i32(7)), sign));
  const high = f.op("v128.or", f.op("v128.and", s, sign), f.op("v128.and", f.op("i16x8.shr_u", e, f.i32(1)), rest));
  return { low, high };
}

const LOW = [0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23];
const HIGH = LOW.map((i) => i + 8);

/** Words of a row: (exponents, plain, out, k). */
function rowWriter(m: ModuleBuilder): FunctionRef {
  return m.func(null, ["i32", "i32", "i32", "i32"], [], (f) => {
    const [exponents, plain, out, k] = [0, 1, 2, 3].map((i) => f.param(i));
    const [e, s, low, high] = f.locals("v128", 4);
    f.while(f.op("i32.ge_u", k, f.i32(16)), () => {
      f.set(e, f.load("v128.load", exponents));
      f.set(s, f.load("v128.load", plain));
      const bytes = joined(f, e, s);
      f.set(low, bytes.low);
      f.set(high, bytes.high);
      f.store("v128.store", out, 0, f.shuffle(LOW, low, high));
      f.store("v128.store", out, 16, f.shuffle(HIGH, low, high));
      f.bump(exponents, 16);
      f.bump(plain, 16);
      f.bump(out, 32);
      f.bump(k, -16);
    });
    f.while(k, () => {
      const [e1, s1] = [f.load("i32.load8_u", exponents), f.load("i32.load8_u", plain)];
      const sign = f.op("i32.shl", f.op("i32.and", s1, f.i32(0x80)), f.i32(8));
      const word = f.op("i32.or", f.op("i32.or", sign, f.op("i32.shl", e1, f.i32(7))), f.op("i32.and", s1, f.i32(0x7f)));
      f.store("i32.store16", out, 0, word);
      f.bump(exponents, 1);
      f.bump(plain, 1);
      f.bump(out, 2);
      f.bump(k, -1);
    });
  });
}

/** Four rows into a record block: (exponents, bytes from row to row of them, plain of each, out, pairs of k). */
function recordWriter(m: ModuleBuilder): FunctionRef {
  return m.func(null, ["i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32"], [], (f) => {
    const [exponents, stride, p0, p1, p2, p3, out, count] = Array.from({ length: 8 }, (_, i) => f.param(i));
    const v = f.locals("v128", 4);
    const [e, s, low, high] = f.locals("v128", 4);
    const at = f.locals("i32", 4);
    f.set(at[0], exponents);
    for (let r = 1; r < 4; r++) f.set(at[r], f.op("i32.add", at[r - 1], stride));
    const pairs = (base: number): number[] =>
      [0, 1].flatMap((i) => [0, 16].flatMap((side) => [0, 1, 2, 3].map((b) => side + base + 4 * i + b)));
    const half = (from: number): number[] => [0, 16].flatMap((side) => Array.from({ length: 8 }, (_, b) => side + from + b));
    /** Four pairs of k of four rows; `put` stores the vector of a pair. */
    const vectors = (put: (pair: number, value: Emit) => void): void => {
      [p0, p1, p2, p3].forEach((plain, r) => {
        f.set(e, f.load("v128.load64_zero", at[r]));
        f.set(s, f.load("v128.load64_zero", plain));
        const bytes = joined(f, e, s);
        f.set(low, bytes.low);
        f.set(high, bytes.high);
        f.set(v[r], f.shuffle(LOW, low, high));
        f.bump(at[r], 8);
        f.bump(plain, 8);
      });
      f.set(low, f.shuffle(pairs(0), v[0], v[1]));
      f.set(high, f.shuffle(pairs(8), v[0], v[1]));
      f.set(e, f.shuffle(pairs(0), v[2], v[3]));
      f.set(s, f.shuffle(pairs(8), v[2], v[3]));
      for (let pair = 0; pair < 4; pair++) put(pair, f.shuffle(half(8 * (pair % 2)), pair < 2 ? low : high, pair < 2 ? e : s));
    };
    f.while(f.op("i32.ge_s", count, f.i32(4)), () => {
      vectors((pair, value) => f.store("v128.store", out, 64 * pair, value));
      f.bump(out, 256);
      f.bump(count, -4);
    });
    // the next block begins where the last pair ends
    f.if(f.op("i32.gt_s", count, f.i32(0)), () =>
      vectors((pair, value) => f.if(f.op("i32.gt_s", count, f.i32(pair)), () => f.store("v128.store", out, 64 * pair, value))),
    );
  });
}

export function decodeModule(spec: DecodeSpec): Uint8Array<ArrayBuffer> {
  const m = new ModuleBuilder({ shared: spec.shared });
  const slow = slowCode(m);
  const decode = pairDecoder(m, slow);
  const write = spec.output === "rows" ? rowWriter(m) : recordWriter(m);
  writeWork(m, (f, args, panel) => {
    const field = (name: (typeof DECODE_ARGUMENTS)[number]): Emit => f.load("i32.load", args, 4 * DECODE_ARGUMENTS.indexOf(name));
    const [row, last, width, out, quad, done, count, record] = f.locals("i32", 8);
    const rows = f.locals("i32", 4);
    const least = (i: Local): Emit => f.op("select", i, last, f.op("i32.lt_u", i, last));
    const start = (r: Local): Emit =>
      f.op("i32.add", field("stream"), f.load("i32.load", f.op("i32.add", field("starts"), f.op("i32.shl", r, f.i32(2)))));
    const plain = (r: Local): Emit => f.op("i32.add", field("plain"), f.op("i32.mul", r, field("k")));
    const scratch = (i: number): Emit => (i === 0 ? f.get(panel) : f.op("i32.add", panel, f.op("i32.mul", width, f.i32(i))));
    const pair = (i: number): void =>
      f.run(f.call(decode, start(rows[i]), start(rows[i + 1]), field("table"), scratch(i), scratch(i + 1), field("k")));
    return (item) => {
      f.set(last, f.op("i32.sub", field("rows"), f.i32(1)));
      f.set(width, f.op("i32.and", f.op("i32.add", field("k"), f.i32(SLACK + 63)), f.i32(-64)));
      if (spec.output === "rows") {
        f.set(row, f.op("i32.add", field("first"), f.op("i32.shl", item, f.i32(1))));
        f.set(rows[0], least(row));
        f.bump(row, 1);
        f.set(rows[1], least(row));
        pair(0);
        for (const i of [0, 1]) {
          f.set(out, f.op("i32.add", field("out"), f.op("i32.mul", f.op("i32.sub", rows[i], field("first")), field("stride"))));
          f.run(f.call(write, scratch(i), plain(rows[i]), out, field("k")));
        }
        return;
      }
      f.set(row, f.op("i32.add", field("first"), f.op("i32.shl", item, f.i32(4))));
      f.set(out, f.op("i32.add", field("out"), f.op("i32.mul", item, field("stride"))));
      // the last record first: what k leaves of it stays zeros
      const end = f.op("i32.sub", f.op("i32.add", out, field("stride")), field("groupBytes"));
      f.run(f.op("memory.fill", end, f.i32(0), field("groupBytes")));
      f.set(quad, f.i32(4));
      f.doWhile(() => {
        for (let i = 0; i < 4; i++) {
          f.set(rows[i], least(row));
          f.bump(row, 1);
        }
        pair(0);
        pair(2);
        // beyond k: exponents of zero, so that what is multiplied by zero is finite
        for (let i = 0; i < 4; i++) f.store("i64.store", f.op("i32.add", scratch(i), field("k")), 0, f.op("i64.extend_i32_u", f.i32(0)));
        f.set(done, f.i32(0));
        f.set(record, out);
        f.doWhile(
          () => {
            f.set(count, f.op("i32.sub", field("k"), done));
            f.set(count, f.op("select", count, field("span"), f.op("i32.lt_u", count, field("span"))));
            const pairs = f.op("i32.shr_u", f.op("i32.add", count, f.i32(1)), f.i32(1));
            const from = (start: Emit | Local): Emit => f.op("i32.add", start, done);
            f.run(f.call(write, from(panel), width, ...rows.map((r) => from(plain(r))), record, pairs));
            f.bump(record, field("groupBytes"));
            f.store("v128.store", f.op("i32.sub", record, f.i32(64)), 0, f.constantF32(1));
            f.bump(done, field("span"));
          },
          f.op("i32.lt_u", done, field("k")),
        );
        f.bump(out, 16);
        f.bump(quad, -1);
      }, quad);
    };
  });
  return m.bytes();
}

export const losslessDecode = family("lossless decode", decodeModule);
