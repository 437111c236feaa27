// kjv-llama for the accuracy benches: where it lies, calibration windows as feeds, and text that calibration never
// sees. `heldOut` is for choosing options: training text behind the calibration windows; `evaluation` is for figures
// only.
import { readFileSync } from "node:fs";
import type { Feeds } from "../src/onnx/index.ts";
import { modelPath } from "../test/helpers/shared.ts";

export interface Kjv {
  readonly path: string;
  /** The first windows of the calibration text. */
  feeds(windows: number, batch: number): Feeds[];
  /** Tokens, two bytes each. */
  readonly heldOut: Uint8Array;
  readonly evaluation: Uint8Array;
}

const WINDOW = 256;
/** First window and number of windows of `heldOut`. */
const HELD_OUT = [512, 64];

/** @throws Error where the model is not beside the project */
export function loadKjv(): Kjv {
  const [path, calibration, evaluation] = ["kjv_llama.onnx", "calibration.u16", "val.u16"].map((name) => modelPath(`kjv-llama/${name}`));
  if (path === null || calibration === null || evaluation === null)
    throw new Error("kjv-llama is not beside the project: set LOWBIT_MODELS");
  const raw = readFileSync(calibration);
  const tokens = new Uint16Array(raw.buffer.slice(raw.byteOffset, raw.byteOffset + raw.byteLength));
  const feeds = (windows: number, batch: number): Feeds[] =>
    Array.from({ length: windows / batch }, (_, i) => {
      const part = tokens.subarray(i * batch * WINDOW, (i + 1) * batch * WINDOW);
      return { ids: { type: "int64", data: BigInt64Array.from(part, BigInt), dims: [batch, WINDOW] } };
    });
  const [first, count] = HELD_OUT;
  // one token more: the last of a window predicts it
  const heldOut = raw.subarray(2 * first * WINDOW, 2 * ((first + count) * WINDOW + 1));
  return { path, feeds, heldOut, evaluation: readFileSync(evaluation) };
}
