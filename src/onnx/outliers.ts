// Which channels of the inputs of products keep 8 bits where activations have fewer: what the pass gather-outliers
// writes down in a model, and lowbit/runtime reads. Kept in metadata_props under one key, as JSON: for each value, how
// many of its first channels. Other runtimes do not see it.
import { create } from "@bufbuild/protobuf";
import { LowbitError } from "../../formats/core/errors.ts";
import { StringStringEntryProtoSchema } from "./file/gen/onnx_pb.ts";
import type { OnnxModel } from "./file/model.ts";

const KEY = "lowbit.outliers";

/** Channels at the front that keep 8 bits, by the name of the value. @throws LowbitError E_ONNX */
export function readOutliers(model: OnnxModel): Map<string, number> {
  const entry = model.proto.metadataProps.find(({ key }) => key === KEY);
  if (entry === undefined) return new Map();
  try {
    const record = JSON.parse(entry.value ?? "") as { version?: number; channels?: unknown };
    const channels = Object.entries((record.channels ?? {}) as Record<string, unknown>);
    if (record.version === 1 && channels.every(([, n]) => Number.isSafeInteger(n) && (n as number) > 0))
      return new Map(channels as [string, number][]);
  } catch {
    // said below
  }
  throw new LowbitError(
    "E_ONNX",
    `metadata ${KEY}: expected the record of version 1, got another. The model was changed by hand or by a newer version.`,
  );
}

/** Adds values to the model's record. */
export function recordOutliers(model: OnnxModel, channels: ReadonlyMap<string, number>): void {
  const all = new Map([...readOutliers(model), ...channels]);
  const value = JSON.stringify({ version: 1, channels: Object.fromEntries(all) });
  const entry = model.proto.metadataProps.find(({ key }) => key === KEY);
  if (entry === undefined) model.proto.metadataProps.push(create(StringStringEntryProtoSchema, { key: KEY, value }));
  else entry.value = value;
}
