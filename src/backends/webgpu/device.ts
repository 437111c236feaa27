// Finds a WebGPU device: the caller's own, the browser's, or in Node that of the optional package `webgpu` (dawn).
// dawn's devices do not keep the object alive that they came from, and crash the process once it has been collected: it
// is held here until its device is gone.
import { isLowbitError, LowbitError } from "../../../formats/core/errors.ts";
import type { GpuAdapter, GpuDevice, GpuRoot } from "../../../kernels/wgsl/api.ts";

/** What held objects belong to: entries go when the device has been lost or destroyed. */
const held = new Set<object>();

export interface ConnectOptions {
  readonly device?: GpuDevice | undefined;
  readonly adapter?: GpuAdapter | undefined;
  readonly gpu?: GpuRoot | undefined;
}

const PACKAGE = "webgpu";

async function root(): Promise<GpuRoot> {
  const scope = globalThis as unknown as { navigator?: { gpu?: GpuRoot }; process?: { versions?: { node?: string } } };
  if (scope.navigator?.gpu !== undefined && scope.navigator.gpu !== null) return scope.navigator.gpu;
  if (scope.process?.versions?.node === undefined)
    throw new LowbitError("E_DEVICE", "webgpu: expected navigator.gpu, got none. Use another browser, or the wasm backend.");
  try {
    // a name in a variable: bundlers leave it to the run time
    const name = PACKAGE;
    const dawn = (await import(/* @vite-ignore */ /* webpackIgnore: true */ name)) as { create(options: string[]): GpuRoot };
    return dawn.create([]);
  } catch (cause) {
    throw new LowbitError(
      "E_DEVICE",
      `webgpu: expected the package "${PACKAGE}" in Node, got ${cause instanceof Error ? cause.message.split("\n")[0] : String(cause)}. npm install ${PACKAGE}, or pass { gpu }, { adapter } or { device }.`,
      { cause },
    );
  }
}

/** Features asked for where the adapter has them. */
const FEATURES = ["shader-f16", "subgroups", "timestamp-query"];

/** Limits raised to what the adapter has: kernels keep to the defaults, large weights need fewer parts. */
const LIMITS = ["maxStorageBufferBindingSize", "maxBufferSize"] as const;

/** @throws LowbitError E_DEVICE */
export async function connect(options: ConnectOptions): Promise<{ readonly device: GpuDevice; readonly own: boolean }> {
  try {
    if (options.device !== undefined) return { device: options.device, own: false };
    const gpu = options.adapter === undefined ? (options.gpu ?? (await root())) : (options.gpu ?? null);
    if (gpu !== null) held.add(gpu);
    const adapter = options.adapter ?? (await gpu!.requestAdapter({ powerPreference: "high-performance" } as never));
    if (adapter === null) {
      held.delete(gpu!);
      throw new LowbitError(
        "E_DEVICE",
        "webgpu: expected an adapter, got none. Install a driver (Vulkan, Metal or D3D12), or use the wasm backend.",
      );
    }
    const device = await adapter.requestDevice({
      requiredFeatures: FEATURES.filter((name) => adapter.features.has(name)),
      requiredLimits: Object.fromEntries(LIMITS.map((name) => [name, adapter.limits[name]])),
    } as never);
    const entry = { gpu, adapter, device };
    held.add(entry);
    if (gpu !== null) held.delete(gpu);
    // the device's last callbacks run on the object that is held
    void device.lost.then(() => setTimeout(() => held.delete(entry), 100).unref?.());
    return { device, own: true };
  } catch (cause) {
    if (isLowbitError(cause)) throw cause;
    throw new LowbitError(
      "E_DEVICE",
      `webgpu: expected a device, got ${cause instanceof Error ? cause.message : String(cause)}. Pass { device } to use one of your own.`,
      { cause },
    );
  }
}
