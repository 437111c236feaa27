// Seeded random numbers for tests and benches: mulberry32, Gaussian by Box-Muller, Laplace by inversion.
export interface Random {
  /** Uniform in [0, 1). */
  next(): number;
  normal(): number;
  /** Unit variance. */
  laplace(): number;
  integer(below: number): number;
}

export function random(seed: number): Random {
  let a = seed >>> 0;
  const next = () => {
    a = (a + 0x6d2b79f5) >>> 0;
    let t = Math.imul(a ^ (a >>> 15), 1 | a);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  let spare: number | undefined;
  const normal = () => {
    if (spare !== undefined) {
      const v = spare;
      spare = undefined;
      return v;
    }
    const r = Math.sqrt(-2 * Math.log(1 - next()));
    const t = 2 * Math.PI * next();
    spare = r * Math.sin(t);
    return r * Math.cos(t);
  };
  const laplace = () => {
    const u = next() - 0.5;
    return -Math.sign(u) * Math.log(1 - 2 * Math.abs(u)) * Math.SQRT1_2;
  };
  return { next, normal, laplace, integer: (below) => Math.floor(next() * below) };
}

/**
 * Blocks of `size` values of every awkward kind: outliers, ties, zeros of both signs, constants, one-signed, tiny and
 * large.
 */
export function awkwardBlock(rng: Random, size: number, kind: number): Float32Array {
  const s = 2 ** (rng.integer(24) - 14);
  const x = Float32Array.from({ length: size }, () => rng.normal() * s);
  switch (kind % 12) {
    case 1:
      return x.map(() => rng.laplace() * s);
    case 2:
      x[rng.integer(size)] *= 60;
      return x;
    case 3:
      return x.fill(0);
    case 4:
      return x.fill(rng.next() < 0.5 ? s : -s);
    case 5:
      return x.map(Math.abs);
    case 6:
      return x.map((v) => -Math.abs(v));
    case 7:
      return x.map(() => ((rng.integer(33) - 16) * s) / 4);
    case 8:
      return x.map(() => (rng.next() < 0.5 ? 0 : -0));
    case 9:
      return x.map((v) => v * 2 ** -110);
    case 10: {
      // just under, at and just over a power of two
      const edge = new Uint32Array(Float32Array.of(s).buffer);
      edge[0] += rng.integer(5) - 2;
      const top = new Float32Array(edge.buffer)[0];
      for (let i = 0; i < size; i++) x[i] = Math.max(-top, Math.min(top, x[i]));
      x[rng.integer(size)] = rng.next() < 0.5 ? top : -top;
      return x;
    }
    case 11:
      return x.map(() => (rng.integer(3) - 1) * s);
    default:
      return x;
  }
}

/** `count` Gaussian float32 numbers. */
export function normalArray(count: number, seed: number): Float32Array<ArrayBuffer> {
  const rng = random(seed);
  return Float32Array.from({ length: count }, () => rng.normal());
}
