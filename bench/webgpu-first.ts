// Time to the first result of a new WebGPU kernel: prepare, compile and run, for formats of every way of decoding and
// every shape of tile, on a backend of its own each. Drivers keep compiled shaders on disk: run it with that cache off
// (MESA_SHADER_CACHE_DISABLE=true for Mesa's drivers) to see what a new user sees. Usage:
// MESA_SHADER_CACHE_DISABLE=true npx tsx bench/webgpu-first.ts
import { format } from "../formats/index.ts";
import { webgpu } from "../src/backends/webgpu/backend.ts";
import { prepareMatmul, quantize, tensor } from "../src/index.ts";
import { machine } from "./measure.ts";

const [n, k] = [256, 1024];
const rows = [1, 3, 9, 20];
const data = Float32Array.from({ length: n * k }, (_, i) => Math.sin(i * 12.9898));

const before = machine();
console.log(`${before.node}, load ${before.load.join(" ")}; ms of wall clock and of processor time, prepare to first result`);
for (const name of ["int4_b32", "uint4_b32_zp", "float8_e4m3fn_row", "nf4_b64", "posit8_es2", "mxfp4", "nvfp4"])
  for (const activations of ["float32", "int8"] as const) {
    const cells: string[] = [];
    for (const m of rows) {
      using backend = await webgpu();
      const w = quantize(tensor(data, [n, k]), format(name));
      const x = new Float32Array(m * k).fill(0.5);
      const [start, cpu] = [performance.now(), process.cpuUsage()];
      const layer = prepareMatmul(w, { backend, activations });
      await layer.runAsync(x, m);
      const used = process.cpuUsage(cpu);
      cells.push(
        `m=${m} ${(performance.now() - start).toFixed(0).padStart(5)} (${((used.user + used.system) / 1000).toFixed(0).padStart(5)} cpu)`,
      );
    }
    console.log(`${name.padEnd(20)} ${activations.padEnd(8)} ${cells.join("   ")}`);
  }
console.log(`load after ${machine().load.join(" ")}`);
