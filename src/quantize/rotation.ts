// Orthogonal rotations Q of the contracted dimension: Y = (X Q) (W Q)^T. Hadamard (whole or block-diagonal, optionally
// with random signs) as fast transforms, random orthogonal matrices (QR of a Gaussian), and what they do to weights and
// Hessians. Sources: QuaRot (arXiv 2404.00456), QuIP# (2402.04396), MR-GPTQ (2509.23202). Not here: learned rotations
// (SpinQuant).
import { LowbitError } from "../../formats/core/errors.ts";
import { fwht, hadamardFactors } from "./hadamard.ts";
import { transposed } from "./linalg.ts";
import { gaussian, seededRandom } from "./random.ts";

/** Plain JSON of a rotation, as recipes record it. */
export interface RotationConfig {
  readonly kind: "hadamard" | "orthogonal";
  /** Length of the vectors. */
  readonly n: number;
  /** Blocks of this size along the vector, each rotated alone; n for the whole. */
  readonly block: number;
  /** Seed of the signs (hadamard) or of the matrix (orthogonal); null: no signs. */
  readonly seed: number | null;
}

/** An orthogonal matrix Q as functions: applied to vectors, to weights, and undone. */
export interface Rotation extends RotationConfig {
  /** x Q, in place, for each of the vectors of length n in x. */
  apply(x: Float32Array | Float64Array): void;
  /** x Q^T, in place: undoes `apply`. */
  applyInverse(x: Float32Array | Float64Array): void;
  /** Q, row-major [n * n]. */
  matrix(): Float64Array<ArrayBuffer>;
}

/** A backend with a fast Walsh-Hadamard transform of float32 rows, e.g. `await wasm()`. */
export interface TransformBackend {
  fwht(x: Float32Array, n: number, scale?: number): Float32Array;
}

/** Where a Hadamard transform runs, and the size of its blocks. */
export interface HadamardOptions {
  /**
   * Transforms Float32Array data there; the results are the same bits. float64 data, and blocks whose power of two is
   * below 4, stay in JavaScript.
   */
  readonly backend?: TransformBackend;
  /** Block size; default n. Must divide n. */
  readonly block?: number;
  /** Random signs before the transform, from this seed; default none. */
  readonly seed?: number | null;
}

function checkLength(x: Float32Array | Float64Array, n: number): void {
  if (x.length % n !== 0)
    throw new LowbitError("E_SHAPE", `rotation: expected a multiple of ${n} numbers, got ${x.length}. Pass whole vectors.`);
}

function build(config: RotationConfig, apply: (x: Float64Array | Float32Array, inverse: boolean) => void): Rotation {
  const { n } = config;
  return {
    ...config,
    apply(x) {
      checkLength(x, n);
      apply(x, false);
    },
    applyInverse(x) {
      checkLength(x, n);
      apply(x, true);
    },
    matrix() {
      const q = new Float64Array(n * n);
      for (let i = 0; i < n; i++) q[i * n + i] = 1;
      apply(q, false);
      return q;
    },
  };
}

/**
 * Q = diag(signs) (I x H_block / sqrt(block)).
 * @throws LowbitError E_UNSUPPORTED for an order without a construction; E_SHAPE where block does not divide n
 * @example hadamardRotation(256, { block: 64, seed: 1 }).apply(x) // vectors of 256, in place
 */
export function hadamardRotation(n: number, options: HadamardOptions = {}): Rotation {
  const block = options.block ?? n;
  const seed = options.seed ?? null;
  if (!Number.isSafeInteger(n) || n < 1) throw new RangeError(`rotation n: expected a positive integer, got ${n}.`);
  if (!Number.isSafeInteger(block) || block < 1 || n % block !== 0)
    throw new LowbitError("E_SHAPE", `rotation block: expected a divisor of ${n}, got ${block}. Choose a smaller block.`);
  const { base, power, matrix } = hadamardFactors(block);
  const norm = 1 / Math.sqrt(block);
  let signs: Float64Array | null = null;
  if (seed !== null) {
    const random = seededRandom(seed);
    signs = Float64Array.from({ length: n }, () => (random() < 0.5 ? -1 : 1));
  }
  const scratch = new Float64Array(base);
  const { backend } = options;
  const transform = (x: Float64Array | Float32Array, inverse: boolean) => {
    // Without a scale: additions in the same order, rounded alike.
    if (backend && x instanceof Float32Array && power >= 4 && power <= 2 ** 20) backend.fwht(x, power, 1);
    else fwht(x, power);
    if (matrix !== null)
      for (let at = 0; at < x.length; at += block)
        for (let c = 0; c < power; c++) {
          for (let j = 0; j < base; j++) {
            let s = 0;
            for (let i = 0; i < base; i++) s += x[at + i * power + c] * (inverse ? matrix[j * base + i] : matrix[i * base + j]);
            scratch[j] = s;
          }
          for (let j = 0; j < base; j++) x[at + j * power + c] = scratch[j];
        }
    for (let i = 0; i < x.length; i++) x[i] *= norm;
  };
  const flip = (x: Float64Array | Float32Array) => {
    if (signs) for (let i = 0; i < x.length; i++) x[i] *= signs[i % n];
  };
  return build({ kind: "hadamard", n, block, seed }, (x, inverse) => {
    if (!inverse) flip(x);
    transform(x, inverse);
    if (inverse) flip(x);
  });
}

/**
 * A random orthogonal matrix, uniform over the group: QR of a Gaussian matrix with the signs of R's diagonal taken out.
 * n^2 per vector.
 * @throws RangeError for n; TypeError for a seed that is no number
 * @example
 * const rotation = orthogonalRotation(3, 1);
 * const x = Float64Array.of(3, 0, 4);
 * rotation.apply(x);
 * Math.hypot(...x).toFixed(6) // "5.000000"
 */
export function orthogonalRotation(n: number, seed: number): Rotation {
  if (!Number.isSafeInteger(n) || n < 1) throw new RangeError(`rotation n: expected a positive integer, got ${n}.`);
  const normal = gaussian(seededRandom(seed));
  const q = Float64Array.from({ length: n * n }, normal);
  // Gram-Schmidt with a second pass; a positive diagonal of R is what it gives by itself.
  for (let i = 0; i < n; i++) {
    const row = q.subarray(i * n, (i + 1) * n);
    for (let pass = 0; pass < 2; pass++)
      for (let p = 0; p < i; p++) {
        const other = q.subarray(p * n, (p + 1) * n);
        let dot = 0;
        for (let j = 0; j < n; j++) dot += row[j] * other[j];
        for (let j = 0; j < n; j++) row[j] -= dot * other[j];
      }
    let norm = 0;
    for (let j = 0; j < n; j++) norm += row[j] * row[j];
    norm = Math.sqrt(norm);
    for (let j = 0; j < n; j++) row[j] /= norm;
  }
  const out = new Float64Array(n);
  return build({ kind: "orthogonal", n, block: n, seed }, (x, inverse) => {
    for (let at = 0; at < x.length; at += n) {
      out.fill(0);
      for (let i = 0; i < n; i++) {
        if (inverse) for (let j = 0; j < n; j++) out[i] += x[at + j] * q[i * n + j];
        else for (let j = 0; j < n; j++) out[j] += x[at + i] * q[i * n + j];
      }
      x.set(out, at);
    }
  });
}

/**
 * The rotation that a recipe records. @throws LowbitError E_FORMAT for a config that is not sound
 * @example
 * const rotation = rotationOf({ kind: "hadamard", n: 256, block: 256, seed: 1 });
 * rotation.applyInverse(x); // what hadamardRotation(256, { seed: 1 }) did
 */
export function rotationOf(config: RotationConfig, options: Pick<HadamardOptions, "backend"> = {}): Rotation {
  if (config?.kind === "hadamard") return hadamardRotation(config.n, { ...options, block: config.block, seed: config.seed });
  if (config?.kind === "orthogonal" && typeof config.seed === "number") return orthogonalRotation(config.n, config.seed);
  throw new LowbitError(
    "E_FORMAT",
    `rotation: expected { kind: "hadamard" | "orthogonal", n, block, seed }, got ${JSON.stringify(config)?.slice(0, 80)}.`,
  );
}

/**
 * Q^T H Q: the Hessian of rotated inputs.
 * @throws LowbitError E_SHAPE where the Hessian is not [n, n]
 * @example
 * const rotation = hadamardRotation(256, { seed: 1 });
 * const hessian = rotateHessian(stats.hessian, rotation); // of the inputs that the rotated weight sees, [256, 256]
 */
export function rotateHessian(hessian: Float64Array, rotation: Rotation): Float64Array<ArrayBuffer> {
  const { n } = rotation;
  if (hessian.length !== n * n) throw new LowbitError("E_SHAPE", `rotateHessian: expected ${n} x ${n} numbers, got ${hessian.length}.`);
  const half = hessian.slice();
  rotation.apply(half);
  const out = transposed(half, n, n);
  rotation.apply(out);
  return out;
}
