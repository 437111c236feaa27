// Bit-plane products on the WebAssembly backend: words of 1..8 bits on both sides, exact int32.
import type { NumberFormat } from "../../../formats/core/types.ts";
import { packPlanes } from "../../../kernels/planes.ts";
import { BITPLANE_ARGUMENTS, BITPLANE_ROWS, bitplane } from "../../../kernels/wasm/lookup/bitplane.ts";
import { kernel } from "../../../kernels/wasm/engine/family.ts";
import type { Runtime } from "../../../kernels/wasm/engine/runtime.ts";
import { disposed } from "../layer.ts";
import { checkCodes, checkRows, checkSizes, planeWords } from "../operations.ts";

/** A weight [n, k] of small words as bit planes. */
export interface BitplaneLayer {
  readonly n: number;
  readonly k: number;
  /**
   * y[m, n] = a[m, k] * w^T on the integer values of the codes; sums wrap at 32 bits.
   * @param a codes of `format`, m * k
   * @throws LowbitError E_SHAPE, E_UNSUPPORTED, E_DISPOSED
   */
  run(a: ArrayLike<number>, m: number, format: NumberFormat, out?: Int32Array): Int32Array;
  dispose(): void;
  [Symbol.dispose](): void;
}

/** @throws LowbitError E_SHAPE, E_UNSUPPORTED, E_DEVICE */
export function prepareBitplanes(runtime: Runtime, codes: ArrayLike<number>, n: number, k: number, format: NumberFormat): BitplaneLayer {
  if (!runtime.live) throw disposed();
  checkSizes(n, k, "prepareBitplanes");
  const weight = planeWords(format, "prepareBitplanes format");
  checkCodes(codes, n * k, weight.bits, "prepareBitplanes codes");
  const pairs = Math.ceil(n / BITPLANE_ROWS);
  const vectors = Math.ceil(k / 128);
  const rowBytes = vectors * 16 * weight.bits;
  const { space, address } = runtime.allocate(pairs * BITPLANE_ROWS * rowBytes);
  new Uint8Array(space.buffer, address, pairs * BITPLANE_ROWS * rowBytes).fill(0);
  const weightSums = packPlanes(codes, n, k, weight, new Uint8Array(space.buffer, address, n * rowBytes));
  let live = true;
  const dispose = (): void => {
    if (live && runtime.live) space.arena.free(address);
    live = false;
  };
  return {
    n,
    k,
    run(a, m, activationFormat, out = new Int32Array(m * n)) {
      if (!live || !runtime.live) throw disposed();
      const activation = planeWords(activationFormat, "run format");
      checkRows(m, out.length, m * n);
      checkCodes(a, m * k, activation.bits, "run a");
      const spec = { activationBits: activation.bits, weightBits: weight.bits, shared: runtime.shared };
      const built = kernel(bitplane, spec);
      const bytes = m * vectors * 16 * activation.bits;
      const packed = space.scratch("a", bytes);
      const c = space.scratch("c", 4 * m * pairs * BITPLANE_ROWS);
      const sums = packPlanes(a, m, k, activation, new Uint8Array(space.buffer, packed, bytes));
      const values = { pairs, a: packed, w: address, c, rows: m, vectors };
      runtime.work(
        space,
        built,
        pairs,
        Int32Array.from(BITPLANE_ARGUMENTS, (name) => values[name]),
        0,
      );
      // (sa ua + ba)(sw uw + bw) summed over k
      const stride = pairs * BITPLANE_ROWS;
      const u = new Int32Array(space.buffer, c, m * stride);
      const slope = activation.slope * weight.slope;
      for (let r = 0; r < m; r++) {
        const own = Math.imul(Math.imul(activation.slope, weight.base), sums[r]) + Math.imul(Math.imul(activation.base, weight.base), k);
        for (let j = 0; j < n; j++)
          out[r * n + j] = Math.imul(slope, u[r * stride + j]) + own + Math.imul(Math.imul(weight.slope, activation.base), weightSums[j]);
      }
      return out;
    },
    dispose,
    [Symbol.dispose]: dispose,
  };
}
