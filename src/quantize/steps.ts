// Long work in steps: a generator that yields its progress between blocks, driven at once or with pauses for the event
// loop.
import { LowbitError } from "../../formats/core/errors.ts";
import type { Format, PackedTensor } from "../../formats/core/types.ts";
import type { WeightQuantizer } from "../tensor/quantize/index.ts";
import type { Tensor } from "../tensor/tensor.ts";

/** How far a long computation is. */
export interface Progress {
  /** What is being done, e.g. "gptq". */
  readonly stage: string;
  /** Work done and in all, in the units of the stage (columns, batches, layers). */
  readonly done: number;
  readonly total: number;
  /** The layer at work, where there are several. */
  readonly layer?: string;
}

/** To stop a long computation, and to watch it. */
export interface RunOptions {
  /** Checked between blocks of work; the call then rejects (or throws) with E_ABORTED. */
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: Progress) => void;
}

export type Steps<T> = Generator<Progress, T, void>;

/** A quantizer whose work can be driven step by step. */
export interface SteppedQuantizer extends WeightQuantizer {
  steps(weight: Tensor, format: Format): Steps<PackedTensor>;
}

/** @throws LowbitError E_ABORTED with the reason as cause */
export function checkAborted(signal: AbortSignal | undefined, what: string): void {
  if (signal?.aborted)
    throw new LowbitError("E_ABORTED", `${what}: expected to run to the end, got an abort signal. Nothing was changed; start it again.`, {
      cause: signal.reason,
    });
}

/** Runs to the end without a pause. Steps that are given up may clean up after themselves (finally). */
export function runSteps<T>(steps: Steps<T>, options: RunOptions = {}): T {
  try {
    for (;;) {
      const next = steps.next();
      if (next.done) return next.value;
      options.onProgress?.(next.value);
      checkAborted(options.signal, next.value.stage);
    }
  } finally {
    steps.return?.(undefined as T);
  }
}

/**
 * Pauses at least every `sliceMs` so that timers, input and abort signals get their turn.
 * @example
 * const packed = await runStepsAsync(gptq({ hessian: stats }).steps(w, format("int4_b32")), {
 *   onProgress: ({ stage, done, total }) => console.log(stage, done, total), // a page stays alive meanwhile
 * });
 */
export async function runStepsAsync<T>(steps: Steps<T>, options: RunOptions & { readonly sliceMs?: number } = {}): Promise<T> {
  checkAborted(options.signal, "start");
  let since = Date.now();
  try {
    for (;;) {
      const next = steps.next();
      if (next.done) return next.value;
      options.onProgress?.(next.value);
      if (Date.now() - since >= (options.sliceMs ?? 20)) {
        await new Promise<void>((resolve) => setTimeout(resolve));
        since = Date.now();
      }
      checkAborted(options.signal, next.value.stage);
    }
  } finally {
    steps.return?.(undefined as T);
  }
}
