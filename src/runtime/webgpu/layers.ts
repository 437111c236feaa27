// Constant weights for a plan on a device: the products of its steps are prepared there, as they are read.
import { LowbitError } from "../../../formats/core/errors.ts";
import type { AsyncLayer, SyncLayer } from "../../backends/types.ts";
import type { WebGpuBackend } from "../../backends/webgpu/backend.ts";
import type { Backend } from "../../backends/types.ts";

const onDevice = new WeakMap<SyncLayer, AsyncLayer>();

const notHere = (): never => {
  throw new LowbitError(
    "E_UNSUPPORTED",
    "product: expected to run on the device, got a run in JavaScript. Report it with the model; load the model with backend: await wasm().",
  );
};

/** What prepares the products of a plan on a device. They have no `run`: the plan's steps know their layer. */
export const deviceProducts = (backend: WebGpuBackend): Pick<Backend<SyncLayer>, "prepare"> => ({
  prepare(w, options) {
    const layer = backend.prepare(w, options);
    const { n, k, runAsync, explain, dispose } = layer;
    const planned: SyncLayer = { n, k, run: notHere, runAsync, explain, dispose, [Symbol.dispose]: dispose };
    onDevice.set(planned, layer);
    return planned;
  },
});

/** The layer on its device. */
export function deviceLayer(layer: SyncLayer): AsyncLayer {
  const found = onDevice.get(layer);
  if (found === undefined) throw new TypeError("device layer: expected one of the device, got another.");
  return found;
}
