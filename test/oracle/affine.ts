// Round-to-nearest quantization of one block, written from the formulas and apart from the library: plain number lists,
// no typed arrays, no views.

export interface IntSpec {
  readonly min: number;
  readonly max: number;
}

/** Half to even by comparing distances to both neighbours. */
export function halfEven(x: number): number {
  const below = Math.floor(x);
  const [down, up] = [x - below, below + 1 - x];
  if (down < up) return below;
  if (up < down) return below + 1;
  return below % 2 === 0 ? below : below + 1;
}

const clip = (x: number, s: IntSpec) => Math.max(s.min, Math.min(s.max, x));

/** Symmetric, narrow: scale amax / qmax stored by `store`, codes within +-qmax. */
export function symmetricBlock(x: readonly number[], spec: IntSpec, store: (scale: number) => number): { scale: number; q: number[] } {
  const amax = Math.max(...x.map(Math.abs));
  const scale = store(amax === 0 ? 1 : amax / spec.max);
  return { scale, q: x.map((v) => clip(halfEven(v / scale), { min: -spec.max, max: spec.max })) };
}

/** Asymmetric: zero forced into the range, zero point an integer code. */
export function asymmetricBlock(
  x: readonly number[],
  spec: IntSpec,
  store: (scale: number) => number,
): { scale: number; zero: number; q: number[] } {
  const lo = Math.min(0, ...x);
  const hi = Math.max(0, ...x);
  if (lo === hi) return { scale: store(1), zero: clip(0, spec), q: x.map(() => clip(0, spec)) };
  const exact = (hi - lo) / (spec.max - spec.min);
  const zero = clip(halfEven(spec.min - lo / exact), spec);
  const scale = store(exact);
  return { scale, zero, q: x.map((v) => clip(halfEven(v / scale) + zero, spec)) };
}
