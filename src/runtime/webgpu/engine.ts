// What a session runs on where its backend is a WebGPU device: products prepared there, the rest of the plan on WGSL
// kernels, and a WebAssembly backend of one thread for operators that have none.
import { gpuRuntime } from "../../backends/webgpu/door.ts";
import type { WebGpuBackend } from "../../backends/webgpu/backend.ts";
import { engineMemory } from "../../backends/wasm/memory.ts";
import { wasmSync } from "../../backends/wasm/backend.ts";
import { createMachine } from "../machine/machine.ts";
import type { Place } from "../session.ts";
import { createDeviceDecoder } from "./decoder.ts";
import { runOnDevice } from "./execute.ts";
import { deviceProducts } from "./layers.ts";
import { createRecorder } from "./recorder.ts";

/** What sessions on a WebGPU backend are made of. */
export function deviceOf(backend: WebGpuBackend): Place {
  const host = wasmSync();
  const runtime = gpuRuntime(backend)!;
  return {
    host,
    products: deviceProducts(backend),
    engine(plan) {
      const recorder = createRecorder(runtime);
      const machine = createMachine(engineMemory(host));
      for (const value of plan.constants.values()) {
        recorder.constant(value);
        machine.constant(value);
      }
      return {
        async run(fed, { fetches, note, aborted }) {
          try {
            const values = await runOnDevice({ recorder, host: machine, plan, fed, note, aborted }, fetches);
            return (name) => values.get(name);
          } finally {
            recorder.reset();
            machine.reset();
          }
        },
        decoder: (init) => createDeviceDecoder({ runtime, host: machine, plan, ...init }),
        dispose() {
          recorder.dispose();
          machine.dispose();
        },
      };
    },
  };
}
