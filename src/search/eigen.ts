// Eigenvectors of a symmetric matrix: Householder tridiagonalisation, then implicit QL. Source: Golub and Van Loan,
// Matrix Computations, 8.3; the EISPACK routines tred2 and tql2 (Bowdler, Martin, Reinsch and Wilkinson, Numer. Math.
// 11, 1968), here on rows, which are contiguous.

/**
 * Reduces a [n, n], row-major, to tridiagonal form: diagonal d, off-diagonal e (e[i] joins i - 1 and i). a becomes Q^T:
 * row i the i-th column of Q, A = Q T Q^T.
 */
function tridiagonalise(a: Float64Array, n: number, d: Float64Array, e: Float64Array): void {
  const v = new Float64Array(n);
  const p = new Float64Array(n);
  const reflectors: { v: Float64Array; beta: number }[] = [];
  for (let k = 0; k < n - 2; k++) {
    // the reflector that clears column k below its subdiagonal
    let norm = 0;
    for (let i = k + 1; i < n; i++) {
      v[i] = a[i * n + k];
      norm += v[i] * v[i];
    }
    norm = Math.sqrt(norm);
    const alpha = v[k + 1] > 0 ? -norm : norm;
    v[k + 1] -= alpha;
    let size = 0;
    for (let i = k + 1; i < n; i++) size += v[i] * v[i];
    const beta = size === 0 ? 0 : 2 / size;
    reflectors.push({ v: v.slice(), beta });
    d[k] = a[k * n + k];
    e[k + 1] = size === 0 ? a[(k + 1) * n + k] : alpha;
    if (beta === 0) continue;
    // A <- (I - beta v v^T) A (I - beta v v^T) = A - v w^T - w v^T
    let dot = 0;
    for (let i = k + 1; i < n; i++) {
      let sum = 0;
      for (let j = k + 1; j < n; j++) sum += a[i * n + j] * v[j];
      p[i] = beta * sum;
      dot += p[i] * v[i];
    }
    for (let i = k + 1; i < n; i++) p[i] -= (beta / 2) * dot * v[i];
    for (let i = k + 1; i < n; i++) for (let j = k + 1; j < n; j++) a[i * n + j] -= v[i] * p[j] + p[i] * v[j];
  }
  if (n > 1) {
    d[n - 2] = a[(n - 2) * n + n - 2];
    e[n - 1] = a[(n - 1) * n + n - 2];
  }
  d[n - 1] = a[n * n - 1];
  // Q^T = H_{n-3} ... H_0, applied to the identity from the last reflector back: Q = H_0 ... H_{n-3}
  a.fill(0);
  for (let i = 0; i < n; i++) a[i * n + i] = 1;
  for (let k = reflectors.length - 1; k >= 0; k--) {
    const { v: own, beta } = reflectors[k];
    if (beta === 0) continue;
    // rows of Q^T are columns of Q: Q <- H_k Q is, on each of them, x - beta (v . x) v
    for (let r = k + 1; r < n; r++) {
      let dot = 0;
      for (let j = k + 1; j < n; j++) dot += a[r * n + j] * own[j];
      dot *= beta;
      for (let j = k + 1; j < n; j++) a[r * n + j] -= dot * own[j];
    }
  }
}

/**
 * Implicit QL on (d, e), with every rotation applied to the rows of z.
 * @throws RangeError where it does not converge, which no finite matrix was seen to do
 */
function implicitQl(d: Float64Array, e: Float64Array, z: Float64Array, n: number): void {
  for (let i = 1; i < n; i++) e[i - 1] = e[i];
  e[n - 1] = 0;
  for (let l = 0; l < n; l++) {
    for (let turn = 0; ; turn++) {
      let m = l;
      for (; m < n - 1; m++) if (Math.abs(e[m]) <= Number.EPSILON * (Math.abs(d[m]) + Math.abs(d[m + 1]))) break;
      if (m === l) break;
      if (turn === 60) throw new RangeError("eigenvectors: expected convergence in 60 steps, got none. Are the vectors finite?");
      let g = (d[l + 1] - d[l]) / (2 * e[l]);
      const size = Math.hypot(g, 1);
      g = d[m] - d[l] + e[l] / (g + (g >= 0 ? size : -size));
      let [s, c, p] = [1, 1, 0];
      let i = m - 1;
      for (; i >= l; i--) {
        const f = s * e[i];
        const b = c * e[i];
        const r = Math.hypot(f, g);
        e[i + 1] = r;
        if (r === 0) {
          d[i + 1] -= p;
          e[m] = 0;
          break;
        }
        s = f / r;
        c = g / r;
        g = d[i + 1] - p;
        const t = (d[i] - g) * s + 2 * c * b;
        p = s * t;
        d[i + 1] = g + p;
        g = c * t - b;
        const [high, low] = [(i + 1) * n, i * n];
        for (let j = 0; j < n; j++) {
          const x = z[high + j];
          z[high + j] = s * z[low + j] + c * x;
          z[low + j] = c * z[low + j] - s * x;
        }
      }
      if (i >= l) continue;
      d[l] -= p;
      e[l] = g;
      e[m] = 0;
    }
  }
}

/**
 * Eigenvalues of a symmetric matrix [n, n], largest first, and their eigenvectors as rows. The matrix is not changed.
 * Each vector's largest component is positive.
 */
export function symmetricEigen(matrix: Float64Array, n: number): { readonly values: Float64Array; readonly vectors: Float64Array } {
  const z = matrix.slice();
  const d = new Float64Array(n);
  const e = new Float64Array(n);
  tridiagonalise(z, n, d, e);
  implicitQl(d, e, z, n);
  const order = Array.from(d.keys()).sort((a, b) => d[b] - d[a] || a - b);
  const values = Float64Array.from(order, (i) => d[i]);
  const vectors = new Float64Array(n * n);
  order.forEach((from, to) => {
    const row = z.subarray(from * n, (from + 1) * n);
    let most = 0;
    for (const v of row) if (Math.abs(v) > Math.abs(most)) most = v;
    const sign = most < 0 ? -1 : 1;
    for (let j = 0; j < n; j++) vectors[to * n + j] = sign * row[j];
  });
  return { values, vectors };
}
