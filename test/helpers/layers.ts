// Seeded layers for the tests and benches of the quantizers: Gaussian weights, inputs of a named kind.
import { random } from "./random.ts";

export type InputKind = "iid" | "ar" | "power" | "outliers";

/** Exponent of the power-law spectrum. */
const POWER = 1.5;

/** Tokens [tokens * k]. ar: x_j = rho x_{j-1} + noise; power: spectrum 1 / i^1.5 in a
 * random basis; outliers: every 64th channel times 20, on AR(rho). */
export function inputs(kind: InputKind, tokens: number, k: number, seed: number, rho = 0.9): Float64Array {
  const rng = random(seed);
  const x = new Float64Array(tokens * k);
  for (let t = 0; t < tokens; t++) {
    let last = rng.normal();
    for (let j = 0; j < k; j++) {
      const n = rng.normal();
      last = kind === "iid" || kind === "power" ? n : j === 0 ? last : rho * last + Math.sqrt(1 - rho * rho) * n;
      x[t * k + j] = last;
    }
  }
  if (kind === "power") {
    // Eigenvalues 1 / (i + 1)^POWER; eigenvectors mixed by two rounds of random signs and a Walsh-Hadamard transform (k
    // a power of two).
    const signs = [0, 1].map(() => Float64Array.from({ length: k }, () => (rng.next() < 0.5 ? -1 : 1)));
    for (let t = 0; t < tokens; t++) {
      const row = x.subarray(t * k, (t + 1) * k);
      for (let j = 0; j < k; j++) row[j] *= (j + 1) ** (-POWER / 2);
      for (const sign of signs) {
        for (let j = 0; j < k; j++) row[j] *= sign[j] / Math.sqrt(k);
        for (let h = 1; h < k; h *= 2)
          for (let i = 0; i < k; i += 2 * h)
            for (let j = i; j < i + h; j++) [row[j], row[j + h]] = [row[j] + row[j + h], row[j] - row[j + h]];
      }
    }
  }
  if (kind === "outliers") for (let t = 0; t < tokens; t++) for (let j = 7; j < k; j += 64) x[t * k + j] *= 20;
  return x;
}

export function gaussianWeights(rows: number, k: number, seed: number, sigma = 0.02): Float32Array {
  const rng = random(seed);
  return Float32Array.from({ length: rows * k }, () => sigma * rng.normal());
}
