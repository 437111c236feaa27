// Softmax of rows of float32 over their last axis: y = exp(x - max) / sum(exp(x - max)). Rows of -infinity only give
// NaN, as 0 / 0 does (onnxruntime does the same); rows of -FLT_MAX only are uniform. y may be x.
import { ModuleBuilder, type FunctionBuilder, type Local } from "../engine/asm.ts";
import { family } from "../engine/family.ts";
import { writeWork } from "../engine/items.ts";
import { decay4 } from "./math.ts";
import { eachRow, eachVector, foldLanes, loadSome, placeWords, ROW_WORDS, rowAddress, rowJob, storeSome, type Rows } from "./rows.ts";

export interface SoftmaxSpec {
  readonly shared: boolean;
}

const FLT_MAX = 3.4028234663852886e38;

/** Items and arguments: `rows` of `width` floats. */
export function softmaxJob(job: {
  readonly rows: number;
  readonly width: number;
  readonly per?: number;
  readonly x: Rows;
  readonly y: Rows;
}): { readonly items: number; readonly args: Int32Array } {
  const { items, words } = rowJob(job.rows, job.width, job.per);
  return { items, args: Int32Array.of(...words, ...placeWords([job.x, job.y])) };
}

function softmaxRow(f: FunctionBuilder, x: Local, y: Local, width: Local): void {
  const [most, sum, v, e] = f.locals("v128", 4);
  const place = f.local("i32");
  const load = (base: Local, i: number, tail: Local | null, fill: Local): void => {
    const address = f.op("i32.add", base, place);
    if (tail === null) f.set(v, f.load("v128.load", address, 16 * i));
    else loadSome(f, v, address, tail, fill);
  };
  const store = (i: number, tail: Local | null, value: Local): void => {
    const address = f.op("i32.add", y, place);
    if (tail === null) f.store("v128.store", address, 16 * i, value);
    else storeSome(f, address, tail, value);
  };
  const exp = decay4(f, v, false);
  const least = f.constantF32(-Infinity);
  f.set(most, f.constantF32(-FLT_MAX));
  eachVector(f, width, place, 4, (i, tail) => {
    load(x, i, tail, least);
    // pmax is one instruction, max some nine; a NaN that it passes over makes the sum NaN
    f.set(most, f.op("f32x4.pmax", most, v));
  });
  foldLanes(f, "f32x4.pmax", most);
  f.set(sum, f.constant32(0));
  eachVector(f, width, place, 1, (i, tail) => {
    load(x, i, tail, least);
    f.set(v, f.op("f32x4.sub", v, most));
    f.set(e, exp);
    f.set(sum, f.op("f32x4.add", sum, e));
    store(i, tail, e);
  });
  foldLanes(f, "f32x4.add", sum);
  f.set(sum, f.op("f32x4.div", f.constantF32(1), sum));
  eachVector(f, width, place, 4, (i, tail) => {
    load(y, i, tail, least);
    f.set(v, f.op("f32x4.mul", v, sum));
    store(i, tail, v);
  });
}

/** A module whose `work` takes the softmax of rows; its arguments are `softmaxJob`'s. */
export function softmaxModule(spec: SoftmaxSpec): Uint8Array<ArrayBuffer> {
  const m = new ModuleBuilder({ shared: spec.shared });
  const row = m.func(null, ["i32", "i32", "i32"], [], (f) => softmaxRow(f, f.param(0), f.param(1), f.param(2)));
  writeWork(m, (f, args) => (item) => {
    eachRow(f, args, item, (run, within) => {
      const [x, y] = [0, 1].map((i) => rowAddress(f, args, ROW_WORDS.length, i, run, within));
      f.run(f.call(row, x, y, f.load("i32.load", args)));
    });
  });
  return m.bytes();
}

export const softmax = family("softmax", softmaxModule);
