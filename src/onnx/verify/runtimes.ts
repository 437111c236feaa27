// What verification wants of a runtime: a session behind one interface, started in a process or page of its own. The
// runtimes themselves are the table of table.ts.
import type { FeedTensor, Feeds, InputMetadata } from "./feeds.ts";

/** A result of a session; null is no tensor (a sequence, a map). */
export interface OutputTensor {
  readonly type: string;
  readonly dims: readonly number[];
  readonly data: FeedTensor["data"];
}

export interface RunResult {
  /** Milliseconds of the run alone. */
  readonly ms: number;
  readonly outputs: ReadonlyMap<string, OutputTensor | null>;
}

export interface RuntimeSession {
  readonly inputNames: readonly string[];
  readonly outputNames: readonly string[];
  /** Undefined where the runtime does not describe them. */
  readonly inputs: readonly InputMetadata[] | undefined;
  readonly outputs: readonly InputMetadata[] | undefined;
  /** Milliseconds of loading. */
  readonly loadMs: number;
  /** @param fetches the outputs wanted; default all */
  run(feeds: Feeds, fetches?: readonly string[]): Promise<RunResult>;
  close(): Promise<void>;
}

export interface SessionOptions {
  /** Threads inside an operator. Default: the runtime's own choice. */
  readonly threads?: number;
}

export interface StartOptions {
  /** A process of its own, not one that waited: its memory is what the work took. */
  readonly fresh?: boolean;
  /** Threads of a runtime that has them for all its sessions (WebAssembly). Default 1. */
  readonly threads?: number;
}

/** A started runtime. Its errors are plain Errors in its own words; a CrashError where its process ended. */
export interface Runtime {
  readonly name: string;
  readonly version: string;
  /** What must be known of this one, such as a software adapter. */
  readonly note?: string;
  /** False where it has no float16 at all: a WebGPU adapter without shader-f16. */
  readonly half?: boolean;
  /** @param model path or bytes */
  open(model: string | Uint8Array, options?: SessionOptions): Promise<RuntimeSession>;
  /** Largest resident memory of its process so far in bytes; null where nobody knows. */
  peakBytes(): Promise<number | null>;
  close(): Promise<void>;
}

/** A row of the table. */
export interface RuntimeEntry {
  readonly name: string;
  readonly about: string;
  /** @throws LowbitError E_RUNTIME where a package or a browser is missing, with what to install */
  check(): void;
  /** @throws LowbitError E_RUNTIME as `check`, and where it does not start */
  start(options: StartOptions): Promise<Runtime>;
}
