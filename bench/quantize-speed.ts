// Speed of the quantizers: GPTQ of a square layer (block 128, 4 bits, Hessian given), Hessian accumulation beside the
// float32 product of the WebAssembly backend (a Hessian of T tokens counted as the full T x k x k product, of which it
// computes half), both with the given number of threads. Run: npx tsx bench/quantize-speed.ts [k [threads]]
import { cpus, loadavg } from "node:os";
import { format } from "../formats/index.ts";
import { prepareMatmul, quantize, tensor, wasm } from "../src/index.ts";
import { gptq, layerStatistics } from "../src/quantize/index.ts";
import { random } from "../test/helpers/random.ts";

const k = Number(process.argv[2] ?? 4096);
const threads = Number(process.argv[3] ?? 1);
const backend = await wasm({ threads });
const rng = random(1);
const load = () => loadavg()[0].toFixed(1);
console.log(`${cpus()[0].model}, ${cpus().length} threads, node ${process.version}, load ${load()}`);

{
  const n = Math.min(k, 2048);
  const tokens = 512;
  const x = Float32Array.from({ length: tokens * n }, () => rng.normal());
  const layer = prepareMatmul(
    quantize(
      tensor(
        Float32Array.from({ length: n * n }, () => rng.normal()),
        [n, n],
      ),
      format("float32"),
    ),
    { backend },
  );
  const out = new Float32Array(tokens * n);
  const acc = layerStatistics(n, { backend });
  const [products, hessians]: [number[], number[]] = [[], []];
  for (let i = 0; i < 4; i++) {
    let since = performance.now();
    layer.run(x, tokens, out);
    products.push(performance.now() - since);
    since = performance.now();
    acc.add(x);
    hessians.push(performance.now() - since);
  }
  const rate = (ms: number[]) => (2 * tokens * n * n) / Math.min(...ms) / 1e6;
  const [p, h] = [rate(products), rate(hessians)];
  console.log(
    `float32 product ${p.toFixed(1)} GFLOP/s, Hessian (float64) ${h.toFixed(1)} GFLOP/s, ratio ${(h / p).toFixed(2)} (k ${n}, ${threads} threads, best of 4)`,
  );
  layer.dispose();
}

const w = Float32Array.from({ length: k * k }, () => 0.02 * rng.normal());
// A positive definite Hessian without the cost of one: AR(1) covariance.
const hessian = new Float64Array(k * k);
for (let i = 0; i < k; i++) for (let j = 0; j < k; j++) hessian[i * k + j] = 0.9 ** Math.abs(i - j);
const cpu = process.cpuUsage();
const since = performance.now();
let factor = 0;
const onProgress = (p: { done: number }) => {
  if (p.done === 0) factor = (performance.now() - since) / 1000;
};
quantize(tensor(w, [k, k]), format("int4_b128"), gptq({ hessian, onProgress, backend }));
const total = (performance.now() - since) / 1000;
const used = process.cpuUsage(cpu);
const cpuSeconds = ((used.user + used.system) / 1e6).toFixed(1);
console.log(
  `GPTQ ${k} x ${k}, int4_b128, ${threads} threads: ${total.toFixed(1)} s (factor ${factor.toFixed(1)} s; ${cpuSeconds} s of one processor), peak memory ${(process.resourceUsage().maxRSS / 1024).toFixed(0)} MiB, load ${load()}`,
);
backend.dispose();
