// What a device's decoder is made of and made for.
import type { GpuRuntime } from "../../../kernels/wgsl/runtime.ts";
import type { DecoderOptions } from "../decoder.ts";
import type { DecoderModel, DecoderPart } from "../decoder-model.ts";
import type { Machine } from "../machine/machine.ts";

/** What runs tokens for a device's decoder. */
export interface DeviceCore {
  /** Tokens of a prompt at once. */
  readonly chunk: number;
  /** Runs tokens of a sequence behind those that it has. @returns the logits of the last one */
  run(ids: readonly bigint[], sequence: number): Promise<Float32Array>;
  /** A token for each sequence in one pass; absent where they run one by one. */
  together?(ids: readonly number[]): Promise<Float32Array[]>;
  bytes(): number;
  explain(): readonly DecoderPart[];
  dispose(): void;
}

export interface DeviceDecoderInit extends DecoderModel {
  readonly runtime: GpuRuntime;
  /** What operators run on that have no kernel on the device. */
  readonly host: Machine;
  readonly options: DecoderOptions;
  readonly check: () => void;
}
