// Seeded layers for the tests and benches of the quantizers: Gaussian weights, inputs of a named kind.
import { random } from "./random.ts";

export type InputKind = "iid" | "ar" | "power" | "outliers";

/** Tokens [tokens * k]. ar: x_j = rho x_{j-1} + noise; power: variance of channel j proportional to 1 / (j + 1), mixed by a random rotation of
 * neighbours; outliers: every 64th channel times 20, on AR(rho). */
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
    // Eigenvalues 1 / (i + 1), eigenvectors a random orthogonal matrix (product of Householder reflections).
    const reflections = Array.from({ length: 8 }, () => {
      const v = Float64Array.from({ length: k }, () => rng.normal());
      const n = Math.hypot(...v);
      return v.map((u) => u / n);
    });
    for (let t = 0; t < tokens; t++) {
      const row = x.subarray(t * k, (t + 1) * k);
      for (let j = 0; j < k; j++) row[j] /= Math.sqrt(j + 1);
      for (const v of reflections) {
        let dot = 0;
        for (let j = 0; j < k; j++) dot += v[j] * row[j];
        for (let j = 0; j < k; j++) row[j] -= 2 * dot * v[j];
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
