// The kernels of this library in a visitor's browser: products of packed weights, on one thread.
import { format } from "../../../formats/registry.ts";
import { prepareMatmul, quantize, tensor, wasm, type Activations } from "../../../src/index.ts";

export interface KernelFigure {
  readonly name: string;
  readonly m: number;
  readonly ms: number;
  /** Multiply and add counted as two. */
  readonly gops: number;
  readonly kernel: string;
}

const N = 1024;
const CASES: readonly (readonly [format: string, activations: Activations])[] = [
  ["int4_b32", "int8"],
  ["int8_b32", "int8"],
  ["int2_b32", "int8"],
  ["mxfp4", "int8"],
  ["nf4_b64", "int8"],
  ["float8_e4m3fn_row", "float32"],
  ["float32", "float32"],
];
/** Milliseconds for each case, after those before it is timed. */
const BUDGET = 150;
const WARM = 45;

async function run(): Promise<void> {
  const backend = await wasm({ threads: 1 });
  const weight = tensor(
    Float32Array.from({ length: N * N }, (_, i) => Math.sin(i * 12.9898) * 0.1),
    [N, N],
  );
  for (const [name, activations] of CASES) {
    const packed = quantize(weight, format(name) as never);
    const layer = prepareMatmul(packed, { backend, activations });
    for (const m of [1, 32]) {
      self.postMessage({ text: `${name}, ${activations}, ${m} rows` });
      const x = Float32Array.from({ length: m * N }, (_, i) => Math.cos(i));
      const y = new Float32Array(m * N);
      // a page's clock ticks in tenths of a millisecond at the finest: runs are timed a third of WARM together
      let runs = 0;
      for (const until = performance.now() + WARM; performance.now() < until; runs++) layer.run(x, m, y);
      const repeats = Math.ceil(runs / 3);
      let best = Infinity;
      for (const until = performance.now() + BUDGET; performance.now() < until;) {
        const from = performance.now();
        for (let i = 0; i < repeats; i++) layer.run(x, m, y);
        best = Math.min(best, (performance.now() - from) / repeats);
      }
      const figure: KernelFigure = {
        name: `${name}, ${activations}`,
        m,
        ms: best,
        gops: (2 * m * N * N) / best / 1e6,
        kernel: layer.explain().kernel,
      };
      self.postMessage({ figure });
    }
    layer.dispose();
  }
}

self.onmessage = () => {
  run().then(
    () => self.postMessage({ done: true }),
    (error: unknown) => self.postMessage({ error: error instanceof Error ? error.message : String(error) }),
  );
};
