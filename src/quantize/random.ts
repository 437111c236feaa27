// Seeded random numbers, the same on every machine: xoshiro128** (Blackman and Vigna, 2018) seeded by splitmix32,
// Box-Muller for Gaussians.

/**
 * Uniform numbers in [0, 1) with 32 bits. @example const random = seededRandom(7); random()
 * @throws TypeError for a seed that is not finite
 */
export function seededRandom(seed: number): () => number {
  if (!Number.isFinite(seed)) throw new TypeError(`seed: expected a finite number, got ${seed}.`);
  let s = seed >>> 0;
  const split = () => {
    s = (s + 0x9e3779b9) >>> 0;
    let z = s;
    z = Math.imul(z ^ (z >>> 16), 0x85ebca6b);
    z = Math.imul(z ^ (z >>> 13), 0xc2b2ae35);
    return (z ^ (z >>> 16)) >>> 0;
  };
  let [a, b, c, d] = [split(), split(), split(), split()];
  const rotl = (x: number, k: number) => ((x << k) | (x >>> (32 - k))) >>> 0;
  return () => {
    const out = Math.imul(rotl(Math.imul(b, 5) >>> 0, 7), 9) >>> 0;
    const t = (b << 9) >>> 0;
    c ^= a;
    d ^= b;
    b ^= c;
    a ^= d;
    c ^= t;
    d = rotl(d >>> 0, 11);
    return out / 2 ** 32;
  };
}

/**
 * Standard normal numbers from a uniform generator.
 * @example
 * const normal = gaussian(seededRandom(7));
 * const x = Float32Array.from({ length: 4096 }, normal);
 */
export function gaussian(random: () => number): () => number {
  let spare = NaN;
  return () => {
    if (!Number.isNaN(spare)) {
      const out = spare;
      spare = NaN;
      return out;
    }
    // 1 - u keeps the logarithm finite; two draws of 32 bits resolve the tail to 6.6 sigma.
    const r = Math.sqrt(-2 * Math.log(1 - random()));
    const t = 2 * Math.PI * random();
    spare = r * Math.sin(t);
    return r * Math.cos(t);
  };
}
