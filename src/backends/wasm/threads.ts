// Starts the workers of a pool: node:worker_threads in Node, Web Workers in a cross-origin isolated page.
import type * as FileSystem from "node:fs";
import type * as OperatingSystem from "node:os";
import type * as WorkerThreads from "node:worker_threads";
import { LowbitError } from "../../../formats/core/errors.ts";
import { createPool, type Pool, type PoolHooks, type WorkerLike } from "../../../kernels/wasm/engine/pool.ts";
import { workerSource } from "../../../kernels/wasm/engine/worker.ts";
import type { WasmMemory } from "../../../kernels/wasm/engine/engine.ts";

export interface StartOptions {
  readonly threads: number;
  readonly timeoutMs?: number;
  readonly workerUrl?: string | URL;
}

/**
 * The script of a Web Worker, for pages that must serve it as a file (`workerUrl`).
 * @example
 * const url = URL.createObjectURL(new Blob([workerScript()], { type: "text/javascript" })); // or a file of your server
 * const backend = await wasm({ threads: 2, workerUrl: url });
 */
export const workerScript = (): string => workerSource(false);

interface WebWorker extends WorkerLike {
  onerror: ((event: unknown) => void) | null;
  onmessage: (() => void) | null;
}

interface NodeModules {
  "node:worker_threads": typeof WorkerThreads;
  "node:fs": typeof FileSystem;
  "node:os": typeof OperatingSystem;
}

/**
 * A module of Node, undefined elsewhere. Asked for at run time, not imported: bundlers for the browser never see it.
 */
function builtin<Name extends keyof NodeModules>(name: Name): NodeModules[Name] | undefined {
  const { process } = globalThis as unknown as { process?: { getBuiltinModule?: (id: Name) => NodeModules[Name] } };
  return process?.getBuiltinModule?.(name);
}

/** Starts workers of `source` in Node. @internal */
export function nodeHooks({ Worker, MessageChannel }: typeof WorkerThreads, source = workerSource(true)): PoolHooks {
  const fs = builtin("node:fs")!;
  const identity = ({ dev, ino, rdev }: FileSystem.Stats): string => `${dev} ${ino} ${rdev}`;
  let file: string | null = null;
  try {
    const own = fs.openSync(builtin("node:os")!.devNull, "r");
    file = identity(fs.fstatSync(own));
    fs.closeSync(own);
  } catch {
    // no way to see a worker's end while waiting: the time limit remains
  }
  return {
    manyMemories: true,
    start(index, control, spinMs, onExit) {
      const { port1, port2 } = new MessageChannel();
      const make = (): WorkerThreads.Worker =>
        new Worker(source, {
          eval: true,
          workerData: { control, index, port: port2, spinMs },
          transferList: [port2],
          // a worker needs no environment, arguments or standard streams of its own
          execArgv: [],
        });
      const worker = allowed(make, "Run node with --allow-worker");
      worker.on("exit", onExit);
      worker.on("error", onExit);
      worker.unref();
      port1.unref();
      return {
        worker,
        send: (at: number, memory: WasmMemory) => port1.postMessage({ index: at, memory }),
        ended(life) {
          if (file === null || life < 0) return false;
          try {
            return identity(fs.fstatSync(life)) !== file;
          } catch {
            return true;
          }
        },
      };
    },
  };
}

/** Makes a worker. @throws LowbitError E_UNSUPPORTED where that is forbidden, with what to do about it */
function allowed<T>(make: () => T, remedy: string): T {
  try {
    return make();
  } catch (cause) {
    throw new LowbitError(
      "E_UNSUPPORTED",
      `wasm threads: expected to start a worker, got a refusal (${(cause as Error).message}). ${remedy}, or use threads: 1.`,
      { cause },
    );
  }
}

export async function startPool(options: StartOptions): Promise<Pool> {
  const node = builtin("node:worker_threads");
  if (node !== undefined) return createPool(options, nodeHooks(node));
  const scope = globalThis as unknown as {
    Worker?: new (url: string | URL) => WebWorker;
    Blob?: new (parts: string[], options: { type: string }) => unknown;
    URL: { createObjectURL(blob: unknown): string; revokeObjectURL(url: string): void };
  };
  const { Worker: WebWorkerClass, Blob: BlobClass } = scope;
  if (WebWorkerClass === undefined || BlobClass === undefined)
    throw new LowbitError("E_UNSUPPORTED", "wasm threads: expected workers, got an environment without them. Use threads: 1.");
  const url = options.workerUrl ?? scope.URL.createObjectURL(new BlobClass([workerScript()], { type: "text/javascript" }));
  // A worker answers a first message, learns its memory with a second, and from then on watches the control words. Only
  // the answer proves that messages reach it while this thread spins: a browser may hold back those that are sent
  // before the page has seen the worker's script end.
  return createPool(options, {
    manyMemories: false,
    start(index, control, spinMs, onExit, onReady) {
      const worker = allowed(() => new WebWorkerClass(url), "Serve the file of `workerUrl` from where the policy allows workers");
      worker.onerror = onExit;
      worker.onmessage = onReady;
      worker.postMessage(0);
      return { worker, send: (_at: number, memory: WasmMemory) => worker.postMessage({ control, index, spinMs, memory }) };
    },
  });
}
