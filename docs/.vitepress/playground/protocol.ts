// What the page of the playground and its worker say to each other. All of it is plain data.
import type { LayerSummary, QuantizeReport, ValueSummary } from "../../../src/onnx/index.ts";

export interface ModelFacts {
  readonly name: string;
  readonly bytes: number;
  readonly opset: string;
  readonly producer: string;
  readonly nodes: number;
  readonly inputs: readonly ValueSummary[];
  readonly outputs: readonly ValueSummary[];
  readonly layers: readonly LayerSummary[];
}

/** What inputs there are besides random ones. */
export interface InputsFacts {
  readonly name: string;
  readonly batches: number;
}

export interface Calls {
  /** `external`: data files beside the model, by name. */
  open: { args: { name: string; bytes: Uint8Array; external: Record<string, Uint8Array> }; result: ModelFacts };
  /** Own inputs: .npz, .npy, .safetensors, .json or .jsonl, or bytes of pixels with the sample. */
  inputs: { args: { name: string; bytes: Uint8Array; scale?: number }; result: InputsFacts };
  /** Options as a recipe has them; `calibrate`: own inputs calibrate too. */
  quantize: { args: { options: Record<string, unknown>; calibrate: boolean }; result: { report: QuantizeReport; parts: string } };
  /** Both models on own inputs, or random ones. */
  compare: {
    args: { runtimes: readonly RuntimeName[]; own: boolean; samples: number; seed: number };
    result: { ok: boolean; sqnrDb: number; parts: string };
  };
  /** Files to keep. */
  download: { args: { what: "model" | "report" }; result: { name: string; bytes: Uint8Array } };
}

export type RuntimeName = "onnxruntime-web" | "onnxruntime-web on WebGPU" | "lowbit/runtime";
