// Values beyond float16 that a check on a CPU does not show: onnxruntime computes many float16 operators in float32
// there and drops the casts between, so that a sum of 155,000 passes; a GPU gives infinity. The float32 reference is
// run once more with the values that are float16 in the other model as outputs, and their magnitudes are looked at; for
// sums also the sum of magnitudes inside.
import { create } from "@bufbuild/protobuf";
import { payloadBytes } from "../file/encode.ts";
import { TensorProto_DataType as T, ValueInfoProtoSchema } from "../file/gen/onnx_pb.ts";
import type { NodeProto } from "../file/gen/onnx_pb.ts";
import { writeModelBytes } from "../file/io.ts";
import type { OnnxModel } from "../file/model.ts";
import { attributeInt, buildScopes, isDefaultDomain, nodeName, opsetVersion } from "../graph/graph.ts";
import { inferTypes } from "../graph/infer.ts";
import type { Feeds } from "./feeds.ts";
import { numbers } from "./numbers.ts";
import type { OutputTensor, Runtime } from "./runtimes.ts";

export const HALF_MAX = 65504;
/** Both models are held in memory. */
const BYTES_MAX = 1e9;
/** Values asked for in one session. */
const GROUP = 200;
const SUMS = new Set(["ReduceSum", "ReduceMean", "GlobalAveragePool", "ReduceL1"]);

/** A value that float16 does not hold. */
export interface RangeFinding {
  readonly value: string;
  readonly node: string;
  readonly opType: string;
  /** Largest magnitude in the float32 model; of a sum, of the magnitudes added. */
  readonly magnitude: number;
  readonly what: "value" | "sum";
}

/**
 * Names of values of the reference's main graph that are float16 in the other model; a Cast back to float32 keeps the
 * name.
 */
export function halfValues(reference: OnnxModel, model: OnnxModel): Set<string> {
  const scopes = buildScopes(model);
  const types = inferTypes(scopes, opsetVersion(model)).get(scopes[0])!;
  const own = buildScopes(reference)[0].producers;
  const half = new Set<string>();
  for (const name of own.keys()) {
    const node = scopes[0].producers.get(name);
    const source = node?.opType === "Cast" && isDefaultDomain(node) ? node.input[0] : name;
    if (types.get(name) === T.FLOAT16 || types.get(source) === T.FLOAT16) half.add(name);
  }
  return half;
}

/** Whether a model has float16 at all. */
export const hasHalf = (model: OnnxModel): boolean =>
  (model.proto.graph?.initializer.some((tensor) => tensor.dataType === T.FLOAT16) ?? false) ||
  (model.proto.graph?.node.some((node) => node.opType === "Cast" && attributeInt(node, "to", 0) === T.FLOAT16) ?? false);

/**
 * Values of the reference beyond float16's 65504 that the other model has in float16.
 * @param models the float32 model and the one with float16
 * @returns null where the model is too large to be held, or the runtime refuses the extra outputs
 */
export async function halfRange(
  runtime: Runtime,
  models: { readonly reference: OnnxModel; readonly model: OnnxModel },
  feeds: readonly Feeds[],
): Promise<RangeFinding[] | null> {
  const { reference, model } = models;
  if (payloadBytes(reference) > BYTES_MAX) return null;
  const producers = buildScopes(reference)[0].producers;
  const wanted = [...halfValues(reference, model)];
  const sums = new Map(
    wanted.map((name) => [name, producers.get(name)!] as const).filter(([, node]) => isDefaultDomain(node) && SUMS.has(node.opType)),
  );
  const names = [...new Set([...wanted, ...[...sums.values()].map((node) => node.input[0])])];
  const found = new Map<string, RangeFinding>();
  const graph = reference.proto.graph!;
  const before = [...graph.output];
  try {
    for (let at = 0; at < names.length; at += GROUP) {
      const fed = (name: string): boolean => Object.hasOwn(feeds[0], name);
      const group = names.slice(at, at + GROUP).filter((name) => producers.has(name) && !fed(name));
      graph.output = [
        ...before,
        ...group.filter((name) => !before.some((v) => v.name === name)).map((name) => create(ValueInfoProtoSchema, { name })),
      ];
      const session = await runtime.open(writeModelBytes(reference));
      for (const feed of feeds) {
        const { outputs } = await session.run(feed, group);
        for (const name of wanted) look(found, producers.get(name)!, name, outputs.get(name) ?? null);
        for (const [name, node] of sums)
          lookSum(found, node, name, outputs.get(node.input[0]) ?? feed[node.input[0]] ?? null, outputs.get(name) ?? null);
      }
      await session.close();
    }
  } catch {
    return null;
  } finally {
    graph.output = before;
  }
  return [...found.values()];
}

const magnitudes = (tensor: OutputTensor, total: boolean): number => {
  if (!/^(float|bfloat)/.test(tensor.type)) return 0;
  const values = numbers(tensor);
  let result = 0;
  for (let i = 0; i < values.length; i++) {
    const size = Math.abs(values[i]);
    // Infinities are masks.
    if (Number.isFinite(size)) result = total ? result + size : Math.max(result, size);
  }
  return result;
};

function look(found: Map<string, RangeFinding>, node: NodeProto, name: string, tensor: OutputTensor | null): void {
  if (tensor === null) return;
  const magnitude = magnitudes(tensor, false);
  if (magnitude > HALF_MAX && magnitude > (found.get(name)?.magnitude ?? 0))
    found.set(name, { value: name, node: nodeName(node), opType: node.opType, magnitude, what: "value" });
}

/** Magnitudes added for one element of the result, on average: what the sum reaches where the terms have one sign. */
function lookSum(
  found: Map<string, RangeFinding>,
  node: NodeProto,
  name: string,
  input: OutputTensor | null,
  output: OutputTensor | null,
): void {
  if (input === null || output === null || output.data.length === 0 || found.get(name)?.what === "value") return;
  const magnitude = magnitudes(input, true) / output.data.length;
  if (magnitude > HALF_MAX && magnitude > (found.get(name)?.magnitude ?? 0))
    found.set(name, { value: name, node: nodeName(node), opType: node.opType, magnitude, what: "sum" });
}

/** A warning in words. */
export function rangeWarning(findings: readonly RangeFinding[]): string {
  const shown = findings
    .slice(0, 3)
    .map(({ node, opType, magnitude, what }) =>
      `${node} (${opType}, ${what === "sum" ? "terms of a sum add up to" : ""} ${magnitude.toPrecision(4)})`.replace("  ", " "),
    );
  const more = findings.length > shown.length ? ` and ${findings.length - shown.length} more` : "";
  return `beyond float16's ${HALF_MAX} in the float32 model: ${shown.join(", ")}${more}. The CPU computes these in float32, WebGPU and CUDA give infinity there: keep these nodes in float32.`;
}
