// A convolution of images by integer filters on the WebAssembly backend, run on arrays: values are encoded with a scale
// and zero point of their range, or come as codes; the sums leave scaled, or as codes.
import { codesJob, encodeRows, longRows, range, rangeJob } from "../../../kernels/wasm/conv/codes.ts";
import { copy, copyJob } from "../../../kernels/wasm/nn/copy.ts";
import type { ConvGeometry, ConvInput, ConvOutput, IntegerFilters } from "../conv2d.ts";
import { dynamicScale } from "../range.ts";
import { runJobs, type KernelJob } from "./nn/convolution.ts";
import { integerConvolution, packFilters, zeroOffsets, type Finished, type IntegerConvPlan } from "./nn/integer.ts";
import type { EngineMemory, Region } from "./memory.ts";

export interface PlacedConv {
  run(x: ConvInput, shape: ConvGeometry, y: ConvOutput): void;
  dispose(): void;
}

/** Elements [outer, rows, columns] to [outer, columns, rows]. */
function transpose(memory: EngineMemory, from: number, to: number, sizes: readonly [number, number, number], bytes: 1 | 4): void {
  const [outer, rows, columns] = sizes;
  const job = copyJob(
    {
      sizes: [outer, columns, rows],
      bytes,
      from: { address: from, strides: [bytes * rows * columns, bytes, bytes * columns] },
      to: { address: to, strides: [bytes * rows * columns, bytes * rows, bytes] },
    },
    memory.shared,
  );
  memory.run(memory.kernel(copy, job.spec), job.items, job.args);
}

const put = (memory: EngineMemory, name: string, data: Int32Array | Float32Array | Uint8Array | Int8Array): number => {
  const address = memory.scratch(`conv ${name}`, Math.max(4, data.byteLength));
  new Uint8Array(memory.buffer, address, data.byteLength).set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
  return address;
};

/** Values at `from` as uint8 codes at `to`. @returns their scale and zero point */
function encode(memory: EngineMemory, from: number, to: number, count: number): { readonly scale: number; readonly zero: number } {
  const { items } = rangeJob(from, count, 0);
  const found = memory.scratch("conv ranges", 8 * Math.max(1, items));
  const job = rangeJob(from, count, found);
  memory.run(memory.kernel(range, { shared: memory.shared }), job.items, job.args);
  const ends = memory.floats(found, 2 * items);
  let [low, high] = [0, 0];
  for (let i = 0; i < items; i++) {
    low = Math.min(low, ends[2 * i]);
    high = Math.max(high, ends[2 * i + 1]);
  }
  const made = dynamicScale(low, high);
  const scale = put(memory, "scale", Float32Array.of(made.scale));
  const zero = put(memory, "zero", Int32Array.of(made.zero));
  const { rows, width } = longRows(count);
  const all = (address: number) => ({ address, outer: 0, inner: 0 });
  const rowsOf = (address: number, bytes: number) => ({ address, outer: 0, inner: bytes * width });
  const coding = codesJob({ rows, width, x: rowsOf(from, 4), y: rowsOf(to, 1), scale: all(scale), zero: all(zero) });
  memory.run(memory.kernel(encodeRows, { to: "uint8", shared: memory.shared }), coding.items, coding.args);
  return made;
}

/** @throws LowbitError E_DEVICE, E_DISPOSED */
export function placedConv(memory: EngineMemory, given: IntegerFilters): PlacedConv {
  const { outputs, groups, width, kernel, codes, factors, bias } = given;
  const filters = packFilters(memory, { codes, zeros: [0], outputs, groups, width, kernel });
  /** The image as codes in planes, and what they mean. */
  const place = (
    { data, scale, zero }: ConvInput,
    shape: ConvGeometry,
  ): { address: number; unsigned: boolean; scale: number; zero: number } => {
    const { batch, channels, size, isRows } = shape;
    const area = size[0] * size[1];
    const count = data.length;
    const sizes = [batch, area, channels] as const;
    if (data instanceof Float32Array) {
      let from = put(memory, "x", data);
      if (isRows) {
        const planes = memory.scratch("conv planes", 4 * count);
        transpose(memory, from, planes, sizes, 4);
        from = planes;
      }
      const address = memory.scratch("conv codes", count);
      return { address, unsigned: true, ...encode(memory, from, address, count) };
    }
    let address = put(memory, "x", data);
    if (isRows) {
      const planes = memory.scratch("conv planes", count);
      transpose(memory, address, planes, sizes, 1);
      address = planes;
    }
    return { address, unsigned: data instanceof Uint8Array, scale, zero };
  };
  /** Plan, jobs and their operands of the last call: the next one is often the same but for its image. */
  let planned: { readonly key: string; readonly plan: IntegerConvPlan; readonly region: Region } | null = null;
  let made: { readonly key: string; readonly jobs: KernelJob[] } | null = null;
  const release = (): void => {
    planned?.region.free();
    planned = made = null;
  };
  const planOf = (shape: ConvGeometry, unsigned: boolean): NonNullable<typeof planned> => {
    const { batch, channels, size, strides, dilations, pads } = shape;
    const key = [batch, channels, size, strides, dilations, pads, unsigned].join();
    if (planned?.key === key) return planned;
    release();
    const plan = integerConvolution(memory, filters, { ...shape, kernel }, unsigned);
    // table; offsets, factors and bias of each filter; the code of the padding
    const region = memory.allocate(4 * (plan.table.length + 3 * outputs + 1));
    new Int32Array(memory.buffer, region.address, plan.table.length).set(plan.table);
    return (planned = { key, plan, region });
  };
  return {
    dispose() {
      release();
      filters.dispose();
    },
    run(x, shape, y) {
      const image = place(x, shape);
      const { plan, region } = planOf(shape, image.unsigned);
      const isCodes = !(y.data instanceof Float32Array);
      const result = memory.scratch("conv y", y.data.byteLength);
      const scratch = plan.scratchBytes > 0 ? memory.scratch("conv image", plan.scratchBytes) : 0;
      const to = isCodes ? (y.data instanceof Uint8Array ? "uint8" : "int8") : "float32";
      const { low, high } = y.bounds;
      const key = [to, low, high, y.scale, y.zero, image.scale, image.zero, image.address, result, scratch].join();
      if (made?.key !== key) {
        const finished: Finished = { to, bias: bias !== null, ...y.bounds, ...(isCodes ? { yZero: y.zero } : {}) };
        const offsets = region.address + 4 * plan.table.length;
        const [factorsAt, biasAt, fill] = [1, 2, 3].map((i) => offsets + 4 * outputs * i);
        const terms = new Int32Array(memory.buffer, offsets, outputs).fill(0);
        zeroOffsets(filters, image.unsigned, image.zero, terms);
        // codes of results: value / scale, as factors and bias that are divided before
        const over = isCodes ? y.scale : 1;
        memory.floats(factorsAt, outputs).set(factors.map((v) => Math.fround(Math.fround(image.scale * v) / over)));
        if (bias !== null) memory.floats(biasAt, outputs).set(isCodes ? bias.map((v) => Math.fround(v / over)) : bias);
        new Uint8Array(memory.buffer, fill, 1)[0] = image.zero;
        const at = { x: image.address, y: result, table: region.address, scratch, fill, offsets, factors: factorsAt, bias: biasAt };
        const { jobs, setZero } = plan.jobs(at, finished);
        setZero(image.zero);
        made = { key, jobs };
      }
      runJobs(memory, made.jobs);
      let from = result;
      if (shape.isRows) {
        from = memory.scratch("conv rows", y.data.byteLength);
        transpose(memory, result, from, [shape.batch, outputs, plan.output[0] * plan.output[1]], isCodes ? 1 : 4);
      }
      new Uint8Array(y.data.buffer, y.data.byteOffset, y.data.byteLength).set(new Uint8Array(memory.buffer, from, y.data.byteLength));
    },
  };
}
