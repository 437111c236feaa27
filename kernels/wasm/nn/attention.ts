// Attention of grouped query heads over keys and values where they lie, with an online softmax: keys are read in blocks
// of 64, and two query rows share each load of a key and a value (the heads of a group first, then the tokens of a
// tile). One kernel serves a step (one token) and a prompt (tiles of tokens, for which a block of keys stays in the
// cache).
//   s = scale * q k^T;  s = cap * tanh(s / cap) where there is a cap;  s += mask;  y = softmax(s) v
// Keys outside lo <= j < hi do not count.
// Token t sees keys below hi = past + t + 1 (causal) or all, from hi - window on where there is a window. A sink is one
// more logit of a head without a value. Keys that no token sees are not read: a cache may hold anything there; its rows
// are float32 or what cache.ts has. A row that sees nothing, or only keys masked with -infinity, is 0. y must not
// overlap q.
import { ModuleBuilder, type Emit, type FunctionBuilder, type FunctionRef, type Local } from "../engine/asm.ts";
import { family } from "../engine/family.ts";
import { writeWork } from "../engine/items.ts";
import {
  BLOCK,
  greatest,
  least,
  PASS,
  passScales,
  halvesOf,
  RECORD,
  recordBytes,
  scoreBytes,
  type CacheSpec,
  type PassSpec,
} from "./attention-layout.ts";
import { FIELDS, jobWords, type AttentionJob, type Field } from "./attention-job.ts";
import { writePass, writeTouch } from "./attention-pass.ts";
import { hasScales, headUnit } from "./cache.ts";
import { foldLanes } from "./rows.ts";

export interface AttentionSpec extends PassSpec {
  readonly shared: boolean;
}

/** Query rows of an item. */
const ROWS = 32;
const FLT_MAX = 3.4028234663852886e38;

/** Items, arguments and scratch of a job. `spec`: the kernel's, where the cache is not float32. */
export function attentionJob(
  job: AttentionJob,
  spec: CacheSpec = { head: 0 },
): { readonly items: number; readonly args: Int32Array; readonly panelBytes: number } {
  const tile = Math.min(job.tokens, Math.max(1, Math.floor(ROWS / job.group)));
  return {
    items: job.kvHeads * Math.ceil(job.tokens / tile),
    args: jobWords(job, tile),
    panelBytes: scoreBytes(spec) + tile * job.group * recordBytes(spec),
  };
}

/** The query of a record as 16-bit codes, with their scale and sums. */
function writeQuery(f: FunctionBuilder, spec: AttentionSpec, record: Local): void {
  const q = f.local("i32");
  const [most, sum] = f.locals("v128", 2);
  const v = f.locals("v128", 2);
  f.set(q, f.load("i32.load", record, RECORD.q));
  f.set(most, f.constant32(0));
  for (let i = 0; i < spec.head / 4; i++) f.set(most, f.op("f32x4.max", most, f.op("f32x4.abs", f.load("v128.load", q, 16 * i))));
  foldLanes(f, "f32x4.max", most);
  f.set(most, f.op("f32x4.mul", most, f.constantF32(1 / 32767)));
  f.store("f32.store", record, RECORD.scale, f.lane("f32x4.extract_lane", 0, most));
  let i = 0;
  halvesOf(spec).forEach((values, half) => {
    f.set(sum, f.constant32(0));
    for (const end = i + values / 4; i < end; i += 2) {
      v.forEach((codes, n) => {
        const near = f.op("f32x4.nearest", f.op("f32x4.div", f.load("v128.load", q, 16 * (i + n)), most));
        f.set(codes, f.op("i32x4.trunc_sat_f32x4_s", near));
      });
      f.set(v[0], f.op("i16x8.narrow_i32x4_s", v[0], v[1]));
      f.set(sum, f.op("i32x4.add", sum, f.op("i32x4.dot_i16x8_s", v[0], f.constant16(1))));
      f.store("v128.store", record, RECORD.codes + 8 * i, v[0]);
    }
    foldLanes(f, "i32x4.add", sum);
    f.store("i32.store", record, RECORD.codeSum + 4 * half, f.lane("i32x4.extract_lane", 0, sum));
  });
}

/** Fills the record of a row and clears its sums. */
function writeStart(f: FunctionBuilder, spec: AttentionSpec): void {
  const [args, record, token, head] = [0, 1, 2, 3].map((i) => f.param(i));
  const field = (name: Field): Emit => f.load("i32.load", args, 4 * FIELDS.indexOf(name));
  const y = f.local("i32");
  const high = f.local("i32");
  const place = (name: "q" | "y" | "mask"): Emit => {
    const token4 = f.op("i32.mul", token, field(`${name}Token`));
    return f.op("i32.add", f.op("i32.add", field(name), token4), f.op("i32.mul", head, field(`${name}Head`)));
  };
  f.set(y, place("y"));
  f.store("i32.store", record, RECORD.q, place("q"));
  f.store("i32.store", record, RECORD.y, y);
  f.store("i32.store", record, RECORD.mask, place("mask"));
  f.set(high, f.op("i32.add", f.op("i32.add", field("past"), token), f.i32(1)));
  const from = greatest(f, f.i32(0), f.op("i32.sub", high, field("window")));
  f.store("i32.store", record, RECORD.low, f.op("select", from, f.i32(0), field("window")));
  f.store("i32.store", record, RECORD.high, f.op("select", high, field("keys"), field("causal")));
  f.store("f32.store", record, RECORD.most, f.f32(-FLT_MAX));
  f.store("f32.store", record, RECORD.sum, f.f32(0));
  f.if(field("sink"), () => {
    f.store("f32.store", record, RECORD.most, f.load("f32.load", f.op("i32.add", field("sink"), f.op("i32.shl", head, f.i32(2)))));
    f.store("f32.store", record, RECORD.sum, f.f32(1));
  });
  if (hasScales(spec.k ?? "float32")) writeQuery(f, spec, record);
  for (let i = 0; i < spec.head / 4; i++) f.store("v128.store", y, 16 * i, f.constant32(0));
}

/** Divides the sums of a row. */
function writeEnd(f: FunctionBuilder, spec: AttentionSpec): void {
  const record = f.param(0);
  const y = f.local("i32");
  const [sum, factor] = f.locals("v128", 2);
  f.set(y, f.load("i32.load", record, RECORD.y));
  f.set(sum, f.load("v128.load32_splat", record, RECORD.sum));
  f.set(factor, f.op("f32x4.div", f.constantF32(1), sum));
  f.set(factor, f.op("v128.andnot", factor, f.op("f32x4.eq", sum, f.constant32(0))));
  for (let i = 0; i < spec.head / 4; i++) f.store("v128.store", y, 16 * i, f.op("f32x4.mul", f.load("v128.load", y, 16 * i), factor));
}

/** One item: a tile of tokens of one kv head. */
function writeItem(
  f: FunctionBuilder,
  spec: AttentionSpec,
  args: Local,
  panel: Local,
  parts: Record<"start" | "end" | "touch" | "one" | "two", FunctionRef>,
) {
  const field = (name: Field): Emit => f.load("i32.load", args, 4 * FIELDS.indexOf(name));
  const real = (name: Field): Emit => f.load("f32.load", args, 4 * FIELDS.indexOf(name));
  const bytes = recordBytes(spec);
  const [kv, token, last, head, records, record, end, key, stop, count, k, v] = f.locals("i32", 12);
  return (item: Local): void => {
    f.set(kv, f.op("i32.div_u", item, field("tiles")));
    f.set(token, f.op("i32.mul", f.op("i32.rem_u", item, field("tiles")), field("tile")));
    f.set(last, least(f, f.op("i32.add", token, field("tile")), field("tokens")));
    f.set(records, f.op("i32.add", panel, f.i32(scoreBytes(spec))));
    f.set(record, f.get(records));
    // the first key that any row sees, and the last: those of the first token and the last
    f.set(stop, f.op("select", f.op("i32.add", field("past"), last), field("keys"), field("causal")));
    f.set(key, f.op("i32.sub", f.op("i32.add", f.op("i32.add", field("past"), token), f.i32(1)), field("window")));
    f.set(key, f.op("select", greatest(f, key, f.i32(0)), f.i32(0), field("window")));
    f.while(f.op("i32.lt_u", token, last), () => {
      f.set(head, f.i32(0));
      f.while(f.op("i32.lt_u", head, field("group")), () => {
        f.run(f.call(parts.start, args, record, token, f.op("i32.add", f.op("i32.mul", kv, field("group")), head)));
        f.bump(record, bytes);
        f.bump(head, 1);
      });
      f.bump(token, 1);
    });
    f.set(end, f.get(record));
    f.while(f.op("i32.lt_s", key, stop), () => {
      f.set(count, least(f, f.op("i32.sub", stop, key), f.i32(BLOCK)));
      const place = (name: "k" | "v"): Emit =>
        f.op(
          "i32.add",
          f.op("i32.add", field(name), f.op("i32.mul", kv, field(`${name}Head`))),
          f.op("i32.mul", key, field(`${name}Token`)),
        );
      f.set(k, place("k"));
      f.set(v, place("v"));
      f.run(f.call(parts.touch, panel, k, v, field("kToken"), field("vToken"), count, field("streams")));
      f.set(record, f.get(records));
      const beside = passScales(spec).map((side) => {
        const head = f.op("i32.add", field(`${side}Scales`), f.op("i32.mul", kv, field(`${side}ScalesHead`)));
        return f.op("i32.add", head, f.op("i32.shl", key, f.i32(2)));
      });
      const pass = (target: FunctionRef): Emit =>
        f.call(target, record, panel, k, v, key, count, field("kToken"), field("vToken"), ...beside, real("scale"), real("cap"));
      f.while(f.op("i32.lt_u", f.op("i32.add", record, f.i32(bytes)), end), () => {
        f.run(pass(parts.two));
        f.bump(record, 2 * bytes);
      });
      f.if(f.op("i32.lt_u", record, end), () => f.run(pass(parts.one)));
      f.bump(key, BLOCK);
    });
    f.set(record, f.get(records));
    f.while(f.op("i32.lt_u", record, end), () => {
      f.run(f.call(parts.end, record));
      f.bump(record, bytes);
    });
  };
}

/**
 * A module whose `work` attends; its arguments are `attentionJob`'s.
 * @throws RangeError for heads that are no multiple of 4
 */
export function attentionModule(spec: AttentionSpec): Uint8Array<ArrayBuffer> {
  const unit = Math.max(headUnit(spec.k ?? "float32"), headUnit(spec.v ?? "float32"));
  if (spec.head % unit !== 0 || spec.head < unit)
    throw new RangeError(`attention: expected heads of a multiple of ${unit} values, got ${spec.head}.`);
  const m = new ModuleBuilder({ shared: spec.shared });
  const start = m.func(null, ["i32", "i32", "i32", "i32"], [], (f) => writeStart(f, spec));
  const end = m.func(null, ["i32"], [], (f) => writeEnd(f, spec));
  const touch = m.func(null, new Array<"i32">(7).fill("i32"), [], (f) => writeTouch(f, spec));
  const passParameters = [...[...PASS, ...passScales(spec)].map(() => "i32" as const), "f32" as const, "f32" as const];
  const [one, two] = ([1, 2] as const).map((rows) => m.func(null, passParameters, [], (f) => writePass(f, spec, rows)));
  writeWork(m, (f, args, panel) => writeItem(f, spec, args, panel, { start, end, touch, one, two }));
  return m.bytes();
}

export const attention = family("attention", attentionModule);
