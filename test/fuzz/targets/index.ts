// The targets of the fuzzer by name.
import type { FuzzTarget } from "../fuzz.ts";
import { checkpoint } from "./checkpoint.ts";
import { gguf } from "./gguf.ts";
import { npzTarget } from "./npz.ts";
import { onnx } from "./onnx.ts";
import { registry } from "./registry.ts";
import { safetensors } from "./safetensors.ts";
import { searchIndex } from "./search-index.ts";
import { tfjsModel } from "./tfjs-model.ts";

export const TARGETS: Readonly<Record<string, FuzzTarget>> = {
  onnx,
  safetensors,
  npz: npzTarget,
  registry,
  gguf,
  "search-index": searchIndex,
  checkpoint,
  "tfjs-model": tfjsModel,
};
