// Attention of grouped query heads over keys and values where they lie, with an online softmax: keys are read in blocks of 64, and two query rows share each load of a key and a
// value (the heads of a group first, then the tokens of a tile). One kernel serves a step (one token) and a prompt (tiles of tokens, for which a block of keys stays in the cache).
//   s = scale * q k^T;  s = cap * tanh(s / cap) where there is a cap;  s += mask;  keys outside lo <= j < hi do not count;  y = softmax(s) v
// Token t sees keys below hi = past + t + 1 (causal) or all, from hi - window on where there is a window. A sink is one more logit of a head without a value. Keys that no
// token sees are not read: a cache may hold anything there. A row that sees nothing, or only keys masked with -infinity, is 0. y must not overlap q.
import { ModuleBuilder, type Emit, type FunctionBuilder, type FunctionRef, type Local, type Operand } from "../engine/asm.ts";
import { family } from "../engine/family.ts";
import { writeWork } from "../engine/items.ts";
import { exp4, tanh4 } from "./math.ts";
import { foldLanes, loadSome, sumFour } from "./rows.ts";

export interface AttentionSpec {
  /** Floats of a head: a multiple of 4. */
  readonly head: number;
  readonly softcap: boolean;
  readonly mask: boolean;
  /** Fused multiply-add, where the engine has it. */
  readonly relaxed: boolean;
  readonly shared: boolean;
}

/** A tensor [token, head, values]: strides in bytes; values lie side by side. */
export interface Heads {
  readonly address: number;
  readonly token: number;
  readonly head: number;
}

export interface AttentionJob {
  readonly tokens: number;
  readonly kvHeads: number;
  /** Query heads of a kv head; query head n reads kv head floor(n / group). */
  readonly group: number;
  /** Keys there are: past ones and those of these tokens. */
  readonly keys: number;
  readonly causal: boolean;
  /** Keys that a token sees, its own included. */
  readonly window?: number;
  readonly scale: number;
  readonly cap?: number;
  readonly q: Heads;
  readonly y: Heads;
  /** A cache [kv head][capacity][head]: token = 4 head, head = 4 head capacity. */
  readonly k: Heads;
  readonly v: Heads;
  /** Rows of `keys` float32 by token and query head; a stride of 0 broadcasts. */
  readonly mask?: Heads;
  /** Address of a float32 for each query head. */
  readonly sink?: number;
}

/** Keys of a block. */
const BLOCK = 64;
/** Bytes of the scores of two rows, and a word that nobody reads. */
const SCORES = 2 * 4 * BLOCK + 16;
/** Query rows of an item. */
const ROWS = 32;
const FLT_MAX = 3.4028234663852886e38;

/** Of a row while its item runs; bytes in a panel. */
const RECORD = { q: 0, y: 4, mask: 8, low: 12, high: 16, most: 20, sum: 24, bytes: 32 } as const;

const FIELDS = [
  "tokens", "kvHeads", "group", "keys", "past", "causal", "window", "scale", "cap", "tile", "tiles", "sink",
  "q", "qToken", "qHead", "y", "yToken", "yHead", "k", "kToken", "kHead", "v", "vToken", "vHead", "mask", "maskToken", "maskHead",
] as const; // prettier-ignore
type Field = (typeof FIELDS)[number];

/** Items, arguments and scratch of a job. */
export function attentionJob(job: AttentionJob): { readonly items: number; readonly args: Int32Array; readonly panelBytes: number } {
  const tile = Math.min(job.tokens, Math.max(1, Math.floor(ROWS / job.group)));
  const tiles = Math.ceil(job.tokens / tile);
  const heads = ({ address, token, head }: Heads): number[] => [address, token, head];
  const none = { address: 0, token: 0, head: 0 };
  const args = Int32Array.of(
    ...[job.tokens, job.kvHeads, job.group, job.keys, job.keys - job.tokens, Number(job.causal), job.window ?? 0, 0, 0],
    ...[tile, tiles, job.sink ?? 0],
    ...[job.q, job.y, job.k, job.v, job.mask ?? none].flatMap(heads),
  );
  const floats = new Float32Array(args.buffer);
  floats[FIELDS.indexOf("scale")] = job.scale;
  floats[FIELDS.indexOf("cap")] = job.cap ?? 1;
  return { items: job.kvHeads * tiles, args, panelBytes: SCORES + tile * job.group * RECORD.bytes };
}

const least = (f: FunctionBuilder, a: Operand, b: Operand): Emit => f.op("select", a, b, f.op("i32.lt_s", a, b));
const greatest = (f: FunctionBuilder, a: Operand, b: Operand): Emit => f.op("select", a, b, f.op("i32.gt_s", a, b));

/** Parameters of a pass: one or two row records, scores, keys and values of a block, its first key, how many keys; then fields of the job. */
const PASS = ["record", "scores", "k", "v", "first", "count", "kToken", "vToken"] as const;

/** One block of keys for one or two rows. */
function writePass(f: FunctionBuilder, spec: AttentionSpec, rows: 1 | 2): void {
  const at = Object.fromEntries(PASS.map((name, i) => [name, f.param(i)])) as Record<(typeof PASS)[number], Local>;
  const [scale, cap] = [f.param(PASS.length), f.param(PASS.length + 1)];
  const each = Array.from({ length: rows }, (_, r) => r);
  const record = (r: number, name: Exclude<keyof typeof RECORD, "bytes">): Emit =>
    f.load("i32.load", at.record, r * RECORD.bytes + RECORD[name]);
  const madd = (sum: Local, a: Operand, b: Operand): void =>
    f.set(sum, spec.relaxed ? f.op("f32x4.relaxed_madd", a, b, sum) : f.op("f32x4.add", sum, f.op("f32x4.mul", a, b)));
  const [end, j, i, left] = f.locals("i32", 4);
  const keys = f.locals("i32", 4);
  const low = f.locals("v128", rows);
  const high = f.locals("v128", rows);
  const most = f.locals("v128", rows);
  const factor = f.locals("v128", rows);
  const rowAt = f.locals("i32", rows);
  const v = f.locals("v128", 4);
  const sums = each.map(() => f.locals("v128", 4));

  const seen = each.map((r) => f.op("i32.sub", record(r, "high"), at.first));
  f.set(end, least(f, at.count, rows === 1 ? seen[0] : greatest(f, seen[0], seen[1])));
  f.if(f.op("i32.gt_s", end, f.i32(0)), () => {
    for (const r of each) {
      f.set(low[r], f.op("i32x4.splat", f.op("i32.sub", record(r, "low"), at.first)));
      f.set(high[r], f.op("i32x4.splat", least(f, seen[r], end)));
      f.set(most[r], f.load("v128.load32_splat", at.record, r * RECORD.bytes + RECORD.most));
      f.set(factor[r], f.get(most[r]));
    }
    const unroll = [4, 2, 1].find((n) => (spec.head / 4) % n === 0)!;
    f.set(j, f.i32(0));
    f.doWhile(
      () => {
        // keys beyond the last repeat it
        keys.forEach((key, n) => {
          const index = n === 0 ? f.get(j) : least(f, f.op("i32.add", j, f.i32(n)), f.op("i32.sub", end, f.i32(1)));
          f.set(key, f.op("i32.add", at.k, f.op("i32.mul", index, at.kToken)));
        });
        for (const r of each) {
          f.set(rowAt[r], record(r, "q"));
          for (const sum of sums[r]) f.set(sum, f.constant32(0));
        }
        f.set(i, f.i32(spec.head / 4 / unroll));
        f.doWhile(() => {
          for (let u = 0; u < unroll; u++) {
            each.forEach((r) => f.set(v[r], f.load("v128.load", rowAt[r], 16 * u)));
            keys.forEach((key, n) => {
              f.set(v[2], f.load("v128.load", key, 16 * u));
              each.forEach((r) => madd(sums[r][n], v[r], v[2]));
            });
          }
          for (const pointer of [...rowAt, ...keys]) f.bump(pointer, 16 * unroll);
          f.bump(i, -1);
        }, i);
        each.forEach((r) => {
          const s = sums[r][0];
          sumFour(f, sums[r]);
          f.set(s, f.op("f32x4.mul", s, f.op("f32x4.splat", scale)));
          if (spec.softcap) {
            f.set(s, f.op("f32x4.div", s, f.op("f32x4.splat", cap)));
            f.set(s, f.op("f32x4.mul", tanh4(f, s), f.op("f32x4.splat", cap)));
          }
          if (spec.mask) {
            const address = f.op("i32.add", record(r, "mask"), f.op("i32.shl", f.op("i32.add", at.first, j), f.i32(2)));
            f.set(left, f.op("i32.sub", end, j));
            f.if(
              f.op("i32.ge_s", left, f.i32(4)),
              () => f.set(v[3], f.load("v128.load", address)),
              () => loadSome(f, v[3], address, left, f.constant32(0)),
            );
            f.set(s, f.op("f32x4.add", s, v[3]));
          }
          const lanes = f.constant("lanes", f.v128([0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0]));
          f.set(v[2], f.op("i32x4.add", f.op("i32x4.splat", j), lanes));
          const inside = f.op("v128.and", f.op("i32x4.ge_s", v[2], low[r]), f.op("i32x4.lt_s", v[2], high[r]));
          f.set(s, f.op("v128.bitselect", s, f.constantF32(-Infinity), inside));
          f.set(most[r], f.op("f32x4.max", most[r], s));
          f.store("v128.store", f.op("i32.add", at.scores, f.op("i32.shl", j, f.i32(2))), 4 * BLOCK * r, s);
        });
        f.bump(j, 4);
      },
      f.op("i32.lt_s", j, end),
    );
    // values are read a line of each key at a time: touched in order first, they come as a stream
    const [touched, line] = [v[3], keys[0]];
    f.set(line, f.get(at.v));
    f.set(touched, f.constant32(0));
    f.set(i, f.get(end));
    f.doWhile(() => {
      for (let place = 0; place < 4 * spec.head; place += 64)
        f.set(touched, f.op("v128.or", touched, f.load("v128.load32_zero", line, place)));
      f.bump(line, at.vToken);
      f.bump(i, -1);
    }, i);
    f.store("v128.store", at.scores, 2 * 4 * BLOCK, touched);
    // probabilities, relative to the greatest score so far; what was summed before shrinks by `factor`
    each.forEach((r) => {
      const [x, sum] = sums[r];
      foldLanes(f, "f32x4.max", most[r]);
      f.set(x, f.op("f32x4.sub", factor[r], most[r]));
      f.set(factor[r], exp4(f, x));
      f.set(sum, f.constant32(0));
      f.set(j, f.get(at.scores));
      f.set(i, f.op("i32.add", at.scores, f.op("i32.shl", end, f.i32(2))));
      const exp = exp4(f, x);
      f.doWhile(
        () => {
          f.set(x, f.op("f32x4.sub", f.load("v128.load", j, 4 * BLOCK * r), most[r]));
          f.set(x, exp);
          f.set(sum, f.op("f32x4.add", sum, x));
          f.store("v128.store", j, 4 * BLOCK * r, x);
          f.bump(j, 16);
        },
        f.op("i32.lt_u", j, i),
      );
      foldLanes(f, "f32x4.add", sum);
      f.set(x, f.load("v128.load32_splat", at.record, r * RECORD.bytes + RECORD.sum));
      f.set(sum, f.op("f32x4.add", f.op("f32x4.mul", x, factor[r]), sum));
      f.store("f32.store", at.record, r * RECORD.bytes + RECORD.sum, f.lane("f32x4.extract_lane", 0, sum));
      f.store("f32.store", at.record, r * RECORD.bytes + RECORD.most, f.lane("f32x4.extract_lane", 0, most[r]));
      f.set(rowAt[r], record(r, "y"));
    });
    // up to 16 values of each row at a time
    for (let from = 0; from < spec.head / 4;) {
      const width = Math.min(4, spec.head / 4 - from);
      const span = Array.from({ length: width }, (_, n) => n);
      const place = 16 * from;
      for (const r of each)
        for (const n of span) f.set(sums[r][n], f.op("f32x4.mul", f.load("v128.load", rowAt[r], place + 16 * n), factor[r]));
      f.set(keys[0], f.get(at.v));
      f.set(j, f.get(at.scores));
      f.doWhile(
        () => {
          each.forEach((r) => f.set(v[r], f.load("v128.load32_splat", j, 4 * BLOCK * r)));
          for (const n of span) {
            f.set(v[2], f.load("v128.load", keys[0], place + 16 * n));
            each.forEach((r) => madd(sums[r][n], v[r], v[2]));
          }
          f.bump(keys[0], at.vToken);
          f.bump(j, 4);
        },
        f.op("i32.lt_u", j, i),
      );
      for (const r of each) for (const n of span) f.store("v128.store", rowAt[r], place + 16 * n, sums[r][n]);
      from += width;
    }
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
function writeItem(f: FunctionBuilder, args: Local, panel: Local, parts: Record<"start" | "end" | "one" | "two", FunctionRef>) {
  const field = (name: Field): Emit => f.load("i32.load", args, 4 * FIELDS.indexOf(name));
  const real = (name: Field): Emit => f.load("f32.load", args, 4 * FIELDS.indexOf(name));
  const [kv, token, last, head, records, record, end, key, stop, count, k, v] = f.locals("i32", 12);
  return (item: Local): void => {
    f.set(kv, f.op("i32.div_u", item, field("tiles")));
    f.set(token, f.op("i32.mul", f.op("i32.rem_u", item, field("tiles")), field("tile")));
    f.set(last, least(f, f.op("i32.add", token, field("tile")), field("tokens")));
    f.set(records, f.op("i32.add", panel, f.i32(SCORES)));
    f.set(record, f.get(records));
    // the first key that any row sees, and the last: those of the first token and the last
    f.set(stop, f.op("select", f.op("i32.add", field("past"), last), field("keys"), field("causal")));
    f.set(key, f.op("i32.sub", f.op("i32.add", f.op("i32.add", field("past"), token), f.i32(1)), field("window")));
    f.set(key, f.op("select", greatest(f, key, f.i32(0)), f.i32(0), field("window")));
    f.while(f.op("i32.lt_u", token, last), () => {
      f.set(head, f.i32(0));
      f.while(f.op("i32.lt_u", head, field("group")), () => {
        f.run(f.call(parts.start, args, record, token, f.op("i32.add", f.op("i32.mul", kv, field("group")), head)));
        f.bump(record, RECORD.bytes);
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
      f.set(record, f.get(records));
      const pass = (target: FunctionRef): Emit =>
        f.call(target, record, panel, k, v, key, count, field("kToken"), field("vToken"), real("scale"), real("cap"));
      f.while(f.op("i32.lt_u", f.op("i32.add", record, f.i32(RECORD.bytes)), end), () => {
        f.run(pass(parts.two));
        f.bump(record, 2 * RECORD.bytes);
      });
      f.if(f.op("i32.lt_u", record, end), () => f.run(pass(parts.one)));
      f.bump(key, BLOCK);
    });
    f.set(record, f.get(records));
    f.while(f.op("i32.lt_u", record, end), () => {
      f.run(f.call(parts.end, record));
      f.bump(record, RECORD.bytes);
    });
  };
}

/** A module whose `work` attends; its arguments are `attentionJob`'s. @throws RangeError for heads that are no multiple of 4 */
export function attentionModule(spec: AttentionSpec): Uint8Array<ArrayBuffer> {
  if (spec.head % 4 !== 0 || spec.head < 4) throw new RangeError(`attention: expected heads of a multiple of 4 values, got ${spec.head}.`);
  const m = new ModuleBuilder({ shared: spec.shared });
  const start = m.func(null, ["i32", "i32", "i32", "i32"], [], (f) => writeStart(f, spec));
  const end = m.func(null, ["i32"], [], (f) => writeEnd(f, spec));
  const passParameters = [...PASS.map(() => "i32" as const), "f32" as const, "f32" as const];
  const [one, two] = ([1, 2] as const).map((rows) => m.func(null, passParameters, [], (f) => writePass(f, spec, rows)));
  writeWork(m, (f, args, panel) => writeItem(f, args, panel, { start, end, one, two }));
  return m.bytes();
}

export const attention = family("attention", attentionModule);
