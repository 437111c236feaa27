// eslint-disable-next-line @typescript-eslint/triple-slash-reference
/// <reference path="../vite.d.ts" />
// Runtimes that a page has, behind one interface: onnxruntime-web (loaded from this site when it is first needed) and
// lowbit/runtime. Everything runs in the worker, on one thread.
import type { Feeds } from "../../../src/onnx/verify/feeds.ts";
import type { OutputTensor } from "../../../src/onnx/verify/runtimes.ts";
import type { RuntimeModule } from "../../../src/onnx/session.ts";
import { loadModel, type RuntimeTensor } from "../../../src/runtime/index.ts";
import type { RuntimeName } from "./protocol";

export type Outputs = Map<string, OutputTensor | null>;

export interface Running {
  run(feeds: Feeds): Promise<Outputs>;
  close(): Promise<void>;
}

interface Ort extends RuntimeModule {
  readonly env: { readonly wasm: { wasmPaths?: unknown; numThreads?: number } };
}

interface OrtSession {
  readonly outputNames: readonly string[];
  run(feeds: Record<string, unknown>): Promise<Record<string, OutputTensor>>;
  release(): Promise<void>;
}

/** The builds of onnxruntime-web, asked for when they are first needed; the one with WebGPU kernels is 26 MB. */
const BUILDS = {
  wasm: () => Promise.all([import("onnxruntime-web/wasm"), import("onnxruntime-web/ort-wasm-simd-threaded.wasm?url")]),
  webgpu: () => Promise.all([import("onnxruntime-web/webgpu"), import("onnxruntime-web/ort-wasm-simd-threaded.asyncify.wasm?url")]),
};
const loaded = new Map<keyof typeof BUILDS, Promise<Ort>>();

function ort(build: keyof typeof BUILDS): Promise<Ort> {
  const found = loaded.get(build) ?? load(build);
  loaded.set(build, found);
  return found;
}
async function load(build: keyof typeof BUILDS): Promise<Ort> {
  const [module, { default: wasm }] = await BUILDS[build]();
  module.env.wasm.wasmPaths = { wasm: new URL(wasm, import.meta.url).href };
  module.env.wasm.numThreads = 1;
  return module as unknown as Ort;
}

/** onnxruntime-web with its WebAssembly kernels alone. */
export const ortCpu = (): Promise<Ort> => ort("wasm");

async function openOrt(provider: keyof typeof BUILDS, model: Uint8Array): Promise<Running> {
  const { InferenceSession, Tensor: OrtTensor } = await ort(provider);
  const create = InferenceSession.create as unknown as (bytes: Uint8Array, options: object) => Promise<OrtSession>;
  const session = await create(model, { executionProviders: [provider], logSeverityLevel: 4 });
  const Tensor = OrtTensor as unknown as new (type: string, data: unknown, dims: readonly number[]) => unknown;
  return {
    async run(feeds) {
      const given = Object.entries(feeds).map(([name, { type, data, dims }]) => [name, new Tensor(type, data, dims)] as const);
      const result = await session.run(Object.fromEntries(given));
      return new Map(session.outputNames.map((name) => [name, result[name] ?? null]));
    },
    close: () => session.release(),
  };
}

async function openLowbit(model: Uint8Array): Promise<Running> {
  const session = await loadModel(model);
  return {
    async run(feeds) {
      const result: Record<string, RuntimeTensor> = await session.run(feeds);
      return new Map(Object.entries(result).map(([name, value]) => [name, value as OutputTensor]));
    },
    close: () => session.release(),
  };
}

export async function open(runtime: RuntimeName, model: Uint8Array): Promise<Running> {
  if (runtime === "lowbit/runtime") return openLowbit(model);
  return runtime === "onnxruntime-web" ? openOrt("wasm", model) : openOrt("webgpu", model);
}
