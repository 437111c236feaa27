// Threads beside other work: a chain of products like a step of a small decoder (8 layers of width 1024, int4, one row
// of activations), one and two threads by turns, on an idle machine and with every core but one kept busy by other
// processes. What counts is two threads over one: more where cores are free, no less where they are not.
import { spawn } from "node:child_process";
import { cpus } from "node:os";
import { format } from "../formats/index.ts";
import { prepareMatmul, quantize, tensor, wasm, type WasmBackend } from "../src/index.ts";
import type { Row } from "./measure.ts";

/**
 * Rows and columns of the weights of a layer: queries, keys and values in one; their output; gate and up in one; down.
 */
const SHAPES = [
  [4096, 1024],
  [1024, 2048],
  [6144, 1024],
  [1024, 3072],
] as const;
const LAYERS = 8;

/** A step: the products one after the other, each on the front of what came before. */
function chain(backend: WasmBackend): () => void {
  const layers = Array.from({ length: LAYERS }, () =>
    SHAPES.map(([n, k], i) => {
      const w = quantize(
        tensor(
          Float32Array.from({ length: n * k }, (_, j) => Math.sin(j * 12.9898 + i) / 32),
          [n, k],
        ),
        format("int4_b32"),
      );
      return { layer: prepareMatmul(w, { backend, activations: "int8" }), x: new Float32Array(k).fill(0.5), y: new Float32Array(n) };
    }),
  ).flat();
  return () => {
    let previous: Float32Array = layers[0].x;
    for (const { layer, x, y } of layers) {
      x.set(previous.subarray(0, Math.min(previous.length, x.length)));
      previous = layer.run(x, 1, y);
    }
  };
}

/** Runs `f` while all cores but one are busy elsewhere. */
async function besideOthers<T>(f: () => Promise<T>): Promise<T> {
  const others = Array.from({ length: Math.max(1, cpus().length - 1) }, () =>
    spawn(process.execPath, ["-e", "for (;;);"], { stdio: "ignore" }),
  );
  try {
    await new Promise((resolve) => setTimeout(resolve, 300));
    return await f();
  } finally {
    for (const other of others) other.kill("SIGKILL");
  }
}

/** Steps by turns, some 50 ms each: time per step of every turn. */
async function byTurns(steps: readonly (() => void)[], seconds: number): Promise<number[][]> {
  const times = steps.map((): number[] => []);
  const begin = performance.now();
  do
    for (let i = 0; i < steps.length; i++) {
      const from = performance.now();
      let count = 0;
      do {
        steps[i]();
        count++;
      } while (performance.now() - from < 50);
      times[i].push((performance.now() - from) / count);
      await new Promise((resolve) => setTimeout(resolve, 2));
    }
  while (performance.now() - begin < 1000 * seconds);
  return times;
}

export async function load({ seconds }: { readonly seconds: number }): Promise<{
  rows: Row[];
  ratios: Record<string, number>;
  missing: string[];
}> {
  const backends = [await wasm(), await wasm({ threads: 2 })];
  const steps = backends.map(chain);
  const rows: Row[] = [];
  const ratios: Record<string, number> = {};
  const measure = async (where: string): Promise<void> => {
    const times = await byTurns(steps, seconds);
    const sorted = times.map((t) => t.slice().sort((a, b) => a - b));
    const mean = times.map((t) => t.reduce((a, b) => a + b) / t.length);
    sorted.forEach((t, i) =>
      rows.push({
        name: `${i === 0 ? "1 thread" : "2 threads"}, ${where}`,
        bestMs: t[0],
        medianMs: t[t.length >> 1],
        cpuMs: mean[i],
        runs: t.length,
      }),
    );
    ratios[`2 threads over one, ${where}: median`] = sorted[0][sorted[0].length >> 1] / sorted[1][sorted[1].length >> 1];
    ratios[`2 threads over one, ${where}: mean`] = mean[0] / mean[1];
  };
  await byTurns(steps, 1);
  await measure("idle machine");
  await besideOthers(() => measure("one core free"));
  backends.forEach((backend) => backend.dispose());
  return { rows, ratios, missing: [] };
}
