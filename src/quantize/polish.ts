// Polish: after GPTQ, codes and scales are improved in turn by coordinate descent on the output error (w - q) A (w -
// q)^T, A = H + damp mean(diag H) I. Codes: each goes to the nearest one of its best value given all others. Scales:
// least squares where they are stored finely (16 bits and more), else the neighbouring scale codes with codes rounded
// again. Every change is kept only where it lowers the error. Blocks of columns, so that the gradient moves in
// products. Coordinate descent for quantized weights: QuantEase, arXiv 2309.01885. Not here: scales that several rows
// or more than 256 columns share.
import type { Codes } from "../../formats/core/pack.ts";
import { codeArray } from "../../formats/core/pack.ts";
import type { BlockGrid } from "./grid.ts";
import type { TnProduct } from "./linalg.ts";
import type { Steps } from "./steps.ts";

/** Columns of a block whose scales stay. */
const BLOCK = 32;
/** Widest group whose scale is refined. */
const WIDEST = 256;
/** Scales stored in fewer bits move by codes. */
const FINE_BITS = 16;

export interface PolishWork {
  readonly grid: BlockGrid;
  /** [rows * k], changed in place. */
  readonly codes: Codes;
  /** The weight as it was, [rows * k]. */
  readonly weight: Float64Array;
  /** H [k * k], and what is added to its diagonal. */
  readonly hessian: Float64Array;
  readonly damp: number;
  readonly product: TnProduct;
  readonly passes: number;
  readonly name: string | undefined;
}

/**
 * Columns [from, to) of the work, one array of rows values for each: values, gradient and change since the block began.
 */
interface Block {
  readonly from: number;
  readonly to: number;
  readonly q: Float64Array[];
  readonly g: Float64Array[];
  readonly change: Float64Array;
}

/** Improves codes and scales. Returns the error before and after. */
export function* polish(work: PolishWork): Steps<{ before: number; after: number }> {
  const { grid, codes, weight, hessian, damp, product, passes, name } = work;
  const { rows, k, cells } = grid;
  const a = hessian.slice();
  for (let j = 0; j < k; j++) a[j * k + j] += damp === 0 && a[j * k + j] === 0 ? 1 : damp;
  // Columns as rows, so that everything runs along memory: values q, gradient g = A (q - w).
  const q = new Float64Array(k * rows);
  const d = new Float64Array(k * rows);
  const g = new Float64Array(k * rows);
  const { table } = grid.element;
  for (let r = 0; r < rows; r++)
    for (let j = 0; j < k; j++) {
      const cell = grid.cellOf(r, j);
      const code = codes[r * k + j];
      q[j * rows + r] = ((table ? table[code] : grid.element.decode(code)) - grid.zero[cell]) * grid.stored[cell];
      d[j * rows + r] = q[j * rows + r] - weight[r * k + j];
    }
  product(g, 0, rows, k, rows, a, 0, k, d, 0, rows, k, 1);
  const error = (): number => {
    let sum = 0;
    for (let j = 0; j < k; j++) for (let r = 0; r < rows; r++) sum += (q[j * rows + r] - weight[r * k + j]) * g[j * rows + r];
    return sum;
  };
  const before = error();
  const scaled = grid.block !== null && cells.rows === 1 && cells.k <= WIDEST;
  const width = scaled ? cells.k : BLOCK;
  for (let pass = 0; pass < passes; pass++) {
    let changed = 0;
    for (let from = 0; from < k; from += width) {
      const to = Math.min(k, from + width);
      const part = (all: Float64Array, j: number) => all.subarray(j * rows, (j + 1) * rows);
      const block: Block = {
        from,
        to,
        q: Array.from({ length: to - from }, (_, i) => part(q, from + i)),
        g: Array.from({ length: to - from }, (_, i) => part(g, from + i).slice()),
        change: new Float64Array((to - from) * rows),
      };
      for (let sweep = 0; sweep < 2; sweep++) changed += sweepCodes(work, block, a);
      if (scaled) changed += grid.block!.scales[0].format.bits >= FINE_BITS ? fitScales(work, block, a) : neighbourScales(work, block, a);
      product(g, 0, rows, k, rows, a, from * k, k, block.change, 0, rows, to - from, 1);
      yield { stage: "polish", done: pass * k + to, total: passes * k, ...(name === undefined ? {} : { layer: name }) };
    }
    // nothing less: a band of rows must not stop before the whole would
    if (changed === 0) break;
  }
  return { before, after: error() };
}

/** Adds t to entry (row, column i of the block) and moves the gradient inside the block. */
function move(block: Block, a: Float64Array, k: number, i: number, row: number, t: number, rows: number): void {
  block.q[i][row] += t;
  block.change[i * rows + row] += t;
  const at = (block.from + i) * k + block.from;
  for (let c = 0; c < block.g.length; c++) block.g[c][row] += t * a[at + c];
}

/** One sweep over the codes of a block. */
function sweepCodes({ grid, codes }: PolishWork, block: Block, a: Float64Array): number {
  const { rows, k } = grid;
  const target = new Float64Array(rows);
  const values = new Float64Array(rows);
  const fresh = codeArray(grid.element.bits, rows);
  let changed = 0;
  for (let i = 0; i < block.q.length; i++) {
    const j = block.from + i;
    const diagonal = a[j * k + j];
    const [q, g] = [block.q[i], block.g[i]];
    for (let r = 0; r < rows; r++) target[r] = q[r] - g[r] / diagonal;
    grid.quantizeColumn(j, target, 0, fresh, values);
    for (let r = 0; r < rows; r++) {
      const t = values[r] - q[r];
      if (t === 0 || !(t * (2 * g[r] + t * diagonal) < 0)) continue;
      codes[r * k + j] = fresh[r];
      move(block, a, k, i, r, t, rows);
      q[r] = values[r];
      changed++;
    }
  }
  return changed;
}

/** Least squares for the scales of a group, codes as they are. */
function fitScales({ grid }: PolishWork, block: Block, a: Float64Array): number {
  const { rows, k } = grid;
  const width = block.q.length;
  const u = new Float64Array(width);
  let changed = 0;
  for (let r = 0; r < rows; r++) {
    const cell = grid.cellOf(r, block.from);
    const s = grid.stored[cell];
    if (s === 0) continue;
    let [slope, curve] = [0, 0];
    for (let i = 0; i < width; i++) {
      u[i] = block.q[i][r] / s;
      slope += u[i] * block.g[i][r];
    }
    for (let i = 0; i < width; i++) {
      if (u[i] === 0) continue;
      const at = (block.from + i) * k + block.from;
      let sum = 0;
      for (let c = 0; c < width; c++) sum += a[at + c] * u[c];
      curve += u[i] * sum;
    }
    if (!(curve > 0)) continue;
    const code = grid.scaleCodes![cell];
    grid.setScale(cell, s - slope / curve);
    const t = grid.stored[cell] - s;
    if (t === 0 || !(t * (2 * slope + t * curve) < 0) || !grid.holds(grid.stored[cell], grid.zero[cell])) {
      grid.setScaleCode(cell, code);
      continue;
    }
    for (let i = 0; i < width; i++) if (u[i] !== 0) move(block, a, k, i, r, t * u[i], rows);
    changed++;
  }
  return changed;
}

/** The scale codes beside those of a group, with codes rounded again to the best values given the other groups. */
function neighbourScales({ grid, codes }: PolishWork, block: Block, a: Float64Array): number {
  const { rows, k } = grid;
  const width = block.q.length;
  const { bits } = grid.block!.scales[0].format;
  const cells = Int32Array.from({ length: rows }, (_, r) => grid.cellOf(r, block.from));
  const kept = Array.from(cells, (cell) => grid.scaleCodes![cell]);
  // Gradient of the block alone: the change of the error by v - q is 2 (v - q) g + (v - q) A (v - q).
  const best = new Float64Array(rows);
  const bestCode = kept.slice();
  const bestValues = Array.from({ length: width }, (_, i) => block.q[i].slice());
  const bestCodes = Array.from({ length: width }, (_, i) => Uint32Array.from({ length: rows }, (_, r) => codes[r * k + block.from + i]));
  const values = Array.from({ length: width }, () => new Float64Array(rows));
  const fresh = Array.from({ length: width }, () => codeArray(grid.element.bits, rows));
  const target = new Float64Array(rows);
  for (const step of [-1, 1]) {
    for (let r = 0; r < rows; r++) {
      const code = kept[r] + step;
      const scale = code < 0 || code >= 2 ** bits ? NaN : grid.scaleOf(cells[r], code);
      if (scale > 0 && grid.holds(scale, grid.zero[cells[r]])) grid.setScaleCode(cells[r], code);
    }
    // Columns in turn: each is rounded to its best value given the columns of the group that were rounded before.
    const g = block.g.map((column) => column.slice());
    for (let i = 0; i < width; i++) {
      const at = (block.from + i) * k + block.from;
      for (let r = 0; r < rows; r++) target[r] = block.q[i][r] - g[i][r] / a[at + i];
      grid.quantizeColumn(block.from + i, target, 0, fresh[i], values[i]);
      for (let c = 0; c < width; c++) for (let r = 0; r < rows; r++) g[c][r] += (values[i][r] - block.q[i][r]) * a[at + c];
    }
    for (let r = 0; r < rows; r++) {
      let gain = 0; // g of before and after: the change is the sum of t (g + g')
      for (let i = 0; i < width; i++) gain += (values[i][r] - block.q[i][r]) * (block.g[i][r] + g[i][r]);
      if (!(gain < best[r])) continue;
      best[r] = gain;
      bestCode[r] = grid.scaleCodes![cells[r]];
      for (let i = 0; i < width; i++) {
        bestValues[i][r] = values[i][r];
        bestCodes[i][r] = fresh[i][r];
      }
    }
    for (let r = 0; r < rows; r++) if (grid.scaleCodes![cells[r]] !== kept[r]) grid.setScaleCode(cells[r], kept[r]);
  }
  let changed = 0;
  for (let r = 0; r < rows; r++) {
    if (best[r] === 0) continue;
    grid.setScaleCode(cells[r], bestCode[r]);
    changed++;
    for (let i = 0; i < width; i++) {
      codes[r * k + block.from + i] = bestCodes[i][r];
      const t = bestValues[i][r] - block.q[i][r];
      if (t !== 0) move(block, a, k, i, r, t, rows);
    }
  }
  return changed;
}
