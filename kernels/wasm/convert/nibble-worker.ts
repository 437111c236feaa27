// What a thread runs that reads weights from a file and makes 4-bit codes of them, as text, because a library file
// cannot know how it will be bundled. All arithmetic is in the module of nibbles.ts: same codes and scales, bit for
// bit, as src/tensor/quantize/nibbles.ts. A block of all columns is read, searched and encoded while it is in the
// cache; the weight itself is never held. What it cannot do it answers as undone, and the calling thread does it and
// says why.

/** A matrix of float32 in an open file: values of a column follow each other (`inRows`), or those of a k. */
export interface NibbleJob {
  readonly id: number;
  readonly fd: number;
  /** Bytes before the first value. */
  readonly offset: number;
  readonly rows: number;
  /** Even. */
  readonly k: number;
  readonly inRows: boolean;
  readonly blockSize: number;
  readonly symmetric: boolean;
}

/** What a thread answers. */
export interface NibbleAnswer {
  readonly id: number;
  /** Undefined: it could not. */
  readonly made?: {
    /** [rows, k / 2]. */
    readonly codes: Uint8Array<ArrayBuffer>;
    /** [rows, blocks]. */
    readonly scales: Float32Array<ArrayBuffer>;
    /** [rows, ceil(blocks / 2)]; null for symmetric ones. */
    readonly zeroPoints: Uint8Array<ArrayBuffer> | null;
    readonly signal: number;
    readonly noise: number;
  };
}

/** Bytes of values and of codes that are held at a time, at most. */
const STAGED = 4 << 20;
const CODES = 16 << 20;
/** Columns that stay in the first cache between the search and the encoding. */
const NEAR = 128;

/** For node:worker_threads with `eval`; workerData: the bytes of the module. */
export const nibbleWorkerSource = (): string => `
"use strict";
const { parentPort, workerData } = process.getBuiltinModule("node:worker_threads");
const fs = process.getBuiltinModule("node:fs");
const memory = new WebAssembly.Memory({ initial: 1, maximum: 65536 });
const run = new WebAssembly.Instance(new WebAssembly.Module(workerData), { m: { m: memory } }).exports;
const multiple = (n, of) => Math.ceil(n / of) * of;
function read(fd, into, position) {
  for (let done = 0; done < into.length; ) {
    const got = fs.readSync(fd, into, done, into.length - done, position + done);
    if (got === 0) throw new Error("the file ends");
    done += got;
  }
}
function quantize({ fd, offset, rows, k, inRows, blockSize, symmetric }) {
  const blocks = Math.ceil(k / blockSize);
  const rowBytes = k / 2;
  const zeroBytes = Math.ceil(blocks / 2);
  // strides that are no power of two: columns would fight for the same cache sets
  const codeStride = multiple(rowBytes, 64) + 64;
  const most = Math.min(inRows ? ${STAGED} / 4 / k : ${STAGED} / 4 / blockSize, ${CODES} / codeStride);
  const width = Math.min(multiple(rows, 4), Math.max(4, Math.floor(most / 4) * 4));
  const stride = 4 * width + 64;
  let end = 64;
  const place = (bytes) => (end = multiple(end + bytes, 64)) - multiple(bytes, 64);
  const [lows, highs, scaleAt, reciprocals, zeroAt] = Array.from({ length: 5 }, () => place(4 * width));
  const staged = place(stride * multiple(blockSize, 4));
  const codeAt = place(codeStride * width);
  const rowAt = inRows ? place(4 * k * width + 64) : 0;
  const missing = Math.ceil(end / 65536) - memory.buffer.byteLength / 65536;
  if (missing > 0) memory.grow(missing);
  const bytes = new Uint8Array(memory.buffer);
  const scale = new Float32Array(memory.buffer, scaleAt, width);
  const zero = new Float32Array(memory.buffer, zeroAt, width);
  const sums = new Float64Array(memory.buffer, 0, 4).fill(0);
  const codes = new Uint8Array(rows * rowBytes);
  const scales = new Float32Array(rows * blocks);
  const zeroPoints = symmetric ? null : new Uint8Array(rows * zeroBytes);
  for (let n0 = 0; n0 < rows; n0 += width) {
    const columns = Math.min(width, rows - n0);
    // lanes beyond the last column work on zeros
    if (columns % 4 !== 0) bytes.fill(0, inRows ? rowAt : staged, inRows ? rowAt + 4 * k * width + 64 : codeAt);
    if (inRows) read(fd, bytes.subarray(rowAt, rowAt + 4 * k * columns), offset + 4 * n0 * k);
    const lines = Array.from({ length: inRows ? 0 : blockSize }, (_, i) => bytes.subarray(staged + i * stride, staged + i * stride + 4 * columns));
    for (let b = 0; b < blocks; b++) {
      const count = Math.min(blockSize, k - b * blockSize);
      if (inRows) run.transpose(rowAt + 4 * b * blockSize, 4 * k, staged, stride, count, columns);
      else {
        const at = offset + 4 * (b * blockSize * rows + n0);
        const together = columns === rows ? fs.readvSync(fd, count === blockSize ? lines : lines.slice(0, count), at) : 0;
        if (together < 4 * count * columns) for (let i = 0; i < count; i++) read(fd, lines[i], at + 4 * i * rows);
      }
      for (let c = 0; c < columns; c += ${NEAR}) {
        const near = Math.min(${NEAR}, columns - c);
        const at = staged + 4 * c;
        if (symmetric) run.extremes(at, stride, count, near, lows + 4 * c);
        else run.ranges(at, stride, count, near, lows + 4 * c, highs + 4 * c);
        if (run.scales(lows + 4 * c, highs + 4 * c, near, symmetric ? 1 : 0, scaleAt + 4 * c, reciprocals + 4 * c, zeroAt + 4 * c) !== 0) return undefined;
        const to = codeAt + c * codeStride + (b * blockSize) / 2;
        run.encode(at, stride, count, near, scaleAt + 4 * c, reciprocals + 4 * c, zeroAt + 4 * c, 0, to, codeStride, symmetric ? 0x88888888 | 0 : 0);
      }
      for (let j = 0, to = n0 * blocks + b; j < columns; j++, to += blocks) scales[to] = scale[j];
      if (zeroPoints !== null)
        for (let j = 0, to = n0 * zeroBytes + (b >> 1); j < columns; j++, to += zeroBytes) zeroPoints[to] |= zero[j] << ((b & 1) * 4);
    }
    for (let j = 0; j < columns; j++) codes.set(bytes.subarray(codeAt + j * codeStride, codeAt + j * codeStride + rowBytes), (n0 + j) * rowBytes);
  }
  return { codes, scales, zeroPoints, signal: sums[0] + sums[1], noise: sums[2] + sums[3] };
}
parentPort.on("message", (job) => {
  let made;
  try {
    made = quantize(job);
  } catch {
    // the calling thread meets the same fault, and names it
  }
  const moved = made === undefined ? [] : [made.codes.buffer, made.scales.buffer, ...(made.zeroPoints === null ? [] : [made.zeroPoints.buffer])];
  parentPort.postMessage({ id: job.id, made }, moved);
});
`;
