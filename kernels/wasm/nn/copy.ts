// Copies between strided tensors, elements of 1, 2, 4 or 8 bytes: transposes of any permutation, slices (steps of
// either sign), concatenations and pads (one copy each), expansion (a stride of 0) and filling. What is contiguous is
// moved in runs; where the last dimension moves, words are transposed four by four, so that neither side is read or
// written a word to a cache line. Source and result must not overlap.
import { ModuleBuilder, type Emit, type FunctionBuilder, type FunctionRef, type Local, type Operand } from "../engine/asm.ts";
import { family } from "../engine/family.ts";
import { writeWork } from "../engine/items.ts";
import { i32s, least } from "./tiles.ts";
import { transposeFour } from "./rows.ts";

export interface CopySpec {
  /** Runs of bytes, planes of words to transpose, or element by element. */
  readonly kind: "runs" | "planes" | "elements";
  /** Bytes of an element; 1 for runs, 4 for planes. */
  readonly bytes: 1 | 2 | 4 | 8;
  readonly shared: boolean;
}

/** A tensor: address of element 0 and bytes from one element to the next along each dimension. */
export interface Strided {
  readonly address: number;
  readonly strides: readonly number[];
}

export interface CopyJob {
  readonly sizes: readonly number[];
  readonly bytes: 1 | 2 | 4 | 8;
  readonly from: Strided;
  readonly to: Strided;
}

/** Dimensions around the two innermost ones. */
const OUTER = 4;
const DIMENSION = ["size", "source", "target"] as const;
const FIELDS = ["source", "target", "total", "step", "pieces", "span"] as const;
/** Bytes that an item moves. */
const ITEM = 65536;

interface Dimension {
  readonly size: number;
  readonly from: number;
  readonly to: number;
}

/** Dimensions in the order in which the result lies, those that follow on both sides joined. */
function dimensions({ sizes, from, to }: CopyJob): Dimension[] {
  const all = sizes.map((size, i): Dimension => ({ size, from: from.strides[i], to: to.strides[i] })).filter(({ size }) => size !== 1);
  all.sort((a, b) => Math.abs(b.to) - Math.abs(a.to));
  const joined: Dimension[] = [];
  for (const d of all) {
    const last = joined.at(-1);
    if (last !== undefined && last.from === d.from * d.size && last.to === d.to * d.size)
      joined[joined.length - 1] = { size: last.size * d.size, from: d.from, to: d.to };
    else joined.push(d);
  }
  return joined;
}

/**
 * The kernel of a copy, its items and arguments. @throws RangeError where more than six dimensions are left after
 * joining
 */
export function copyJob(job: CopyJob, shared: boolean): { readonly spec: CopySpec; readonly items: number; readonly args: Int32Array } {
  const { bytes } = job;
  const all = dimensions(job);
  const one: Dimension = { size: 1, from: bytes, to: bytes };
  let inner = all.pop() ?? one;
  let plane = one;
  let kind: CopySpec["kind"] = "elements";
  if (inner.from === bytes && inner.to === bytes) {
    kind = "runs";
    inner = { size: inner.size * bytes, from: 1, to: 1 };
  } else if (bytes === 4 && inner.to === 4 && inner.from !== 0) {
    const index = all.findIndex((d) => d.from === 4);
    if (index >= 0) {
      kind = "planes";
      plane = all.splice(index, 1)[0];
    }
  }
  if (all.length > OUTER)
    throw new RangeError(`copy: expected at most ${OUTER + 1} dimensions beside the last, got ${all.length + 1}. Copy in parts.`);
  while (all.length < OUTER) all.unshift({ size: 1, from: 0, to: 0 });
  const total = all.reduce((product, { size }) => product * size, 1);
  // planes are cut along their rows in the result, others along the run
  const [length, weight, unit] = kind === "planes" ? [plane.size, 4 * inner.size, 16] : [inner.size, kind === "runs" ? 1 : bytes, 64];
  const whole = Math.max(1, length * weight);
  const span = whole <= ITEM ? Math.max(1, length) : Math.max(unit, Math.floor(ITEM / weight / unit) * unit);
  const pieces = Math.ceil(Math.max(1, length) / span);
  const step = pieces > 1 ? 1 : Math.max(1, Math.floor(ITEM / whole));
  const fields = [job.from.address, job.to.address, total, step, pieces, span];
  const words = [...all, plane, inner].flatMap(({ size, from, to }) => [size, from, to]);
  const empty = job.sizes.includes(0);
  return {
    spec: { kind, bytes: kind === "runs" ? 1 : bytes, shared },
    items: empty ? 0 : Math.ceil(total / step) * pieces,
    args: Int32Array.of(...fields, ...words),
  };
}

/** run(from, to, bytes). */
function writeRun(f: FunctionBuilder): void {
  const [from, to, bytes] = [0, 1, 2].map((i) => f.param(i));
  f.if(
    f.op("i32.ge_u", bytes, f.i32(1024)),
    () => f.run(f.op("memory.copy", to, from, bytes)),
    () => {
      for (const [size, type] of [[16, "v128"], [4, "i32"], [1, "byte"]] as const)
        f.while(f.op("i32.ge_u", bytes, f.i32(size)), () => {
          if (type === "byte") f.store("i32.store8", to, 0, f.load("i32.load8_u", from));
          else f.store(`${type}.store`, to, 0, f.load(`${type}.load`, from));
          f.bump(from, size);
          f.bump(to, size);
          f.bump(bytes, -size);
        });
    },
  ); // prettier-ignore
}

/** Moves one element. */
function move(f: FunctionBuilder, bytes: CopySpec["bytes"], from: Operand, to: Operand, offset = 0): void {
  if (bytes === 1) f.store("i32.store8", to, offset, f.load("i32.load8_u", from));
  else if (bytes === 2) f.store("i32.store16", to, offset, f.load("i32.load16_u", from));
  else if (bytes === 4) f.store("i32.store", to, offset, f.load("i32.load", from));
  else f.store("i64.store", to, offset, f.load("i64.load", from));
}

/** elements(from, fromStep, to, toStep, count). */
function writeElements(f: FunctionBuilder, bytes: CopySpec["bytes"]): void {
  const [from, fromStep, to, toStep, count] = [0, 1, 2, 3, 4].map((i) => f.param(i));
  const splat = { 1: "v128.load8_splat", 2: "v128.load16_splat", 4: "v128.load32_splat", 8: "v128.load64_splat" }[bytes];
  const v = f.local("v128");
  // one value for all of them
  f.if(f.op("i32.and", f.op("i32.eqz", fromStep), f.op("i32.eq", toStep, f.i32(bytes))), () => {
    f.set(v, f.load(splat, from));
    f.while(f.op("i32.ge_u", count, f.i32(16 / bytes)), () => {
      f.store("v128.store", to, 0, v);
      f.bump(to, 16);
      f.bump(count, -16 / bytes);
    });
  });
  f.while(count, () => {
    move(f, bytes, from, to);
    f.bump(from, fromStep);
    f.bump(to, toStep);
    f.bump(count, -1);
  });
}

/**
 * plane(from, fromStep, to, toStep, rows, columns): up to 16 rows of the result; row r lies at from + 4 r, a column
 * each fromStep.
 */
function writePlane(f: FunctionBuilder): void {
  const [from, fromStep, to, toStep, rows, columns] = [0, 1, 2, 3, 4, 5].map((i) => f.param(i));
  const sources = f.locals("i32", 4);
  const v = f.locals("v128", 4);
  const t = f.locals("v128", 2);
  const [left, p, q] = f.locals("i32", 3);
  /** `count` columns of the rows that are left, word by word. */
  const single = (count: number): void =>
    f.while(left, () => {
      for (let i = 0; i < count; i++) move(f, 4, sources[i], q, 4 * i);
      for (let i = 0; i < count; i++) f.bump(sources[i], 4);
      f.bump(q, toStep);
      f.bump(left, -1);
    });
  for (const count of [4, 1] as const)
    f.while(f.op("i32.ge_u", columns, f.i32(count)), () => {
      f.set(left, f.get(rows));
      f.set(q, f.get(to));
      for (let i = 0; i < count; i++) f.set(sources[i], i === 0 ? f.get(from) : f.op("i32.add", sources[i - 1], fromStep));
      if (count === 4)
        f.while(f.op("i32.ge_u", left, f.i32(4)), () => {
          sources.forEach((source, i) => f.set(v[i], f.load("v128.load", source)));
          transposeFour(f, v, t);
          f.set(p, f.get(q));
          for (const row of v) {
            f.store("v128.store", p, 0, row);
            f.bump(p, toStep);
          }
          f.set(q, f.get(p));
          for (const source of sources) f.bump(source, 16);
          f.bump(left, -4);
        });
      single(count);
      f.bump(from, f.op("i32.mul", fromStep, f.i32(count)));
      f.bump(to, 4 * count);
      f.bump(columns, -count);
    });
}

/** A module whose `work` copies; its arguments are `copyJob`'s. */
export function copyModule({ kind, bytes, shared }: CopySpec): Uint8Array<ArrayBuffer> {
  const m = new ModuleBuilder({ shared });
  let part: FunctionRef;
  if (kind === "runs") part = m.func(null, i32s(3), [], writeRun);
  else if (kind === "elements") part = m.func(null, i32s(5), [], (f) => writeElements(f, bytes));
  else part = m.func(null, i32s(6), [], writePlane);
  writeWork(m, (f, args) => {
    const field = (name: (typeof FIELDS)[number]): Emit => f.load("i32.load", args, 4 * FIELDS.indexOf(name));
    const of = (d: number, name: (typeof DIMENSION)[number]): Emit =>
      f.load("i32.load", args, 4 * (FIELDS.length + DIMENSION.length * d + DIMENSION.indexOf(name)));
    const [PLANE, INNER] = [OUTER, OUTER + 1];
    const counters = f.locals("i32", OUTER);
    const [row, last, from, to, begin, count, left, at, into, some] = f.locals("i32", 10);
    /** Moves both addresses along a dimension. */
    const along = (d: number, amount: Operand): void => {
      f.bump(from, f.op("i32.mul", amount, of(d, "source")));
      f.bump(to, f.op("i32.mul", amount, of(d, "target")));
    };
    const next = (d: number): void => {
      f.bump(counters[d], 1);
      along(d, f.i32(1));
      if (d > 0)
        f.if(f.op("i32.eq", counters[d], of(d, "size")), () => {
          along(d, f.op("i32.sub", f.i32(0), of(d, "size")));
          f.set(counters[d], f.i32(0));
          next(d - 1);
        });
    };
    const copy = (): void => {
      if (kind === "runs") f.run(f.call(part, f.op("i32.add", from, begin), f.op("i32.add", to, begin), count));
      else if (kind === "elements") {
        const start = (base: Local, name: "source" | "target"): Emit => f.op("i32.add", base, f.op("i32.mul", begin, of(INNER, name)));
        f.run(f.call(part, start(from, "source"), of(INNER, "source"), start(to, "target"), of(INNER, "target"), count));
      } else {
        f.set(left, f.get(count));
        f.set(at, f.op("i32.add", from, f.op("i32.shl", begin, f.i32(2))));
        f.set(into, f.op("i32.add", to, f.op("i32.mul", begin, of(PLANE, "target"))));
        f.while(left, () => {
          f.set(some, least(f, left, f.i32(16)));
          f.run(f.call(part, at, of(INNER, "source"), into, of(PLANE, "target"), some, of(INNER, "size")));
          f.bump(at, 64);
          f.bump(into, f.op("i32.shl", of(PLANE, "target"), f.i32(4)));
          f.set(left, f.op("i32.sub", left, some));
        });
      }
    };
    return (item) => {
      f.set(begin, f.op("i32.mul", f.op("i32.rem_u", item, field("pieces")), field("span")));
      f.set(count, least(f, field("span"), f.op("i32.sub", of(kind === "planes" ? PLANE : INNER, "size"), begin)));
      f.set(row, f.op("i32.mul", f.op("i32.div_u", item, field("pieces")), field("step")));
      f.set(last, least(f, f.op("i32.add", row, field("step")), field("total")));
      f.set(from, field("source"));
      f.set(to, field("target"));
      f.set(left, f.get(row));
      for (let d = OUTER - 1; d >= 0; d--) {
        f.set(counters[d], f.op("i32.rem_u", left, of(d, "size")));
        f.set(left, f.op("i32.div_u", left, of(d, "size")));
        along(d, counters[d]);
      }
      f.while(f.op("i32.lt_u", row, last), () => {
        copy();
        next(OUTER - 1);
        f.bump(row, 1);
      });
    };
  });
  return m.bytes();
}

export const copy = family("copy", copyModule);
