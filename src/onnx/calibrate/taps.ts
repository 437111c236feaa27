// Values inside a model, batch by batch: the graph is cut to what the wanted values need, they become its outputs, and
// onnxruntime-node runs it. A runner goes through a model in stages, front to back: what later stages need of earlier
// ones is kept (up to a bound) and fed to the next cut, so that all stages together cost one run of the model. Source:
// ONNX IR (outputs need a name only). Node only.
import { create } from "@bufbuild/protobuf";
import { LowbitError } from "../../../formats/core/errors.ts";
import { payloadBytes } from "../file/encode.ts";
import type { NodeProto, ValueInfoProto } from "../file/gen/onnx_pb.ts";
import { ModelProtoSchema, TensorProto_DataType as T, ValueInfoProtoSchema } from "../file/gen/onnx_pb.ts";
import { EXTERNAL_ABOVE, writeModel, writeModelBytes } from "../file/io.ts";
import type { OnnxModel } from "../file/model.ts";
import { attributeGraphs } from "../file/model.ts";
import { buildScopes, inferTypes, nodeReads, opsetVersion, SEQUENCE } from "../graph/graph.ts";
import { checkAborted } from "../file/files.ts";
import type { FeedTensor, Feeds } from "../verify/feeds.ts";
import { heldBytes, keeper, type Keeper } from "./keep.ts";
import { temporaryFolder } from "./node.ts";
import { openSession, takesPaths, type RuntimeTensor } from "../session.ts";

/** Element types by the runtime's names. */
const ELEMENT_TYPES: ReadonlyMap<string, number> = new Map(
  Object.entries({
    float32: T.FLOAT,
    float64: T.DOUBLE,
    float16: T.FLOAT16,
    int64: T.INT64,
    uint64: T.UINT64,
    int32: T.INT32,
    uint32: T.UINT32,
    int16: T.INT16,
    uint16: T.UINT16,
    int8: T.INT8,
    uint8: T.UINT8,
    bool: T.BOOL,
    string: T.STRING,
  }),
);

function valueInfo(name: string, value: RuntimeTensor): ValueInfoProto {
  return create(ValueInfoProtoSchema, {
    name,
    type: {
      value: {
        case: "tensorType",
        value: { elemType: ELEMENT_TYPES.get(value.type) ?? T.FLOAT, shape: { dim: value.dims.map(() => ({})) } },
      },
    },
  });
}

const producersOf = (model: OnnxModel): Map<string, NodeProto> => {
  const producers = new Map<string, NodeProto>();
  for (const node of model.proto.graph!.node) for (const name of node.output) if (name !== "") producers.set(name, node);
  return producers;
};

/** The nodes that some values need, and every name on the way, given values that are there already. */
function ancestors(
  producers: ReadonlyMap<string, NodeProto>,
  outputs: Iterable<string>,
  available: { has(name: string): boolean },
): { nodes: Set<NodeProto>; names: Set<string> } {
  const nodes = new Set<NodeProto>();
  const names = new Set<string>();
  const todo = [...outputs];
  for (let name = todo.pop(); name !== undefined; name = todo.pop()) {
    if (names.has(name)) continue;
    names.add(name);
    const node = available.has(name) ? undefined : producers.get(name);
    if (node === undefined || nodes.has(node)) continue;
    nodes.add(node);
    todo.push(...nodeReads(node));
  }
  return { nodes, names };
}

/**
 * The part of a model that computes some values of its main graph, which become its only outputs; the rest is left out.
 * @param available values that are fed instead of computed
 * @throws LowbitError E_ONNX for a name that the main graph does not have
 * @example
 * const [last] = modelLayers(model).slice(-1);
 * const body = cutModel(model, [last.activation]); // computes what the last layer reads, nothing else
 */
export function cutModel(
  model: OnnxModel,
  outputs: readonly string[],
  available: ReadonlyMap<string, ValueInfoProto> = new Map(),
): OnnxModel {
  const graph = model.proto.graph!;
  const producers = producersOf(model);
  for (const name of outputs)
    if (!producers.has(name))
      throw new LowbitError("E_ONNX", `cut: expected a value that a node of the main graph makes, got ${JSON.stringify(name)}.`);
  const { nodes, names } = ancestors(producers, outputs, available);
  const made = new Set<string>([...nodes].flatMap((node) => node.output));
  const proto = create(ModelProtoSchema, {
    ...model.proto,
    graph: {
      ...graph,
      node: graph.node.filter((node) => nodes.has(node)),
      initializer: graph.initializer.filter((tensor) => names.has(tensor.name)),
      sparseInitializer: graph.sparseInitializer.filter((sparse) => names.has(sparse.values?.name ?? "")),
      input: [
        ...graph.input.filter((input) => names.has(input.name)),
        ...[...available].filter(([name]) => names.has(name)).map(([, info]) => info),
      ],
      output: outputs.map((name) => create(ValueInfoProtoSchema, { name })),
      valueInfo: graph.valueInfo.filter((info) => made.has(info.name) && !available.has(info.name)),
    },
  });
  return { ...model, proto };
}

/** What a model that runs in stages keeps between them. */
export interface RunnerOptions {
  /**
   * Bytes of values kept between stages, on disk beyond some 128 MiB; above it every stage starts from the inputs.
   * Default 64 GiB.
   */
  readonly keepBytes?: number;
  /** Of these, bytes in memory. Default 128 MiB. */
  readonly memoryBytes?: number;
  /** Threads of the runtime inside an operator. Default: its own choice. */
  readonly threads?: number | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** Values of one batch by name. */
export type BatchValues = ReadonlyMap<string, RuntimeTensor>;

export interface Runner {
  readonly batches: number;
  /**
   * Runs every batch for some values, with the weights that the model has now. Go through it to the end: only then the
   * next stage starts from here.
   * @param later values that later stages will ask for: what they need is kept
   */
  stage(names: readonly string[], later?: readonly string[]): AsyncGenerator<BatchValues, void>;
  /** Drops what is kept between stages: no stage follows. */
  close(): void;
}

/** Whether a node of the main graph makes this value, or the caller feeds it. */
export function isMainValue(model: OnnxModel, name: string): boolean {
  const graph = model.proto.graph!;
  return graph.input.some((input) => input.name === name) || graph.node.some((node) => node.output.includes(name));
}

/** Bytes of weights above which a cut is given as a file: the runtime maps weights of files, and copies messages. */
const FILE_ABOVE = 2 ** 22;

/** Opens the cut, by path where it is large. */
async function openCut(cut: OnnxModel, label: string, threads: number | undefined) {
  const settings = { label, threads, remedy: "Give calibration data of sizes that the model takes." };
  if (payloadBytes(cut) <= (takesPaths() ? FILE_ABOVE : EXTERNAL_ABOVE)) {
    const session = await openSession(writeModelBytes(cut), settings);
    return { session, close: () => session.release() };
  }
  const folder = temporaryFolder("lowbit-cut-");
  try {
    const path = folder.file("cut.onnx");
    await writeModel(cut, path, { externalData: true });
    const session = await openSession(path, settings);
    return {
      session,
      close: async () => {
        await session.release();
        folder.remove();
      },
    };
  } catch (error) {
    folder.remove();
    throw error;
  }
}

/**
 * A runner over batches of feeds.
 * @param feeds checked feeds, in memory; a batch each
 */
export function modelRunner(model: OnnxModel, feeds: readonly Feeds[], options: RunnerOptions = {}): Runner {
  const { threads, signal } = options;
  const inputs = new Set(model.proto.graph!.input.map((input) => input.name));
  let keepBytes = options.keepBytes ?? 2 ** 36;
  let infos = new Map<string, ValueInfoProto>();
  let kept: Record<string, () => FeedTensor>[] = feeds.map(() => ({}));
  let keeping: Keeper | undefined;
  const valueOf = (batch: number, name: string): RuntimeTensor | undefined =>
    Object.hasOwn(kept[batch], name) ? kept[batch][name]() : Object.hasOwn(feeds[batch], name) ? feeds[batch][name] : undefined;

  let types: ReadonlyMap<string, number> | undefined;
  /** The runtime gives no sequence: what it is made of is kept instead. */
  const isSequence = (name: string): boolean => {
    if (types === undefined) {
      const scopes = buildScopes(model);
      types = inferTypes(scopes, opsetVersion(model)).get(scopes[0])!;
    }
    return ((types.get(name) ?? 0) & SEQUENCE) !== 0;
  };

  /** Values that later stages read and this one computes, or had already. */
  function frontierOf(now: ReadonlySet<NodeProto>, producers: ReadonlyMap<string, NodeProto>, later: readonly string[]): Set<string> {
    const frontier = new Set(later.filter((name) => !inputs.has(name)));
    for (const node of ancestors(producers, later, infos).nodes) if (!now.has(node)) for (const name of nodeReads(node)) frontier.add(name);
    for (const name of frontier) {
      const node = producers.get(name);
      if (node !== undefined && isSequence(name)) {
        for (const read of nodeReads(node)) frontier.add(read);
        frontier.delete(name);
      } else if (!infos.has(name) && (node === undefined || !now.has(node) || isConstantNode(node))) frontier.delete(name);
    }
    return frontier;
  }

  async function* stage(names: readonly string[], later: readonly string[] = []): AsyncGenerator<BatchValues, void> {
    const wanted = [...new Set(names)];
    const compute = wanted.filter((name) => !inputs.has(name) && !infos.has(name));
    const producers = producersOf(model);
    const frontier = keepBytes > 0 ? frontierOf(ancestors(producers, compute, infos).nodes, producers, later) : new Set<string>();
    const outputs = [...new Set([...compute, ...[...frontier].filter((name) => !infos.has(name))])];
    const cut = outputs.length === 0 ? null : await openCut(cutModel(model, outputs, infos), model.source.label, threads);
    const nextKept: Record<string, () => FeedTensor>[] = feeds.map(() => ({}));
    const nextKeeping = keeper(options.memoryBytes);
    const nextInfos = new Map<string, ValueInfoProto>();
    const used = cut === null ? new Set<string>() : ancestors(producers, outputs, infos).names;
    let bytes = 0;
    let done = false;
    const run = (batch: number): Promise<Record<string, RuntimeTensor>> => {
      if (cut === null) return Promise.resolve({});
      const stored = Object.entries(kept[batch]).flatMap(([name, read]) => (used.has(name) ? [[name, read()] as const] : []));
      const given = Object.entries(feeds[batch]).filter(([name]) => used.has(name));
      return cut.session.run(Object.fromEntries([...given, ...stored]), outputs);
    };
    let pending = run(0);
    try {
      for (let batch = 0; batch < feeds.length; batch++) {
        const result = await pending;
        if (batch + 1 < feeds.length) {
          pending = run(batch + 1); // the runtime works while this batch is looked at
          pending.catch(() => undefined); // reported when it is waited for
        }
        checkAborted(signal);
        const find = (name: string): RuntimeTensor | undefined => (Object.hasOwn(result, name) ? result[name] : valueOf(batch, name));
        const keep = (name: string): void => {
          const value = find(name)!;
          bytes += heldBytes(value);
          nextKept[batch][name] = nextKeeping.put(value);
          if (!nextInfos.has(name)) nextInfos.set(name, valueInfo(name, value));
        };
        frontier.forEach(keep);
        if (bytes > keepBytes) {
          keepBytes = 0;
          bytes = 0;
          frontier.clear();
          nextKept.forEach((_, i) => (nextKept[i] = {}));
          nextKeeping.close();
        }
        const entries = wanted.map((name) => [name, find(name)] as const);
        yield new Map(entries.filter((entry): entry is readonly [string, RuntimeTensor] => entry[1] !== undefined));
      }
      done = true;
    } finally {
      await pending.catch(() => undefined); // a session is not closed while it runs
      await cut?.close();
      if (!done) nextKeeping.close();
    }
    keeping?.close();
    keeping = nextKeeping;
    kept = nextKept;
    infos = keepBytes > 0 ? nextInfos : new Map<string, ValueInfoProto>();
  }
  return { batches: feeds.length, stage, close: () => keeping?.close() };
}

const isConstantNode = (node: NodeProto): boolean =>
  node.opType === "Constant" || (node.input.length === 0 && node.attribute.every((attribute) => attributeGraphs(attribute).length === 0));

/**
 * Values inside a model, one map for each batch of feeds; nothing is kept.
 * @throws LowbitError E_ONNX for names that the main graph does not have, E_RUNTIME, E_ABORTED
 * @example
 * const [{ activation }] = modelLayers(model);
 * for await (const values of modelValues(model, feeds, [activation])) console.log(values.get(activation)!.dims);
 */
export const modelValues = (
  model: OnnxModel,
  feeds: readonly Feeds[],
  names: readonly string[],
  options: RunnerOptions = {},
): AsyncGenerator<BatchValues, void> => modelRunner(model, feeds, options).stage(names);
