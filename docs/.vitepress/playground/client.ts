// The playground's worker as functions of the page. A worker that is stopped takes its model with it; the page opens it
// again.
import type { Answer, Calls } from "./protocol";

export interface Client {
  call<K extends keyof Calls>(
    kind: K,
    args: Calls[K]["args"],
    onProgress?: (share: number, text: string) => void,
  ): Promise<Calls[K]["result"]>;
  /** Ends the worker; calls under way are rejected. */
  stop(): void;
}

interface Pending {
  resolve(value: unknown): void;
  reject(error: Error): void;
  onProgress?(share: number, text: string): void;
}

export function startWorker(): Client {
  const worker = new Worker(new URL("./worker.ts", import.meta.url), { type: "module" });
  const pending = new Map<number, Pending>();
  let next = 0;
  const failAll = (message: string): void => {
    for (const { reject } of pending.values()) reject(new Error(message));
    pending.clear();
  };
  worker.onmessage = ({ data }: MessageEvent<Answer>) => {
    const call = pending.get(data.id);
    if (data.kind === "progress") return call?.onProgress?.(data.share, data.text);
    pending.delete(data.id);
    if (data.kind === "error") call?.reject(new Error(data.message));
    else call?.resolve(data.value);
  };
  worker.onerror = (event) => failAll(event.message || "the worker ended (out of memory?)");
  return {
    call: (kind, args, onProgress) =>
      new Promise((resolve, reject) => {
        pending.set(++next, { resolve: resolve as (value: unknown) => void, reject, onProgress });
        worker.postMessage({ id: next, kind, args });
      }),
    stop() {
      worker.terminate();
      failAll("stopped");
    },
  };
}
