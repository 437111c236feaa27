// The targets of the fuzzer by name. A reader that is not built yet has a row all the same, so that its name is answered with a reason.
import type { FuzzTarget } from "../fuzz.ts";
import { npzTarget } from "./npz.ts";
import { onnx } from "./onnx.ts";
import { registry } from "./registry.ts";
import { safetensors } from "./safetensors.ts";

export const TARGETS: Readonly<Record<string, FuzzTarget | null>> = {
  onnx,
  safetensors,
  npz: npzTarget,
  registry,
  // Null: this package reads no GGUF file yet. A reader puts its target here.
  gguf: null,
};
