// A decoder on a device: GroupQueryAttention over caches, as recorded steps (decoder-recorded.ts); models whose
// attention is spelled out, or takes what its kernel does not, step by step (decoder-carried.ts), with their caches in
// place too.
import { isLowbitError } from "../../../formats/core/errors.ts";
import {
  cacheOf,
  checkCapacity,
  checkCut,
  checkRoom,
  checkSequence,
  checkSteps,
  checkToken,
  checkTokens,
  defaultCapacity,
  disposedDecoder,
  generated,
  MOST,
  type Decoder,
} from "../decoder.ts";
import { kernelModel } from "../decoder-kernels.ts";
import { carriedDeviceCore } from "./decoder-carried.ts";
import type { DeviceCore, DeviceDecoderInit } from "./decoder-core.ts";
import { recordedCore } from "./decoder-recorded.ts";

/** `Decoder` on a device: results come when the device has made them, and stay. */
export interface DeviceDecoder extends Omit<Decoder, "prefill" | "step" | "steps"> {
  /**
   * Runs tokens and appends them; calls wait for each other. @returns the logits after the last one
   * @param sequence default 0
   * @throws (rejects) RangeError for no or strange tokens or another sequence; LowbitError E_SHAPE where they
   * do not fit, E_DISPOSED, E_DEVICE
   */
  prefill(ids: ArrayLike<number | bigint>, sequence?: number): Promise<Float32Array>;
  /** `prefill` of one token. */
  step(id: number, sequence?: number): Promise<Float32Array>;
  /**
   * A token for each sequence in one pass, which reads the weights once; null: the sequence rests. @returns the logits
   * of each, null for those that rest
   * @throws (rejects) as `prefill`
   */
  steps(ids: readonly (number | null)[]): Promise<(Float32Array | null)[]>;
}

const isUnsupported = (error: unknown): boolean => isLowbitError(error) && error.code === "E_UNSUPPORTED";

/** The core, and what runs where it turns out to be none. @param pasts tokens in each sequence */
function chooseCore(
  init: DeviceDecoderInit,
  pasts: readonly (() => number)[],
): { readonly core: DeviceCore; readonly capacity: number; readonly other: () => DeviceCore | null } {
  const { options } = init;
  const { kinds } = cacheOf(options);
  // caches of fewer bits are those of GroupQueryAttention
  const isPlain = kinds.every((kind) => kind === "float32");
  const carried = (capacity: number): DeviceCore => carriedDeviceCore(init, capacity, pasts);
  try {
    const { found, limit } = kernelModel(init);
    checkCapacity(options.capacity, limit);
    const capacity = options.capacity ?? defaultCapacity(limit);
    return { core: recordedCore(init, found, capacity, kinds, pasts), capacity, other: () => (isPlain ? carried(capacity) : null) };
  } catch (error) {
    if (!isUnsupported(error) || !isPlain) throw error;
    checkCapacity(options.capacity, MOST);
    const capacity = options.capacity ?? defaultCapacity(MOST);
    return { core: carried(capacity), capacity, other: () => null };
  }
}

/** @throws LowbitError E_UNSUPPORTED where the model is no decoder for a device, E_DEVICE; RangeError; TypeError */
export function createDeviceDecoder(init: DeviceDecoderInit): DeviceDecoder {
  const { options, check } = init;
  const { sequences } = cacheOf(options);
  const lengths = new Array<number>(sequences).fill(0);
  const pasts = lengths.map((_, s) => (): number => lengths[s]);
  const { core: first, capacity, other } = chooseCore(init, pasts);
  let core = first;
  let live = true;
  const logits = new Array<Float32Array | null>(sequences).fill(null);
  let last: Promise<unknown> = Promise.resolve();
  const checked = (sequence: number): void => {
    check();
    if (!live) throw disposedDecoder();
    checkSequence(sequence, lengths);
  };
  /** What the first core does not take shows in its first tokens. */
  const fallBack = (error: unknown): void => {
    const next = isUnsupported(error) && live && core === first && lengths.every((n) => n === 0) ? other() : null;
    if (next === null) throw error;
    core.dispose();
    core = next;
  };
  const append = async (ids: readonly bigint[], sequence: number): Promise<Float32Array> => {
    checked(sequence);
    checkRoom(lengths[sequence], ids.length, capacity);
    const before = lengths[sequence];
    let made: Float32Array | null = null;
    try {
      for (let from = 0; from < ids.length;) {
        const part = ids.slice(from, from + core.chunk);
        made = await core.run(part, sequence).catch((error: unknown) => {
          fallBack(error);
          return core.run(part, sequence);
        });
        from += part.length;
        lengths[sequence] += part.length;
        if (from < ids.length) checked(sequence);
      }
    } catch (error) {
      lengths[sequence] = before;
      throw error;
    }
    return (logits[sequence] = made!);
  };
  /** One after the other. */
  const queued = <T>(work: () => Promise<T>): Promise<T> => {
    const next = last.then(work);
    last = next.catch(() => undefined);
    return next;
  };
  const prefill = async (ids: ArrayLike<number | bigint>, sequence = 0): Promise<Float32Array> => {
    checked(sequence);
    const list = checkTokens(ids);
    return queued(() => append(list, sequence));
  };
  const step = async (id: number, sequence = 0): Promise<Float32Array> => {
    checked(sequence);
    checkToken(id);
    return queued(() => append([BigInt(id)], sequence));
  };
  const stepAll = async (ids: readonly (number | null)[]): Promise<(Float32Array | null)[]> => {
    checked(0);
    ids.forEach((id, s) => {
      if (id !== null) checkRoom(lengths[s], 1, capacity);
    });
    if (sequences === 1 || core.together === undefined) {
      const all: (Float32Array | null)[] = [];
      for (const [s, id] of ids.entries()) all.push(id === null ? (logits[s] = null) : await append([BigInt(id)], s));
      return all;
    }
    // one that rests runs as well: what it writes lies behind its last token
    let made: Float32Array[];
    try {
      made = await core.together(ids.map((id) => id ?? 0));
    } catch (error) {
      fallBack(error);
      return stepAll(ids);
    }
    return ids.map((id, s) => {
      if (id !== null) lengths[s]++;
      return (logits[s] = id === null ? null : made[s]);
    });
  };
  const steps = async (ids: readonly (number | null)[]): Promise<(Float32Array | null)[]> => {
    checked(0);
    checkSteps(ids, sequences);
    return queued(() => stepAll([...ids]));
  };
  const truncate = (n: number, sequence = 0): void => {
    checked(sequence);
    checkCut(n, lengths[sequence]);
    if (n < lengths[sequence]) logits[sequence] = null;
    lengths[sequence] = n;
  };
  return {
    get length() {
      return lengths[0];
    },
    get lengths() {
      return [...lengths];
    },
    capacity,
    get cacheBytes() {
      return core.bytes();
    },
    prefill,
    step,
    steps,
    truncate,
    reset: () => lengths.forEach((_, s) => truncate(0, s)),
    explain: () => core.explain(),
    generate: (of = {}) => generated(of, { checked, logits, lengths, capacity, prefill, step }),
    dispose() {
      if (!live) return;
      live = false;
      core.dispose();
    },
  };
}
