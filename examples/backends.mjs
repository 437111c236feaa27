// One program, three backends, Node or browser: `quantize` and `matmul` on the reference path, on WebAssembly and on WebGPU. Prints the first numbers of each
// product to 3 significant digits; they agree. In Node: npm run build && node examples/backends.mjs (WebGPU by the package `webgpu`). In a browser:
// examples/webgpu.html, from any web server at the project's root.
import { matmul, quantize, tensor, wasm } from "lowbit";
import { format } from "lowbit/formats";
import { webgpu } from "lowbit/webgpu";

export async function main(print) {
  const backends = { reference: "reference", wasm: await wasm() };
  try {
    backends.webgpu = await webgpu();
  } catch (error) {
    if (error.code !== "E_DEVICE") throw error;
    print(`without WebGPU: ${error.message}`);
  }
  const [m, n, k] = [3, 64, 256];
  const weight = tensor(
    Float32Array.from({ length: n * k }, (_, i) => Math.sin(i * 12.9898) * Math.cos(i * 0.37)),
    [n, k],
  );
  const x = tensor(
    Float32Array.from({ length: m * k }, (_, i) => Math.sin(i * 78.233)),
    [m, k],
  );

  for (const weightFormat of ["int4_b32", "mxfp4", "nf4_b64"]) {
    const packed = quantize(weight, format(weightFormat));
    for (const [name, backend] of Object.entries(backends)) {
      const y = await matmul(x, packed, { backend });
      const numbers = [...y.data.subarray(0, 5)].map((v) => v.toPrecision(3).padStart(7));
      print(`${weightFormat.padEnd(9)} ${name.padEnd(9)} ${numbers.join(" ")}`);
    }
  }
  backends.wasm.dispose();
  backends.webgpu?.dispose();
}

if (globalThis.process?.argv?.[1]?.endsWith("backends.mjs")) await main(console.log);
