// The common case of ONNX weights (nibbles.ts) by threads that read the file themselves: same codes and scales, bit for
// bit. Node only; who has no threads, or a matrix of another kind, gets null and does it on the calling thread.
import type * as WorkerThreads from "node:worker_threads";
import { packedSizes } from "../../../formats/core/packed.ts";
import type { BlockFormat, Format } from "../../../formats/core/types.ts";
import { engine } from "../../../kernels/wasm/engine/engine.ts";
import { nibbleWorkerSource, type NibbleAnswer, type NibbleJob } from "../../../kernels/wasm/convert/nibble-worker.ts";
import { nibbleModule } from "../../../kernels/wasm/convert/nibbles.ts";
import { nibblesFit, type Measured } from "./nibbles.ts";
import { blockPolicy, blockRecipe, type QuantizeOptions } from "./policy.ts";

/** A matrix [rows, k] of float32 in an open file. */
export interface StoredMatrix {
  readonly fd: number;
  /** Bytes before its first value. */
  readonly offset: number;
  readonly rows: number;
  readonly k: number;
  /** Do values of a row follow each other? Else those of a column do: it is stored as [k, rows]. */
  readonly inRows: boolean;
}

/** Threads that quantize; `close` them before the files are closed. */
export interface NibbleThreads {
  readonly count: number;
  /** Null where a thread could not: `quantize` on the calling thread then does it, or says why not. Never rejects. */
  quantize(matrix: StoredMatrix, shape: readonly number[], format: BlockFormat, options: QuantizeOptions): Promise<Measured | null>;
  close(): Promise<void>;
}

/** Is this a matrix, a format and options that the threads take? */
export function threadsTake({ rows, k }: StoredMatrix, format: Format, options: QuantizeOptions): format is BlockFormat {
  if (format.kind !== "block" || format.scales[0].format.bits !== 32 || k % 2 !== 0 || rows < 4) return false;
  // whichever way its values lie: the loops take any strides
  const view = { data: new Float32Array(0), rows, k, offset: 0, rowStride: k, kStride: 1, kOffsets: null };
  return options.backend === undefined && nibblesFit(view, format, blockPolicy(format, options));
}

interface Thread {
  readonly worker: WorkerThreads.Worker;
  /** Jobs under way, by id. */
  readonly jobs: Map<number, (answer: NibbleAnswer["made"]) => void>;
}

function startThread(node: typeof WorkerThreads, source: string, module: Uint8Array<ArrayBuffer>): Thread {
  // a worker needs no arguments or streams of its own
  const worker = new node.Worker(source, { eval: true, workerData: module, execArgv: [], env: node.SHARE_ENV });
  const jobs: Thread["jobs"] = new Map();
  worker.on("message", ({ id, made }: NibbleAnswer) => {
    jobs.get(id)?.(made);
    jobs.delete(id);
  });
  // one that ends, whyever, leaves its jobs undone
  const end = (): void => {
    for (const undone of jobs.values()) undone(undefined);
    jobs.clear();
  };
  worker.on("error", end);
  worker.on("exit", end);
  return { worker, jobs };
}

/** Starts threads. Null where there are none: another runtime than Node, no SIMD, or forbidden. */
export function nibbleThreads(count: number): NibbleThreads | null {
  const { process } = globalThis as unknown as { process?: { getBuiltinModule?: (id: string) => typeof WorkerThreads } };
  const node = process?.getBuiltinModule?.("node:worker_threads");
  const module = nibbleModule();
  if (node === undefined || engine === undefined || !engine.validate(module)) return null;
  const threads: Thread[] = [];
  try {
    const source = nibbleWorkerSource();
    while (threads.length < count) threads.push(startThread(node, source, module));
  } catch {
    // not allowed (--permission without --allow-worker), or no memory left: fewer do
    if (threads.length === 0) return null;
  }
  let ids = 0;
  return {
    count: threads.length,
    async quantize({ fd, offset, rows, k, inRows }, shape, format, options) {
      const free = threads.reduce((least, thread) => (thread.jobs.size < least.jobs.size ? thread : least));
      const blockSize = format.scales[0].span as number;
      const job: NibbleJob = { id: ids++, fd, offset, rows, k, inRows, blockSize, symmetric: format.offset === undefined };
      const made = await new Promise<NibbleAnswer["made"]>((resolve) => {
        free.jobs.set(job.id, resolve);
        free.worker.postMessage(job);
      });
      if (made === undefined) return null;
      const { codes, scales, zeroPoints, signal, noise } = made;
      const { rowBytes } = packedSizes(format, shape);
      const recipe = blockRecipe(blockPolicy(format, options));
      const planes = { codes, scales: new Uint8Array(scales.buffer), superScales: null, offsets: zeroPoints };
      return { packed: { format, shape, rows, k, rowBytes, ...planes, recipe }, signal, noise };
    },
    async close() {
      await Promise.all(threads.map(({ worker }) => worker.terminate()));
    },
  };
}
