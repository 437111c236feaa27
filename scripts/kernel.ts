// npm run kernel -- NAME [--wat|--wgsl]: prints a kernel of kernels/registry.ts by its name, as WebAssembly text or
// WGSL. The names are those of explain(), test titles and bench rows. npm run kernel -- --list [PART ...]: the names
// that hold every part.
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import wabt from "wabt";
import { kernelFamilies, shaderFamilies } from "../kernels/registry.ts";

/** A kernel of the registry, not built yet. */
export interface RegisteredKernel {
  readonly name: string;
  readonly family: string;
  readonly kind: "wat" | "wgsl";
  text(): Promise<string>;
}

/**
 * A module as text: folded expressions, every function beside its export.
 * @throws Error where the bytes are no module
 */
export async function moduleText(bytes: Uint8Array): Promise<string> {
  const features = { simd: true, relaxed_simd: true, threads: true, bulk_memory: true };
  const module = (await wabt()).readWasm(bytes, { readDebugNames: false, ...features });
  try {
    return module.toText({ foldExprs: true, inlineExport: true });
  } finally {
    module.destroy();
  }
}

/** Every kernel of the registry, in its order. */
export function* registeredKernels(): Iterable<RegisteredKernel> {
  for (const { name: family, variants } of kernelFamilies)
    for (const { name, build } of variants()) yield { name, family, kind: "wat", text: () => moduleText(build()) };
  for (const { name: family, variants } of shaderFamilies)
    for (const { name, build } of variants()) yield { name, family, kind: "wgsl", text: () => Promise.resolve(build()) };
}

/** Kernels whose name or family holds every part, letters of any case. */
export function kernelsLike(parts: readonly string[]): RegisteredKernel[] {
  const lower = parts.map((part) => part.toLowerCase());
  return [...registeredKernels()].filter(({ name, family }) => lower.every((part) => `${family} ${name}`.toLowerCase().includes(part)));
}

/**
 * The kernel of a name.
 * @throws RangeError for a name that the registry has not, with some that are near, and for one of the other kind
 */
export function findKernel(name: string, kind?: "wat" | "wgsl"): RegisteredKernel {
  for (const kernel of registeredKernels()) {
    if (kernel.name !== name) continue;
    if (kind === undefined || kind === kernel.kind) return kernel;
    throw new RangeError(`kernel: expected a kernel in ${kind}, got ${name}, which is in ${kernel.kind}: ask for --${kernel.kind}.`);
  }
  const near = kernelsLike(name.split("_").filter(Boolean)).slice(0, 8);
  const hint = near.length > 0 ? `Near it: ${near.map((k) => k.name).join(", ")}.` : "npm run kernel -- --list names them all.";
  throw new RangeError(`kernel: expected a name of kernels/registry.ts, got ${JSON.stringify(name)}. ${hint}`);
}

async function main(): Promise<string> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: { wat: { type: "boolean" }, wgsl: { type: "boolean" }, list: { type: "boolean" } },
  });
  if (values.list === true) {
    const kind = values.wat === values.wgsl ? undefined : values.wat === true ? "wat" : "wgsl";
    const found = kernelsLike(positionals).filter((kernel) => kind === undefined || kernel.kind === kind);
    return found.map((kernel) => `${kernel.kind}\t${kernel.family}\t${kernel.name}\n`).join("");
  }
  if (positionals.length !== 1 || (values.wat === true && values.wgsl === true))
    throw new RangeError("kernel: expected one NAME and at most one of --wat and --wgsl, or --list [PART ...].");
  const kind = values.wat === true ? "wat" : values.wgsl === true ? "wgsl" : undefined;
  return findKernel(positionals[0], kind).text();
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  // `| head` closes the pipe: no error
  process.stdout.on("error", (error: NodeJS.ErrnoException) => process.exit(error.code === "EPIPE" ? 0 : 1));
  try {
    process.stdout.write(await main());
  } catch (error) {
    console.error(error instanceof Error ? error.message : error);
    process.exitCode = 1;
  }
}
