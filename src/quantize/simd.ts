// The hot product of the quantizers by SIMD where the engine has it: tiles are packed into the kernel's memory, multiplied there, and added to C.
// Without WebAssembly, and for products too small to pay for packing, the plain loop; both sum in float64.
import { float64Kernel, MAX_COLUMNS, MAX_DEPTH, MAX_ROWS } from "../../kernels/wasm/float64.ts";
import { tnProductPlain, type TnProduct } from "./linalg.ts";

/** Columns at `from` .. `from + count` of p rows, in strips of four: to[strip][p][4], times alpha, the last strip filled with zeros. */
function packStrips(to: Float64Array, source: Float64Array, at: number, stride: number, count: number, depth: number, alpha: number): void {
  for (let i = 0; i < count; i += 4) {
    const base = i * depth;
    if (i + 4 <= count) {
      for (let p = 0, s = at + i, d = base; p < depth; p++, s += stride, d += 4) {
        to[d] = alpha * source[s];
        to[d + 1] = alpha * source[s + 1];
        to[d + 2] = alpha * source[s + 2];
        to[d + 3] = alpha * source[s + 3];
      }
    } else {
      for (let p = 0; p < depth; p++)
        for (let l = 0; l < 4; l++) to[base + 4 * p + l] = i + l < count ? alpha * source[at + p * stride + i + l] : 0;
    }
  }
}

/** As `tnProductPlain`, up to the order of the sums. */
export const fastProduct: TnProduct = (c, cAt, ldc, m, n, a, aAt, lda, b, bAt, ldb, depth, alpha) => {
  const kernel = m * n * depth < 32768 || m < 4 ? null : float64Kernel();
  if (kernel === null) {
    tnProductPlain(c, cAt, ldc, m, n, a, aAt, lda, b, bAt, ldb, depth, alpha);
    return;
  }
  const { out } = kernel;
  for (let p0 = 0; p0 < depth; p0 += MAX_DEPTH) {
    const d = Math.min(MAX_DEPTH, depth - p0);
    for (let j0 = 0; j0 < n; j0 += MAX_COLUMNS) {
      const nc = Math.min(MAX_COLUMNS, n - j0);
      const columnStrips = Math.ceil(nc / 4);
      packStrips(kernel.b, b, bAt + p0 * ldb + j0, ldb, nc, d, 1);
      for (let i0 = 0; i0 < m; i0 += MAX_ROWS) {
        const mc = Math.min(MAX_ROWS, m - i0);
        packStrips(kernel.a, a, aAt + p0 * lda + i0, lda, mc, d, alpha);
        kernel.run(Math.ceil(mc / 4), columnStrips, d);
        const width = 4 * columnStrips;
        for (let i = 0; i < mc; i++) {
          const to = cAt + (i0 + i) * ldc + j0;
          const from = i * width;
          for (let j = 0; j < nc; j++) c[to + j] += out[from + j];
        }
      }
    }
  }
};
