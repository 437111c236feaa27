// The inner loops of src/tensor/quantize/nibbles.ts in SIMD128: 4-bit codes of blocks along k, one column of the tile
// per lane. Every step is the same float32 operation, so codes and scales are equal bit for bit; only the sums of
// squares are added in another order. The memory belongs to the process and holds one tile.
import { ModuleBuilder, type Emit, type FunctionBuilder, type Local } from "../engine/asm.ts";
import { engine, type WasmFunction, type WasmMemory } from "../engine/engine.ts";

/** Columns (rows of the packed weight) worked on together. */
const WIDTH = 512;
/** The same where every column's values follow each other: whole columns are staged, at most this many values. */
const STAGED = 1 << 17;

/** Room for one tile; `count` values along k of `width` columns at a time. */
export interface NibbleTile {
  /** Most columns. */
  readonly width: number;
  /** One value per column: the extremes found, and what `encode` works with. */
  readonly low: Float32Array;
  readonly high: Float32Array;
  readonly scale: Float32Array;
  readonly reciprocal: Float32Array;
  readonly zero: Float32Array;
  /** Sums of squares of the values and of their errors. */
  readonly sums: Float64Array;
  /** Codes by column, `rowStride` bytes apart. */
  readonly codes: Uint8Array;
  readonly rowStride: number;
  /**
   * Copies a block: value i of column j is source[from + i * strideK + j * strideN]; one of the strides is 1. `first`:
   * a new tile starts here.
   */
  stage(source: Float32Array, from: number, strideK: number, strideN: number, count: number, width: number, first: boolean): void;
  /** The value of largest magnitude of each column into `low`, the negative one of two equal. */
  extremes(count: number, width: number): void;
  /** The least and largest value of each column, zero included. */
  ranges(count: number, width: number): void;
  /**
   * Scales, zero points and reciprocals of the extremes found. "plain": `encode` can follow; "fine": a reciprocal is
   * more than 2^126; "wide": a code might stand for a value that is not finite.
   */
  scales(width: number, symmetric: boolean): "plain" | "fine" | "wide";
  /**
   * Reciprocals of at most 2^126. Codes of an even count of values, from byte `at` of every column on; all bits of
   * `flip` are flipped.
   */
  encode(count: number, width: number, at: number, flip: number): void;
}

/** Steps of 4 columns: body(column bytes) between x and end. */
function overColumns(f: FunctionBuilder, width: Local, body: (at: Local) => void): void {
  const at = f.local("i32");
  const end = f.local("i32");
  f.set(end, f.op("i32.shl", width, f.i32(2)));
  f.set(at, f.i32(0));
  f.while(f.op("i32.lt_u", at, end), () => {
    body(at);
    f.bump(at, 16);
  });
}

/** What `scales` answers, as bits: a reciprocal that `encode` cannot take, a scale from 2^123 on (or NaN). */
const FINE = 1;
const WIDE = 2;

/** The module: it imports a memory "m"."m". */
export function nibbleModule(): Uint8Array<ArrayBuffer> {
  const m = new ModuleBuilder();

  // float bits rotated left by one order by magnitude as unsigned words, the negative one of two equal above
  m.func("extremes", ["i32", "i32", "i32", "i32", "i32"], [], (f) => {
    const [x, stride, count, width, out] = [0, 1, 2, 3, 4].map((i) => f.param(i));
    const [p, left] = f.locals("i32", 2);
    const [v, best] = f.locals("v128", 2);
    overColumns(f, width, (at) => {
      f.set(p, f.op("i32.add", x, at));
      f.set(left, count);
      f.set(best, f.constant32(0));
      f.doWhile(() => {
        f.set(v, f.load("v128.load", p));
        f.set(best, f.op("i32x4.max_u", best, f.op("v128.or", f.op("i32x4.shl", v, f.i32(1)), f.op("i32x4.shr_u", v, f.i32(31)))));
        f.set(p, f.op("i32.add", p, stride));
        f.bump(left, -1);
      }, left);
      f.store(
        "v128.store",
        f.op("i32.add", out, at),
        0,
        f.op("v128.or", f.op("i32x4.shr_u", best, f.i32(1)), f.op("i32x4.shl", best, f.i32(31))),
      );
    });
  });

  // float bits with the magnitude of negative numbers inverted order as signed words
  m.func("ranges", ["i32", "i32", "i32", "i32", "i32", "i32"], [], (f) => {
    const [x, stride, count, width, lows, highs] = [0, 1, 2, 3, 4, 5].map((i) => f.param(i));
    const [p, left] = f.locals("i32", 2);
    const [v, low, high] = f.locals("v128", 3);
    const key = (a: Local): Emit => f.op("v128.xor", a, f.op("i32x4.shr_u", f.op("i32x4.shr_s", a, f.i32(31)), f.i32(1)));
    overColumns(f, width, (at) => {
      f.set(p, f.op("i32.add", x, at));
      f.set(left, count);
      f.set(low, f.constant32(0));
      f.set(high, f.constant32(0));
      f.doWhile(() => {
        f.set(v, f.load("v128.load", p));
        f.set(v, key(v));
        f.set(low, f.op("i32x4.min_s", low, v));
        f.set(high, f.op("i32x4.max_s", high, v));
        f.set(p, f.op("i32.add", p, stride));
        f.bump(left, -1);
      }, left);
      f.store("v128.store", f.op("i32.add", lows, at), 0, key(low));
      f.store("v128.store", f.op("i32.add", highs, at), 0, key(high));
    });
  });

  // symmetric: scale = extreme / -8; else (high - low) / 15 and the zero point round(0 - low / scale), halves up
  m.func("scales", ["i32", "i32", "i32", "i32", "i32", "i32", "i32"], ["i32"], (f) => {
    const [lows, highs, width, symmetric, scales, reciprocals, zeros] = [0, 1, 2, 3, 4, 5, 6].map((i) => f.param(i));
    const [s, low, r, fine, wide] = f.locals("v128", 5);
    const beside = (base: Local, at: Local): Emit => f.op("i32.add", base, at);
    const nonZero = (v: Emit): Emit => f.op("v128.and", v, f.op("f32x4.ne", s, f.v128i32(0)));
    const outside = (v: Local, limit: number): Emit => f.op("v128.not", f.op("f32x4.lt", f.op("f32x4.abs", v), f.v128f32(limit)));
    overColumns(f, width, (at) => {
      f.set(low, f.load("v128.load", beside(lows, at)));
      f.if(
        symmetric,
        () => {
          f.set(s, f.op("f32x4.div", low, f.v128f32(-8)));
          f.store("v128.store", beside(zeros, at), 0, f.v128f32(8));
        },
        () => {
          f.set(s, f.op("f32x4.div", f.op("f32x4.sub", f.load("v128.load", beside(highs, at)), low), f.v128f32(15)));
          f.set(r, nonZero(f.op("f32x4.sub", f.v128i32(0), f.op("f32x4.div", low, s))));
          // 2 z is exact; (trunc(2 z) + 1) >> 1 rounds halves up
          f.set(r, f.op("i32x4.trunc_sat_f32x4_s", f.op("f32x4.add", r, r)));
          f.set(r, f.op("i32x4.shr_u", f.op("i32x4.add", r, f.v128i32(1)), f.i32(1)));
          f.store("v128.store", beside(zeros, at), 0, f.op("f32x4.convert_i32x4_s", f.op("i32x4.min_s", r, f.v128i32(15))));
        },
      );
      f.set(r, nonZero(f.op("f32x4.div", f.v128f32(1), s)));
      f.store("v128.store", beside(scales, at), 0, s);
      f.store("v128.store", beside(reciprocals, at), 0, r);
      // not above 2^126: below the next float32
      f.set(fine, f.op("v128.or", fine, outside(r, 2 ** 126 * (1 + 2 ** -23))));
      f.set(wide, f.op("v128.or", wide, outside(s, 2 ** 123)));
    });
    const any = (v: Local, bit: number): Emit => f.op("i32.mul", f.op("v128.any_true", v), f.i32(bit));
    f.run(f.op("i32.or", any(fine, FINE), any(wide, WIDE)));
  });

  m.func("encode", ["i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32"], [], (f) => {
    const [x, stride, count, width, scales, reciprocals, zeros, sums, out, rowStride, flip] = Array.from({ length: 11 }, (_, i) =>
      f.param(i),
    );
    const [p, left, to, shift] = f.locals("i32", 4);
    const [v, q, acc, r2, z, z2, low, high, signal, noise, flips, e] = f.locals("v128", 12);
    const upper = (a: Local): Emit => f.shuffle([8, 9, 10, 11, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15], a, a);
    const promote = (a: Local | Emit): Emit => f.op("f64x2.promote_low_f32x4", a);
    /** One value of each of four columns: its code in q, its squares added up. */
    const step = (): void => {
      f.set(v, f.load("v128.load", p));
      f.set(p, f.op("i32.add", p, stride));
      // 2 t with t = fl(fl(v * r) + z) in [-0.5, 16]; (trunc(2 t) + 1) >> 1 rounds halves away from zero. 2^23 puts an
      // integer into the lowest bits.
      f.set(q, f.op("f32x4.trunc", f.op("f32x4.add", f.op("f32x4.mul", v, r2), z2)));
      f.set(q, f.op("i32x4.shr_u", f.op("f32x4.add", q, f.constantF32(2 ** 23 + 1)), f.i32(1)));
      f.set(q, f.op("i32x4.min_s", f.op("v128.and", q, f.constant32(31)), f.constant32(15)));
      f.set(e, f.op("f32x4.sub", f.op("f32x4.convert_i32x4_s", q), z));
      const half = (a: Emit, d: Emit, s: Local): void => {
        const [value, error] = [f64[0], f64[1]];
        f.set(value, promote(a));
        f.set(error, f.op("f64x2.sub", value, f.op("f64x2.mul", promote(d), s)));
        f.set(signal, f.op("f64x2.add", signal, f.op("f64x2.mul", value, value)));
        f.set(noise, f.op("f64x2.add", noise, f.op("f64x2.mul", error, error)));
      };
      half(f.get(v), f.get(e), low);
      half(upper(v), upper(e), high);
    };
    const f64 = f.locals("v128", 2);
    const store = (): void => {
      f.set(acc, f.op("v128.xor", acc, flips));
      for (let lane = 0; lane < 4; lane++) {
        let address: Emit = f.get(to);
        for (let i = 0; i < lane; i++) address = f.op("i32.add", address, rowStride);
        f.run(f.loadLane("v128.store32_lane", address, 0, lane, acc));
      }
      f.bump(to, 4);
    };
    f.set(flips, f.op("i32x4.splat", flip));
    f.set(signal, f.load("v128.load", sums));
    f.set(noise, f.load("v128.load", sums, 16));
    overColumns(f, width, (at) => {
      f.set(p, f.op("i32.add", x, at));
      // at = 4 bytes per column
      f.set(to, f.op("i32.add", out, f.op("i32.mul", f.op("i32.shr_u", at, f.i32(2)), rowStride)));
      f.set(left, count);
      f.set(r2, f.load("v128.load", f.op("i32.add", reciprocals, at)));
      f.set(r2, f.op("f32x4.add", r2, r2));
      f.set(z, f.load("v128.load", f.op("i32.add", zeros, at)));
      f.set(z2, f.op("f32x4.add", z, z));
      f.set(v, f.load("v128.load", f.op("i32.add", scales, at)));
      f.set(low, promote(v));
      f.set(high, promote(upper(v)));
      f.while(f.op("i32.ge_s", left, f.i32(8)), () => {
        for (let i = 0; i < 8; i++) {
          step();
          f.set(acc, i === 0 ? f.get(q) : f.op("v128.or", acc, f.op("i32x4.shl", q, f.i32(4 * i))));
        }
        store();
        f.bump(left, -8);
      });
      f.if(left, () => {
        f.set(acc, f.constant32(0));
        f.set(shift, f.i32(0));
        f.doWhile(() => {
          step();
          f.set(acc, f.op("v128.or", acc, f.op("i32x4.shl", q, shift)));
          f.bump(shift, 4);
          f.bump(left, -1);
        }, left);
        store();
      });
    });
    f.store("v128.store", sums, 0, signal);
    f.store("v128.store", sums, 16, noise);
  });

  // rows of values become columns: 4 x 4 at a time; what lies beyond count and width is not used
  m.func("transpose", ["i32", "i32", "i32", "i32", "i32", "i32"], [], (f) => {
    const [from, fromStride, to, toStride, count, width] = [0, 1, 2, 3, 4, 5].map((i) => f.param(i));
    const [p, o, left] = f.locals("i32", 3);
    const rows = f.locals("v128", 4);
    const pairs = f.locals("v128", 4);
    overColumns(f, width, (at) => {
      f.set(p, f.op("i32.add", from, f.op("i32.mul", f.op("i32.shr_u", at, f.i32(2)), fromStride)));
      f.set(o, f.op("i32.add", to, at));
      f.set(left, count);
      f.while(f.op("i32.gt_s", left, f.i32(0)), () => {
        rows.forEach((row, i) => {
          let address: Emit = f.get(p);
          for (let s = 0; s < i; s++) address = f.op("i32.add", address, fromStride);
          f.set(row, f.load("v128.load", address));
        });
        const low = [0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23];
        f.set(pairs[0], f.shuffle(low, rows[0], rows[1]));
        f.set(pairs[1], f.shuffle(low, rows[2], rows[3]));
        f.set(
          pairs[2],
          f.shuffle(
            low.map((b) => b + 8),
            rows[0],
            rows[1],
          ),
        );
        f.set(pairs[3], f.shuffle(low.map((b) => b + 8), rows[2], rows[3])); // prettier-ignore
        const joined = [0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23];
        for (let i = 0; i < 4; i++) {
          const [a, b] = [pairs[i & 2], pairs[(i & 2) + 1]];
          f.store("v128.store", o, 0, f.shuffle(i % 2 === 0 ? joined : joined.map((lane) => lane + 8), a, b));
          f.set(o, f.op("i32.add", o, toStride));
        }
        f.bump(p, 16);
        f.bump(left, -4);
      });
    });
  });
  return m.bytes();
}

interface Built {
  readonly memory: WasmMemory;
  readonly run: Record<string, WasmFunction>;
}

let built: Built | null | undefined;

function build(): Built | null {
  if (engine === undefined) return null;
  const bytes = nibbleModule();
  if (!engine.validate(bytes)) return null;
  try {
    const memory = new engine.Memory({ initial: 1, maximum: 65536 });
    return { memory, run: new engine.Instance(new engine.Module(bytes), { m: { m: memory } }).exports };
  } catch {
    // no memory left for it: the plain loops give the same codes
    return null;
  }
}

/**
 * Room for the tiles of a weight, valid until the next call; null where the engine has no SIMD or no memory.
 * @param k values per column, @param blockSize most values of a block, @param inRows values of one column follow each
 * other
 */
export function nibbleTile(k: number, blockSize: number, inRows: boolean): NibbleTile | null {
  if (built === undefined) built = build();
  if (built === null) return null;
  const { memory, run } = built;
  const width = inRows ? Math.min(WIDTH, Math.max(4, Math.floor(STAGED / k / 4) * 4)) : WIDTH;
  // strides that are no power of two: columns would fight for the same cache sets
  const rowStride = Math.ceil(k / 2 / 64) * 64 + 64;
  const stride = 4 * width + 64;
  let end = 0;
  const place = (bytes: number): number => {
    const at = end;
    end += Math.ceil(bytes / 64) * 64;
    return at;
  };
  const sums = place(64);
  const [lows, highs, scales, reciprocals, zeros] = Array.from({ length: 5 }, () => place(4 * width));
  const staged = place(stride * (Math.ceil(blockSize / 4) * 4));
  const codes = place(rowStride * width);
  const rows = inRows ? place(4 * k * width + 64) : 0;
  const missing = Math.ceil(end / 65536) - memory.buffer.byteLength / 65536;
  if (missing > 0)
    try {
      memory.grow(missing);
    } catch {
      return null;
    }
  const { buffer } = memory;
  const column = (at: number): Float32Array => new Float32Array(buffer, at, width);
  const accumulated = new Float64Array(buffer, sums, 4).fill(0);
  const target = new Float32Array(buffer, staged, (stride / 4) * blockSize);
  const rowTarget = inRows ? new Float32Array(buffer, rows, k * width) : null;
  let tileFrom = 0;
  return {
    width,
    low: column(lows),
    high: column(highs),
    scale: column(scales),
    reciprocal: column(reciprocals),
    zero: column(zeros),
    get sums() {
      return Float64Array.of(accumulated[0] + accumulated[1], accumulated[2] + accumulated[3]);
    },
    codes: new Uint8Array(buffer, codes, rowStride * width),
    rowStride,
    stage(source, from, strideK, strideN, count, columns, first) {
      // lanes beyond the last column work on zeros
      const lanes = Math.ceil(columns / 4) * 4;
      if (first && lanes > columns) for (const at of [scales, reciprocals, zeros]) column(at).fill(0, columns, lanes);
      if (rowTarget === null) {
        if (lanes > columns) for (let i = 0; i < count; i++) target.fill(0, (i * stride) / 4 + columns, (i * stride) / 4 + lanes);
        for (let i = 0, at = from; i < count; i++, at += strideK) target.set(source.subarray(at, at + columns), (i * stride) / 4);
        return;
      }
      if (first) {
        tileFrom = from;
        if (columns < width) rowTarget.fill(0);
        if (strideN === k) rowTarget.set(source.subarray(from, from + columns * k));
        else for (let j = 0; j < columns; j++) rowTarget.set(source.subarray(from + j * strideN, from + j * strideN + k), j * k);
      }
      run.transpose(rows + 4 * (from - tileFrom), 4 * k, staged, stride, count, columns);
    },
    extremes: (count, columns) => void run.extremes(staged, stride, count, columns, lows),
    ranges: (count, columns) => void run.ranges(staged, stride, count, columns, lows, highs),
    scales(columns, symmetric) {
      const found = run.scales(lows, highs, columns, symmetric ? 1 : 0, scales, reciprocals, zeros) as number;
      return found === 0 ? "plain" : found === FINE ? "fine" : "wide";
    },
    encode: (count, columns, at, flip) =>
      void run.encode(staged, stride, count, columns, scales, reciprocals, zeros, sums, codes + at, rowStride, flip),
  };
}
