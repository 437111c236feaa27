// Hashes of what a run depends on: the graph, and calibration data.
import { toBinary } from "@bufbuild/protobuf";
import { nodeCrypto } from "../../files/calls.ts";
import { ModelProtoSchema } from "../file/gen/onnx_pb.ts";
import type { OnnxModel } from "../file/model.ts";
import { allTensors, decodeOriginal, tensorPayload } from "../file/model.ts";
import type { Feeds } from "../verify/feeds.ts";

/** Tensors up to this size are hashed with the graph: norms, biases, shapes. */
const SMALL = 1 << 16;

/** SHA-256 of the graph, of small tensors, and of the sizes of others. */
export function hashModel(model: OnnxModel): string {
  const hash = nodeCrypto().createHash("sha256");
  const proto = decodeOriginal(model);
  for (const tensor of allTensors(proto)) {
    const payload = tensorPayload({ ...model, proto }, tensor);
    if (payload === undefined) continue;
    hash.update(`${tensor.name}\0${payload.field}\0${payload.length}\0`);
    if (payload.length <= SMALL) hash.update(payload.source.read(payload.offset, payload.length));
    // the token that stands for it is another one in every run; where it lies does not matter
    tensor.rawData = new Uint8Array(0);
    tensor.externalData = [];
  }
  return hash.update(toBinary(ModelProtoSchema, proto)).digest("hex");
}

/** SHA-256 of feeds: names, types, sizes, numbers. */
export function hashFeeds(feeds: readonly Feeds[]): string {
  const hash = nodeCrypto().createHash("sha256");
  for (const feed of feeds) {
    hash.update("batch\0");
    for (const name of Object.keys(feed).sort()) {
      const { type, dims, data } = feed[name];
      hash.update(`${name}\0${type}\0${dims.join()}\0`);
      if (ArrayBuffer.isView(data)) hash.update(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
      else hash.update(JSON.stringify(data));
    }
  }
  return hash.digest("hex");
}
