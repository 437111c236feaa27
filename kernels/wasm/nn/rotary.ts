// Rotary position embedding of rows of float32 (a row is one head of one token), partial where the rotated part is
// shorter than a head:
//   half-split:  (x1 c - x2 s, x2 c + x1 s) for the first and second half of the rotated part
//   interleaved: the same for pairs (2 i, 2 i + 1) What lies beyond is copied. Cosines and sines are rows of half the
//   rotated length, by position. A run of rows (rows.ts) is one token, so that keys go straight into a cache [kv
//   head][token][head]: y = { address: cache + past tokens, outer: one token, inner: one head of the cache }. y may be
//   x.
import { ModuleBuilder, type Emit, type FunctionBuilder, type Local } from "../engine/asm.ts";
import { family } from "../engine/family.ts";
import { writeWork } from "../engine/items.ts";
import { eachRow, eachVector, loadSome, placeWords, ROW_WORDS, rowAddress, rowJob, storeSome, words, type Rows } from "./rows.ts";

export interface RotarySpec {
  readonly interleaved: boolean;
  readonly shared: boolean;
}

export interface RotaryJob {
  readonly tokens: number;
  readonly heads: number;
  /** Floats of a head, and how many of them turn: even, at most all. */
  readonly width: number;
  readonly rotated: number;
  readonly x: Rows;
  readonly y: Rows;
  /** Addresses of [positions, rotated / 2] float32. */
  readonly cos: number;
  readonly sin: number;
  /** Address of an int32 position for each token; else tokens follow `first`. */
  readonly positions?: number;
  readonly first?: number;
}

const FIRST = ROW_WORDS.length;
const FIELDS = ["rotated", "cos", "sin", "positions", "first"] as const;

/** Items and arguments. @throws RangeError where the rotated part is odd or longer than a head */
export function rotaryJob(job: RotaryJob): { readonly items: number; readonly args: Int32Array } {
  const { tokens, heads, width, rotated } = job;
  if (rotated % 2 !== 0 || rotated < 0 || rotated > width)
    throw new RangeError(`rotary: expected an even length of at most ${width}, got ${rotated}.`);
  const { items, words } = rowJob(tokens * heads, width, heads);
  const own = [rotated, job.cos, job.sin, job.positions ?? 0, job.first ?? 0];
  return { items, args: Int32Array.of(...words, ...own, ...placeWords([job.x, job.y])) };
}

/** Both products of a turn, into `a` and `b`. */
function turn(f: FunctionBuilder, [a, b, c, s, t]: readonly Local[]): void {
  f.set(t, f.op("f32x4.sub", f.op("f32x4.mul", a, c), f.op("f32x4.mul", b, s)));
  f.set(b, f.op("f32x4.add", f.op("f32x4.mul", b, c), f.op("f32x4.mul", a, s)));
  f.set(a, f.get(t));
}

function rotateRow(f: FunctionBuilder, spec: RotarySpec): void {
  const [x, y, cos, sin, rotated, width] = [0, 1, 2, 3, 4, 5].map((i) => f.param(i));
  const v = f.locals("v128", 5);
  const [a, b, c, s] = v;
  const [place, half, left, twice] = f.locals("i32", 4);
  const zero = f.constant32(0);
  const load = (into: Local, address: Emit, tail: Local | null): void => {
    if (tail === null) f.set(into, f.load("v128.load", address));
    else loadSome(f, into, address, tail, zero);
  };
  const store = (address: Emit, tail: Local | null, value: Local): void => {
    if (tail === null) f.store("v128.store", address, 0, value);
    else storeSome(f, address, tail, value);
  };
  const at = (base: Local): Emit => f.op("i32.add", base, place);
  const second = (base: Local): Emit => f.op("i32.add", at(base), f.op("i32.shl", half, f.i32(2)));
  f.set(half, f.op("i32.shr_u", rotated, f.i32(1)));
  eachVector(f, half, place, 1, (_, tail) => {
    load(c, at(cos), tail);
    load(s, at(sin), tail);
    if (!spec.interleaved) {
      load(a, at(x), tail);
      load(b, second(x), tail);
      turn(f, v);
      store(at(y), tail, a);
      store(second(y), tail, b);
      return;
    }
    const pair = (base: Local): Emit => f.op("i32.add", base, twice);
    f.set(twice, f.op("i32.shl", place, f.i32(1)));
    if (tail === null) {
      const apart = (lanes: readonly number[]): Emit => f.shuffle(words(lanes), v[4], b);
      f.set(v[4], f.load("v128.load", pair(x)));
      f.set(b, f.load("v128.load", pair(x), 16));
      f.set(a, apart([0, 2, 4, 6]));
      f.set(b, apart([1, 3, 5, 7]));
      turn(f, v);
      f.store("v128.store", pair(y), 0, f.shuffle(words([0, 4, 1, 5]), a, b));
      f.store("v128.store", pair(y), 16, f.shuffle(words([2, 6, 3, 7]), a, b));
      return;
    }
    f.set(left, f.get(tail));
    f.doWhile(() => {
      f.set(b, f.load("v128.load32_zero", pair(x), 4));
      f.set(a, f.load("v128.load32_zero", pair(x)));
      f.set(c, f.load("v128.load32_zero", at(cos)));
      f.set(s, f.load("v128.load32_zero", at(sin)));
      turn(f, v);
      f.store("f32.store", pair(y), 0, f.lane("f32x4.extract_lane", 0, a));
      f.store("f32.store", pair(y), 4, f.lane("f32x4.extract_lane", 0, b));
      f.bump(twice, 8);
      f.bump(place, 4);
      f.bump(left, -1);
    }, left);
  });
  f.if(f.op("i32.lt_u", rotated, width), () => {
    const bytes = f.op("i32.shl", rotated, f.i32(2));
    f.set(left, f.op("i32.sub", width, rotated));
    f.bump(x, bytes);
    f.bump(y, bytes);
    eachVector(f, left, place, 1, (_, tail) => {
      load(a, at(x), tail);
      store(at(y), tail, a);
    });
  });
}

/** A module whose `work` turns rows; its arguments are `rotaryJob`'s. */
export function rotaryModule(spec: RotarySpec): Uint8Array<ArrayBuffer> {
  const m = new ModuleBuilder({ shared: spec.shared });
  const row = m.func(null, ["i32", "i32", "i32", "i32", "i32", "i32"], [], (f) => rotateRow(f, spec));
  writeWork(m, (f, args) => (item) => {
    const field = (name: (typeof FIELDS)[number]): Emit => f.load("i32.load", args, 4 * (FIRST + FIELDS.indexOf(name)));
    const [position, table] = f.locals("i32", 2);
    eachRow(f, args, item, (run, within) => {
      f.set(position, f.op("i32.add", field("first"), run));
      f.if(field("positions"), () =>
        f.set(position, f.load("i32.load", f.op("i32.add", field("positions"), f.op("i32.shl", run, f.i32(2))))),
      );
      // a row of the tables: rotated / 2 floats
      f.set(table, f.op("i32.mul", position, f.op("i32.shl", field("rotated"), f.i32(1))));
      const [x, y] = [0, 1].map((i) => rowAddress(f, args, FIRST + FIELDS.length, i, run, within));
      const [cos, sin] = [field("cos"), field("sin")].map((base) => f.op("i32.add", base, table));
      f.run(f.call(row, x, y, cos, sin, field("rotated"), f.load("i32.load", args)));
    });
  });
  return m.bytes();
}

export const rotary = family("rotary", rotaryModule);
