// The tile function of the integer products (gemm.ts): mr rows of activations times 16 rows of W (one row) or 8 at a
// time (several), over groups of k. Written for one spec: per group, products of its quads into accumulators
// (`#multiply`), their sums in i32 (`#widened`, style "madd16"), and the scaled sums in float32 (`#finish`).
import type { Streams } from "../engine/streams.ts";
import type { Emit, FunctionBuilder, Local, Operand } from "../engine/asm.ts";
import { fieldLayout, type FieldLayout } from "../products/fields.ts";
import { activationRecord, planeOrders, weightRecord, widensPlanes, zipsPlanes, type GemmSpec, type PlaneOrders } from "./gemmspec.ts";
import { operandVectors, panelBytes, quadDecoder } from "./operands.ts";
import { lookAhead, zeroBlock } from "../products/tiles.ts";

const DOT = "i32x4.relaxed_dot_i8x16_i7x16_add_s";
const DOT16 = "i16x8.relaxed_dot_i8x16_i7x16_s";

/**
 * Periods of the field layout that one turn of the loop over a group unrolls. Time to full speed grows with the code,
 * so long groups take turns: of 64 elements for one row of activations, of 128 for several, where shorter ones cost 3
 * %. i16 products take one period: V8 11 schedules long blocks of them into spills.
 */
function periodsPerTurn({ style, mr }: GemmSpec, periods: number, quads: number): number {
  let most = style === "simd" ? 1 : Math.max(1, Math.floor((mr === 1 ? 16 : 32) / quads));
  while (periods % most !== 0) most--;
  return most;
}

/** A float16 moved to the place of a float32's fields is 2^-112 of its value. */
const HALF_EXPONENT = 112;
/**
 * The part of 2^112 that one row of activations takes into its scale; the rest comes at the end, so that neither end of
 * float32 is near.
 */
const BEFORE = 84;

const COMMON = ["a", "w", "c", "ldc", "groups", "tiles", "aStride"] as const;
/** Of a tile of several rows of activations. */
export const TILE_PARAMETERS = [...COMMON, "fresh", "panel", "ahead", "aheadEnd"] as const;
/** Of one row, see `strandGroups`. */
export const SINGLE_PARAMETERS = [...COMMON, "chunk", "strands", "wStride", "cStride"] as const;
export type TileParameter = (typeof TILE_PARAMETERS)[number];
export type SingleParameter = (typeof SINGLE_PARAMETERS)[number];

/**
 * Bytes of a turn, where one row of activations is multiplied with 2 or 4 blocks of W in turns, far apart in memory:
 * processors prefetch several streams side by side, and one stream at a part of what memory gives. How many is measured
 * (engine/streams.ts). From memory, to the time of one block after the other: on an AMD Zen 3 4 take 0.68 in turns of
 * 600 bytes, 2 take 0.79, 8 take 0.87; on a Zen 5 2 take 0.76 in turns of 2400 and 0.85 of 600, 3 and more 1.7 to 2.9.
 */
const TURN_BYTES: Readonly<Record<Streams, number>> = { 2: 2400, 4: 600 };

/** Groups of a turn of so many strands, for records of so many bytes. */
export const strandGroups = (strands: Streams, record: number): number => Math.max(1, Math.round(TURN_BYTES[strands] / record));

/**
 * The tile function: `tiles` tiles of mr rows of activations, aStride bytes apart, times 16 rows of W over `groups`
 * groups. Several rows are added to c, 8 rows of W at a time, where `fresh` says so after zeros were stored. `panel`,
 * `ahead` and `aheadEnd`: the operands of the block and the weights that come next, where there is a panel. A single
 * row takes `strands` blocks, `wStride` bytes of W and `cStride` of c apart, in turns of `chunk` groups.
 */
export function writeTile(f: FunctionBuilder, spec: GemmSpec): void {
  new TileWriter(f, spec).write();
}

class TileWriter {
  readonly #f: FunctionBuilder;
  readonly #spec: GemmSpec;
  readonly #layout: FieldLayout;
  readonly #record: ReturnType<typeof weightRecord>;
  readonly #activation: ReturnType<typeof activationRecord>;
  /** int8 planes of an activation and of a weight; zipped ones count as one. */
  readonly #activationPlanes: number;
  readonly #weightPlanes: number;
  readonly #orders: PlaneOrders;
  readonly #zipped: boolean;
  readonly #widens: boolean;
  /** One row of activations: its sums stay in registers. */
  readonly #single: boolean;
  /** Both quads of a period are decoded from one load, where there are registers for it. */
  readonly #joined: boolean;
  /** Words of a quad of activations that are broadcast. */
  readonly #words: number;
  /** Vectors of operands of a quad of four rows. */
  readonly #vectors: number;
  /**
   * Quads that are written as one: a period of the field layout, or a single quad of a panel for V8 11, which schedules
   * longer blocks into spills.
   */
  readonly #step: number;
  readonly #perTurn: number;
  readonly #rolled: boolean;
  /** i16 sums of a rolled group need no widening before its end. */
  readonly #carried: boolean;
  /**
   * Products that an i16 sum of pairs takes before it can pass 32767 (activations reach -128, operands their maximum).
   */
  readonly #flushEvery: number;

  readonly #given: Record<TileParameter | SingleParameter, Local>;
  /**
   * Running pointers: activations and weights of a group; within it, activations of a turn. Zero points and float16
   * scales are half as wide as other terms, so they have their own.
   */
  readonly #a: Local;
  readonly #w: Local;
  readonly #z: Local;
  readonly #narrow: boolean;
  readonly #aAt: Local;
  readonly #panel: Local | null;
  readonly #groups: Local;
  /** End of the codes of a rolled group. */
  readonly #end: Local;
  /** Bytes of the current row vectors from the first ones of the block. */
  readonly #half: Local;
  readonly #rows: readonly Local[];
  /** Sums of products by row, row vector and order; for style "madd16" of i16, and `#acc` their sums in i32. */
  readonly #part: readonly (readonly (readonly Local[])[])[];
  readonly #acc: readonly (readonly (readonly Local[])[])[];
  readonly #sums: readonly Local[];
  readonly #splats: readonly Local[];
  /** Activations of one row that stay in registers over the row vectors of a period, where there are few. */
  readonly #kept: readonly Local[] | null;
  /** Several rows: the scales of a record and the corrections of a row are loaded once per group. */
  readonly #scales: readonly Local[] | null;
  readonly #corrections: readonly Local[] | null;
  #operands: readonly (readonly Local[])[];
  readonly #pairs: readonly (readonly (readonly Local[])[])[];
  readonly #decode: ReturnType<typeof quadDecoder> | null;

  // what has been written so far of the current group
  #finishing = false;
  readonly #started = new Set<Local>();
  /** By row vector: products since the last widening, and whether there was one. */
  readonly #pending: number[];
  readonly #flushed: boolean[];

  constructor(f: FunctionBuilder, spec: GemmSpec) {
    const { mr, nv, style } = spec;
    this.#f = f;
    this.#spec = spec;
    this.#layout = fieldLayout(spec.bits);
    this.#record = weightRecord(spec);
    this.#activation = activationRecord(spec);
    this.#activationPlanes = style === "simd" ? 1 : spec.activationBits / 8;
    this.#zipped = zipsPlanes(spec);
    this.#weightPlanes = this.#zipped ? 1 : spec.planes.length;
    this.#orders = planeOrders(this.#activationPlanes, this.#weightPlanes, spec.radix);
    this.#widens = widensPlanes(spec);
    this.#single = mr === 1;
    const { quads, vectors } = this.#layout;
    this.#step = spec.panel && style === "simd" && !spec.relaxed ? 1 : quads;
    const steps = spec.group / 4 / this.#step;
    this.#perTurn = periodsPerTurn(spec, steps, this.#step);
    this.#rolled = this.#perTurn < steps;
    const parameters = this.#single ? SINGLE_PARAMETERS : TILE_PARAMETERS;
    this.#given = Object.fromEntries(parameters.map((name, i) => [name, f.param(i)])) as Record<TileParameter | SingleParameter, Local>;
    [this.#a, this.#w, this.#groups, this.#half] = f.locals("i32", 4);
    this.#narrow = spec.zeroPoint || (spec.half === true && mr > 1);
    this.#z = this.#narrow ? f.local("i32") : this.#w;
    this.#panel = spec.panel ? f.local("i32") : null;
    [this.#aAt, this.#end] = this.#rolled ? f.locals("i32", 2) : [this.#a, this.#a];
    this.#rows = [this.#given.c, ...f.locals("i32", mr - 1)];
    const accumulators = this.#zipped ? 2 : this.#orders.factors.length;
    const tileOf = (each: number): Local[][][] =>
      Array.from({ length: mr }, () => Array.from({ length: nv }, () => f.locals("v128", each)));
    this.#part = tileOf(accumulators);
    this.#acc = style === "madd16" ? tileOf(this.#widens ? 1 : accumulators) : this.#part;
    this.#sums = this.#single ? f.locals("v128", nv) : [];
    this.#vectors = operandVectors(spec);
    const operandsOf = (): Local[][] => Array.from({ length: nv }, () => f.locals("v128", this.#vectors));
    this.#operands = operandsOf();
    this.#joined = !this.#single && style !== "simd" && this.#weightPlanes === 1 && nv === 2 && vectors === 1 && quads === 2 && !spec.panel;
    this.#pairs = this.#joined ? [this.#operands, operandsOf()] : [];
    this.#splats = f.locals("v128", 2);
    this.#words = this.#zipped ? 1 : style === "simd" ? 2 : this.#activationPlanes;
    this.#kept = this.#single && quads * this.#words <= 4 ? f.locals("v128", quads * this.#words) : null;
    this.#scales = this.#single ? null : f.locals("v128", nv);
    this.#corrections = style !== "madd16" ? null : f.locals("v128", this.#widens ? 1 : this.#activationPlanes);
    this.#flushEvery = this.#productsPerSum();
    this.#carried = this.#rolled && this.#flushEvery >= spec.group / 4;
    this.#pending = new Array<number>(nv).fill(0);
    this.#flushed = new Array<boolean>(nv).fill(false);
    this.#decode = spec.panel ? null : quadDecoder(f, spec, this.#w, this.#single || this.#joined);
  }

  write(): void {
    const f = this.#f;
    const { mr, nv } = this.#spec;
    const { a, c, ldc, tiles, aStride, fresh } = this.#given;
    const rows = this.#rows;
    f.doWhile(() => {
      for (let r = 1; r < mr; r++) f.set(rows[r], f.op("i32.add", rows[r - 1], ldc));
      // tile by tile: stores that wait for their lines do not hold up what follows
      if (!this.#single) f.if(fresh, () => zeroBlock(f, c, ldc, mr));
      f.set(this.#half, f.i32(0));
      // both halves of a block while the tile's activations are in the first-level cache
      f.doWhile(
        () => {
          if (this.#single) this.#strands();
          else this.#pass();
          for (const row of rows) f.bump(row, 16 * nv);
          f.bump(this.#half, 16 * nv);
        },
        f.op("i32.lt_u", this.#half, f.i32(64)),
      );
      f.set(c, f.op("i32.add", rows[mr - 1], f.op("i32.sub", ldc, f.i32(64))));
      f.bump(a, aStride);
      f.bump(tiles, -1);
    }, f.get(tiles));
  }

  /** All groups of the row vectors at `half`. */
  #pass(): void {
    const f = this.#f;
    const { a, w, groups, panel, ahead, aheadEnd } = this.#given;
    f.set(this.#a, a);
    f.set(this.#w, f.op("i32.add", w, this.#half));
    f.set(this.#groups, groups);
    if (this.#narrow) f.set(this.#z, f.op("i32.add", w, f.op("i32.shr_u", this.#half, f.i32(1))));
    if (this.#panel !== null) f.set(this.#panel, f.op("i32.add", panel, f.op("i32.mul", this.#half, f.i32(this.#vectors))));
    lookAhead(f, ahead, aheadEnd);
    f.doWhile(() => this.#group(), f.op("i32.gt_s", this.#groups, f.i32(0)));
  }

  /** All groups of one row, strand by strand in turns: sums wait in c for the next turn. */
  #strands(): void {
    const f = this.#f;
    const { a, w, c, groups, chunk, strands, wStride, cStride } = this.#given;
    const [aTurn, wTurn, wAt, cAt, left, turn, count] = f.locals("i32", 7);
    const sums = this.#sums;
    const store = (value: (sum: Local, j: number) => Operand): void =>
      sums.forEach((sum, j) => f.store("v128.store", cAt, 16 * j, value(sum, j)));
    const load = (j: number): Emit => f.load("v128.load", cAt, 16 * j);
    const each = (use: () => void): void => {
      f.set(cAt, c);
      f.set(left, strands);
      f.doWhile(() => {
        use();
        f.bump(cAt, cStride);
        f.bump(left, -1);
      }, left);
    };
    each(() => store(() => f.constant32(0)));
    f.set(aTurn, a);
    f.set(wTurn, f.op("i32.add", w, this.#half));
    f.set(turn, groups);
    f.doWhile(
      () => {
        f.set(count, f.op("select", chunk, turn, f.op("i32.lt_s", chunk, turn)));
        f.set(wAt, wTurn);
        each(() => {
          f.set(this.#a, aTurn);
          f.set(this.#w, wAt);
          if (this.#narrow) f.set(this.#z, f.op("i32.sub", wAt, f.op("i32.shr_u", this.#half, f.i32(1))));
          f.set(this.#groups, count);
          sums.forEach((sum, j) => f.set(sum, load(j)));
          f.doWhile(() => this.#group(), f.op("i32.gt_s", this.#groups, f.i32(0)));
          store((sum) => sum);
          f.bump(wAt, wStride);
        });
        f.set(aTurn, this.#a);
        f.bump(wTurn, f.op("i32.mul", count, f.i32(this.#record.bytes)));
        f.set(turn, f.op("i32.sub", turn, count));
      },
      f.op("i32.gt_s", turn, f.i32(0)),
    );
    const rest = 2 ** (HALF_EXPONENT - BEFORE);
    if (this.#spec.half === true) each(() => store((_, j) => f.op("f32x4.mul", load(j), f.constantF32(rest))));
  }

  /** Four float16 moved into float32: 2^-112 of what they are. */
  #moved(address: Local, offset: number): Emit {
    const f = this.#f;
    return f.op("v128.and", f.op("i32x4.shl", f.load("v128.load16x4_s", address, offset), f.i32(13)), f.constant32(0x8fffe000 | 0));
  }

  #group(): void {
    const f = this.#f;
    const { mr, nv, add, half } = this.#spec;
    const record = this.#record;
    for (let j = 0; j < nv; j++) this.#begin(j);
    this.#periods();
    this.#scales?.forEach((scale, j) =>
      f.set(
        scale,
        half === true
          ? f.op("f32x4.mul", this.#moved(this.#z, record.codes + 8 * j), f.constantF32(2 ** HALF_EXPONENT))
          : f.load("v128.load", this.#w, this.#codesEnd + 16 * j),
      ),
    );
    for (let r = 0; r < mr; r++) {
      f.set(this.#splats[0], f.load("v128.load32_splat", this.#a, 4 * r));
      if (half === true && this.#single) f.set(this.#splats[0], f.op("f32x4.mul", this.#splats[0], f.constantF32(2 ** BEFORE)));
      this.#corrections?.forEach((own, plane) => f.set(own, f.load("v128.load32_splat", this.#a, 4 * mr * (1 + plane) + 4 * r)));
      if (add) f.set(this.#splats[1], f.load("v128.load32_splat", this.#a, 12 * mr + 4 * r));
      this.#finishing = true;
      for (let j = 0; j < nv; j++) this.#finish(r, j);
      this.#finishing = false;
    }
    f.bump(this.#a, this.#activation.bytes);
    f.bump(this.#w, record.bytes - (record.codes - this.#codesEnd));
    if (this.#narrow) f.bump(this.#z, record.bytes);
    if (this.#panel !== null && !this.#rolled) f.bump(this.#panel, panelBytes(this.#spec));
    f.set(this.#groups, f.op("i32.sub", this.#groups, f.i32(1)));
  }

  /** Bytes from w to the scales once the codes are done: a rolled loop over codes moves w to their end. */
  get #codesEnd(): number {
    return this.#rolled && this.#panel === null ? 0 : this.#record.codes;
  }

  #begin(j: number): void {
    const f = this.#f;
    this.#flushed[j] = false;
    this.#pending[j] = 0;
    this.#part.forEach((row) => row[j].forEach((t) => this.#started.delete(t)));
    if (this.#spec.style !== "madd16")
      this.#acc.forEach((row, r) => row[j].forEach((t, i) => f.set(t, this.#zipped ? f.constant32(0) : this.#start(r, i))));
  }

  /** All quads of a group: at once, or some periods of the field layout per turn of a loop. */
  #periods(): void {
    const f = this.#f;
    const { mr, nv, style } = this.#spec;
    const { vectors } = this.#layout;
    const turn = (): void => {
      for (let p = 0; p < this.#perTurn; p++) this.#period(p * this.#step, p * vectors * 64);
    };
    const [at, bytes] =
      this.#panel === null
        ? [this.#w, { turn: this.#perTurn * vectors * 64, group: this.#record.codes }]
        : [this.#panel, { turn: this.#perTurn * this.#step * 64 * this.#vectors, group: panelBytes(this.#spec) }];
    if (!this.#rolled) {
      turn();
      return;
    }
    f.set(this.#end, f.op("i32.add", at, f.i32(bytes.group)));
    f.set(this.#aAt, this.#a);
    // i16 sums are widened at the end of a turn
    if (style === "madd16")
      for (let j = 0; j < nv; j++) {
        if (this.#carried) {
          for (const t of this.#part.flatMap((row) => row[j])) {
            f.set(t, f.constant32(0));
            this.#started.add(t);
          }
        } else {
          this.#acc.forEach((row, r) => row[j].forEach((t, i) => f.set(t, this.#start(r, i))));
          this.#flushed[j] = true;
        }
      }
    f.doWhile(
      () => {
        turn();
        if (style === "madd16" && !this.#carried) for (let j = 0; j < nv; j++) this.#flush(j);
        f.bump(at, bytes.turn);
        f.bump(this.#aAt, this.#perTurn * this.#step * mr * this.#activation.quad);
      },
      f.op("i32.ne", at, this.#end),
    );
  }

  /** One period of the field layout: quads from q0, codes from `base`. */
  #period(q0: number, base: number): void {
    const { mr, nv } = this.#spec;
    const quads = this.#step;
    if (this.#single) {
      // one row vector at a time: its loads are used up before the next
      for (let j = 0; j < nv; j++)
        for (let q = 0; q < quads; q++) {
          this.#makeRoom(j);
          this.#read(base, q, q0 + q, j);
          this.#multiply(q0 + q, 0, j, j + 1);
        }
      return;
    }
    if (this.#joined) for (let j = 0; j < nv; j++) for (let q = 0; q < 2; q++) this.#decode!(base, q, j, this.#pairs[q][j]);
    for (let q = 0; q < quads; q++) {
      if (this.#joined) this.#operands = this.#pairs[q];
      for (let j = 0; j < nv; j++) {
        this.#makeRoom(j);
        if (!this.#joined) this.#read(base, q, q0 + q, j);
      }
      for (let r = 0; r < mr; r++) this.#multiply(q0 + q, r, 0, nv);
    }
  }

  /** Operands of quad q of the period at w + `base`, which is quad `at` of the panel. */
  #read(base: number, q: number, at: number, j: number): void {
    const f = this.#f;
    const operands = this.#operands[j];
    if (this.#decode !== null) this.#decode(base, q, j, operands);
    else operands.forEach((local, i) => f.set(local, f.load("v128.load", this.#panel!, ((4 * at + j) * this.#vectors + i) * 16)));
  }

  /**
   * The activation word `index` of a quad, in a register: loaded at the first row vector, or anew where registers are
   * short.
   */
  #word(q: number, r: number, index: number, firstUse: boolean): Local {
    const f = this.#f;
    const { header, quad } = this.#activation;
    const kept = this.#kept;
    const local = kept === null ? this.#splats[index] : kept[(q % this.#layout.quads) * this.#words + index];
    const offset = header + (q * this.#spec.mr + r) * quad + 4 * index;
    if (firstUse || kept === null) f.set(local, f.load(this.#zipped ? "v128.load64_splat" : "v128.load32_splat", this.#aAt, offset));
    return local;
  }

  /** Products of quad q for row r with the row vectors from `j0` to before `j1`. */
  #multiply(q: number, r: number, j0: number, j1: number): void {
    const f = this.#f;
    const { style } = this.#spec;
    for (let index = 0; index < this.#words; index++) {
      const x = this.#word(q, r, index, j0 === 0);
      for (let j = j0; j < j1; j++) {
        const operands = this.#operands[j];
        if (this.#zipped) {
          for (let half = 0; half < 2; half++) {
            const t = this.#acc[r][j][half];
            f.set(t, f.op("i32x4.add", t, f.op("i32x4.dot_i16x8_s", operands[half], x)));
          }
          continue;
        }
        for (let pw = 0; pw < this.#weightPlanes; pw++) {
          const t = this.#part[r][j][this.#orders.index(style === "simd" ? 0 : index, pw)];
          if (style === "simd") f.set(t, f.op("i32x4.add", t, f.op("i32x4.dot_i16x8_s", operands[2 * pw + index], x)));
          else if (style === "dot") f.set(t, f.op(DOT, x, operands[pw], t));
          else {
            const product = f.op(DOT16, x, operands[pw]);
            f.set(t, this.#started.has(t) ? f.op("i16x8.add", product, t) : product);
            this.#started.add(t);
          }
        }
      }
    }
  }

  /** The correction of row r: loaded once for all row vectors while a group is finished. */
  #correction(r: number, plane: number): Emit {
    const f = this.#f;
    if (this.#finishing && this.#corrections !== null) return f.get(this.#corrections[plane]);
    return f.load("v128.load32_splat", this.#a, 4 * this.#spec.mr * (1 + plane) + 4 * r);
  }

  /** Start value of an i32 accumulator: the activation sum times the shift of the weights, or zero. */
  #start(r: number, index: number): Emit | Local {
    const { zeroPoint, doubled } = this.#spec;
    if (this.#widens && !zeroPoint && !doubled) return this.#correction(r, 0);
    if (!zeroPoint && !doubled)
      for (let pa = 0; pa < this.#activationPlanes; pa++)
        if (this.#orders.index(pa, this.#weightPlanes - 1) === index) return this.#correction(r, pa);
    return this.#f.constant32(0);
  }

  #productsPerSum(): number {
    const { planes } = this.#spec;
    const products = this.#orders.factors.map((_, i) => {
      let n = 0;
      for (let pa = 0; pa < this.#activationPlanes; pa++)
        for (let pw = 0; pw < this.#weightPlanes; pw++) if (this.#orders.index(pa, pw) === i) n++;
      return n;
    });
    const largest = Math.max(...planes.map((plane) => plane.max), 1);
    return Math.max(1, Math.floor(32767 / (2 * 128 * largest * Math.max(...products))));
  }

  /** A full i16 sum is widened before the next product, so that the last one is left to the end of the group. */
  #makeRoom(j: number): void {
    if (this.#spec.style !== "madd16") return;
    if (this.#pending[j] === this.#flushEvery) this.#flush(j);
    this.#pending[j]++;
  }

  #flush(j: number): void {
    this.#acc.forEach((row, r) => {
      row[j].forEach((sum, i) => this.#f.set(sum, this.#widened(r, j, i)));
      for (const sum of this.#part[r][j]) this.#started.delete(sum);
    });
    this.#flushed[j] = true;
    this.#pending[j] = 0;
  }

  /** The i32 sum of an accumulator so far. */
  #widened(r: number, j: number, i: number): Emit | Local {
    const f = this.#f;
    const before = this.#flushed[j] ? this.#acc[r][j][i] : this.#start(r, i);
    if (this.#pending[j] === 0) return before;
    // the constants stay in registers, where the one of i32x4.extadd_pairwise_i16x8_s is read from memory every time
    return (this.#widens ? this.#orders.factors : [1])
      .map((factor, plane): Emit =>
        f.op("i32x4.dot_i16x8_s", this.#part[r][j][this.#widens ? plane : i], f.constant(`i16 ${factor}`, f.v128i16(factor))),
      )
      .reduce((sum: Emit | Local, product) => f.op("i32x4.add", product, sum), before) as Emit;
  }

  /** The float32 sum of a group for row r and row vector j. */
  #finish(r: number, j: number): void {
    const f = this.#f;
    const { relaxed, add, half } = this.#spec;
    // the product of the two scales does not wait for the inner product
    const ownScale = (): Emit | Local => {
      if (this.#scales !== null) return this.#scales[j];
      // one row has all row vectors: w is where the record is
      return half === true ? this.#moved(this.#w, this.#codesEnd + 8 * j) : f.load("v128.load", this.#w, this.#codesEnd + 16 * j);
    };
    const converted = this.#total(r, j);
    const scale = f.op("f32x4.mul", this.#splats[0], ownScale());
    const before = this.#single ? f.get(this.#sums[j]) : f.load("v128.load", this.#rows[r], 16 * j);
    let next = relaxed
      ? f.op("f32x4.relaxed_madd", converted, scale, before)
      : f.op("f32x4.add", f.op("f32x4.mul", converted, scale), before);
    if (add) {
      const addends = f.load("v128.load", this.#w, this.#codesEnd + this.#record.add - this.#record.codes + 16 * j);
      next = f.op("f32x4.add", next, f.op("f32x4.mul", addends, this.#splats[1]));
    }
    if (this.#single) f.set(this.#sums[j], next);
    else f.store("v128.store", this.#rows[r], 16 * j, next);
  }

  /** The integer sum of a group, corrected, as float32. */
  #total(r: number, j: number): Emit {
    const f = this.#f;
    const { style, doubled, zeroPoint } = this.#spec;
    const t = style === "madd16" ? this.#acc[r][j].map((_, i) => this.#widened(r, j, i)) : this.#acc[r][j];
    const { factors } = this.#orders;
    if (!this.#zipped && t.length > (style === "simd" ? 1 : 2))
      // partial sums whose total passes i32 are joined in float32, largest last
      return factors
        .map((factor, i): Emit => f.op("f32x4.mul", f.op("f32x4.convert_i32x4_s", t[i]), f.constantF32(factor)))
        .reduce((x, y) => f.op("f32x4.add", x, y));
    let total: Emit | Local = t[0];
    if (this.#zipped) {
      const even = f.shuffle([0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27], t[0], t[1]);
      total = f.op("i32x4.add", even, f.shuffle([4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31], t[0], t[1]));
    } else if (t.length === 2) {
      total = f.op("i32x4.add", f.op("i32x4.shl", t[1], f.i32(Math.log2(factors[1] / factors[0]))), t[0]);
    }
    if (doubled) total = f.op("i32x4.shl", total, f.i32(1));
    if (doubled && !zeroPoint) total = f.op("i32x4.add", total, this.#correction(r, 0));
    if (zeroPoint) {
      const zeros = f.load("v128.load16x4_s", this.#z, this.#record.zeroPoint + 8 * j);
      total = f.op("i32x4.add", total, f.op("i32x4.mul", zeros, this.#correction(r, 0)));
    }
    return f.op("f32x4.convert_i32x4_s", total);
  }
}
