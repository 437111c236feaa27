// Weights of a large model made ahead of the loop that writes them, by threads that read the model's file themselves:
// reading, rounding and writing overlap. Same bytes as without. What the threads do not take, or could not do, is left
// to the caller, who meets the same fault and names it.
import { builtin } from "../files/node.ts";
import type { Measured } from "../tensor/quantize/measure.ts";
import { nibbleThreads, threadsTake, type StoredMatrix } from "../tensor/quantize/nibble-threads.ts";
import { isLarge, storedPayload } from "./bands.ts";
import type { OnnxModel } from "./file/model.ts";
import { TensorProto_DataType as T } from "./file/gen/onnx_pb.ts";
import type { Layer } from "./layers.ts";
import { commonStride } from "./matrix.ts";
import { layerMatrix, type Rounding } from "./weights.ts";

/** Bytes of weights from which threads are started, and how many: a start takes some 40 ms. Tests lower the first. */
export const AHEAD = { from: 128 << 20, threads: 4 };

export interface Ahead {
  /** The weight of a layer, as soon as it is made; undefined where the caller makes it. In the order of the layers. */
  take(layer: Layer): Promise<Measured | undefined>;
  close(): Promise<void>;
}

/** The layer's matrix as it lies in a file; undefined where it is stored in another way, or multiplied. */
function storedMatrix(model: OnnxModel, layer: Layer): (StoredMatrix & { readonly shape: readonly number[] }) | undefined {
  const { weight } = layer;
  const matrix = layerMatrix(layer);
  if (weight === null || typeof matrix === "string" || matrix.factor !== 1 || weight.tensor.dataType !== T.FLOAT || isLarge(weight))
    return undefined;
  const payload = storedPayload(model, weight);
  const { rows, k, shape } = matrix;
  if (payload?.source.fd === undefined || payload.length !== 4 * rows * k) return undefined;
  const { fd } = payload.source;
  const strides = `${commonStride(matrix.rowOffsets)} ${commonStride(matrix.columnOffsets)}`;
  const inRows = strides === `${k} 1`;
  if (!inRows && strides !== `1 ${rows}`) return undefined;
  return { fd, offset: payload.offset + 4 * matrix.rowOffsets[0], rows, k, inRows, shape };
}

/** Null where all is done sooner without threads, or there are none. */
export function weightsAhead(model: OnnxModel, wanted: readonly Rounding[]): Ahead | null {
  const seen = new Set<unknown>();
  const jobs = wanted.flatMap((one) => {
    const source = one.layer.weight?.source;
    if ("quantizeWeight" in one.quantizer || one.flat || seen.has(source)) return [];
    seen.add(source);
    const matrix = storedMatrix(model, one.layer);
    return matrix !== undefined && threadsTake(matrix, one.format, one.quantizer) ? [{ ...one, matrix }] : [];
  });
  const cores = builtin("node:os")?.availableParallelism() ?? 1;
  const bytes = jobs.reduce((sum, { layer }) => sum + layer.bytes, 0);
  if (cores < 2 || bytes < AHEAD.from) return null;
  const threads = nibbleThreads(Math.min(AHEAD.threads, cores, jobs.length));
  if (threads === null) return null;
  const making = new Map<Layer, Promise<Measured | null>>();
  let next = 0;
  /** One job for each thread, and one to go on with. */
  const fill = (): void => {
    for (; making.size <= threads.count && next < jobs.length; next++) {
      const { layer, matrix, format, quantizer } = jobs[next];
      if ("quantizeWeight" in quantizer || format.kind !== "block") continue;
      making.set(layer, threads.quantize(matrix, matrix.shape, format, quantizer));
    }
  };
  fill();
  return {
    async take(layer) {
      if (!making.has(layer)) return undefined;
      // those before were not asked for
      for (const earlier of making.keys()) {
        if (earlier === layer) break;
        making.delete(earlier);
      }
      const made = await making.get(layer);
      making.delete(layer);
      fill();
      return made ?? undefined;
    },
    close: () => threads.close(),
  };
}
