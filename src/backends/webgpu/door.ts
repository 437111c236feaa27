// The device of a WebGPU backend for operators beside its products: internal, what src/runtime/webgpu is built on. Not
// exported by any entry point.
import type { GpuBuffer } from "../../../kernels/wgsl/api.ts";
import type { GpuRuntime, Job } from "../../../kernels/wgsl/runtime.ts";
import type { AsyncLayer } from "../types.ts";

/** A product of m rows in a job: x [m, k] to y [m, n], float32, each from the start of its buffer. */
export type RecordProduct = (job: Job, x: GpuBuffer, y: GpuBuffer) => void;

/** A prepared weight that runs within a job of others. */
export interface PlacedGpuLayer {
  /**
   * Waits for the weight and for the pipelines of products of m rows. The layer takes float32 activations, or makes
   * codes of them itself. @throws (rejects) LowbitError E_DEVICE, E_DISPOSED
   */
  ready(m: number): Promise<RecordProduct>;
}

const runtimes = new WeakMap<object, GpuRuntime>();
const layers = new WeakMap<object, PlacedGpuLayer>();

/** Makes a backend's device known to `gpuRuntime`. */
export const shareRuntime = (backend: object, runtime: GpuRuntime): void => void runtimes.set(backend, runtime);

/** Makes a layer known to `placedOnDevice`. */
export const placeLayer = (layer: AsyncLayer, placed: PlacedGpuLayer): void => void layers.set(layer, placed);

/** What a backend of `webgpu()` runs on; undefined for other backends. */
export const gpuRuntime = (backend: object): GpuRuntime | undefined => runtimes.get(backend);

/** The layer as it runs within a job. @throws TypeError for a layer of another backend */
export function placedOnDevice(layer: AsyncLayer): PlacedGpuLayer {
  const found = layers.get(layer);
  if (found === undefined) throw new TypeError("placed layer: expected a layer prepared with a WebGPU backend.");
  return found;
}
