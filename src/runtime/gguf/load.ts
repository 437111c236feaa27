// A GGUF file as a session: its decoder as a graph, its matrices straight into the backend's products, one after the
// other, so that beside the packed weights one matrix at a time is in memory (and the table of embeddings as it is).
import { LowbitError } from "../../../formats/core/errors.ts";
import type { PackedTensor } from "../../../formats/core/types.ts";
import type { SyncLayer } from "../../backends/types.ts";
import { readGguf, type GgufFile } from "../../interop/gguf/read.ts";
import type { ByteSource } from "../../interop/source.ts";
import { readModelBytes } from "../../onnx/file/io.ts";
import { checkAborted, type RunOptions } from "../../quantize/steps.ts";
import { makePlan, readGraph } from "../compile/plan.ts";
import type { ActivationChoice, Weight } from "../ops/operator.ts";
import { describe, ownSession, type DeviceSession, type Place, type Session } from "../session.ts";
import { ggufConfig } from "./config.ts";
import { ggufGraph } from "./graph.ts";

interface Options extends RunOptions {
  readonly activations?: ActivationChoice;
  readonly profile?: boolean;
}

/** Vectors are small; more than this is none. */
const VECTOR_MAX = 1 << 20;

/** The float32 vectors of a file: norms, biases, factors of frequencies. */
async function vectorsOf(file: GgufFile, options: RunOptions): Promise<Map<string, Float32Array>> {
  const vectors = new Map<string, Float32Array>();
  for (const [name, { shape, values }] of file.tensors) {
    if (shape.length !== 1 || shape[0] > VECTOR_MAX) continue;
    checkAborted(options.signal, "loadModel");
    vectors.set(name, await values());
  }
  return vectors;
}

/**
 * @throws LowbitError E_CONTAINER for damaged files, E_UNSUPPORTED for other architectures, E_SHAPE, E_ABORTED, E_IO
 */
export async function loadGguf(source: ByteSource, { host, products, engine }: Place, options: Options): Promise<Session | DeviceSession> {
  const { activations = "auto", signal, onProgress } = options;
  const file = await readGguf(source);
  const made: SyncLayer[] = [];
  try {
    const config = ggufConfig(file);
    const vectors = await vectorsOf(file, options);
    const { bytes, weights, table } = ggufGraph(config, {
      names: [...file.tensors.keys()],
      has: (name) => file.tensors.has(name),
      shape: (name) => file.tensors.get(name)!.shape,
      vector: (name) => vectors.get(name)!,
    });
    const held = new Map<string, Weight>();
    const names = [...new Set([table, ...weights])];
    for (const [done, name] of names.entries()) {
      checkAborted(signal, "loadModel");
      const packed = await file.tensors.get(name)!.packed();
      let layer: SyncLayer | undefined;
      if (weights.includes(name)) {
        layer = products.prepare(packed, { activations: activations === "auto" ? "float32" : activations });
        made.push(layer);
      }
      held.set(name, { isRows: true, packed: name === table ? () => packed : gone(name), ...(layer && { made: layer }) });
      onProgress?.({ stage: "prepare", done: done + 1, total: names.length });
    }
    checkAborted(signal, "loadModel");
    const model = readModelBytes(bytes);
    const graph = readGraph(model);
    const plan = await makePlan(model, graph, { backend: host, products, activations, held });
    return ownSession({ ...describe(model), agree: true }, plan, {
      backend: host,
      profile: options.profile === true,
      engine: engine?.(plan),
    });
  } catch (error) {
    for (const layer of made) layer.dispose();
    throw error;
  } finally {
    await file.close();
  }
}

/** The codes of a product are in its backend, and nowhere else. */
const gone = (name: string) => (): PackedTensor => {
  throw new LowbitError("E_UNSUPPORTED", `${name}: expected to be read as a product only, got another reader. Load it as an ONNX model.`);
};
