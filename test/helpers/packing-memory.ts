// Run by test/backends/memory.test.ts in a process of its own: peak memory of preparing large weights, as JSON lines.
// Linux: the kernel's high-water mark of resident memory, reset before each (proc(5), clear_refs and VmHWM).
import { readFileSync, writeFileSync } from "node:fs";
import { elementOf, packedSizes } from "../../formats/core/packed.ts";
import { format, type PackedTensor } from "../../formats/index.ts";
import { prepareMatmul, quantize, tensor, wasm, type Activations } from "../../src/index.ts";

const status = (field: string): number =>
  Number(new RegExp(`^${field}:\\s*(\\d+) kB`, "m").exec(readFileSync("/proc/self/status", "utf8"))![1]) * 1024;

/** A weight of the wanted size that repeats a small quantized one: quantizing it whole would be the peak. */
function large(small: PackedTensor, n: number): PackedTensor {
  const { format: f, k } = small;
  const sizes = packedSizes(f, [n, k]);
  const fill = (bytes: number | null, from: Uint8Array | null): Uint8Array | null => {
    if (bytes === null || from === null) return null;
    const out = new Uint8Array(bytes);
    for (let at = 0; at < bytes; at += from.length) out.set(from.subarray(0, Math.min(from.length, bytes - at)), at);
    return out;
  };
  return { ...small, shape: [n, k], rows: n, k, codes: fill(sizes.codes, small.codes)!, scales: fill(sizes.scales, small.scales), superScales: fill(sizes.superScales, small.superScales), offsets: fill(sizes.offsets, small.offsets) }; // prettier-ignore
}

for (const argument of process.argv.slice(2)) {
  const [name, activations, n, k] = argument.split(",");
  const small = quantize(tensor(Float32Array.from({ length: 16 * Number(k) }, (_, i) => Math.sin(i * 12.9898) * 3), [16, Number(k)]), format(name)); // prettier-ignore
  const w = large(small, Number(n));
  const backend = await wasm();
  // everything compiled and loaded that preparing needs
  prepareMatmul(small, { backend, activations: activations as Activations }).dispose();
  const used = backend.bytes;
  // what was dropped so far must be gone before the mark is set: pages of dead arrays are given back a little later
  for (let i = 0; i < 3; i++) {
    (globalThis as { gc?: () => void }).gc!();
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  writeFileSync("/proc/self/clear_refs", "5");
  const before = status("VmRSS");
  const layer = prepareMatmul(w, { backend, activations: activations as Activations });
  const peak = status("VmHWM") - before;
  const source = w.codes.length + (w.scales?.length ?? 0) + (w.superScales?.length ?? 0) + (w.offsets?.length ?? 0);
  console.log(
    JSON.stringify({
      name,
      element: elementOf(w)?.name ?? null,
      kernel: layer.explain().kernel,
      source,
      packed: backend.bytes - used,
      peak,
    }),
  );
  backend.dispose();
}
