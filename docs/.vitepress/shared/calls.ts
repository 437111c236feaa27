// Calls between a page and its worker: `connect` in the page, `serve` in the worker, over one table of calls. What
// goes between is plain data.

/** Arguments and result of each call by name. */
export type CallTable<C> = { readonly [K in keyof C]: { args: unknown; result: unknown } };

export type Progress = (share: number, text: string) => void;

export interface Client<C extends CallTable<C>> {
  call<K extends keyof C>(kind: K, args: C[K]["args"], onProgress?: Progress): Promise<C[K]["result"]>;
  /** Ends the worker; calls under way are rejected. */
  stop(): void;
}

export type Handlers<C extends CallTable<C>> = {
  readonly [K in keyof C]: (args: C[K]["args"], progress: Progress) => Promise<C[K]["result"]> | C[K]["result"];
};

interface Request {
  readonly id: number;
  readonly kind: PropertyKey;
  readonly args: unknown;
}

type Answer =
  | { readonly id: number; readonly kind: "progress"; readonly share: number; readonly text: string }
  | { readonly id: number; readonly kind: "result"; readonly value: unknown }
  | { readonly id: number; readonly kind: "error"; readonly message: string };

interface Pending {
  resolve(value: unknown): void;
  reject(error: Error): void;
  onProgress?(share: number, text: string): void;
}

export function connect<C extends CallTable<C>>(worker: Worker): Client<C> {
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

/** Answers calls in the worker. */
export function serve<C extends CallTable<C>>(handlers: Handlers<C>): void {
  self.onmessage = async ({ data: { id, kind, args } }: MessageEvent<Request>) => {
    const post = (answer: Answer): void => self.postMessage(answer);
    try {
      const run = handlers[kind as keyof C] as (args: unknown, progress: Progress) => unknown;
      const value = await run(args, (share, text) => post({ id, kind: "progress", share, text }));
      post({ id, kind: "result", value });
    } catch (error) {
      post({ id, kind: "error", message: error instanceof Error ? error.message : String(error) });
    }
  };
}
