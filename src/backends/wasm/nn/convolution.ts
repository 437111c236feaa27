// Convolution and pooling on a backend's memory, as jobs: pad the image where it needs it, then one kernel; kernels of
// one channel at a time pad by themselves. Shapes only; addresses come when the jobs are made, so that one plan serves
// any place. What a plan needs beside its operands: a table (constant: write it once) and scratch space for the padded
// image.
import { conv, convJob } from "../../../../kernels/wasm/nn/conv.ts";
import { copy, copyJob } from "../../../../kernels/wasm/nn/copy.ts";
import type { PanelShape } from "../../../../kernels/wasm/nn/panel.ts";
import { slidingWindow, windowJob, windowTable, type WindowSpec } from "../../../../kernels/wasm/nn/window.ts";
import type { Kernel } from "../../../../kernels/wasm/engine/engine.ts";
import type { EngineMemory } from "../memory.ts";

/** What `memory.run` takes. */
export interface KernelJob {
  readonly kernel: Kernel;
  readonly items: number;
  readonly args: Int32Array;
  readonly panelBytes: number;
}

export const runJobs = (memory: EngineMemory, jobs: readonly KernelJob[]): void => {
  for (const { kernel, items, args, panelBytes } of jobs) memory.run(kernel, items, args, panelBytes);
};

/** Height and width; 1-D: a height of 1. */
export type Pair = readonly [number, number];

export interface WindowShape {
  readonly batch: number;
  readonly channels: number;
  readonly size: Pair;
  readonly kernel: Pair;
  readonly strides: Pair;
  readonly dilations: Pair;
  /** Before and after, by dimension; what is added must not be negative. */
  readonly pads: readonly [Pair, Pair];
  /** The last window of a row may begin inside and end beyond the padding (ceil_mode). */
  readonly ceil?: boolean;
}

export interface ConvShape extends WindowShape {
  readonly outputs: number;
  readonly groups: number;
}

export interface WindowAddresses {
  readonly x: number;
  readonly y: number;
  /** conv: weights [outputs, channels / groups, kernel]; addresses of float32. */
  readonly w?: number;
  readonly bias?: number;
  /** `table` words and `scratchBytes`, where they are not 0. */
  readonly table: number;
  readonly scratch: number;
}

export interface WindowPlan {
  /** Height and width of the result. */
  readonly output: Pair;
  /** To be written at `table`, once. */
  readonly table: Int32Array;
  readonly scratchBytes: number;
  jobs(at: WindowAddresses): KernelJob[];
}

/**
 * Sizes of a result and of the padded image, by dimension.
 * @throws RangeError for a kernel larger than the padded image, or sizes that are not positive
 */
function geometry(shape: WindowShape): { readonly output: Pair; readonly padded: Pair } {
  const sizes = [0, 1].map((d) => {
    const span = shape.dilations[d] * (shape.kernel[d] - 1) + 1;
    const [before, after] = shape.pads[d];
    const whole = shape.size[d] + before + after;
    const least = Math.min(shape.kernel[d], shape.strides[d], shape.dilations[d]);
    if (least < 1 || before < 0 || after < 0 || whole < span)
      throw new RangeError(
        `window: expected positive sizes and a kernel within the padded image, got kernel ${shape.kernel}, strides ${shape.strides}, image ${shape.size}, pads ${shape.pads}.`,
      );
    let count = (shape.ceil === true ? Math.ceil : Math.floor)((whole - span) / shape.strides[d]) + 1;
    // a window may not begin in the padding behind
    if (shape.ceil === true && (count - 1) * shape.strides[d] >= shape.size[d] + before) count--;
    return { count, padded: Math.max(whole, (count - 1) * shape.strides[d] + span) };
  });
  return { output: [sizes[0].count, sizes[1].count], padded: [sizes[0].padded, sizes[1].padded] };
}

export interface PaddedWindow {
  readonly output: Pair;
  readonly padded: Pair;
  readonly pads: boolean;
  /** Byte offsets of the taps of `channels` planes. */
  taps(channels: number): number[];
  readonly scratchBytes: number;
  /** Jobs that pad, and where the image then is. `fill`: address of an element. */
  pad(memory: EngineMemory, at: Pick<WindowAddresses, "x" | "scratch">, fill: number): { readonly jobs: KernelJob[]; readonly x: number };
}

const kernelJob = (
  memory: EngineMemory,
  job: { readonly spec: Parameters<typeof copy.build>[0]; readonly items: number; readonly args: Int32Array },
): KernelJob => ({ kernel: memory.kernel(copy, job.spec), items: job.items, args: job.args, panelBytes: 0 });

/**
 * The image of a window, padded where it needs it, and its taps. `bytes`: of an element.
 * @throws RangeError as `geometry`
 */
export function padWindow(shape: WindowShape, bytes: 1 | 4): PaddedWindow {
  const { batch, channels, size, kernel, dilations, pads } = shape;
  const { output, padded } = geometry(shape);
  const plane = bytes * padded[0] * padded[1];
  const needed = padded[0] !== size[0] || padded[1] !== size[1];
  return {
    output,
    padded,
    pads: needed,
    taps(count) {
      const offsets: number[] = [];
      for (let c = 0; c < count; c++)
        for (let y = 0; y < kernel[0]; y++)
          for (let x = 0; x < kernel[1]; x++) offsets.push(c * plane + bytes * (y * dilations[0] * padded[1] + x * dilations[1]));
      return offsets;
    },
    scratchBytes: needed ? batch * channels * plane : 0,
    pad(memory, at, fill) {
      if (!needed) return { jobs: [], x: at.x };
      const planes = batch * channels;
      const whole = copyJob(
        { sizes: [(planes * plane) / bytes], bytes, from: { address: fill, strides: [0] }, to: { address: at.scratch, strides: [bytes] } },
        memory.shared,
      );
      const inner = copyJob(
        {
          sizes: [planes, size[0], size[1]],
          bytes,
          from: { address: at.x, strides: [bytes * size[0] * size[1], bytes * size[1], bytes] },
          to: {
            address: at.scratch + bytes * (pads[0][0] * padded[1] + pads[1][0]),
            strides: [plane, bytes * padded[1], bytes],
          },
        },
        memory.shared,
      );
      return { jobs: [kernelJob(memory, whole), kernelJob(memory, inner)], x: at.scratch };
    },
  };
}

/** The shape of a window as kernels take it that pad by themselves. @throws RangeError as `geometry` */
export const windowOf = (shape: WindowShape): PanelShape => ({
  ...shape,
  before: [shape.pads[0][0], shape.pads[1][0]],
  output: geometry(shape).output,
});

const windowStep = (step: number): WindowSpec["step"] => (step === 1 || step === 2 ? step : "any");

/**
 * Convolution: y[batch, outputs, height, width]. Groups of one channel (depthwise) take a kernel of their own.
 * @throws RangeError for shapes that do not fit
 */
export function convolution(memory: EngineMemory, shape: ConvShape): WindowPlan {
  const { batch, channels, outputs, groups, kernel, strides } = shape;
  if (channels % groups !== 0 || outputs % groups !== 0)
    throw new RangeError(`convolution: expected channels and outputs of a multiple of ${groups} groups, got ${channels} and ${outputs}.`);
  const width = channels / groups;
  const { relaxed } = memory.features;
  const { shared } = memory;
  if (width === 1) {
    const window = windowOf(shape);
    const spec: WindowSpec = { op: "conv", step: windowStep(strides[1]), relaxed, shared };
    return {
      output: window.output,
      table: Int32Array.from(windowTable(window)),
      scratchBytes: 0,
      jobs({ x, y, w, table, bias }) {
        const job = windowJob({ ...window, batch, channels, multiplier: outputs / groups, x, y, table, w, bias }, spec);
        return [{ kernel: memory.kernel(slidingWindow, spec), ...job }];
      },
    };
  }
  const prepared = padWindow(shape, 4);
  const { output, padded } = prepared;
  const plane = 4 * padded[0] * padded[1];
  // word 0: what is padded with
  const table = Int32Array.of(0, ...prepared.taps(width));
  return {
    output,
    table,
    scratchBytes: prepared.scratchBytes,
    jobs(at) {
      const { jobs, x } = prepared.pad(memory, at, at.table);
      const taps = width * kernel[0] * kernel[1];
      const steps = { columnStep: 4 * strides[1], rowStep: 4 * strides[0] * padded[1] };
      const spec = { relaxed, shared };
      const sizes = { batch, groups, channels: outputs / groups, outputs: output[0] * output[1], taps, width: output[1] };
      const places = { x, y: at.y, table: at.table + 4, w: at.w ?? 0, bias: at.bias ?? 0 };
      const job = convJob({ ...sizes, ...places, ...steps, xBatch: channels * plane, xGroup: width * plane }, spec, memory.threads);
      return [...jobs, { kernel: memory.kernel(conv, spec), ...job }];
    },
  };
}

/** What an average divides by: the values of the image in a window, with those of the padding where it counts. */
function counts(shape: WindowShape, output: Pair, withPadding: boolean): Float32Array {
  const along = (d: number): number[] =>
    Array.from({ length: output[d] }, (_, o) => {
      const [before, after] = shape.pads[d];
      const [low, high] = withPadding ? [-before, shape.size[d] + after] : [0, shape.size[d]];
      let count = 0;
      for (let t = 0; t < shape.kernel[d]; t++) {
        const at = o * shape.strides[d] - before + t * shape.dilations[d];
        if (at >= low && at < high) count++;
      }
      return count;
    });
  const [rows, columns] = [along(0), along(1)];
  return Float32Array.from(rows.flatMap((r) => columns.map((c) => r * c)));
}

/** Max or average pooling: y[batch, channels, height, width]. @throws RangeError for shapes that do not fit */
export function pooling(
  memory: EngineMemory,
  shape: WindowShape & { readonly kind: "max" | "average"; readonly countPadding?: boolean },
): WindowPlan {
  const { batch, channels, strides, kind } = shape;
  const window = windowOf(shape);
  const { output } = window;
  const divisors = kind === "average" ? counts(shape, output, shape.countPadding ?? false) : new Float32Array(0);
  const taps = windowTable(window);
  const table = new Int32Array(taps.length + divisors.length);
  table.set(taps);
  new Float32Array(table.buffer).set(divisors, taps.length);
  const spec: WindowSpec = { op: kind, step: windowStep(strides[1]), relaxed: false, shared: memory.shared };
  return {
    output,
    table,
    scratchBytes: 0,
    jobs({ x, y, table: at }) {
      const job = windowJob({ ...window, batch, channels, multiplier: 1, x, y, table: at, w: at + 4 * taps.length }, spec);
      return [{ kernel: memory.kernel(slidingWindow, spec), ...job }];
    },
  };
}
