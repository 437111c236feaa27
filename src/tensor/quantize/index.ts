// quantize: round-to-nearest onto a format. Per tensor, row, tile or block of any size along k, symmetric or with zero points, one or two levels
// of scales; any strided source without a copy of the whole. Other quantizers (GPTQ, ...) come as `WeightQuantizer` objects from lowbit/quantize.
// Two passes over panels of rows: statistics of every block, then codes with the scales as they are stored.
import { encodeArray } from "../../../formats/core/bulk.ts";
import { LowbitError } from "../../../formats/core/errors.ts";
import { codeArray, packedBytes, packInto, type Codes } from "../../../formats/core/pack.ts";
import { roundToInteger } from "../../../formats/core/round.ts";
import { spanGrid, type SpanGrid } from "../../../formats/core/span.ts";
import type {
  BlockFormat,
  Format,
  NumberFormat,
  Overflow,
  PackedTensor,
  QuantConfig,
  RangeRule,
  Rounding,
  ScaleLevel,
  ScaleRule,
} from "../../../formats/core/types.ts";
import { levelValues, packedSizes } from "../../../formats/core/packed.ts";
import type { BulkCodec } from "../../backends/types.ts";
import { nibblesFit, quantizeNibbles } from "./nibbles.ts";
import { scaleRule, type RuleOutput } from "./scale-rules.ts";
import { affineParams, ortRangeRule, type Arithmetic } from "./scales.ts";
import { matrixView, readRows, type MatrixView, type Tensor, type TensorData } from "../tensor.ts";

export interface QuantizeOptions {
  /** Default: the format's. */
  readonly scaleRule?: ScaleRule;
  /** Default: the format's. */
  readonly rangeRule?: RangeRule;
  /** Rounding of the elements; default: the element's own. */
  readonly rounding?: Rounding;
  /** Default "saturate". */
  readonly overflow?: Overflow;
  /** Default "exact". */
  readonly arithmetic?: Arithmetic;
  /** Uniform numbers in [0, 1) for rounding "stochastic". */
  readonly random?: () => number;
  /** A backend that converts in bulk, `await wasm()`: faster for float32 data, same codes and scales. What it has no exact kernel for runs here. */
  readonly backend?: { readonly codec: BulkCodec };
}

/** A quantizer of lowbit/quantize: it makes the packed tensor itself and records how. */
export interface WeightQuantizer {
  readonly algorithm: string;
  quantizeWeight(weight: Tensor, format: Format): PackedTensor;
}

/**
 * Quantizes a tensor to nearest. [k] is one row, [rows, k] a matrix, more dimensions are [shape[0], rest] (a convolution weight by output channel).
 * A scalar format casts without scale.
 * @param format a descriptor, never a name
 * @throws LowbitError E_VALUE for NaN or infinite data; E_SHAPE; E_UNSUPPORTED for options that the format cannot follow
 * @example quantize(tensor(data, [n, k]), format("int4_b32"))
 */
export function quantize(weight: Tensor, format: Format, options: QuantizeOptions | WeightQuantizer = {}): PackedTensor {
  if (typeof format !== "object" || format === null || typeof format.kind !== "string")
    throw new TypeError(`quantize format: expected a format descriptor, got ${typeof format}. Look it up: format("int4_b32").`);
  if ("quantizeWeight" in options) return options.quantizeWeight(weight, format);
  return quantizeView(matrixView(weight), weight.shape.slice(), format, options).packed;
}

/** A packed tensor and, where the loops that made it summed them, the squares of the weights and of their errors. */
export interface Quantized {
  readonly packed: PackedTensor;
  readonly signal?: number;
  readonly noise?: number;
}

/** Round to nearest, of a view. */
export function quantizeView(view: MatrixView, shape: number[], format: Format, options: QuantizeOptions): Quantized {
  if (format.kind === "opaque") return { packed: quantizeOpaque(view, shape, format) };
  if (format.kind !== "block") return { packed: quantizeScalar(view, shape, format, options) };
  return quantizeBlocks(view, shape, format, options);
}

/** Rows read at once: 16 float32 of a transposed source fill one cache line. */
const PANEL_ROWS = 16;

export function forPanels(m: MatrixView, visit: (values: TensorData, row: number, count: number) => void): void {
  const panelRows = Math.min(m.rows, m.k > 1 << 20 ? 1 : PANEL_ROWS);
  const contiguous = m.kOffsets === null && m.kStride === 1 && (m.rowStride === m.k || m.rows === 1);
  const scratch = contiguous
    ? null
    : m.data instanceof Float32Array
      ? new Float32Array(panelRows * m.k)
      : new Float64Array(panelRows * m.k);
  for (let row = 0; row < m.rows; row += panelRows) {
    const count = Math.min(panelRows, m.rows - row);
    if (scratch === null) {
      const from = m.offset + row * m.k;
      visit(m.data.subarray(from, from + count * m.k), row, count);
    } else {
      readRows(m, row, count, scratch);
      visit(scratch, row, count);
    }
  }
}

export function refuseNonFinite(values: TensorData, row: number, k: number): never {
  const i = values.findIndex((v) => !Number.isFinite(v));
  const [r, j] = [row + Math.floor(i / k), i % k];
  throw new LowbitError(
    "E_VALUE",
    `quantize: expected finite numbers, got ${values[i]} at [${r}, ${j}]. Clean the tensor, or leave it in its own format.`,
  );
}

function quantizeScalar(m: MatrixView, shape: number[], format: NumberFormat, options: QuantizeOptions): PackedTensor {
  const { rows, k, rowBytes, codes: bytes } = packedSizes(format, shape);
  const codes = new Uint8Array(bytes);
  const encode = { rounding: options.rounding, overflow: options.overflow ?? ("saturate" as const), random: options.random };
  const buffer = codeArray(format.bits, Math.min(rows, PANEL_ROWS) * k);
  const codec = options.backend?.codec;
  forPanels(m, (values, row, count) => {
    if (codec !== undefined && values instanceof Float32Array) codec.encode(format, values.subarray(0, count * k), encode, buffer);
    else encodeArray(format, values, buffer, encode);
    for (let r = 0; r < count; r++) packInto(buffer, r * k, k, format.bits, codes, (row + r) * rowBytes);
  });
  const recipe: QuantConfig = {
    version: 1,
    algorithm: "rtn",
    rounding: options.rounding ?? format.defaults.rounding,
    overflow: encode.overflow,
  };
  return { format, shape, rows, k, rowBytes, codes, scales: null, superScales: null, offsets: null, recipe };
}

function quantizeOpaque(m: MatrixView, shape: number[], format: Extract<Format, { kind: "opaque" }>): PackedTensor {
  const { rows, k, rowBytes, codes: bytes } = packedSizes(format, shape);
  const codes = new Uint8Array(bytes);
  forPanels(m, (values, row, count) => {
    const x = values instanceof Float32Array ? values : Float32Array.from(values);
    if (x.some((v) => !Number.isFinite(v))) refuseNonFinite(values, row, k);
    for (let r = 0; r < count; r++) codes.set(format.encodeBytes(x.subarray(r * k, (r + 1) * k)), (row + r) * rowBytes);
  });
  return {
    format,
    shape,
    rows,
    k,
    rowBytes,
    codes,
    scales: null,
    superScales: null,
    offsets: null,
    recipe: { version: 1, algorithm: "rtn" },
  };
}

interface CellStats {
  readonly min: Float64Array;
  readonly max: Float64Array;
}

/** Walks over the runs of values that lie in one cell of a grid, row by row. */
export function forRuns(
  m: MatrixView,
  grid: SpanGrid,
  visit: (values: TensorData, start: number, end: number, cell: number) => void,
): void {
  forPanels(m, (values, row, count) => {
    for (let r = 0; r < count; r++) {
      const cell0 = Math.floor((row + r) / grid.rows) * grid.gridK;
      for (let b = 0; b < grid.gridK; b++) {
        const start = r * m.k + b * grid.k;
        visit(values, start, Math.min(start + grid.k, (r + 1) * m.k), cell0 + b);
      }
    }
  });
}

/** min and max of every cell of the innermost grid; NaN or infinite where the cell is, if `refuse` does not. */
function blockStats(m: MatrixView, grid: SpanGrid, refuse: boolean, codec: BulkCodec | undefined): CellStats {
  const cells = grid.gridRows * grid.gridK;
  const min = new Float64Array(cells).fill(Infinity);
  const max = new Float64Array(cells).fill(-Infinity);
  const least = new Float32Array(codec === undefined ? 0 : PANEL_ROWS * grid.gridK);
  const largest = new Float32Array(least.length);
  forPanels(m, (values, row, count) => {
    // blocks of a panel follow each other where they divide a row
    if (codec !== undefined && values instanceof Float32Array && m.k % Math.min(grid.k, m.k) === 0) {
      codec.range(values.subarray(0, count * m.k), Math.min(grid.k, m.k), least, largest);
      for (let r = 0, i = 0; r < count; r++) {
        const cell0 = Math.floor((row + r) / grid.rows) * grid.gridK;
        for (let b = 0; b < grid.gridK; b++, i++) {
          const lo = (min[cell0 + b] = Math.min(min[cell0 + b], least[i]));
          const hi = (max[cell0 + b] = Math.max(max[cell0 + b], largest[i]));
          if (refuse && !(lo > -Infinity && hi < Infinity)) refuseNonFinite(values, row, m.k);
        }
      }
      return;
    }
    for (let r = 0; r < count; r++) {
      const cell0 = Math.floor((row + r) / grid.rows) * grid.gridK;
      for (let b = 0; b < grid.gridK; b++) {
        const start = r * m.k + b * grid.k;
        const end = Math.min(start + grid.k, (r + 1) * m.k);
        let lo = min[cell0 + b];
        let hi = max[cell0 + b];
        // Math.min and max carry NaN through, so that one check per block suffices.
        for (let i = start; i < end; i++) {
          lo = Math.min(lo, values[i]);
          hi = Math.max(hi, values[i]);
        }
        min[cell0 + b] = lo;
        max[cell0 + b] = hi;
        if (refuse && !(lo > -Infinity && hi < Infinity)) refuseNonFinite(values, row, m.k);
      }
    }
  });
  return { min, max };
}

function quantizeBlocks(m: MatrixView, shape: number[], format: BlockFormat, options: QuantizeOptions): Quantized {
  const sizes = packedSizes(format, shape);
  const { element } = format;
  const config = resolve(format, options);
  if (config.arithmetic === "ort" && config.overflow === "saturate" && nibblesFit(m, format, config.rangeRule)) {
    const fast = quantizeNibbles(m, shape, format, recipeOf(config), options.backend?.codec.nibbles);
    if (fast !== null) return fast; // else a value that is not finite: found and named below
  }
  const [inner, outer] = format.scales;
  const grid = spanGrid(inner.span, m.rows, m.k);
  const codec = options.backend?.codec;
  const stats = blockStats(m, grid, format.nonFinite === "error", codec);
  const cells = grid.gridRows * grid.gridK;

  let scale: Float64Array = new Float64Array(cells);
  const zeroPoint = new Float64Array(cells);
  const hasZero = format.offset?.role === "zeroPoint";
  const rule = scaleRule(config.scaleRule, format);
  let superScales: Uint8Array | null = null;
  let chosen: RuleOutput | undefined;
  let offsets: Uint8Array | null = null;
  if (rule) {
    const outerGrid = outer && spanGrid(outer.span, m.rows, m.k);
    chosen = rule({
      format,
      amax: stats.min.map((lo, c) => {
        const a = Math.max(-lo, stats.max[c]);
        return a < Infinity ? a : NaN;
      }),
      outers: outerGrid ? outerGrid.gridRows * outerGrid.gridK : 0,
      outerOf: (c) => outerCell(c, grid, outerGrid!),
      forRuns: (visit) => forRuns(m, grid, visit),
      together: grid.rows === 1 || m.rows === 1,
    });
    scale = chosen.inner;
    if (outer && outerGrid && chosen.outer) superScales = storeLevel(outer, outerGrid, chosen.outer);
  } else {
    const several = outer !== undefined || format.offset?.role === "mean";
    for (let c = 0; c < cells; c++) {
      const p = affineParams({ min: stats.min[c], max: stats.max[c] }, element, config.rangeRule, hasZero, config.arithmetic);
      // With further levels an all-zero block must not set them: its scale is zero there.
      scale[c] = several && stats.min[c] === 0 && stats.max[c] === 0 ? 0 : p.scale;
      zeroPoint[c] = p.zeroPoint;
    }
    if (format.offset?.role === "mean") offsets = subtractMean(format.offset.levels[0], grid, scale, m);
    if (outer) superScales = superLevel(inner, outer, grid, scale, m);
  }
  const scales = storeLevel(inner, grid, scale, offsets !== null || config.arithmetic === "ort");
  const stored = levelValues(inner, scales, m.rows, m.k);
  if (superScales && outer) {
    const outerGrid = spanGrid(outer.span, m.rows, m.k);
    const values = levelValues(outer, superScales, m.rows, m.k);
    for (let c = 0; c < cells; c++) stored[c] = fr(stored[c] * values[outerCell(c, grid, outerGrid)]);
  }
  if (format.offset && offsets !== null) {
    const [level] = format.offset.levels;
    const meanGrid = spanGrid(level.span, m.rows, m.k);
    const values = levelValues(level, offsets, m.rows, m.k);
    for (let c = 0; c < cells; c++) stored[c] = fr(stored[c] + values[outerCell(c, grid, meanGrid)]);
  } else if (format.offset) offsets = storeLevel(format.offset.levels[0], grid, zeroPoint);

  const codes = new Uint8Array(sizes.codes);
  encodeElements(m, format, config, grid, stored, zeroPoint, codes, sizes.rowBytes, chosen, codec);
  const { rows, k, rowBytes } = sizes;
  return { packed: { format, shape, rows, k, rowBytes, codes, scales, superScales, offsets, recipe: recipeOf(config) } };
}

interface Resolved {
  readonly scaleRule: ScaleRule;
  readonly rangeRule: RangeRule;
  readonly rounding: Rounding;
  readonly overflow: Overflow;
  readonly arithmetic: Arithmetic;
  readonly random?: () => number;
}

function resolve(format: BlockFormat, options: QuantizeOptions): Resolved {
  const { element } = format;
  const arithmetic = options.arithmetic ?? "exact";
  const scaleRule = options.scaleRule ?? format.scaleRule;
  const refuse = (what: string, expected: string, got: string) =>
    new LowbitError(
      "E_UNSUPPORTED",
      `quantize ${what} for ${format.name}: expected ${expected}, got "${got}". Leave it out for the format's own.`,
    );
  const [{ format: scale }, second] = format.scales;
  if (arithmetic !== "exact" && (element.kind !== "int" || scale.kind !== "float" || scale.bits < 16 || second !== undefined))
    throw refuse("arithmetic", `"exact" unless the element is an integer with float32 or float16 scales`, arithmetic);
  if (format.offset?.role === "min") throw refuse("offset", `role "zeroPoint" or "mean"`, format.offset.role);
  const rounding = options.rounding ?? (arithmetic === "ort" ? "halfExpand" : element.defaults.rounding);
  if ((arithmetic === "ort" && rounding !== "halfExpand") || (arithmetic === "onnx" && rounding !== "halfEven"))
    throw refuse("rounding", `the one that arithmetic "${arithmetic}" fixes`, rounding);
  return {
    scaleRule,
    rangeRule: options.rangeRule ?? (arithmetic === "ort" ? ortRangeRule(format) : format.rangeRule),
    rounding,
    overflow: options.overflow ?? "saturate",
    arithmetic,
    random: options.random,
  };
}

const recipeOf = (c: Resolved): QuantConfig => ({
  version: 1,
  algorithm: "rtn",
  scaleRule: c.scaleRule,
  rangeRule: c.rangeRule,
  rounding: c.rounding,
  overflow: c.overflow,
  arithmetic: c.arithmetic,
});

function outerCell(cell: number, grid: SpanGrid, outer: SpanGrid): number {
  const row = Math.floor(cell / grid.gridK) * grid.rows;
  const k = (cell % grid.gridK) * grid.k;
  return Math.floor(row / outer.rows) * outer.gridK + Math.floor(k / outer.k);
}

/** The outer level makes the largest inner scale of its reach the largest number of the inner scale format; divides the inner scales by it. */
function superLevel(inner: ScaleLevel, outer: ScaleLevel, grid: SpanGrid, scale: Float64Array, m: MatrixView): Uint8Array {
  const outerGrid = spanGrid(outer.span, m.rows, m.k);
  const top = new Float64Array(outerGrid.gridRows * outerGrid.gridK);
  for (let c = 0; c < scale.length; c++) {
    const o = outerCell(c, grid, outerGrid);
    top[o] = Math.max(top[o], Math.abs(scale[c]));
  }
  const bytes = storeLevel(
    outer,
    outerGrid,
    top.map((t) => (t === 0 ? 1 : t / inner.format.limits.max)),
  );
  const values = levelValues(outer, bytes, m.rows, m.k);
  for (let c = 0; c < scale.length; c++) {
    const s = values[outerCell(c, grid, outerGrid)];
    scale[c] = s === 0 ? 0 : scale[c] / s;
  }
  return bytes;
}

/** Takes the mean of the scales out, for each entry of the offset level; returns the stored means. */
function subtractMean(level: ScaleLevel, grid: SpanGrid, scale: Float64Array, m: MatrixView): Uint8Array {
  const meanGrid = spanGrid(level.span, m.rows, m.k);
  const sum = new Float64Array(meanGrid.gridRows * meanGrid.gridK);
  const n = new Float64Array(sum.length);
  for (let c = 0; c < scale.length; c++) {
    const o = outerCell(c, grid, meanGrid);
    sum[o] += scale[c];
    n[o]++;
  }
  const bytes = storeLevel(
    level,
    meanGrid,
    sum.map((s, o) => s / n[o]),
  );
  const values = levelValues(level, bytes, m.rows, m.k);
  for (let c = 0; c < scale.length; c++) scale[c] -= values[outerCell(c, grid, meanGrid)];
  return bytes;
}

/**
 * Encodes one level of scales or offsets. A scale that would underflow to zero becomes the smallest one, so that no block vanishes.
 * @param zeros allow that: scales around a mean, where zero is a value like any other
 * @throws LowbitError E_VALUE for a scale beyond the range of its format
 */
export function storeLevel(level: ScaleLevel, grid: SpanGrid, values: Float64Array, zeros = false): Uint8Array {
  const { format } = level;
  const { limits } = format;
  const codes = codeArray(format.bits, values.length);
  const wanted = values.map((v) =>
    v === 0 && !limits.hasZero ? limits.minPositive : v > limits.max && v <= limits.max * (1 + 2 ** -20) ? limits.max : v,
  );
  encodeArray(format, wanted, codes, { overflow: "error" });
  if (!zeros && limits.hasZero) {
    const zero = format.encode(0);
    const negativeZero = format.encode(-0);
    for (let i = 0; i < values.length; i++)
      if ((codes[i] === zero || codes[i] === negativeZero) && values[i] !== 0)
        codes[i] = format.encode(Math.sign(values[i]) * limits.minPositive);
  }
  const rowBytes = packedBytes(grid.gridK, format.bits);
  const out = new Uint8Array(grid.gridRows * rowBytes);
  for (let r = 0; r < grid.gridRows; r++) packInto(codes, r * grid.gridK, grid.gridK, format.bits, out, r * rowBytes);
  return out;
}

const fr = Math.fround;
/** Adding and taking away 1.5 * 2^52 rounds a double below 2^51 to an integer, half to even. */
const MAGIC = 6755399441055744;

function encodeElements(
  m: MatrixView,
  format: BlockFormat,
  config: Resolved,
  grid: SpanGrid,
  scale: Float64Array,
  zeroPoint: Float64Array,
  codes: Uint8Array,
  rowBytes: number,
  chosen: RuleOutput | undefined,
  codec: BulkCodec | undefined,
): void {
  const { element } = format;
  const { k } = m;
  const { factor, divisor, positiveZero = false } = chosen ?? {};
  const float32 = factor ?? divisor;
  const { bits } = element;
  const narrow = config.rangeRule === "narrow" && element.kind === "int" && element.limits.min < 0;
  const qmax = element.limits.max;
  const qmin = narrow ? -qmax : element.limits.min;
  const mask = 2 ** bits - 1;
  const integer =
    float32 === undefined && element.kind === "int" && bits <= 16 && config.rounding === "halfEven" && config.overflow === "saturate";
  const buffer: Codes = codeArray(bits, Math.min(m.rows, PANEL_ROWS) * k);
  const room = Math.min(m.rows, PANEL_ROWS) * k;
  const scratch: TensorData | null =
    integer || config.arithmetic === "ort" ? null : float32 === undefined ? new Float64Array(room) : new Float32Array(room);
  const encode = { rounding: config.rounding, overflow: config.overflow, random: config.random };
  // Integers are rounded before the zero point is added: ties must not depend on its parity.
  const whole = element.kind === "int";
  const clampTo = config.overflow === "saturate" ? (q: number) => Math.min(qmax, Math.max(qmin, q)) : (q: number) => q;
  const fast =
    codec === undefined || config.arithmetic !== "exact" || (whole && !integer)
      ? null
      : codec.blockEncoder({
          element,
          rounding: config.rounding,
          overflow: config.overflow,
          arithmetic: factor ? "multiply" : divisor ? "quotient" : "exact",
          positiveZero,
          integer: integer ? { min: qmin, max: qmax } : null,
        });
  const blocks = fast === null ? 0 : PANEL_ROWS * grid.gridK;
  const panelScale = new Float64Array(blocks);
  const panelZero = integer ? new Float64Array(blocks) : null;

  forPanels(m, (values, row, count) => {
    if (fast !== null && values instanceof Float32Array) {
      let exact = true;
      for (let r = 0, i = 0; r < count; r++) {
        const cell0 = Math.floor((row + r) / grid.rows) * grid.gridK;
        for (let b = 0; b < grid.gridK; b++, i++) {
          const s = scale[cell0 + b];
          const p = s !== s || float32 === undefined ? s : float32[cell0 + b];
          // NaN stands for a block that its scale makes NaN
          if (p !== p && s === s) exact = false;
          panelScale[i] = p;
          if (panelZero !== null) panelZero[i] = zeroPoint[cell0 + b];
        }
      }
      const n = count * grid.gridK;
      const panel = {
        rows: count,
        k,
        span: Math.min(grid.k, k),
        scale: panelScale.subarray(0, n),
        offset: panelZero?.subarray(0, n) ?? null,
      };
      if (exact && fast(values, panel, codes.subarray(row * rowBytes), rowBytes)) return;
    }
    for (let r = 0; r < count; r++) {
      const cell0 = Math.floor((row + r) / grid.rows) * grid.gridK;
      for (let b = 0; b < grid.gridK; b++) {
        const start = r * k + b * grid.k;
        const end = Math.min(start + grid.k, (r + 1) * k);
        const s = scale[cell0 + b];
        const z = zeroPoint[cell0 + b];
        if (config.arithmetic === "ort") ortBlock(values, start, end, s, z, qmin, qmax, mask, buffer);
        else if (integer && config.arithmetic === "onnx") onnxBlock(values, start, end, s, z, qmin, qmax, mask, buffer);
        else if (integer) exactBlock(values, start, end, s, z, qmin, qmax, mask, buffer);
        else {
          const out = scratch!;
          // A block whose scale is NaN or zero is that whatever its codes.
          if (s !== s || (s === 0 && float32 === undefined)) out.fill(0, start, end);
          else if (float32 === undefined) for (let i = start; i < end; i++) out[i] = values[i] / s;
          else {
            const f = float32[cell0 + b];
            for (let i = start; i < end; i++) {
              const v = fr(values[i]);
              out[i] = positiveZero && v === 0 ? 0 : factor ? fr(v * f) : fr(v / f);
            }
          }
          if (whole) for (let i = start; i < end; i++) out[i] = clampTo(roundToInteger(out[i], config.rounding, config.random) + z);
        }
      }
    }
    if (scratch !== null) encodeArray(element, scratch.subarray(0, count * k), buffer, encode);
    for (let r = 0; r < count; r++) packInto(buffer, r * k, k, bits, codes, (row + r) * rowBytes);
  });
}

// The three integer loops: one per arithmetic. Clamping comes before rounding where the bounds are integers, so that casts stay in range.
function exactBlock(
  v: TensorData,
  start: number,
  end: number,
  s: number,
  z: number,
  qmin: number,
  qmax: number,
  mask: number,
  out: Codes,
): void {
  const lo = qmin - z;
  const hi = qmax - z;
  for (let i = start; i < end; i++) {
    const t = v[i] / s;
    const c = t > hi ? hi : t < lo ? lo : t;
    out[i] = (c + MAGIC - MAGIC + z) & mask;
  }
}

function onnxBlock(
  v: TensorData,
  start: number,
  end: number,
  s: number,
  z: number,
  qmin: number,
  qmax: number,
  mask: number,
  out: Codes,
): void {
  const lo = qmin - z;
  const hi = qmax - z;
  for (let i = start; i < end; i++) {
    const t = fr(fr(v[i]) / s);
    const c = t > hi ? hi : t < lo ? lo : t;
    out[i] = (c + MAGIC - MAGIC + z) & mask;
  }
}

/** Codes are found in the unsigned range 0..2^bits - 1 (a symmetric format as if its zero point were the middle), as MatMulNBits stores them. */
function ortBlock(
  v: TensorData,
  start: number,
  end: number,
  s: number,
  z: number,
  qmin: number,
  qmax: number,
  mask: number,
  out: Codes,
): void {
  const r = s === 0 ? 0 : fr(1 / s);
  const middle = qmin < 0 ? -qmin : 0;
  const top = qmax + middle;
  const zero = z + middle;
  for (let i = start; i < end; i++) {
    const t = fr(fr(fr(v[i]) * r) + zero);
    const q = t >= top ? top : t > 0 ? (t + 0.5) | 0 : 0;
    out[i] = (q - middle) & mask;
  }
}
