// The best rows of a scan, kept while it runs: a buffer of at least c candidates per query and thread, and the score
// that a row must reach to enter it. A full buffer is cut to its best c (quickselect on 64-bit keys), whose last one is
// the new threshold: no array of all scores exists, and a row that does not enter costs one comparison.
//
// Order: higher score first, of equal scores the smaller id. Both are in the key: the score's bits in an order that
// integers compare, then the complement of the id. Ids are distinct, so keys are, and which rows remain does not depend
// on the order in which they come.
import type { Emit, FunctionBuilder, FunctionRef, Local, ModuleBuilder, Operand } from "../engine/asm.ts";

/**
 * Where the words of a state are, in bytes: candidates so far, the threshold, how many are wanted (c), how many fit;
 * room for four scores; then keys, then rows.
 */
export const STATE = { count: 0, threshold: 4, want: 8, limit: 12, scores: 16, keys: 64 } as const;

/** Candidates that a buffer for the best `want` holds before it is cut. */
export const stateLimit = (want: number): number => 4 * Math.ceil((want + Math.max(64, want)) / 4);

/** Bytes of a state. */
export const stateBytes = (want: number): number => STATE.keys + 64 * Math.ceil((12 * stateLimit(want)) / 64);

/** Writes the header of an empty state. */
export function writeState(words: Int32Array, at: number, want: number): void {
  const MINUS_INFINITY = 0xff800000 | 0;
  words.set([0, MINUS_INFINITY, want, stateLimit(want)], at);
}

/** The score of a key: its upper word as stored by the kernel. */
export function scoreOfKey(upper: number): number {
  bits[0] = upper >>> 31 === 1 ? upper ^ 0x80000000 : ~upper;
  return float[0];
}
const bits = new Int32Array(1);
const float = new Float32Array(bits.buffer);

export interface TopK {
  /** offer(state, score, id, row): enters a row that reaches the threshold. */
  readonly offer: FunctionRef;
  /** enter(state, key, row): the same by its key. */
  readonly enter: FunctionRef;
  /** cut(state): leaves the best `want` and sets the threshold; nothing where there are fewer. */
  readonly cut: FunctionRef;
}

const keyAt = (f: FunctionBuilder, state: Local, i: Operand): Emit => f.op("i32.add", state, f.op("i32.shl", i, f.i32(3)));

/** Quickselect (Hoare's partition about the middle key): the best `want` come first, the last of them in its place. */
function writeCut(f: FunctionBuilder): void {
  const state = f.param(0);
  const [count, want, lo, hi, i, j, rows, word, a, b] = f.locals("i32", 10);
  const [pivot, key] = f.locals("i64", 2);
  f.set(count, f.load("i32.load", state, STATE.count));
  f.set(want, f.load("i32.load", state, STATE.want));
  f.if(f.op("i32.le_u", count, want), () => f.run(f.op("return")));
  f.set(rows, f.op("i32.add", state, f.op("i32.shl", f.load("i32.load", state, STATE.limit), f.i32(3))));
  f.set(lo, f.i32(0));
  f.set(hi, f.op("i32.sub", count, f.i32(1)));
  const load = (at: Local): Emit => f.load("i64.load", keyAt(f, state, at), STATE.keys);
  f.while(f.op("i32.lt_s", lo, hi), () => {
    f.set(word, f.op("i32.shr_u", f.op("i32.add", lo, hi), f.i32(1)));
    f.set(pivot, load(word));
    f.set(i, lo);
    f.set(j, hi);
    f.doWhile(
      () => {
        f.while(f.op("i64.gt_u", load(i), pivot), () => f.bump(i, 1));
        f.while(f.op("i64.lt_u", load(j), pivot), () => f.bump(j, -1));
        f.if(f.op("i32.le_s", i, j), () => {
          f.set(a, keyAt(f, state, i));
          f.set(b, keyAt(f, state, j));
          f.set(key, f.load("i64.load", a, STATE.keys));
          f.store("i64.store", a, STATE.keys, f.load("i64.load", b, STATE.keys));
          f.store("i64.store", b, STATE.keys, key);
          f.set(a, f.op("i32.add", rows, f.op("i32.shl", i, f.i32(2))));
          f.set(b, f.op("i32.add", rows, f.op("i32.shl", j, f.i32(2))));
          f.set(word, f.load("i32.load", a, STATE.keys));
          f.store("i32.store", a, STATE.keys, f.load("i32.load", b, STATE.keys));
          f.store("i32.store", b, STATE.keys, word);
          f.bump(i, 1);
          f.bump(j, -1);
        });
      },
      f.op("i32.le_s", i, j),
    );
    // the wanted last place lies in the left part, in the right one, or between them, where it is done
    f.if(
      f.op("i32.le_s", want, f.op("i32.add", j, f.i32(1))),
      () => f.set(hi, j),
      () =>
        f.if(
          f.op("i32.gt_s", want, i),
          () => f.set(lo, i),
          () => f.set(lo, hi),
        ),
    );
  });
  f.store("i32.store", state, STATE.count, want);
  f.set(a, f.load("i32.load", keyAt(f, state, f.op("i32.sub", want, f.i32(1))), STATE.keys + 4));
  f.set(b, f.op("i32.xor", a, f.op("select", f.i32(0x80000000), f.i32(-1), f.op("i32.lt_s", a, f.i32(0)))));
  f.store("i32.store", state, STATE.threshold, b);
}

/** Defines the functions of a state in a module. */
export function writeTopK(m: ModuleBuilder): TopK {
  const cut = m.func(null, ["i32"], [], writeCut);
  const enter = m.func(null, ["i32", "i64", "i32"], [], (f) => {
    const [state, key, row] = [0, 1, 2].map((i) => f.param(i));
    const [count, limit] = f.locals("i32", 2);
    f.set(count, f.load("i32.load", state, STATE.count));
    f.set(limit, f.load("i32.load", state, STATE.limit));
    f.store("i64.store", keyAt(f, state, count), STATE.keys, key);
    const rows = f.op("i32.add", state, f.op("i32.shl", limit, f.i32(3)));
    f.store("i32.store", f.op("i32.add", rows, f.op("i32.shl", count, f.i32(2))), STATE.keys, row);
    f.bump(count, 1);
    f.store("i32.store", state, STATE.count, count);
    f.if(f.op("i32.eq", count, limit), () => f.run(f.call(cut, state)));
  });
  const offer = m.func(null, ["i32", "f32", "i32", "i32"], [], (f) => {
    const [state, score, id, row] = [0, 1, 2, 3].map((i) => f.param(i));
    const word = f.local("i32");
    f.if(f.op("f32.ge", score, f.load("f32.load", state, STATE.threshold)), () => {
      // -0 + 0 is +0: the two zeros are equal scores
      f.set(word, f.op("i32.reinterpret_f32", f.op("f32.add", score, f.f32(0))));
      f.set(word, f.op("i32.xor", word, f.op("i32.or", f.op("i32.shr_s", word, f.i32(31)), f.i32(0x80000000))));
      const upper = f.op("i64.shl", f.op("i64.extend_i32_u", word), f.op("i64.extend_i32_u", f.i32(32)));
      const lower = f.op("i64.extend_i32_u", f.op("i32.xor", id, f.i32(-1)));
      f.run(f.call(enter, state, f.op("i64.or", upper, lower), row));
    });
  });
  return { offer, enter, cut };
}
