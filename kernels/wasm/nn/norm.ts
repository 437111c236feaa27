// Normalisation of rows of float32 over their last axis:
//   s = x (+ skip) (+ addend), kept where the caller wants the sum, as the next residual
//   rms:   y = s / sqrt(mean(s^2) + epsilon) * scale
//          RMSNormalization, SimplifiedLayerNormalization, SkipSimplifiedLayerNormalization
//   layer: y = (s - mean) / sqrt(mean((s - mean)^2) + epsilon) * scale + shift, in two passes, so no cancellation
//          LayerNormalization, SkipLayerNormalization
// Sums run in 16 float32 partial sums. y may be x; the sum may be x or skip.
import { ModuleBuilder, type Emit, type FunctionBuilder, type Local } from "../engine/asm.ts";
import { family } from "../engine/family.ts";
import { writeWork } from "../engine/items.ts";
import { eachRow, eachVector, foldLanes, loadSome, placeWords, ROW_WORDS, rowAddress, rowJob, storeSome, type Rows } from "./rows.ts";

export interface NormSpec {
  readonly kind: "rms" | "layer";
  readonly skip: boolean;
  readonly addend: boolean;
  readonly scale: boolean;
  readonly shift: boolean;
  readonly shared: boolean;
}

export interface NormJob {
  readonly rows: number;
  readonly width: number;
  /** Rows of a run (rows.ts); default all. */
  readonly per?: number;
  readonly epsilon: number;
  readonly x: Rows;
  readonly y: Rows;
  readonly skip?: Rows;
  /** Where the sum goes; default y, which the result then takes. */
  readonly sum?: Rows;
  /** Addresses of `width` floats. */
  readonly addend?: number;
  readonly scale?: number;
  readonly shift?: number;
}

const FIRST = ROW_WORDS.length;
const VECTORS = ["epsilon", "addend", "scale", "shift"] as const;
const PLACES = ["x", "y", "skip", "sum"] as const;

/** Items and arguments of a job, for a kernel whose spec says which operands there are. */
export function normJob(job: NormJob): { readonly items: number; readonly args: Int32Array } {
  const { items, words } = rowJob(job.rows, job.width, job.per);
  const none = { address: 0, outer: 0, inner: 0 };
  const args = Int32Array.of(
    ...words,
    0,
    job.addend ?? 0,
    job.scale ?? 0,
    job.shift ?? 0,
    ...placeWords([job.x, job.y, job.skip ?? none, job.sum ?? job.y]),
  );
  new Float32Array(args.buffer)[FIRST] = job.epsilon;
  return { items, args };
}

function normRow(f: FunctionBuilder, spec: NormSpec, at: Record<string, Local>, epsilon: Emit, width: Local): void {
  const { kind, skip, addend } = spec;
  const sums = f.locals("v128", 4);
  const [v, w, mean, factor, count] = f.locals("v128", 5);
  const place = f.local("i32");
  const from = skip || addend ? at.sum : at.x;
  const load = (into: Local, base: Local, i: number, tail: Local | null): void => {
    const address = f.op("i32.add", base, place);
    if (tail === null) f.set(into, f.load("v128.load", address, 16 * i));
    else loadSome(f, into, address, tail, f.constant32(0));
  };
  const store = (base: Local, i: number, tail: Local | null): void => {
    const address = f.op("i32.add", base, place);
    if (tail === null) f.store("v128.store", address, 16 * i, v);
    else storeSome(f, address, tail, v);
  };
  const total = (): void => {
    f.set(sums[0], f.op("f32x4.add", f.op("f32x4.add", sums[0], sums[1]), f.op("f32x4.add", sums[2], sums[3])));
    foldLanes(f, "f32x4.add", sums[0]);
  };
  const clear = (): void => sums.forEach((sum) => f.set(sum, f.constant32(0)));
  const gather = (i: number, value: Emit): void => f.set(sums[i], f.op("f32x4.add", sums[i], value));

  f.set(count, f.op("f32x4.splat", f.op("f32.convert_i32_u", width)));
  clear();
  eachVector(f, width, place, 4, (i, tail) => {
    load(v, at.x, i, tail);
    for (const [there, base] of [[skip, at.skip], [addend, at.addend]] as const) {
      if (!there) continue;
      load(w, base, i, tail);
      f.set(v, f.op("f32x4.add", v, w));
    }
    if (from !== at.x) store(from, i, tail);
    gather(i, kind === "rms" ? f.op("f32x4.mul", v, v) : f.get(v));
  }); // prettier-ignore
  total();
  if (kind === "layer") {
    f.set(mean, f.op("f32x4.div", sums[0], count));
    clear();
    eachVector(f, width, place, 4, (i, tail) => {
      load(v, from, i, tail);
      f.set(v, f.op("f32x4.sub", v, mean));
      if (tail !== null) {
        // lanes beyond the end count as the mean
        const lanes = f.constant("lanes", f.v128([0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0]));
        f.set(v, f.op("v128.and", v, f.op("i32x4.lt_s", lanes, f.op("i32x4.splat", tail))));
      }
      gather(i, f.op("f32x4.mul", v, v));
    });
    total();
  }
  const variance = f.op("f32x4.add", f.op("f32x4.div", sums[0], count), f.op("f32x4.splat", epsilon));
  f.set(factor, f.op("f32x4.div", f.constantF32(1), f.op("f32x4.sqrt", variance)));
  eachVector(f, width, place, 4, (i, tail) => {
    load(v, from, i, tail);
    if (kind === "layer") f.set(v, f.op("f32x4.sub", v, mean));
    f.set(v, f.op("f32x4.mul", v, factor));
    if (spec.scale) {
      load(w, at.scale, i, tail);
      f.set(v, f.op("f32x4.mul", v, w));
    }
    if (spec.shift) {
      load(w, at.shift, i, tail);
      f.set(v, f.op("f32x4.add", v, w));
    }
    store(at.y, i, tail);
  });
}

/** A module whose `work` normalises rows; its arguments are `normJob`'s. */
export function normModule(spec: NormSpec): Uint8Array<ArrayBuffer> {
  const m = new ModuleBuilder({ shared: spec.shared });
  const vectors = ["addend", "scale", "shift"] as const;
  // epsilon, width, then the addresses of the operands
  const row = m.func(null, ["f32", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32"], [], (f) => {
    const at = Object.fromEntries([...PLACES, ...vectors].map((name, i) => [name, f.param(2 + i)]));
    normRow(f, spec, at, f.get(f.param(0)), f.param(1));
  });
  writeWork(m, (f, args) => (item) => {
    const vector = (name: (typeof VECTORS)[number]): Emit => f.load("i32.load", args, 4 * (FIRST + VECTORS.indexOf(name)));
    eachRow(f, args, item, (run, within) => {
      const places = PLACES.map((_, i) => rowAddress(f, args, FIRST + VECTORS.length, i, run, within));
      const epsilon = f.load("f32.load", args, 4 * FIRST);
      f.run(f.call(row, epsilon, f.load("i32.load", args), ...places, ...vectors.map(vector)));
    });
  });
  return m.bytes();
}

export const norm = family("norm", normModule);
