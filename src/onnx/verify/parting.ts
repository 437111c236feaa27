// The first node where two runtimes part on the same file: bisection over intermediate values. The nodes that lead to
// an output are cut in the middle, the values that cross the cut become outputs, and both runtimes give them. All
// agree: the fault is behind the cut. One differs: it is before it. Only values of the main graph can be asked for; If,
// Loop and Scan count as one node.
import { create } from "@bufbuild/protobuf";
import type { NodeProto } from "../file/gen/onnx_pb.ts";
import { ValueInfoProtoSchema } from "../file/gen/onnx_pb.ts";
import { payloadBytes } from "../file/encode.ts";
import { readModel, readModelBytes, writeModelBytes } from "../file/io.ts";
import type { OnnxModel } from "../file/model.ts";
import type { Scope } from "../graph/graph.ts";
import { buildScopes, nodeName, operatorName, readsOf, sortNodes } from "../graph/graph.ts";
import { addSample, finish, newSums } from "./compare.ts";
import type { Feeds } from "./feeds.ts";
import type { OutputTensor, Runtime } from "./runtimes.ts";

/** The first node where two runtimes part. */
export interface Parting {
  /** The output of the model that differs. */
  readonly output: string;
  /**
   * The first node whose inputs agree and whose output does not; null where that could not be found: `reason` says why.
   */
  readonly node: string | null;
  readonly opType: string;
  /** The value that differs first. */
  readonly value: string;
  /**
   * SQNR of that value between the runtimes, and the least of what the node reads (Infinity where those are inputs of
   * the model).
   */
  readonly sqnrDb: number;
  readonly inputsDb: number;
  readonly reason?: string;
}

/** The model is held in memory, with all its data. */
const BYTES_MAX = 1e9;

/** SQNR of one value between two runtimes, -Infinity where shapes differ; null where it is no tensor of numbers. */
export function valueSqnr(a: OutputTensor | null | undefined, b: OutputTensor | null | undefined): number | null {
  if (a === null || b === null || a === undefined || b === undefined || a.type === "string") return null;
  if (a.dims.join() !== b.dims.join()) return -Infinity;
  const sums = newSums("");
  addSample(sums, a, b);
  const { sqnrDb } = finish(sums, "values", { minSqnrDb: 0 });
  // NaN in the first: nothing to compare with.
  return Number.isNaN(sqnrDb) ? null : sqnrDb;
}

/** The nodes that lead to `value`, in order, without what leads only to `good` values. */
function ancestors(scope: Scope, reads: (node: NodeProto) => ReadonlySet<string>, value: string, good: ReadonlySet<string>): NodeProto[] {
  const found = new Set<NodeProto>();
  const pending = [value];
  for (let name = pending.pop(); name !== undefined; name = pending.pop()) {
    const node = good.has(name) ? undefined : scope.producers.get(name);
    if (node === undefined || found.has(node)) continue;
    found.add(node);
    pending.push(...reads(node));
  }
  return scope.graph.node.filter((node) => found.has(node));
}

interface Pair {
  readonly trusted: Runtime;
  readonly other: Runtime;
}

/** The values `names` in both runtimes, as SQNR. */
async function look(model: OnnxModel, names: readonly string[], feeds: Feeds, pair: Pair): Promise<Map<string, number | null>> {
  const graph = model.proto.graph!;
  const before = graph.output;
  const own = new Set(before.map(({ name }) => name));
  graph.output = [...before, ...names.filter((name) => !own.has(name)).map((name) => create(ValueInfoProtoSchema, { name }))];
  const bytes = ((): Uint8Array => {
    try {
      return writeModelBytes(model);
    } finally {
      graph.output = before;
    }
  })();
  const sides: ReadonlyMap<string, OutputTensor | null>[] = [];
  for (const runtime of [pair.trusted, pair.other]) {
    const session = await runtime.open(bytes);
    try {
      sides.push((await session.run(feeds, names)).outputs);
    } finally {
      await session.close();
    }
  }
  return new Map(names.map((name) => [name, valueSqnr(sides[0].get(name), sides[1].get(name))]));
}

/** An output that differs on some feeds: its SQNR between the runtimes, and the SQNR below which a value differs. */
export interface Difference {
  readonly output: string;
  readonly feeds: Feeds;
  readonly sqnrDb: number;
  readonly limitDb: number;
}

/** Finds the node. @param model path or bytes of the file that both run */
export async function findParting(model: string | Uint8Array, difference: Difference, pair: Pair): Promise<Parting> {
  const { output } = difference;
  const opened = typeof model === "string" ? readModel(model) : readModelBytes(model);
  try {
    const size = payloadBytes(opened);
    if (size > BYTES_MAX) return unknown(output, `more than 1 GB of tensors (${size} bytes)`);
    return await bisect(opened, difference, pair);
  } catch (error) {
    return unknown(output, `the runtimes do not give intermediate values: ${(error as Error).message.split("\n")[0]}`);
  } finally {
    if ("close" in opened) (opened as { close(): void }).close();
  }
}

const unknown = (output: string, reason: string): Parting => ({
  output,
  node: null,
  opType: "",
  value: output,
  sqnrDb: NaN,
  inputsDb: NaN,
  reason,
});

async function bisect(model: OnnxModel, difference: Difference, pair: Pair): Promise<Parting> {
  const { output, feeds, limitDb } = difference;
  const scopes = buildScopes(model);
  sortNodes(scopes);
  const [main] = buildScopes(model);
  const reads = readsOf(buildScopes(model));
  const figures = new Map([[output, difference.sqnrDb]]);
  const good = new Set<string>();
  let bad = output;
  for (;;) {
    const nodes = ancestors(main, reads, bad, good);
    if (nodes.length === 0) return unknown(output, "no node makes it");
    if (nodes.length === 1) {
      const [node] = nodes;
      const inputs = [...reads(node)].map((name) => figures.get(name) ?? Infinity);
      return {
        output,
        node: nodeName(node),
        opType: operatorName(node),
        value: bad,
        sqnrDb: figures.get(bad) ?? NaN,
        inputsDb: Math.min(Infinity, ...inputs),
      };
    }
    const cut = nodes.length >> 1;
    const made = new Set(nodes.slice(0, cut).flatMap((node) => node.output));
    const crossing = [...new Set(nodes.slice(cut).flatMap((node) => [...reads(node)]))].filter((name) => made.has(name));
    const seen = await look(model, [...crossing, bad], feeds, pair);
    const still = seen.get(bad) ?? null;
    if (still === null || still >= limitDb)
      return unknown(
        output,
        `the difference is gone where values between ${nodeName(nodes[0])} and ${nodeName(nodes.at(-1)!)} are outputs: it is in what the runtime fuses there`,
      );
    figures.set(bad, still);
    for (const name of crossing) figures.set(name, seen.get(name) ?? Infinity);
    const first = nodes
      .slice(0, cut)
      .flatMap((node) => node.output)
      .find((name) => crossing.includes(name) && figures.get(name)! < limitDb);
    if (first !== undefined) bad = first;
    for (const name of crossing) if (figures.get(name)! >= limitDb) good.add(name);
  }
}
