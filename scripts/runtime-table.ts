// The table of operators at the end of docs/runtime.md (npm run generate).
import { readFileSync } from "node:fs";
import { emitters } from "../src/runtime/machine/kernels.ts";
import { UNFOLDED } from "../src/runtime/compile/qoperator.ts";
import { operators } from "../src/runtime/ops/index.ts";
import { DEVICE_EMITS } from "../src/runtime/webgpu/execute.ts";

const KERNELS = new Set([...emitters(operators).keys(), "com.microsoft.GroupQueryAttention"]);

const FOLDED: Record<string, string> = { Constant: "folded", If: "branches written out" };

/** Products whose constant weights lie on a device. */
const DEVICE_PRODUCTS = new Set(["MatMul", "Gemm", "com.microsoft.MatMulNBits", "com.microsoft.MatMulBnb4"]);

/** Sums of codes, where they are scaled at once. */
const SCALED = new Set(["ConvInteger", "MatMulInteger"]);

const onDevice = (name: string): string =>
  Object.hasOwn(FOLDED, name)
    ? FOLDED[name]
    : UNFOLDED.includes(name)
      ? "kernels"
      : SCALED.has(name)
        ? "kernel, with Cast and Mul"
        : DEVICE_PRODUCTS.has(name)
          ? "packed weights"
          : DEVICE_EMITS.has(name) || /^QLinear/.test(name)
            ? "kernel"
            : "";

/** What an operator runs as: kernels where its row has them. */
function operatorRows(): string[] {
  const rows = new Map<string, string>(Object.entries(FOLDED));
  for (const [name, { prepare }] of operators)
    if (name !== "lowbit.Pick") rows.set(name, prepare !== undefined ? "packed weights" : KERNELS.has(name) ? "kernel" : "loops");
  for (const name of UNFOLDED) rows.set(name, "kernels");
  return [...rows].sort(([a], [b]) => (a < b ? -1 : 1)).map(([name, what]) => `| \`${name}\` | ${what} | ${onDevice(name)} |`);
}

/** The page with a fresh table. */
export function runtimeDocs(): { path: string; text: string } {
  const path = "docs/runtime.md";
  const head = "| operator | WebAssembly |";
  const [before] = readFileSync(new URL(`../${path}`, import.meta.url), "utf8").split(head);
  return { path, text: `${before}${head} WebGPU |\n| --- | --- | --- |\n${operatorRows().join("\n")}\n` };
}
