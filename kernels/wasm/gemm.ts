// Matrix products on integer operands: C[M,N] = A[M,K] * W[N,K]^T, activations as one or two int8 planes (or int16), weights as fields of
// 1..8 bits with block scales. One generator prints GEMV (MR = 1, 16 rows of W at once) and GEMM tiles (MR x 8 rows). The layout is
// docs/adding-a-kernel.md's "row block": 16 rows of W x one group of k, then that group's scales, zero points and addends, one stream.
import { ModuleBuilder, type Emit, type FunctionBuilder, type FunctionRef, type Local, type Operand } from "./asm.ts";
import { fieldLayout } from "./fields.ts";
import { weightRecord, type GemmSpec } from "./gemmspec.ts";
import { writeWork } from "./items.ts";
import { operandVectors, panelBytes, quadDecoder, writeUnpack, zipsPlanes } from "./operands.ts";
import { aimAhead, lookAhead, zeroBlock } from "./tiles.ts";

export { weightRecord, type DotStyle, type GemmSpec } from "./gemmspec.ts";

/** Smallest padded group for a span of `n` elements in fields of `bits`. */
export function paddedGroup(bits: number, n: number): number {
  const period = 4 * fieldLayout(bits).quads;
  return Math.ceil(n / period) * period;
}

/** Bytes of one (mr rows x group) record of activations: scales, corrections, sums, then quads. */
export function activationRecord(spec: Pick<GemmSpec, "style" | "activationBits" | "group" | "mr">): {
  readonly header: number;
  /** Bytes of one quad of one row. */
  readonly quad: number;
  readonly bytes: number;
} {
  const header = 16 * spec.mr; // f32 scale, i32 correction low, i32 correction high, f32 sum: mr each
  const quad = spec.style === "simd" ? 8 : spec.activationBits / 2;
  return { header, quad, bytes: header + (spec.group / 4) * quad * spec.mr };
}

const DOT = "i32x4.relaxed_dot_i8x16_i7x16_add_s";
const DOT16 = "i16x8.relaxed_dot_i8x16_i7x16_s";

/** Accumulator index of a weight factor radix^pw * 256^pa. */
interface Orders {
  readonly factors: readonly number[];
  index(pa: number, pw: number): number;
}

function orders(activationPlanes: number, weightPlanes: number, radix: number): Orders {
  const factor = (pa: number, pw: number): number => 256 ** pa * radix ** pw;
  const factors: number[] = [];
  for (let pa = 0; pa < activationPlanes; pa++)
    for (let pw = 0; pw < weightPlanes; pw++) if (!factors.includes(factor(pa, pw))) factors.push(factor(pa, pw));
  factors.sort((a, b) => a - b);
  return { factors, index: (pa, pw) => factors.indexOf(factor(pa, pw)) };
}

/** i16 sums of two planes are joined by the multiplication that widens them. Three (65536 is no i16) stay apart to the end. */
function widensPlanes({ style, activationBits, planes }: GemmSpec): boolean {
  return style === "madd16" && planes.length + activationBits / 8 - 1 <= 2;
}

/** A record's correction is one for the sum of all planes, or one for each plane of activations: see `activations.ts`. */
export function totalCorrection(spec: GemmSpec): boolean {
  return spec.zeroPoint || spec.doubled || spec.style === "simd" || widensPlanes(spec);
}

/** The factor of the activation sum in a record's corrections. The shift of two planes of weights belongs to the higher one. */
export function correctionFactor(spec: GemmSpec, shift: number): number {
  if (spec.zeroPoint) return -1;
  if (zipsPlanes(spec)) return 0;
  return widensPlanes(spec) ? -shift * spec.radix ** (spec.planes.length - 1) : -shift;
}

/**
 * Periods of the field layout that one turn of the loop over a group unrolls. Time to full speed grows with the code, so long groups take turns: of 64 elements for one row
 * of activations, of 128 for several, where shorter ones cost 3 %. i16 products take one period: V8 11 schedules long blocks of them into spills.
 */
function periodsPerTurn({ style, mr }: GemmSpec, periods: number, quads: number): number {
  let most = style === "simd" ? 1 : Math.max(1, Math.floor((mr === 1 ? 16 : 32) / quads));
  while (periods % most !== 0) most--;
  return most;
}

const TILE_PARAMETERS = ["a", "w", "c", "ldc", "groups", "tiles", "aStride", "fresh", "panel", "ahead", "aheadEnd"] as const;

/**
 * The tile function: `tiles` tiles of mr rows of activations, aStride bytes apart, times 16 rows of W over `groups` groups. Several rows are added to c, 8 rows of W at a time,
 * where `fresh` says so after zeros were stored; the sums of a single one are kept in registers over all groups and stored. `panel`, `ahead` and `aheadEnd`: the operands of
 * the block and the weights that come next, where there is a panel.
 */
function writeTile(f: FunctionBuilder, spec: GemmSpec): void {
  const { mr, nv, style } = spec;
  const layout = fieldLayout(spec.bits);
  const record = weightRecord(spec);
  const act = activationRecord(spec);
  const activationPlanes = style === "simd" ? 1 : spec.activationBits / 8;
  const zipped = zipsPlanes(spec);
  const weightPlanes = zipped ? 1 : spec.planes.length;
  const order = orders(activationPlanes, weightPlanes, spec.radix);
  const accumulators = zipped ? 2 : order.factors.length;
  const widens = widensPlanes(spec);
  const quads = spec.group / 4;
  const inRegisters = mr === 1;
  const periods = quads / layout.quads;
  const perTurn = periodsPerTurn(spec, periods, layout.quads);
  const rolled = perTurn < periods;
  const [firstA, firstW, c, ldc, allGroups, tiles, aStride, fresh, firstPanel, ahead, aheadEnd] = TILE_PARAMETERS.map((_, i) => f.param(i));
  const [a, w, groups, half] = f.locals("i32", 4);
  // zero points are half as wide as scales
  const z = spec.zeroPoint ? f.local("i32") : w;
  const panel = spec.panel ? f.local("i32") : null;
  // a rolled loop moves w to the end of the codes
  const [aAt, end] = rolled ? f.locals("i32", 2) : [a, a];
  const codesEnd = rolled ? 0 : record.codes;

  const rows: Local[] = [c, ...f.locals("i32", mr - 1)];
  const tileOf = (each = accumulators): Local[][][] =>
    Array.from({ length: mr }, () => Array.from({ length: nv }, () => f.locals("v128", each)));
  const part = tileOf();
  const acc = style === "madd16" ? tileOf(widens ? 1 : accumulators) : part;
  const sums = inRegisters ? f.locals("v128", nv) : [];
  const vectors = operandVectors(spec);
  const operandsOf = (): Local[][] => Array.from({ length: nv }, () => f.locals("v128", vectors));
  let operands = operandsOf();
  // both quads of a period are decoded from one load, where there are registers for it
  const joined =
    !inRegisters && style !== "simd" && weightPlanes === 1 && nv === 2 && layout.vectors === 1 && layout.quads === 2 && !spec.panel;
  const pairs = joined ? [operands, operandsOf()] : [];
  const splats = f.locals("v128", 2);
  // activations of one row that stay in registers over the row vectors of a period, where there are few
  const words = zipped ? 1 : style === "simd" ? 2 : activationPlanes;
  const kept = inRegisters && layout.quads * words <= 4 ? f.locals("v128", layout.quads * words) : null;

  // several rows: the scales of a record and the corrections of a row are loaded once per group
  const scales = inRegisters ? null : f.locals("v128", nv);
  const ownCorrections = style !== "madd16" ? null : f.locals("v128", widens ? 1 : activationPlanes);
  let inEpilogue = false;
  const correction = (r: number, plane: number): Emit =>
    inEpilogue && ownCorrections !== null ? f.get(ownCorrections[plane]) : f.load("v128.load32_splat", a, 4 * mr * (1 + plane) + 4 * r);
  /** Start value of an i32 accumulator: the activation sum times the shift of the weights, or zero. */
  const start = (r: number, index: number): Emit | Local => {
    if (widens && !spec.zeroPoint && !spec.doubled) return correction(r, 0);
    if (!spec.zeroPoint && !spec.doubled)
      for (let pa = 0; pa < activationPlanes; pa++) if (order.index(pa, weightPlanes - 1) === index) return correction(r, pa);
    return f.constant32(0);
  };

  // i16 accumulators: how many dots fit before a sum of pairs can pass 32767 (activations reach -128, operands their maximum)
  const productsOf = order.factors.map((_, i) => {
    let n = 0;
    for (let pa = 0; pa < activationPlanes; pa++) for (let pw = 0; pw < weightPlanes; pw++) if (order.index(pa, pw) === i) n++;
    return n;
  });
  const largest = Math.max(...spec.planes.map((plane) => plane.max), 1);
  const flushEvery = Math.max(1, Math.floor(32767 / (2 * 128 * largest * Math.max(...productsOf))));
  const started = new Set<Local>();
  const carried = rolled && flushEvery >= quads;
  const pendingOf = new Array<number>(nv).fill(0);
  const flushed = new Array<boolean>(nv).fill(false);
  /** The i32 sum of an accumulator so far. */
  const widened = (r: number, j: number, i: number): Emit | Local => {
    const before = flushed[j] ? acc[r][j][i] : start(r, i);
    if (pendingOf[j] === 0) return before;
    // the constants stay in registers, where the one of i32x4.extadd_pairwise_i16x8_s is read from memory every time
    return (widens ? order.factors : [1])
      .map((factor, plane): Emit =>
        f.op("i32x4.dot_i16x8_s", part[r][j][widens ? plane : i], f.constant(`i16 ${factor}`, f.v128i16(factor))),
      )
      .reduce((sum: Emit | Local, product) => f.op("i32x4.add", product, sum), before) as Emit;
  };
  const flush = (j: number): void => {
    for (let r = 0; r < mr; r++) {
      acc[r][j].forEach((sum, i) => f.set(sum, widened(r, j, i)));
      for (const sum of part[r][j]) started.delete(sum);
    }
    flushed[j] = true;
    pendingOf[j] = 0;
  };

  const decode = spec.panel ? null : quadDecoder(f, spec, w, inRegisters || joined);
  /** Operands of quad q of the period at w + `base`, which is quad `at` of the panel. */
  const readQuad = (base: number, q: number, at: number, j: number): void => {
    if (decode !== null) decode(base, q, j, operands[j]);
    else operands[j].forEach((local, i) => f.set(local, f.load("v128.load", panel!, ((4 * at + j) * vectors + i) * 16)));
  };

  /** The activation word `index` of a quad, in a register: loaded at the first row vector, or anew where registers are short. */
  const activation = (q: number, r: number, index: number, firstUse: boolean): Local => {
    const local = kept === null ? splats[index] : kept[(q % layout.quads) * words + index];
    const offset = act.header + (q * mr + r) * act.quad + 4 * index;
    if (firstUse || kept === null) f.set(local, f.load(zipped ? "v128.load64_splat" : "v128.load32_splat", aAt, offset));
    return local;
  };
  /** Products of quad q for row r with the row vectors from `j0` on. */
  const multiplyQuad = (q: number, r: number, j0: number, j1: number): void => {
    for (let index = 0; index < words; index++) {
      const x = activation(q, r, index, j0 === 0);
      for (let j = j0; j < j1; j++) {
        if (zipped) {
          for (let half = 0; half < 2; half++) {
            const t = acc[r][j][half];
            f.set(t, f.op("i32x4.add", t, f.op("i32x4.dot_i16x8_s", operands[j][half], x)));
          }
          continue;
        }
        for (let pw = 0; pw < weightPlanes; pw++) {
          const i = order.index(style === "simd" ? 0 : index, pw);
          const t = part[r][j][i];
          if (style === "simd") f.set(t, f.op("i32x4.add", t, f.op("i32x4.dot_i16x8_s", operands[j][2 * pw + index], x)));
          else if (style === "dot") f.set(t, f.op(DOT, x, operands[j][pw], t));
          else {
            const product = f.op(DOT16, x, operands[j][pw]);
            f.set(t, started.has(t) ? f.op("i16x8.add", product, t) : product);
            started.add(t);
          }
        }
      }
    }
  };

  const epilogue = (r: number, j: number): void => {
    const t = style === "madd16" ? acc[r][j].map((_, i) => widened(r, j, i)) : acc[r][j];
    let total: Emit | Local = t[0];
    const asInteger = zipped || t.length === 1 || (t.length === 2 && style !== "simd");
    if (zipped) {
      const even = f.shuffle([0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27], t[0], t[1]);
      total = f.op("i32x4.add", even, f.shuffle([4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31], t[0], t[1]));
    } else if (t.length === 2 && asInteger) {
      const shift = Math.log2(order.factors[1] / order.factors[0]);
      total = f.op("i32x4.add", f.op("i32x4.shl", t[1], f.i32(shift)), t[0]);
    }
    if (spec.doubled) total = f.op("i32x4.shl", total, f.i32(1));
    if (spec.doubled && !spec.zeroPoint) total = f.op("i32x4.add", total, correction(r, 0));
    if (spec.zeroPoint)
      total = f.op("i32x4.add", total, f.op("i32x4.mul", f.load("v128.load16x4_s", z, record.zeroPoint + 8 * j), correction(r, 0)));
    const converted = asInteger
      ? f.op("f32x4.convert_i32x4_s", total)
      : // partial sums whose total passes i32 are joined in float32, largest last
        order.factors
          .map((factor, i): Emit => f.op("f32x4.mul", f.op("f32x4.convert_i32x4_s", t[i]), f.constantF32(factor)))
          .reduce((x, y) => f.op("f32x4.add", x, y));
    // the product of the two scales does not wait for the inner product
    const scale = f.op("f32x4.mul", splats[0], scales === null ? f.load("v128.load", w, codesEnd + 16 * j) : scales[j]);
    const before = inRegisters ? f.get(sums[j]) : f.load("v128.load", rows[r], 16 * j);
    let next = spec.relaxed
      ? f.op("f32x4.relaxed_madd", converted, scale, before)
      : f.op("f32x4.add", f.op("f32x4.mul", converted, scale), before);
    if (spec.add)
      next = f.op("f32x4.add", next, f.op("f32x4.mul", f.load("v128.load", w, codesEnd + record.add - record.codes + 16 * j), splats[1]));
    if (inRegisters) f.set(sums[j], next);
    else f.store("v128.store", rows[r], 16 * j, next);
  };

  const begin = (j: number): void => {
    flushed[j] = false;
    pendingOf[j] = 0;
    part.forEach((row) => row[j].forEach((t) => started.delete(t)));
    if (style !== "madd16") for (let r = 0; r < mr; r++) acc[r][j].forEach((t, i) => f.set(t, zipped ? f.constant32(0) : start(r, i)));
  };
  /** One period of the field layout: quads from q0, codes from `base`. */
  const period = (q0: number, base: number): void => {
    // a full accumulator is widened before the next product, so that the last one is left to the epilogue
    const makeRoom = (j: number): void => {
      if (style !== "madd16") return;
      if (pendingOf[j] === flushEvery) flush(j);
      pendingOf[j]++;
    };
    if (inRegisters) {
      // one row vector at a time: its loads are used up before the next
      for (let j = 0; j < nv; j++)
        for (let q = 0; q < layout.quads; q++) {
          makeRoom(j);
          readQuad(base, q, q0 + q, j);
          multiplyQuad(q0 + q, 0, j, j + 1);
        }
      return;
    }
    if (joined) {
      for (let j = 0; j < nv; j++) for (let q = 0; q < 2; q++) decode!(base, q, j, pairs[q][j]);
      for (let q = 0; q < 2; q++) {
        operands = pairs[q];
        for (let j = 0; j < nv; j++) makeRoom(j);
        for (let r = 0; r < mr; r++) multiplyQuad(q0 + q, r, 0, nv);
      }
      return;
    }
    for (let q = 0; q < layout.quads; q++) {
      for (let j = 0; j < nv; j++) {
        makeRoom(j);
        readQuad(base, q, q0 + q, j);
      }
      for (let r = 0; r < mr; r++) multiplyQuad(q0 + q, r, 0, nv);
    }
  };
  const periodBytes = layout.vectors * 64;
  const turn = (): void => {
    for (let p = 0; p < perTurn; p++) period(p * layout.quads, p * periodBytes);
  };
  const allPeriods = (): void => {
    if (!rolled) {
      turn();
      return;
    }
    f.set(end, f.op("i32.add", w, f.i32(record.codes)));
    f.set(aAt, a);
    // i16 sums are widened at the end of a turn
    if (style === "madd16")
      for (let j = 0; j < nv; j++) {
        if (carried) {
          for (let r = 0; r < mr; r++) part[r][j].forEach((t) => (f.set(t, f.constant32(0)), started.add(t)));
        } else {
          for (let r = 0; r < mr; r++) acc[r][j].forEach((t, i) => f.set(t, start(r, i)));
          flushed[j] = true;
        }
      }
    f.doWhile(
      () => {
        turn();
        if (style === "madd16" && !carried) for (let j = 0; j < nv; j++) flush(j);
        f.bump(w, perTurn * periodBytes);
        f.bump(aAt, perTurn * layout.quads * mr * act.quad);
        if (panel !== null) f.bump(panel, perTurn * layout.quads * 64 * vectors);
      },
      f.op("i32.ne", w, end),
    );
  };

  const oneTile = (): void =>
    f.doWhile(
      () => {
        for (let j = 0; j < nv; j++) begin(j);
        allPeriods();
        scales?.forEach((scale, j) => f.set(scale, f.load("v128.load", w, codesEnd + 16 * j)));
        for (let r = 0; r < mr; r++) {
          f.set(splats[0], f.load("v128.load32_splat", a, 4 * r));
          ownCorrections?.forEach((own, plane) => f.set(own, f.load("v128.load32_splat", a, 4 * mr * (1 + plane) + 4 * r)));
          if (spec.add) f.set(splats[1], f.load("v128.load32_splat", a, 12 * mr + 4 * r));
          inEpilogue = true;
          for (let j = 0; j < nv; j++) epilogue(r, j);
          inEpilogue = false;
        }
        f.bump(a, act.bytes);
        f.bump(w, record.bytes - (rolled ? record.codes : 0));
        if (spec.zeroPoint) f.bump(z, record.bytes);
        if (panel !== null && !rolled) f.bump(panel, panelBytes(spec));
        f.set(groups, f.op("i32.sub", groups, f.i32(1)));
      },
      f.op("i32.gt_s", groups, f.i32(0)),
    );
  /** All groups of the row vectors that start `half` bytes into a block's vectors. */
  const pass = (): void => {
    f.set(a, firstA);
    f.set(w, f.op("i32.add", firstW, half));
    f.set(groups, allGroups);
    if (spec.zeroPoint) f.set(z, f.op("i32.add", firstW, f.op("i32.shr_u", half, f.i32(1))));
    if (panel !== null) {
      f.set(panel, f.op("i32.add", firstPanel, f.op("i32.mul", half, f.i32(vectors))));
      lookAhead(f, ahead, aheadEnd);
    }
    for (const sum of sums) f.set(sum, f.constant32(0));
    oneTile();
    sums.forEach((sum, j) => f.store("v128.store", c, 16 * j, sum));
  };
  f.doWhile(() => {
    for (let r = 1; r < mr; r++) f.set(rows[r], f.op("i32.add", rows[r - 1], ldc));
    // tile by tile: stores that wait for their lines do not hold up what follows
    if (!inRegisters) f.if(fresh, () => zeroBlock(f, c, ldc, mr));
    f.set(half, f.i32(0));
    // both halves of a block while the tile's activations are in the first-level cache
    f.doWhile(
      () => {
        pass();
        for (const row of rows) f.bump(row, 16 * nv);
        f.bump(half, 16 * nv);
      },
      f.op("i32.lt_u", half, f.i32(64)),
    );
    f.set(c, f.op("i32.add", rows[mr - 1], f.op("i32.sub", ldc, f.i32(64))));
    f.bump(firstA, aStride);
    f.bump(tiles, -1);
  }, f.get(tiles));
}

/** Arguments of `work`, i32 each. Its items are blocks of 16 rows of W. */
export const WORK_ARGUMENTS = ["a", "w", "c", "ldc", "groups", "tiles", "chunk", "aStride", "blocks"] as const;

/**
 * A module with `tile` and `work`: a block runs over chunks of groups (kept in the first-level cache) and, within, over tiles of activation rows. Micro-kernels are calls: V8
 * replaces no running loop by better code.
 */
export function gemmModule(spec: GemmSpec): Uint8Array<ArrayBuffer> {
  const m = new ModuleBuilder({ shared: spec.shared });
  const parameters = new Array<"i32">(TILE_PARAMETERS.length).fill("i32");
  const tile: FunctionRef = m.func("tile", parameters, [], (f) => writeTile(f, spec));
  const unpack = spec.panel ? m.func("unpack", ["i32", "i32", "i32"], [], (f) => writeUnpack(f, spec)) : null;
  writeWork(m, (f, args, panel) => {
    const field = (name: (typeof WORK_ARGUMENTS)[number]): Emit => f.load("i32.load", args, 4 * WORK_ARGUMENTS.indexOf(name));
    const [w, c, chunk, left, first, a, count, at, ahead, aheadEnd, end] = f.locals("i32", 11);
    const record = weightRecord(spec).bytes;
    const actRecord = activationRecord(spec).bytes;
    const blockBytes = f.op("i32.mul", field("groups"), f.i32(record));
    if (unpack !== null) f.set(end, f.op("i32.add", field("w"), f.op("i32.mul", field("blocks"), blockBytes)));
    return (block) => {
      f.set(w, f.op("i32.add", field("w"), f.op("i32.mul", block, blockBytes)));
      f.set(c, f.op("i32.add", field("c"), f.op("i32.mul", block, f.i32(64))));
      f.set(left, field("groups"));
      f.set(first, f.i32(0));
      f.while(f.op("i32.gt_s", left, f.i32(0)), () => {
        f.set(chunk, field("chunk"));
        f.set(count, f.op("select", chunk, left, f.op("i32.lt_s", chunk, left)));
        f.set(at, f.op("i32.add", w, f.op("i32.mul", first, f.i32(record))));
        if (unpack !== null) f.run(f.call(unpack, at, panel, count));
        f.set(a, f.op("i32.add", field("a"), f.op("i32.mul", first, f.i32(actRecord))));
        if (unpack !== null) {
          // the chunk that follows in memory is the next one of this worker
          const next = f.op("i32.add", at, f.op("i32.mul", count, f.i32(record)));
          aimAhead(f, ahead, aheadEnd, next, f.op("i32.mul", chunk, f.i32(record)), end);
        }
        const given: Record<(typeof TILE_PARAMETERS)[number], Operand> = {
          a,
          w: at,
          c,
          ldc: field("ldc"),
          groups: count,
          tiles: field("tiles"),
          aStride: field("aStride"),
          fresh: f.op("i32.eqz", first),
          panel,
          ahead,
          aheadEnd,
        };
        f.run(f.call(tile, ...TILE_PARAMETERS.map((name) => given[name])));
        f.bump(first, count);
        f.set(left, f.op("i32.sub", left, count));
      });
    };
  });
  return m.bytes();
}
