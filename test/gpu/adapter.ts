// The adapter of this machine for suites in test/gpu: dawn (npm package webgpu) in Node, navigator.gpu in a page and in
// Deno. Where there is none a suite says what it skips; with REQUIRE_WEBGPU=1 that is a failure. LOWBIT_ADAPTER names
// the adapter that must answer (part of its description), so that a driver that silently took another's place is found
// out.
import { afterAll, beforeAll, describe, test } from "vitest";
import type { GpuRoot } from "../../kernels/wgsl/api.ts";
import { webgpu, type WebGpuBackend } from "../../src/backends/webgpu/backend.ts";

interface Scope {
  navigator?: { gpu?: GPU };
  /** dawn: devices do not keep the object alive that they came from; a collected one crashes the process. */
  lowbitTestGpu?: GPU;
}
const scope = globalThis as unknown as Scope;

/** The entry point of WebGPU, or null where the module for Node is not installed. */
export async function entryPoint(): Promise<GPU | null> {
  if (scope.navigator?.gpu !== undefined) return scope.navigator.gpu;
  if (scope.lowbitTestGpu !== undefined) return scope.lowbitTestGpu;
  try {
    const name = "webgpu";
    const dawn = (await import(/* @vite-ignore */ name)) as { create(options: string[]): GPU; globals: object };
    // dawn asks for its events by setImmediate, over and over: a core that a driver on the CPU needs to compile
    globalThis.setImmediate = ((f: () => void) => setTimeout(f, 1)) as never;
    Object.assign(globalThis, dawn.globals);
    scope.lowbitTestGpu = dawn.create([]);
    return scope.lowbitTestGpu;
  } catch {
    return null;
  }
}

export const adapter = (await (await entryPoint())?.requestAdapter()) ?? null;

/** What the adapter calls itself, or "none". */
export const adapterName =
  adapter === null ? "none" : [adapter.info.vendor, adapter.info.architecture, adapter.info.device, adapter.info.description].join(" ");

const required = process.env.REQUIRE_WEBGPU === "1";
const wanted = process.env.LOWBIT_ADAPTER ?? "";
if (required && adapter === null) throw new Error("REQUIRE_WEBGPU=1: there is no WebGPU adapter");
if (wanted !== "" && !adapterName.toLowerCase().includes(wanted.toLowerCase()))
  throw new Error(`LOWBIT_ADAPTER=${wanted}: the adapter is ${adapterName}`);

/**
 * Does this run take all of something, or (on a driver that compiles on the CPU, a second per pipeline) a spread?
 * LOWBIT_GPU_FULL lists what is taken whole; a GPU takes all.
 */
export const takesAll = (what: "formats" | "codecs" | "pipelines" | "shaders"): boolean =>
  !/llvmpipe|swiftshader/i.test(adapterName) || (process.env.LOWBIT_GPU_FULL ?? "").split(",").includes(what);

/**
 * All of the items, or every `every`-th. Steps of one run take different ones (LOWBIT_GPU_PART, one number or more with
 * commas), so that together they see more than each alone.
 */
export function spread<T>(what: Parameters<typeof takesAll>[0], items: readonly T[], every: number): readonly T[] {
  if (takesAll(what)) return items;
  const step = Math.min(every, items.length);
  const parts = (process.env.LOWBIT_GPU_PART ?? "0").split(",").map((part) => Number(part) % step);
  return items.filter((_, i) => parts.includes(i % step));
}

/** A suite that needs an adapter, or one visible skip. */
export function describeGpu(title: string, body: () => void): void {
  if (adapter !== null) {
    describe(title, body);
    return;
  }
  console.warn(`SKIPPED (1 suite): ${title}: no WebGPU adapter (scripts/webgpu-drivers.sh and npm run test:gpu give one)`);
  describe.skip(title, () => {
    test("needs a WebGPU adapter", () => {});
  });
}

/** A suite on the adapter, with a backend for as long as its tests run. */
export function describeBackend(title: string, body: (on: { readonly backend: WebGpuBackend }) => void): void {
  describeGpu(`${title} on ${adapterName}`, () => {
    let backend: WebGpuBackend;
    beforeAll(async () => {
      backend = await webgpu({ gpu: (await entryPoint()) as unknown as GpuRoot });
    });
    afterAll(() => backend.dispose());
    body({
      get backend() {
        return backend;
      },
    });
  });
}
