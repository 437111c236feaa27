// Attention of many query rows (a prompt, an encoder) over keys and values of floats: what attention.ts computes, as
// products of matrices. A block of keys is packed, transposed, into panels of eight, and its values into panels of
// eight columns; then tiles of rows (tiles.ts) give the scores of all rows of an item, a softmax goes over them, and
// tiles again add the weighted values to y, which shrinks first where a greater score came (online softmax).
import { ModuleBuilder, type Emit, type FunctionBuilder, type FunctionRef, type Local, type Operand } from "../engine/asm.ts";
import { family } from "../engine/family.ts";
import { writeWork } from "../engine/items.ts";
import { FIELDS, jobWords, type AttentionJob, type Field } from "./attention-job.ts";
import { greatest, least } from "./attention-layout.ts";
import { halves } from "./cache.ts";
import { decay4, tanh4 } from "./math.ts";
import { foldLanes, loadSome, transposeFour } from "./rows.ts";
import { COLUMNS, i32s, panelTiles, tileBytes, tileRows } from "./tiles.ts";

export interface AttentionTilesSpec {
  /** Values of a head. */
  readonly head: number;
  readonly softcap: boolean;
  readonly mask: boolean;
  readonly relaxed: boolean;
  readonly shared: boolean;
  /** What the cache holds; default float32. */
  readonly k?: "float32" | "float16";
  readonly v?: "float32" | "float16";
}

/** Tokens from which on tiles are worth their packing. */
export const TILE_TOKENS = 8;
/**
 * Query rows of an item, at most: their scores stay in the caches beside the panels. Those of a prompt compute scores
 * up to the last key that any of them sees: fewer rows waste less.
 */
const rowsOf = (causal: boolean): number => (causal ? 48 : 66);
/** Keys of a block. Long rows of scores cost less a score; the panels of long heads would leave the caches. */
const blockOf = (head: number): number => (head > 64 ? 64 : 128);
const FLT_MAX = 3.4028234663852886e38;
/** Of a row while its item runs: greatest score, sum of exponentials. */
const STATE = { most: 0, sum: 4 } as const;
const STATE_BYTES = 8;

/** Scratch of an item: places in bytes. */
function scratch({ head, relaxed }: Pick<AttentionTilesSpec, "head" | "relaxed">, rows: number) {
  const block = blockOf(head);
  const keys = 4 * block * rows;
  const values = keys + 4 * block * head;
  const spare = values + 4 * block * COLUMNS * Math.ceil(head / COLUMNS);
  const state = spare + tileBytes(relaxed);
  return { scores: 0, keys, values, spare, state, bytes: state + STATE_BYTES * rows };
}

/** Items, arguments and scratch of a job. */
export function attentionTilesJob(
  job: AttentionJob,
  spec: Pick<AttentionTilesSpec, "head" | "relaxed">,
): { readonly items: number; readonly args: Int32Array; readonly panelBytes: number } {
  const unit = tileRows(spec.relaxed);
  const most = Math.max(unit, Math.floor(rowsOf(job.causal) / job.group));
  const tile = Math.min(job.tokens, unit * Math.ceil(job.tokens / Math.ceil(job.tokens / most) / unit));
  const words = jobWords(job, tile);
  // where the scratch of rows ends depends on the tile
  const rows = tile * job.group;
  const { keys, values, spare, state, bytes } = scratch(spec, rows);
  return {
    items: job.kvHeads * Math.ceil(job.tokens / tile),
    args: Int32Array.of(...words, keys, values, spare, state),
    panelBytes: bytes,
  };
}

type Word = Field | (typeof PLACES)[number];
const PLACES = ["keysAt", "valuesAt", "spareAt", "stateAt"] as const;
const WORDS: readonly Word[] = [...FIELDS, ...PLACES];

/** Four values at an address, as float32. */
const four = (f: FunctionBuilder, half: boolean, address: Operand, index: number): Emit =>
  half ? halves(f, f.load("v128.load16x4_u", address, 8 * index)) : f.load("v128.load", address, 16 * index);

/** packKeys(k, kToken, panels, count): panels [head][8 keys]; keys beyond the last repeat it. */
function writeKeys(f: FunctionBuilder, spec: AttentionTilesSpec): void {
  const [k, token, panel, count] = [0, 1, 2, 3].map((i) => f.param(i));
  const [first, side] = f.locals("i32", 2);
  const rows = f.locals("i32", 4);
  const v = f.locals("v128", 4);
  const t = f.locals("v128", 2);
  f.while(f.op("i32.lt_s", first, count), () => {
    f.set(side, f.i32(0));
    f.doWhile(
      () => {
        rows.forEach((row, n) => {
          const index = f.op("i32.add", f.op("i32.add", first, f.op("i32.shr_u", side, f.i32(2))), f.i32(n));
          f.set(row, f.op("i32.add", k, f.op("i32.mul", least(f, index, f.op("i32.sub", count, f.i32(1))), token)));
        });
        for (let i = 0; i < spec.head / 4; i++) {
          rows.forEach((row, n) => f.set(v[n], four(f, spec.k === "float16", row, i)));
          transposeFour(f, v, t);
          v.forEach((d, n) => f.store("v128.store", f.op("i32.add", panel, side), 32 * (4 * i + n), d));
        }
        f.bump(side, 16);
      },
      f.op("i32.lt_u", side, f.i32(32)),
    );
    f.bump(panel, 32 * spec.head);
    f.bump(first, COLUMNS);
  });
}

/** packValues(v, vToken, panels, count): panels [count][8 values], a block of rows apart. */
function writeValues(f: FunctionBuilder, spec: AttentionTilesSpec): void {
  const [from, token, panel, count] = [0, 1, 2, 3].map((i) => f.param(i));
  f.doWhile(() => {
    for (let i = 0; i < spec.head / 4; i++)
      f.store("v128.store", panel, 32 * blockOf(spec.head) * (i >> 1) + 16 * (i & 1), four(f, spec.v === "float16", from, i));
    f.bump(from, token);
    f.bump(panel, 32);
    f.bump(count, -1);
  }, count);
}

/** Moves `place` from 0 to `end` bytes (not none) by vectors: `turns` at a time, and the rest one by one. */
function eachFour(f: FunctionBuilder, place: Local, end: Local, turns: number, body: (offset: number) => void): void {
  f.set(place, f.i32(0));
  for (const count of turns === 1 ? [1] : [turns, 1])
    f.while(f.op("i32.ge_s", f.op("i32.sub", end, place), f.i32(count === 1 ? 1 : 16 * count)), () => {
      for (let i = 0; i < count; i++) body(16 * i);
      f.bump(place, 16 * count);
    });
}

const SOFTEN = ["scores", "mask", "low", "high", "count", "state", "y", "later"] as const;

/**
 * soften(.., scale, cap): scores of a row become probabilities relative to the greatest so far; its sum and y shrink
 * where that grew. low, high: the keys of the block that the row sees; later: there were blocks before it, and a y.
 */
function writeSoften(f: FunctionBuilder, spec: AttentionTilesSpec): void {
  const at = Object.fromEntries(SOFTEN.map((name, i) => [name, f.param(i)])) as Record<(typeof SOFTEN)[number], Local>;
  const [scale, cap] = [SOFTEN.length, SOFTEN.length + 1].map((i) => f.param(i));
  const [s, most, before, sum, factor, index, x, scale4] = f.locals("v128", 8);
  const [place, end, left] = f.locals("i32", 3);
  const lanes = f.constant("lanes", f.v128([0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0]));
  f.set(scale4, f.op("f32x4.splat", scale));
  f.set(before, f.load("v128.load32_splat", at.state, STATE.most));
  f.set(most, f.get(before));
  f.set(end, f.op("i32.shl", at.count, f.i32(2)));
  /** Scores as they count, and the greatest; `limited`: some of the vectors hold keys that do not count. */
  const pass = (limited: boolean): void =>
    eachFour(f, place, end, limited ? 1 : 4, (offset) => {
      const address = (base: Local): Emit => f.op("i32.add", base, place);
      f.set(s, f.load("v128.load", address(at.scores), offset));
      const isFused = spec.mask && spec.relaxed && !spec.softcap;
      if (!isFused) f.set(s, f.op("f32x4.mul", s, scale4));
      if (spec.softcap) {
        f.set(s, f.op("f32x4.div", s, f.op("f32x4.splat", cap)));
        f.set(s, f.op("f32x4.mul", tanh4(f, s, spec.relaxed), f.op("f32x4.splat", cap)));
      }
      if (spec.mask) {
        if (limited) {
          f.set(left, f.op("i32.sub", at.count, f.op("i32.shr_u", place, f.i32(2))));
          f.if(
            f.op("i32.ge_s", left, f.i32(4)),
            () => f.set(x, f.load("v128.load", address(at.mask))),
            () => loadSome(f, x, address(at.mask), left, f.constant32(0)),
          );
        } else f.set(x, f.load("v128.load", address(at.mask), offset));
        f.set(s, isFused ? f.op("f32x4.relaxed_madd", s, scale4, x) : f.op("f32x4.add", s, x));
      }
      if (limited) {
        f.set(index, f.op("i32x4.add", f.op("i32x4.splat", f.op("i32.shr_u", place, f.i32(2))), lanes));
        const inside = f.op(
          "v128.and",
          f.op("i32x4.ge_s", index, f.op("i32x4.splat", at.low)),
          f.op("i32x4.lt_s", index, f.op("i32x4.splat", at.high)),
        );
        f.set(s, f.op("v128.bitselect", s, f.constantF32(-Infinity), inside));
      }
      // pmax is one instruction, max some nine; a NaN that it passes over makes the sum NaN
      f.set(most, f.op("f32x4.pmax", most, s));
      f.store("v128.store", address(at.scores), offset, s);
    });
  const whole = f.op("i32.and", f.op("i32.le_s", at.low, f.i32(0)), f.op("i32.ge_s", at.high, f.op("i32.and", f.op("i32.add", at.count, f.i32(3)), f.i32(-4)))); // prettier-ignore
  f.if(
    whole,
    () => pass(false),
    () => pass(true),
  );
  foldLanes(f, "f32x4.pmax", most);
  f.set(x, f.op("f32x4.sub", before, most));
  const exp = decay4(f, x, spec.relaxed);
  f.set(factor, exp);
  f.set(sum, f.constant32(0));
  eachFour(f, place, end, 2, (offset) => {
    const address = f.op("i32.add", at.scores, place);
    f.set(x, f.op("f32x4.sub", f.load("v128.load", address, offset), most));
    f.set(x, exp);
    f.set(sum, f.op("f32x4.add", sum, x));
    f.store("v128.store", address, offset, x);
  });
  foldLanes(f, "f32x4.add", sum);
  f.set(x, f.load("v128.load32_splat", at.state, STATE.sum));
  f.set(sum, f.op("f32x4.add", f.op("f32x4.mul", x, factor), sum));
  f.store("f32.store", at.state, STATE.sum, f.lane("f32x4.extract_lane", 0, sum));
  f.store("f32.store", at.state, STATE.most, f.lane("f32x4.extract_lane", 0, most));
  const hasGrown = f.op("v128.any_true", f.op("f32x4.ne", most, before));
  f.if(f.op("i32.and", at.later, hasGrown), () => scaleRow(f, spec.head, at.y, factor));
}

function scaleRow(f: FunctionBuilder, head: number, y: Local, factor: Local): void {
  for (let i = 0; i < head / 4; i++) f.store("v128.store", y, 16 * i, f.op("f32x4.mul", f.load("v128.load", y, 16 * i), factor));
}

/** start(state, y, sink, hasBlocks): a row before its first block, which writes y if there is one. */
function writeStart(f: FunctionBuilder, spec: AttentionTilesSpec): void {
  const [state, y, sink, hasBlocks] = [0, 1, 2, 3].map((i) => f.param(i));
  f.store("f32.store", state, STATE.most, f.f32(-FLT_MAX));
  f.store("f32.store", state, STATE.sum, f.f32(0));
  f.if(sink, () => {
    f.store("f32.store", state, STATE.most, f.load("f32.load", sink));
    f.store("f32.store", state, STATE.sum, f.f32(1));
  });
  f.if(f.op("i32.eqz", hasBlocks), () => {
    for (let i = 0; i < spec.head / 4; i++) f.store("v128.store", y, 16 * i, f.constant32(0));
  });
}

/** end(state, y): the sums of a row, divided. */
function writeEnd(f: FunctionBuilder, spec: AttentionTilesSpec): void {
  const [state, y] = [0, 1].map((i) => f.param(i));
  const [sum, factor] = f.locals("v128", 2);
  f.set(sum, f.load("v128.load32_splat", state, STATE.sum));
  f.set(factor, f.op("f32x4.div", f.constantF32(1), sum));
  f.set(factor, f.op("v128.andnot", factor, f.op("f32x4.eq", sum, f.constant32(0))));
  scaleRow(f, spec.head, y, factor);
}

type Part = "keys" | "values" | "soften" | "start" | "end" | "tiles";

/** One item: a tile of tokens of one kv head, all heads of its group. */
function writeItem(f: FunctionBuilder, spec: AttentionTilesSpec, args: Local, panel: Local, parts: Record<Part, FunctionRef>) {
  const block = blockOf(spec.head);
  const rowBytes = 4 * block;
  const word = (name: Word): Emit => f.load("i32.load", args, 4 * WORDS.indexOf(name));
  const real = (name: Field): Emit => f.load("f32.load", args, 4 * WORDS.indexOf(name));
  const [kv, first, tokens, key, stop, count, head, token, seen, at, from, later] = f.locals("i32", 12);
  const [scores, state, y] = f.locals("i32", 3);
  const place = (name: "q" | "y" | "mask", t: Operand): Emit =>
    f.op(
      "i32.add",
      word(name),
      f.op(
        "i32.add",
        f.op("i32.mul", t, word(`${name}Token`)),
        f.op("i32.mul", f.op("i32.add", f.op("i32.mul", kv, word("group")), head), word(`${name}Head`)),
      ),
    );
  const cached = (name: "k" | "v"): Emit =>
    f.op("i32.add", word(name), f.op("i32.add", f.op("i32.mul", kv, word(`${name}Head`)), f.op("i32.mul", key, word(`${name}Token`))));
  const scratchAt = (name: (typeof PLACES)[number]): Emit => f.op("i32.add", panel, word(name));
  /** The rows of the item: heads of the group, then tokens; their scores and states lie in that order. */
  const eachHead = (body: () => void): void => {
    f.set(head, f.i32(0));
    f.set(scores, f.get(panel));
    f.set(state, scratchAt("stateAt"));
    f.doWhile(
      () => {
        body();
        f.bump(head, 1);
      },
      f.op("i32.lt_u", head, word("group")),
    );
  };
  const eachRow = (body: () => void): void =>
    eachHead(() => {
      f.set(token, f.get(first));
      f.doWhile(
        () => {
          f.set(y, place("y", token));
          body();
          f.bump(scores, rowBytes);
          f.bump(state, STATE_BYTES);
          f.bump(token, 1);
        },
        f.op("i32.lt_u", token, f.op("i32.add", first, tokens)),
      );
    });
  /** The first key that a token sees beside its window, and one behind the last. */
  const high = (t: Operand): Emit => f.op("i32.add", f.op("i32.add", word("past"), t), f.i32(1));
  const low = (t: Operand): Emit => f.op("select", f.op("i32.sub", high(t), word("window")), f.i32(0), word("window"));
  return (item: Local): void => {
    f.set(kv, f.op("i32.div_u", item, word("tiles")));
    f.set(first, f.op("i32.mul", f.op("i32.rem_u", item, word("tiles")), word("tile")));
    f.set(tokens, least(f, word("tile"), f.op("i32.sub", word("tokens"), first)));
    f.set(stop, f.op("select", f.op("i32.add", word("past"), f.op("i32.add", first, tokens)), word("keys"), word("causal")));
    f.set(key, greatest(f, low(first), f.i32(0)));
    eachRow(() => {
      const sink = f.op("i32.add", word("sink"), f.op("i32.shl", f.op("i32.add", f.op("i32.mul", kv, word("group")), head), f.i32(2)));
      f.run(f.call(parts.start, state, y, f.op("select", sink, f.i32(0), word("sink")), f.op("i32.lt_s", key, stop)));
    });
    f.set(later, f.i32(0));
    f.while(f.op("i32.lt_s", key, stop), () => {
      f.set(count, least(f, f.op("i32.sub", stop, key), f.i32(block)));
      f.run(f.call(parts.keys, cached("k"), word("kToken"), scratchAt("keysAt"), count));
      f.run(f.call(parts.values, cached("v"), word("vToken"), scratchAt("valuesAt"), count));
      eachHead(() => {
        f.set(at, f.i32(0));
        f.set(from, scratchAt("keysAt"));
        f.doWhile(
          () => {
            f.run(
              f.call(parts.tiles, place("q", first), word("qToken"), from, f.op("i32.add", scores, at), f.i32(rowBytes), tokens, f.i32(COLUMNS), f.i32(spec.head), f.i32(0), scratchAt("spareAt")), // prettier-ignore
            );
            f.bump(from, 4 * COLUMNS * spec.head);
            f.bump(at, 4 * COLUMNS);
          },
          f.op("i32.lt_u", at, f.op("i32.shl", count, f.i32(2))),
        );
        f.bump(scores, f.op("i32.mul", tokens, f.i32(rowBytes)));
      });
      eachRow(() => {
        f.set(seen, f.op("select", high(token), word("keys"), word("causal")));
        const mask = f.op("i32.add", place("mask", token), f.op("i32.shl", key, f.i32(2)));
        f.run(
          f.call(parts.soften, scores, mask, f.op("i32.sub", low(token), key), least(f, f.op("i32.sub", seen, key), count), count, state, y, later, real("scale"), real("cap")), // prettier-ignore
        );
      });
      eachHead(() => {
        for (let column = 0; column < spec.head; column += COLUMNS)
          f.run(
            f.call(parts.tiles, scores, f.i32(rowBytes), f.op("i32.add", scratchAt("valuesAt"), f.i32(rowBytes * column)), f.op("i32.add", place("y", first), f.i32(4 * column)), word("yToken"), tokens, f.i32(Math.min(COLUMNS, spec.head - column)), count, later, scratchAt("spareAt")), // prettier-ignore
          );
        f.bump(scores, f.op("i32.mul", tokens, f.i32(rowBytes)));
      });
      f.set(later, f.i32(1));
      f.bump(key, block);
    });
    eachRow(() => f.run(f.call(parts.end, state, y)));
  };
}

/**
 * A module whose `work` attends; its arguments are `attentionTilesJob`'s.
 * @throws RangeError for heads that are no multiple of 4
 */
export function attentionTilesModule(spec: AttentionTilesSpec): Uint8Array<ArrayBuffer> {
  if (spec.head % 4 !== 0 || spec.head < 4) throw new RangeError(`attention: expected heads of a multiple of 4 values, got ${spec.head}.`);
  const m = new ModuleBuilder({ shared: spec.shared });
  const tiles = panelTiles(m, { a: "rows", relaxed: spec.relaxed });
  const keys = m.func(null, i32s(4), [], (f) => writeKeys(f, spec));
  const values = m.func(null, i32s(4), [], (f) => writeValues(f, spec));
  const soften = m.func(null, [...i32s(SOFTEN.length), "f32", "f32"], [], (f) => writeSoften(f, spec));
  const start = m.func(null, i32s(4), [], (f) => writeStart(f, spec));
  const end = m.func(null, i32s(2), [], (f) => writeEnd(f, spec));
  writeWork(m, (f, args, panel) => writeItem(f, spec, args, panel, { keys, values, soften, start, end, tiles }));
  return m.bytes();
}

export const attentionTiles = family("attention tiles", attentionTilesModule);
