// Integer convolution and integer matrix products on a backend's memory: weights packed once, then jobs for any place.
// A zero point of activations that is known only when the jobs run is put into their arguments by `setZero`; factors,
// offsets and bias lie in memory and are the caller's.
import { CONV_ZERO, integerConv, integerConvJob, type IntegerConvJob } from "../../../../kernels/wasm/conv/conv.ts";
import {
  DEPTHWISE_ZERO,
  depthwiseJob,
  depthwiseTable,
  depthwiseUnroll,
  integerDepthwise,
  type DepthwiseSpec,
} from "../../../../kernels/wasm/conv/depthwise.ts";
import type { Finish } from "../../../../kernels/wasm/conv/finish.ts";
import { tileHeights, type IntegerConvSpec } from "../../../../kernels/wasm/conv/tiles.ts";
import { unitTaps } from "../../../../kernels/wasm/conv/taps.ts";
import { codeColumns, columnsBytes, columnsJob } from "../../../../kernels/wasm/conv/columns.ts";
import { codeRows, finishSums, ROWS_ZERO, rowsJob, sumsJob } from "../../../../kernels/wasm/conv/matrix.ts";
import { INT8_ARGUMENTS, INT8_CHUNK, INT8_ROWS, INT8_SLAB, int8, int8Quad, packInt8 } from "../../../../kernels/wasm/dot/int8.ts";
import { resultStride, tileRows } from "../../../../kernels/wasm/products/tiles.ts";
import type { EngineMemory, Region } from "../memory.ts";
import { padWindow, windowOf, type KernelJob, type Pair, type WindowShape } from "./convolution.ts";

/** How sums leave. Bounds are of float32 values or of codes; default none, or those of the type. */
export interface Finished {
  readonly to: Finish;
  /** Float32 sums have a bias. */
  readonly bias: boolean;
  readonly yZero?: number;
  readonly low?: number;
  readonly high?: number;
}

const BOUNDS: Readonly<Record<Finish, readonly [number, number]>> = {
  int32: [0, 0],
  float32: [-Infinity, Infinity],
  int8: [-128, 127],
  uint8: [0, 255],
};

function bounds({ to, yZero = 0, low = BOUNDS[to][0], high = BOUNDS[to][1] }: Finished): { yZero: number; low: number; high: number } {
  const less = to === "int8" || to === "uint8" ? yZero : 0;
  return { yZero, low: low - less, high: high - less };
}

/** Weights of a convolution as they are given: codes [outputs, width, kernel], zero points of all or each filter. */
export interface FilterCodes {
  readonly codes: ArrayLike<number>;
  readonly zeros: ArrayLike<number>;
  readonly outputs: number;
  readonly groups: number;
  /** Channels in of a group. */
  readonly width: number;
  readonly kernel: Pair;
}

/** Packed weights of a convolution. */
export interface Filters extends Omit<FilterCodes, "codes" | "zeros"> {
  readonly style: IntegerConvSpec["style"];
  readonly address: number;
  /** Sums of each filter's codes less its zero point. */
  readonly sums: Int32Array;
  dispose(): void;
}

/** @throws RangeError for sizes that do not fit; LowbitError E_DEVICE, E_DISPOSED */
export function packFilters(memory: EngineMemory, given: FilterCodes): Filters {
  const { codes, zeros, outputs, groups, width, kernel } = given;
  const taps = width * kernel[0] * kernel[1];
  if (codes.length !== outputs * taps || outputs % groups !== 0)
    throw new RangeError(`filters: expected ${outputs} x ${taps} codes in ${groups} groups, got ${codes.length}.`);
  const zeroOf = (o: number): number => zeros[zeros.length === 1 ? 0 : o] ?? 0;
  const { dot } = memory.features;
  let isByte = dot === "u8" || dot === "s8";
  for (let o = 0; o < outputs && isByte; o++)
    for (let t = 0; t < taps; t++) {
      const v = codes[o * taps + t] - zeroOf(o);
      if (v < -128 || v > 127) isByte = false;
    }
  const style = isByte ? (dot === "u8" ? "bytes-u" : "bytes-s") : "words";
  const per = unitTaps(style);
  const units = Math.ceil(taps / per);
  const filters = outputs / groups;
  const heights = tileHeights(style, filters, width > 1);
  /** Of each filter of a group: the first of its tile, filters of that. */
  const tiles: { readonly first: number; readonly height: number }[] = [];
  for (let i = 0, first = 0; first < filters; first += heights[i++])
    for (let o = first; o < Math.min(first + heights[i], filters); o++) tiles.push({ first, height: heights[i] });
  const padded = heights.reduce((sum, height) => sum + height, 0);
  const region = memory.allocate(groups * padded * units * 4);
  const elements = groups * padded * units * per;
  const packed =
    style === "words"
      ? new Int16Array(memory.buffer, region.address, elements).fill(0)
      : new Int8Array(memory.buffer, region.address, elements).fill(0);
  const sums = new Int32Array(outputs);
  for (let o = 0; o < outputs; o++) {
    const inGroup = o % filters;
    const { first, height } = tiles[inGroup];
    const base = ((Math.floor(o / filters) * padded + first) * units + inGroup - first) * per;
    for (let t = 0; t < taps; t++) {
      const v = codes[o * taps + t] - zeroOf(o);
      packed[base + Math.floor(t / per) * height * per + (t % per)] = v;
      sums[o] += v;
    }
  }
  return { outputs, groups, width, kernel, style, address: region.address, sums, dispose: () => region.free() };
}

export interface IntegerConvPlan {
  /** Height and width of the result. */
  readonly output: Pair;
  /** To be written at `table`, once. */
  readonly table: Int32Array;
  /** Bytes of the padded image; 0 where the image is read where it lies. */
  readonly scratchBytes: number;
  /**
   * Jobs; `setZero` puts a zero point of the image into their arguments (its code lies at `fill` for the padding).
   */
  jobs(at: IntegerConvAddresses, finished: Finished): { readonly jobs: KernelJob[]; setZero(zero: number): void };
}

export interface IntegerConvAddresses {
  readonly x: number;
  readonly y: number;
  readonly table: number;
  readonly scratch: number;
  /** Address of the zero point's code, a byte. */
  readonly fill: number;
  /** int32 [outputs]; float32 [outputs] where sums do not stay integers; float32 [outputs] where there is a bias. */
  readonly offsets: number;
  readonly factors: number;
  readonly bias: number;
}

/**
 * A convolution of codes: y[batch, outputs, height, width]. Offsets hold what is added to the integer sums: a bias of
 * integers, and `zeroOffsets` of the image's zero point.
 * @throws RangeError for shapes that do not fit
 */
export function integerConvolution(memory: EngineMemory, filters: Filters, shape: WindowShape, unsigned: boolean): IntegerConvPlan {
  const { batch, channels, strides, kernel } = shape;
  const { groups, width, outputs, style } = filters;
  if (channels !== groups * width || kernel.join() !== filters.kernel.join())
    throw new RangeError(`convolution: expected ${groups * width} channels and a kernel of ${filters.kernel.join(" x ")}, got ${channels} and ${kernel.join(" x ")}.`); // prettier-ignore
  const step = strides[1];
  if (width === 1 && (step === 1 || step === 2)) return depthwise(memory, filters, shape, step, unsigned);
  const padded = padWindow(shape, 1);
  const { output } = padded;
  const plane = padded.padded[0] * padded.padded[1];
  const taps = padded.taps(width);
  const table = new Int32Array(Math.ceil(taps.length / 4) * 4);
  table.set(taps);
  // a plane of single values is one row
  const whole = kernel[0] * kernel[1] === 1 && strides[0] === 1 && strides[1] === 1;
  return {
    output,
    table,
    scratchBytes: padded.scratchBytes,
    jobs(at, finished) {
      const { jobs, x } = padded.pad(memory, at, at.fill);
      const given: IntegerConvJob = {
        ...{ batch, groups, filters: outputs / groups, outputs: output[0] * output[1], taps: taps.length, isDeep: width > 1 },
        ...{ w: filters.address, offsets: at.offsets, factors: at.factors, bias: at.bias },
        ...{ x, xBatch: channels * plane, xGroup: width * plane, xZero: 0, y: at.y, table: at.table },
        width: whole ? plane : output[1],
        columnStep: strides[1],
        rowStep: strides[0] * padded.padded[1],
        ...bounds(finished),
      };
      const common = { unsigned, to: finished.to, bias: finished.bias, shared: memory.shared };
      const spec: IntegerConvSpec = { ...common, style, unroll: memory.features.relaxed ? 4 : 1 };
      const job = integerConvJob(given, spec, memory.threads);
      const kernel = memory.kernel(integerConv, spec);
      return { jobs: [...jobs, { kernel, ...job }], setZero: (zero) => void (job.args[CONV_ZERO] = zero) };
    },
  };
}

/** One channel at a time: the kernel pads by itself. */
function depthwise(
  memory: EngineMemory,
  { groups, outputs, address, style }: Filters,
  shape: WindowShape,
  step: DepthwiseSpec["step"],
  unsigned: boolean,
): IntegerConvPlan {
  const window = windowOf(shape);
  return {
    output: window.output,
    table: depthwiseTable(window, style),
    scratchBytes: 0,
    jobs({ x, y, table, offsets, factors, bias }, finished) {
      const { to } = finished;
      const unroll = depthwiseUnroll(window, style);
      const spec: DepthwiseSpec = { style, unsigned, to, bias: finished.bias, step, unroll, shared: memory.shared };
      const places = { x, y, table, offsets, factors, bias, w: address };
      const { batch } = shape;
      const job = depthwiseJob(
        {
          ...window,
          ...places,
          batch,
          channels: groups,
          multiplier: outputs / groups,
          xZero: 0,
          ...bounds(finished),
        },
        style,
      );
      const kernel = memory.kernel(integerDepthwise, spec);
      return { jobs: [{ kernel, ...job }], setZero: (zero) => void (job.args[DEPTHWISE_ZERO] = zero) };
    },
  };
}

/** What a zero point of the image adds to the sums of each filter: nothing where it is taken off before. */
export function zeroOffsets(filters: Pick<Filters, "style" | "sums">, unsigned: boolean, zero: number, into: Int32Array): void {
  if (filters.style === "words") return;
  // unsigned kernels see signed bytes plus 128, and the other way about
  const seen = filters.style === "bytes-u" ? (unsigned ? zero : zero + 128) : unsigned ? zero - 128 : zero;
  for (let o = 0; o < filters.sums.length; o++) into[o] -= seen * filters.sums[o];
}

/** An integer matrix [k, n] packed for products. */
export interface IntegerMatrix {
  readonly k: number;
  readonly n: number;
  /** Zero points by column, where they are not all 0. */
  readonly zeros: Int32Array | null;
  /** Sums of columns (codes as packed), less k zero points. */
  readonly sums: Int32Array;
  /** Jobs for m rows. */
  product(m: number): IntegerProduct;
  dispose(): void;
}

export interface IntegerProduct {
  /** Bytes of scratch: packed rows, sums. */
  readonly scratchBytes: number;
  /** Columns of `offsets`, `factors` and `bias`: n padded to 16. */
  readonly columns: number;
  jobs(
    at: { readonly x: number; readonly y: number; readonly scratch: number; readonly offsets: number; readonly factors: number; readonly bias: number },
    unsigned: boolean,
    finished: Finished,
  ): { readonly jobs: KernelJob[]; setZero(zero: number): void };
  /** The sums as they come, without offsets. */
  sums(at: { readonly x: number; readonly scratch: number }, unsigned: boolean): IntegerSums;
  /** What a zero point of the rows adds to the sums, by column. */
  zeroOffsets(zero: number, into: Int32Array): void;
} // prettier-ignore

/** Where the int32 sums of a product lie once its jobs have run. */
export interface IntegerSums {
  readonly jobs: KernelJob[];
  readonly c: number;
  /** Bytes from row to row. */
  readonly cStep: number;
  /** By row: what zero points of columns are multiplied with. */
  readonly rowTerms: number;
  setZero(zero: number): void;
}

const align = (bytes: number): number => Math.ceil(bytes / 64) * 64;

/** Packed weights: blocks of 16 columns, 4 k of each together. */
interface PackedColumns {
  readonly style: "dot" | "simd";
  readonly k: number;
  readonly n: number;
  readonly w: number;
  /** Of style "dot". */
  readonly columnSums: number;
}

/** Where float32 results go instead of sums, and what they are made of. */
interface ScaledPlaces {
  readonly y: number;
  readonly offsets: number;
  readonly factors: number;
  readonly bias: number;
  readonly finished: Finished;
}

interface SumsPlan {
  readonly scratchBytes: number;
  /** `scaled`: for style "dot" and whole blocks of columns. */
  place(at: { readonly x: number; readonly scratch: number }, unsigned: boolean, scaled?: ScaledPlaces): IntegerSums;
}

/** Exact sums of m rows of codes by packed weights. */
function sumsPlan(memory: EngineMemory, { style, k, n, w, columnSums }: PackedColumns, m: number): SumsPlan {
  const { shared } = memory;
  const [blocks, quads] = [Math.ceil(n / 16), Math.ceil(k / 4)];
  const mr = tileRows(m, INT8_ROWS[style]);
  const tiles = Math.ceil(m / mr);
  const padded = tiles * mr;
  const aStride = quads * mr * int8Quad(style);
  const stride = resultStride(n, padded);
  const parts = { a: align(tiles * aStride), rowSums: align(4 * padded), sums: align(4 * padded), c: 4 * padded * stride };
  return {
    scratchBytes: parts.a + parts.rowSums + parts.sums + parts.c,
    place(at, unsigned, scaled) {
      const a = at.scratch;
      const rowSums = a + parts.a;
      const rowTerms = rowSums + parts.rowSums;
      const [c, ldc] = scaled === undefined ? [rowTerms + parts.sums, 4 * stride] : [scaled.y, 4 * n];
      const rowsSpec = { style, unsigned, mr, shared } as const;
      const packing = rowsJob({ x: at.x, m, k, zero: 0, a, rowSums, sums: rowTerms }, rowsSpec);
      const unroll = memory.features.relaxed ? 8 : 1;
      const { low, high } = scaled === undefined ? { low: 0, high: 0 } : bounds(scaled.finished);
      const bounded = low > -Infinity || high < Infinity;
      const how = scaled === undefined ? {} : { scaled: { bias: scaled.finished.bias, bounded } };
      const built = memory.kernel(int8, { ...rowsSpec, unroll, ...how });
      const [lowBits, highBits] = new Int32Array(Float32Array.of(low, high).buffer);
      const slab = Math.ceil(INT8_SLAB / mr);
      const jobs: KernelJob[] = [{ kernel: memory.kernel(codeRows, rowsSpec), ...packing, panelBytes: 0 }];
      for (let from = 0; from < tiles; from += slab) {
        const values = {
          a: a + from * aStride,
          w,
          c: c + from * mr * ldc,
          ldc,
          quads,
          blocks,
          tiles: Math.min(slab, tiles - from),
          aStride,
          rowSums: rowSums + 4 * from * mr,
          columnSums,
          offsets: scaled?.offsets ?? 0,
          factors: scaled?.factors ?? 0,
          bias: scaled?.bias ?? 0,
          low: lowBits,
          high: highBits,
          lastRow: c + (m - 1) * ldc,
        };
        const args = Int32Array.from(INT8_ARGUMENTS, (name) => values[name]);
        jobs.push({ kernel: built, items: blocks, args, panelBytes: style === "simd" ? 128 * INT8_CHUNK : 0 });
      }
      return { jobs, c, cStep: ldc, rowTerms, setZero: (za) => void (packing.args[ROWS_ZERO] = za) };
    },
  };
}

/** A product of two computed matrices of uint8, x [m, k] and w [k, n] around 128. */
export interface CodesProduct {
  readonly scratchBytes: number;
  /** Adds the jobs of one pair of matrices. 16 bytes behind w are read where n is no multiple of 16. */
  place(at: { readonly x: number; readonly w: number; readonly scratch: number }, zero: number): IntegerSums;
}

export function codesProduct(memory: EngineMemory, m: number, k: number, n: number): CodesProduct {
  const bytes = align(columnsBytes(k, n));
  const packed = { style: "simd", k, n, columnSums: 0 } as const;
  return {
    scratchBytes: bytes + sumsPlan(memory, { ...packed, w: 0 }, m).scratchBytes,
    place({ x, w, scratch }, zero) {
      const made = sumsPlan(memory, { ...packed, w: scratch }, m).place({ x, scratch: scratch + bytes }, true);
      made.setZero(zero);
      const packing = { ...columnsJob({ x: w, k, n, w: scratch }), panelBytes: 0 };
      return { ...made, jobs: [{ kernel: memory.kernel(codeColumns, { shared: memory.shared }), ...packing }, ...made.jobs] };
    },
  };
}

/**
 * Packs a matrix of rows [n, k] (of the product's columns): signed codes, and zero points relative to them, of all or
 * each column. @throws LowbitError E_DEVICE, E_DISPOSED
 */
export function packMatrix(memory: EngineMemory, rows: Int8Array, n: number, k: number, zeros: ArrayLike<number>): IntegerMatrix {
  const style = memory.features.dot === "u8" ? "dot" : "simd";
  const [blocks, quads] = [Math.ceil(n / 16), Math.ceil(k / 4)];
  const columns = 16 * blocks;
  const weightBytes = blocks * quads * 64;
  const zeroOf = (j: number): number => zeros[zeros.length === 1 ? 0 : j] ?? 0;
  const isCentred = Array.from({ length: n }, (_, j) => zeroOf(j)).every((z) => z === 0);
  const region: Region = memory.allocate(weightBytes + 8 * columns);
  const sums = packInt8(rows, n, k, style, new Uint8Array(memory.buffer, region.address, weightBytes));
  const [columnSums, zeroAt] = [region.address + weightBytes, region.address + weightBytes + 4 * columns];
  const [scaled, zero] = [columnSums, zeroAt].map((at) => new Int32Array(memory.buffer, at, columns).fill(0));
  for (let r = 0; r < n; r++) {
    scaled[r] = 128 * sums[r];
    zero[r] = zeroOf(r);
  }
  return {
    k,
    n,
    zeros: isCentred ? null : Int32Array.from({ length: n }, (_, j) => zeroOf(j)),
    sums,
    dispose: () => region.free(),
    product(m) {
      const plan = sumsPlan(memory, { style, k, n, w: region.address, columnSums }, m);
      return {
        scratchBytes: plan.scratchBytes,
        columns,
        sums: (at, unsigned) => plan.place(at, unsigned),
        zeroOffsets(za, into) {
          // bytes are multiplied as they are, words less the zero point
          if (style === "dot") for (let j = 0; j < n; j++) into[j] -= za * sums[j];
        },
        jobs(at, unsigned, finished) {
          // sums of whole blocks leave the registers as what is asked for
          if (style === "dot" && isCentred && n % 16 === 0 && finished.to === "float32")
            return plan.place(at, unsigned, { ...at, finished });
          const { jobs, c, cStep, rowTerms, setZero } = plan.place(at, unsigned);
          const sumsSpec = { to: finished.to, bias: finished.bias, zeros: !isCentred, shared: memory.shared };
          const last = sumsJob({ m, n, c, cStep, y: at.y, offsets: at.offsets, zeros: zeroAt, factors: at.factors, bias: at.bias, sums: rowTerms, ...bounds(finished) }); // prettier-ignore
          return { jobs: [...jobs, { kernel: memory.kernel(finishSums, sumsSpec), ...last, panelBytes: 64 }], setZero };
        },
      };
    },
  };
}
