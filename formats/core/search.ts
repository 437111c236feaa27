// What an encoder that searches scales asks of its inner loops, so that kernels can run them: a block of runs, each
// with a small integer scale (and minimum) under one super scale (or two). The loops over values are here as data
// (`SearchSpec`) and as an interface (`SearchLoops`); what is tried in which order stays with the format.

interface RunsSpec {
  /** Runs of a block, and elements of a run. */
  readonly runs: number;
  readonly size: number;
  /** Largest code of a run's scale (and minimum). */
  readonly most: number;
  /**
   * Grids that a reference tries, in float32, the plain one first, and that the own search tries, in float64: what is
   * divided by the range, or by the extreme, of a run.
   */
  readonly widths: readonly number[];
  readonly own: readonly number[];
}

/** Codes 0 .. top, value = scale * code - minimum. */
export interface AffineSearch extends RunsSpec {
  readonly kind: "affine";
  readonly top: number;
  /** The reference's weights: root mean square of the run plus magnitude, or magnitude alone. */
  readonly lift: boolean;
  /** The reference minimises absolute instead of squared differences. */
  readonly absolute: boolean;
}

/** Codes low .. high, value = scale * code, scales -most .. most - 1; the reference's weights are squares. */
export interface SignedSearch extends RunsSpec {
  readonly kind: "signed";
  readonly low: number;
  readonly high: number;
  /** Levels of the codes where they are not the codes themselves, ascending; kernels leave these to the plain loops. */
  readonly levels?: readonly number[];
}

export type SearchSpec = AffineSearch | SignedSearch;

/** What loops leave for each run; float64 in all. */
export interface SearchRoom {
  /** Scale and minimum that the reference's search finds, and those of the least error with the weights given. */
  readonly refS: Float64Array;
  readonly refM: Float64Array;
  readonly ownS: Float64Array;
  readonly ownM: Float64Array;
  /** Codes of scale and minimum. */
  readonly scales: Float64Array;
  readonly mins: Float64Array;
  /** Of these: the weighted squared error, and sums of weight times code, code squared, and code times value. */
  readonly error: Float64Array;
  readonly uq: Float64Array;
  readonly uqq: Float64Array;
  readonly uxq: Float64Array;
  /** Sums of the weights, and of weight times value. */
  readonly su: Float64Array;
  readonly ux: Float64Array;
}

export const ROOM = ["refS", "refM", "ownS", "ownM", "scales", "mins", "error", "uq", "uqq", "uxq", "su", "ux"] as const;

/** Loops over the values of one block. Implementations give the same bits. */
export interface SearchLoops {
  readonly room: SearchRoom;
  /** Takes the block x[at ..] with its weights, of one where null, and fills refS .. ownM (and su, ux). */
  search(x: Float32Array, at: number, weights: Float32Array | null): void;
  /** Codes near ownS and ownM under the super scales, each run's best within `reach`; then judges them. */
  place(d: number, dmin: number, reach: number): void;
  /** Error and sums of the codes in the room. */
  judge(d: number, dmin: number): void;
}

/** How an opaque format encodes on loops that are given. */
export interface BlockSearch {
  readonly spec: SearchSpec;
  /** `encodeBytes` on these loops. */
  encodeBytes(x: Float32Array, importance: Float32Array | undefined, loops: SearchLoops): Uint8Array;
}

/** The arrays of a room, one after the other in `memory` from byte `at` on. */
export function searchRoom(runs: number, memory: ArrayBufferLike = new ArrayBuffer(8 * runs * ROOM.length), at = 0): SearchRoom {
  return Object.fromEntries(ROOM.map((name, i) => [name, new Float64Array(memory, at + 8 * runs * i, runs)])) as unknown as SearchRoom;
}
