// What nodes read through their subgraphs, the order that follows from it, and the depth that the scanner takes.
import { expect, test } from "vitest";
import type { GraphProto, NodeProto } from "../../src/onnx/file/gen/onnx_pb.ts";
import { attributeGraphs } from "../../src/onnx/file/model.ts";
import { buildScopes, definingScope, nodeReads, readsOf, sortNodes } from "../../src/onnx/graph/graph.ts";
import { readModelBytes } from "../../src/onnx/index.ts";
import { random, type Random } from "../helpers/random.ts";
import { encode, graph, model, node, raw, T, value } from "./build.ts";

const refuse = (text: RegExp) => expect.objectContaining({ code: "E_ONNX", message: expect.stringMatching(text) as string });

/** The definition, by recursion: names that a graph reads and neither it nor a graph inside defines. */
function outside(g: GraphProto): Set<string> {
  const own = new Set([...g.input.map((i) => i.name), ...g.initializer.map((i) => i.name), ...g.node.flatMap((n) => n.output)]);
  const read = [...g.node.flatMap((n) => [...readsBy(n)]), ...g.output.map((o) => o.name)];
  return new Set(read.filter((name) => !own.has(name)));
}
const readsBy = (n: NodeProto): Set<string> =>
  new Set([...n.input.filter((name) => name !== ""), ...n.attribute.flatMap(attributeGraphs).flatMap((g) => [...outside(g)])]);

/** A graph of a few nodes, some with graphs inside; names of outer graphs are read, and some are hidden by own ones. */
function anyGraph(rng: Random, names: readonly string[], depth: number, id: string): GraphProto {
  const known = [...names, ...["", ""]];
  const nodes: NodeProto[] = [];
  const own: string[] = [];
  const one = (): string => [...known, ...own][rng.integer(known.length + own.length)];
  const initializer = rng.next() < 0.4 ? [raw(`w${id}`, [1], Float32Array.of(1))] : [];
  if (initializer.length > 0) own.push(`w${id}`);
  const input = rng.next() < 0.4 ? [value(`i${id}`, T.FLOAT, [1])] : [];
  if (input.length > 0) own.push(`i${id}`);
  for (let n = 0; n < 3; n++) {
    const inside = (branch: string): GraphProto => anyGraph(rng, [...names, ...own], depth - 1, `${id}${n}${branch}`);
    const inner: Record<string, GraphProto> = depth > 0 && rng.next() < 0.6 ? { then_branch: inside("t"), else_branch: inside("e") } : {};
    nodes.push(node("then_branch" in inner ? "If" : "Op", [one(), one()], [`v${id}${n}`], inner, `n${id}${n}`));
    own.push(`v${id}${n}`);
  }
  const output = [value(rng.next() < 0.5 && names.length > 0 ? names[rng.integer(names.length)] : own[own.length - 1], T.FLOAT, [1])];
  return graph({ input, initializer, node: nodes, output });
}

test("what a node reads, with the graphs inside it: as by the definition", () => {
  const rng = random(11);
  let captured = 0;
  for (let run = 0; run < 25; run++) {
    const opened = readModelBytes(encode(model(graph({ ...io(), node: [...anyGraph(rng, ["x"], 2, "m").node] }))));
    const scopes = buildScopes(opened);
    const reads = readsOf(scopes);
    for (const scope of scopes)
      for (const n of scope.graph.node) {
        const want = [...readsBy(n)].sort();
        expect([...reads(n)].sort()).toEqual(want);
        expect([...nodeReads(n)].sort()).toEqual(want);
        captured += want.length - n.input.filter((name, i, list) => name !== "" && list.indexOf(name) === i).length;
      }
  }
  expect(captured).toBeGreaterThan(100);
});
const io = () => ({ input: [value("x", T.FLOAT, [1])], output: [value("vm2", T.FLOAT, [1])] });

test("order: what only the graphs inside a node read comes before it, at every depth", () => {
  const inner = (reads: string, depth: number): GraphProto =>
    depth === 0
      ? graph({ node: [node("Identity", [reads], ["o"])], output: [value("o", T.FLOAT, [1])] })
      : graph({ node: [node("If", ["x"], ["o"], { then_branch: inner(reads, depth - 1), else_branch: inner("x", 0) })], output: [value("o", T.FLOAT, [1])] }); // prettier-ignore
  for (const depth of [0, 1, 3]) {
    const nodes = [
      node("If", ["x"], ["vm2"], { then_branch: inner("late", depth), else_branch: inner("x", 0) }, "user"),
      node("Relu", ["x"], ["free"], {}, "free"),
      node("Neg", ["later"], ["late"], {}, "maker"),
      node("Abs", ["x"], ["later"], {}, "first"),
    ];
    const opened = readModelBytes(encode(model(graph({ ...io(), node: nodes }))));
    const scopes = buildScopes(opened);
    expect(sortNodes(scopes)).toBe(true);
    expect(opened.proto.graph!.node.map((n) => n.name)).toEqual(["free", "first", "maker", "user"]);
    expect(sortNodes(buildScopes(opened))).toBe(false);
    const last = scopes[scopes.length - 1];
    expect(definingScope(last, "late")).toBe(scopes[0]);
    expect(definingScope(last, "nowhere")).toBe(null);
  }
  // an output of an inner graph is read from outside too
  const passing = graph({ node: [], output: [value("late", T.FLOAT, [1])] });
  const nodes = [
    node("If", ["x"], ["vm2"], { then_branch: passing, else_branch: passing }, "user"),
    node("Neg", ["x"], ["late"], {}, "maker"),
  ];
  const opened = readModelBytes(encode(model(graph({ ...io(), node: nodes }))));
  expect(sortNodes(buildScopes(opened))).toBe(true);
  expect(opened.proto.graph!.node.map((n) => n.name)).toEqual(["maker", "user"]);
});

test("order: random graphs whose nodes are shuffled come back in an order that works, the earliest ready one first", () => {
  const rng = random(12);
  for (let run = 0; run < 40; run++) {
    const count = 2 + rng.integer(12);
    const nodes = Array.from(
      { length: count },
      (_, i) =>
      node("Sum", Array.from({ length: 1 + rng.integer(3) }, () => (i === 0 ? "x" : `v${rng.integer(i)}`)), [`v${i}`], {}, String(i)), // prettier-ignore
    );
    for (let i = count - 1; i > 0; i--) {
      const j = rng.integer(i + 1);
      [nodes[i], nodes[j]] = [nodes[j], nodes[i]];
    }
    // by the definition: again and again the first node whose inputs are there
    const want: string[] = [];
    const made = new Set(["x"]);
    for (let left = [...nodes]; left.length > 0;) {
      const next = left.find((n) => n.input.every((name) => made.has(name)))!;
      want.push(next.name);
      made.add(next.output[0]);
      left = left.filter((n) => n !== next);
    }
    const opened = readModelBytes(encode(model(graph({ input: [value("x", T.FLOAT, [1])], output: [value(`v${count - 1}`, T.FLOAT, [1])], node: nodes })))); // prettier-ignore
    const moved = sortNodes(buildScopes(opened));
    expect(opened.proto.graph!.node.map((n) => n.name)).toEqual(want);
    expect(moved).toBe(want.join() !== nodes.map((n) => n.name).join());
  }
});

test("order: cycles and values that nothing makes are named", () => {
  const open = (...nodes: NodeProto[]) => buildScopes(readModelBytes(encode(model(graph({ ...io(), node: nodes })))));
  expect(() => sortNodes(open(node("A", ["b"], ["a"], {}, "one"), node("B", ["a"], ["b"], {}, "two")))).toThrow(refuse(/one.*cycle/));
  expect(() => sortNodes(open(node("A", ["a"], ["a"], {}, "self")))).toThrow(refuse(/self.*cycle/));
  expect(() => sortNodes(open(node("A", ["gone"], ["a"], {}, "one")))).toThrow(refuse(/one.*"gone"/));
});

// protobuf by hand: a field of bytes, and of a group
const varint = (n: number): number[] => (n < 128 ? [n] : [(n & 127) | 128, ...varint(n >>> 7)]);
const field = (number: number, inner: readonly number[]): number[] => [...varint(number * 8 + 2), ...varint(inner.length), ...inner];

test("the scanner takes messages to a depth of 90, and groups as deep, not more", () => {
  // ModelProto.graph = 7, GraphProto.node = 1, NodeProto.attribute = 5, AttributeProto.g = 6; the model has depth 0
  const nested = (depth: number): Uint8Array => {
    const path = Array.from({ length: depth }, (_, i) => (i === 0 ? 7 : [1, 5, 6][(i - 1) % 3]));
    return Uint8Array.from(path.reduceRight<number[]>((inner, number) => field(number, inner), []));
  };
  for (const depth of [1, 4, 89, 90]) expect(() => readModelBytes(nested(depth)), String(depth)).not.toThrow(refuse(/nested/));
  for (const depth of [91, 92, 200])
    expect(() => readModelBytes(nested(depth)), String(depth)).toThrow(refuse(/messages nested more than 90 deep/));
  // an unknown field 1000 that opens groups in groups
  const groups = (depth: number): Uint8Array => {
    const [open, close] = [varint(1000 * 8 + 3), varint(1000 * 8 + 4)];
    const deep = [...Array.from({ length: depth }, () => open).flat(), ...Array.from({ length: depth }, () => close).flat()];
    return Uint8Array.from([...deep, ...field(7, [])]);
  };
  for (const depth of [1, 90]) expect(() => readModelBytes(groups(depth)), String(depth)).not.toThrow(refuse(/nested/));
  for (const depth of [91, 92, 200]) expect(() => readModelBytes(groups(depth)), String(depth)).toThrow(refuse(/groups nested more than 90 deep/)); // prettier-ignore
});
