// Constants: what the resolver finds and reads is what onnxruntime computes, and what nobody reads any more goes.
import fc from "fast-check";
import { InferenceSession } from "onnxruntime-node";
import { describe, expect, it } from "vitest";
import type { ModelProto, NodeProto, TensorProto } from "../../src/onnx/file/gen/onnx_pb.ts";
import { SparseTensorProtoSchema } from "../../src/onnx/file/gen/onnx_pb.ts";
import type { ConstantView } from "../../src/onnx/graph/graph.ts";
import {
  buildScopes,
  collectNames,
  constantPath,
  constantResolver,
  constantView,
  quantizedKind,
  readConstant,
  removeUnused,
  sortNodes,
} from "../../src/onnx/graph/graph.ts";
import { readModelBytes } from "../../src/onnx/index.ts";
import { create } from "@bufbuild/protobuf";
import { T, encode, graph, model, node, raw, value, weights } from "./build.ts";
import type { AttributeValue } from "./build.ts";
import { quantizeModelBytes } from "./kept.ts";

const int64 = (name: string, ...values: number[]): TensorProto => raw(name, [values.length], BigInt64Array.from(values, BigInt), T.INT64);

/** A model whose only result is the value `name` that `nodes` make of constants. */
function constantModel(nodes: NodeProto[], initializer: TensorProto[], name: string, type: number = T.FLOAT): ModelProto {
  const output = value(name, type, []);
  delete (output.type!.value.value as { shape?: unknown }).shape;
  return model(graph({ output: [output], initializer, node: nodes }), { opset: 21, ir: 10 });
}

/** The values that onnxruntime gives, and those that the resolver reads. */
async function both(proto: ModelProto, name: string): Promise<{ theirs: number[]; dims: number[]; ours: number[]; found: ConstantView }> {
  const bytes = encode(proto);
  const session = await InferenceSession.create(bytes, { logSeverityLevel: 4, intraOpNumThreads: 1, graphOptimizationLevel: "disabled" });
  const result = (await session.run({}))[name];
  await session.release();
  const read = readModelBytes(bytes);
  const found = constantResolver(read)(buildScopes(read)[0], name)!;
  return {
    theirs: Array.from(result.data as Float32Array, Number),
    dims: [...result.dims],
    ours: Array.from(readConstant(read, found)),
    found,
  };
}

async function expectSame(nodes: NodeProto[], initializer: TensorProto[], type: number = T.FLOAT): Promise<ConstantView> {
  const { theirs, dims, ours, found } = await both(constantModel(nodes, initializer, "y", type), "y");
  expect(found.shape).toEqual(dims);
  expect(ours).toEqual(theirs);
  return found;
}

/** A step of a random chain: a node, the constants it needs, and the shape after it. */
interface Link {
  readonly make: (input: string, output: string) => NodeProto;
  readonly constants: readonly TensorProto[];
  readonly shape: readonly number[];
}

function link(kind: number, shape: readonly number[], pick: number, id: string): Link {
  const rank = shape.length;
  const op =
    (opType: string, inputs: string[] = [], attributes: Record<string, AttributeValue> = {}): Link["make"] =>
    (input, output) =>
      node(opType, [input, ...inputs], [output], attributes);
  const total = shape.reduce((a, b) => a * b, 1);
  switch (kind) {
    case 0: {
      const perm = shape.map((_, i) => i);
      for (let i = 0; i < rank; i++) perm.push(perm.splice((pick + i * 7) % rank, 1)[0]);
      return { make: op("Transpose", [], { perm: { ints: perm } }), constants: [], shape: perm.map((i) => shape[i]) };
    }
    case 1: {
      // Split one dimension, merge the next two: what exporters do with heads.
      const at = pick % Math.max(1, rank);
      const factor = [2, 3, 1].find((f) => (shape[at] ?? 1) % f === 0)!;
      const next = rank === 0 ? [1] : [...shape.slice(0, at), factor, shape[at] / factor, ...shape.slice(at + 1)];
      if (pick % 2 === 1 && next.length > 2) next.splice(0, 2, next[0] * next[1]);
      const wanted = next.map((size, i) => (i === pick % next.length ? -1 : size));
      return { make: op("Reshape", [`s${id}`]), constants: [int64(`s${id}`, ...wanted)], shape: next };
    }
    case 2: {
      const ones = shape.flatMap((size, i) => (size === 1 ? [i] : []));
      const gone = ones.slice(0, 1 + (pick % 2));
      if (gone.length === 0) return { make: op("Identity"), constants: [], shape };
      const axes = gone.map((i) => (pick % 3 === 0 ? i - rank : i));
      return {
        make: op("Squeeze", [`a${id}`]),
        constants: [int64(`a${id}`, ...axes)],
        shape: shape.filter((_, i) => !gone.includes(i)),
      };
    }
    case 3: {
      const at = pick % (rank + 1);
      return {
        make: op("Unsqueeze", [`a${id}`]),
        constants: [int64(`a${id}`, pick % 2 === 0 ? at : at - rank - 1)],
        shape: [...shape.slice(0, at), 1, ...shape.slice(at)],
      };
    }
    case 4: {
      const axis = pick % (rank + 1);
      const first = shape.slice(0, axis).reduce((a, b) => a * b, 1);
      return { make: op("Flatten", [], { axis: BigInt(axis) }), constants: [], shape: [first, total / first] };
    }
    case 5:
      return { make: op("Cast", [], { to: [10n, 11n, 1n][pick % 3] }), constants: [], shape };
    default:
      // Not Dropout: onnxruntime has none for float16, computes in float32, and leaves out a Cast to float16 before it.
      return { make: op("Identity"), constants: [], shape };
  }
}

describe("what is read", () => {
  it("agrees with onnxruntime through random chains of operators", async () => {
    const chain = fc.record({
      shape: fc.array(fc.constantFrom<number[]>(1, 2, 3, 4, 6), { minLength: 1, maxLength: 4 }),
      links: fc.array(fc.tuple(fc.nat(6), fc.nat(20)), { minLength: 1, maxLength: 8 }),
    });
    await fc.assert(
      fc.asyncProperty(chain, async ({ shape, links }) => {
        const nodes: NodeProto[] = [];
        const constants = [raw("w", shape, weights(shape.reduce((a, b) => a * b, 1)))];
        let at: readonly number[] = shape;
        links.forEach(([kind, pick], i) => {
          const next = link(kind, at, pick, String(i));
          nodes.push(next.make(i === 0 ? "w" : `v${i}`, `v${i + 1}`));
          constants.push(...next.constants);
          at = next.shape;
        });
        nodes.push(node("Cast", [`v${links.length}`], ["y"], { to: 1n }));
        await expectSame(nodes, constants);
      }),
      { numRuns: 60 },
    );
  });

  it("Squeeze of all sizes of 1, Reshape with 0 and -1, Transpose without perm", async () => {
    const w = raw("w", [1, 4, 1, 6], weights(24));
    await expectSame([node("Squeeze", ["w"], ["y"])], [w]);
    await expectSame([node("Reshape", ["w", "s"], ["y"])], [w, int64("s", 0, 0, -1)]);
    await expectSame([node("Transpose", ["w"], ["y"])], [w]);
    await expectSame([node("Dropout", ["w"], ["d"]), node("Squeeze", ["d"], ["y"])], [w]);
  });

  const codes = (type: number, length: number): TensorProto =>
    raw(
      "q",
      [4, 6],
      Uint8Array.from({ length }, (_, i) => (i * 37 + 11) & 255),
      type,
    );
  const scale = (dims: number[]): TensorProto => raw("s", dims, weights(dims.reduce((a, b) => a * b, 1)));

  it.each([
    ["int8", T.INT8, 24],
    ["uint8", T.UINT8, 24],
    ["int16", T.INT16, 48],
    ["uint16", T.UINT16, 48],
    ["int32", T.INT32, 96],
    ["int4", T.INT4, 12],
    ["uint4", T.UINT4, 12],
    ["float8e4m3fn", T.FLOAT8E4M3FN, 24],
    ["float8e5m2", T.FLOAT8E5M2, 24],
    ["float8e4m3fnuz", T.FLOAT8E4M3FNUZ, 24],
    ["float8e5m2fnuz", T.FLOAT8E5M2FNUZ, 24],
  ])("DequantizeLinear of %s", async (_, type, length) => {
    await expectSame([node("DequantizeLinear", ["q", "s"], ["y"])], [codes(type, length), scale([])]);
    if (type === T.INT32) return;
    await expectSame([node("DequantizeLinear", ["q", "s"], ["y"])], [codes(type, length), scale([6])]);
    await expectSame([node("DequantizeLinear", ["q", "s"], ["y"], { axis: -2n })], [codes(type, length), scale([4])]);
  });

  it("DequantizeLinear: zero points, blocks along either axis, float16 scales, codes that were transposed", async () => {
    const zero = (dims: number[], count: number): TensorProto =>
      raw(
        "z",
        dims,
        Uint8Array.from({ length: count }, (_, i) => 100 + i),
        T.UINT8,
      );
    const q = codes(T.UINT8, 24);
    await expectSame([node("DequantizeLinear", ["q", "s", "z"], ["y"], { axis: 0n })], [q, scale([4]), zero([4], 4)]);
    await expectSame([node("DequantizeLinear", ["q", "s", "z"], ["y"], { axis: 1n, block_size: 4n })], [q, scale([4, 2]), zero([4, 2], 8)]);
    await expectSame(
      [node("DequantizeLinear", ["q", "s", "z"], ["y"], { axis: 0n, block_size: 2n })],
      [q, scale([2, 6]), zero([2, 6], 12)],
    );
    const half = raw("s", [4], Uint16Array.of(0x2e66, 0x1234, 0x3c01, 0xb266), T.FLOAT16);
    await expectSame([node("DequantizeLinear", ["q", "s"], ["d"], { axis: 0n }), node("Cast", ["d"], ["y"], { to: 1n })], [q, half]);
    await expectSame(
      [node("Transpose", ["q"], ["t"]), node("DequantizeLinear", ["t", "s"], ["d"], { axis: 0n }), node("Transpose", ["d"], ["y"])],
      [q, scale([6])],
    );
  });

  it("codes in int32_data, Constant nodes of every attribute, integers through Cast", async () => {
    const q = codes(T.INT8, 24);
    const typed = { ...q, rawData: undefined, int32Data: Array.from(new Int8Array(q.rawData!.slice().buffer)) } as unknown as TensorProto;
    await expectSame([node("DequantizeLinear", ["q", "s"], ["y"])], [typed, scale([])]);
    await expectSame([node("Constant", [], ["c"], { value_float: 0.3 }), node("Identity", ["c"], ["y"])], []);
    await expectSame([node("Constant", [], ["c"], { value_floats: { floats: [1.5, 2.5] } }), node("Identity", ["c"], ["y"])], []);
    await expectSame([node("Constant", [], ["c"], { value_ints: { ints: [3, -4] } }), node("Cast", ["c"], ["y"], { to: 1n })], []);
    await expectSame([node("Cast", ["q"], ["y"], { to: 1n })], [codes(T.UINT16, 48)]);
    await expectSame([node("Cast", ["s"], ["b"], { to: 16n }), node("Cast", ["b"], ["y"], { to: 1n })], [scale([24])]);
  });

  it("sparse initializers, by position", async () => {
    const proto = constantModel([node("Identity", ["w"], ["y"])], [], "y");
    proto.graph!.sparseInitializer.push(
      create(SparseTensorProtoSchema, {
        values: raw("w", [3], Float32Array.of(1, 2, 3)),
        indices: raw("i", [3], BigInt64Array.of(0n, 5n, 10n), T.INT64),
        dims: [4n, 3n],
      }),
    );
    const { theirs, ours, found } = await both(proto, "y");
    expect(found.shape).toEqual([4, 3]);
    expect(ours).toEqual(theirs);
  });
});

describe("what is found", () => {
  const tied = constantModel(
    [
      node("Identity", ["w"], ["same"]),
      node("Transpose", ["w"], ["t"], { perm: { ints: [1, 0] } }),
      node("Reshape", ["t", "shape"], ["y"]),
      node("Cast", ["w"], ["half"], { to: 10n }),
    ],
    [raw("w", [4, 6], weights(24)), int64("shape", 6, 2, 2)],
    "y",
  );

  it("readers of one tensor share its source; the layout says how each sees it", () => {
    const read = readModelBytes(encode(tied));
    const [scope] = buildScopes(read);
    const resolve = constantResolver(read);
    const [w, same, t, y, half] = ["w", "same", "t", "y", "half"].map((name) => resolve(scope, name)!);
    for (const view of [same, t, y]) expect(view.source).toBe(w.source);
    expect(t).toMatchObject({ name: "w", shape: [6, 4], strides: [1, 6], offset: 0 });
    expect(y).toMatchObject({ shape: [6, 2, 2], strides: [1, 12, 6] });
    expect(constantPath(y).map(({ opType }) => opType)).toEqual(["Transpose", "Reshape"]);
    expect(constantPath(w)).toEqual([]);
    expect(constantView(read, t).data).toHaveLength(24);
    expect(half.source).not.toBe(w.source);
    expect(half).toMatchObject({ dataType: T.FLOAT16, tensor: w.tensor });
    expect(resolve(scope, "y")).toBe(y);
    expect(resolve(scope, "")).toBeNull();
    expect(resolve(scope, "nothing")).toBeNull();
  });

  it("two DequantizeLinear of the same codes and scales are one source", () => {
    const proto = constantModel(
      [node("DequantizeLinear", ["q", "s"], ["a"]), node("DequantizeLinear", ["q", "s"], ["b"]), node("Transpose", ["b"], ["y"])],
      [raw("q", [2, 2], Int8Array.of(1, 2, 3, 4), T.INT8), raw("s", [], Float32Array.of(0.5))],
      "y",
    );
    const read = readModelBytes(encode(proto));
    const [scope] = buildScopes(read);
    const resolve = constantResolver(read);
    expect(resolve(scope, "y")!.source).toBe(resolve(scope, "a")!.source);
  });

  it("computed values, inputs, masks and training are no constants", () => {
    const proto = model(
      graph({
        input: [value("x", T.FLOAT, [2]), value("training", T.BOOL, [])],
        output: [value("y", T.FLOAT, [2])],
        initializer: [raw("w", [2], weights(2)), raw("ratio", [], Float32Array.of(0.5)), raw("on", [], Uint8Array.of(1), T.BOOL)],
        node: [
          node("Relu", ["w"], ["r"]),
          node("Dropout", ["w", "ratio", "on"], ["trained"]),
          node("Dropout", ["w", "ratio", "training"], ["perhaps"]),
          node("Dropout", ["w"], ["kept", "mask"]),
          node("Cast", ["w"], ["number"], { to: 7n }),
          node("Add", ["x", "r"], ["y"]),
        ],
      }),
    );
    const read = readModelBytes(encode(proto));
    const [scope] = buildScopes(read);
    const resolve = constantResolver(read);
    for (const name of ["x", "r", "trained", "perhaps", "mask", "number", "y"]) expect(resolve(scope, name), name).toBeNull();
    expect(resolve(scope, "kept")).not.toBeNull();
  });

  it("circles end, also through a second input; long chains are followed", () => {
    const circle = (nodes: NodeProto[]): ConstantView | null => {
      const read = readModelBytes(encode(constantModel(nodes, [raw("w", [2], weights(2))], "a")));
      return constantResolver(read)(buildScopes(read)[0], "a");
    };
    expect(circle([node("Identity", ["a"], ["a"])])).toBeNull();
    expect(circle([node("Identity", ["b"], ["a"]), node("Transpose", ["a"], ["b"])])).toBeNull();
    expect(circle([node("Reshape", ["w", "a"], ["b"]), node("Reshape", ["w", "b"], ["a"])])).toBeNull();
    const long = Array.from({ length: 20000 }, (_, i) =>
      node(i % 2 === 0 ? "Transpose" : "Identity", [i === 0 ? "w" : `v${i}`], [`v${i + 1}`]),
    );
    long.push(node("Identity", ["v20000"], ["a"]));
    expect(constantPath(circle(long)!)).toHaveLength(20001);
  });
});

describe("what is left over", () => {
  it("goes with the nodes that led to it, and what only those read; nothing else", () => {
    const proto = constantModel(
      [
        node("Identity", ["w"], ["w1"]),
        node("Reshape", ["w1", "s"], ["w2"]),
        node("Transpose", ["w2"], ["w3"]),
        node("Transpose", ["kept"], ["k1"]),
        node("Reshape", ["kept", "s2"], ["dead"]),
        node("Identity", ["k1"], ["y"]),
      ],
      [raw("w", [4, 6], weights(24)), int64("s", 6, 4), raw("kept", [4, 6], weights(24)), int64("s2", 6, 4)],
      "y",
    );
    const read = readModelBytes(encode(proto));
    expect(removeUnused(buildScopes(read), new Set(["w"]))).toEqual([]);
    const { node: nodes, initializer } = read.proto.graph!;
    expect(nodes.map(({ output }) => output[0])).toEqual(["k1", "dead", "y"]);
    expect(initializer.map(({ name }) => name)).toEqual(["kept", "s2"]);
  });

  it("stays where a subgraph or a result reads it", () => {
    const branch = (): ReturnType<typeof graph> => graph({ output: [value("o", T.FLOAT, [2])], node: [node("Identity", ["w1"], ["o"])] });
    const proto = model(
      graph({
        input: [value("c", T.BOOL, [])],
        output: [value("y", T.FLOAT, [2]), value("v", T.FLOAT, [2])],
        initializer: [raw("w", [2], weights(2)), raw("v", [2], weights(2)), raw("u", [2], weights(2))],
        node: [node("Identity", ["w"], ["w1"]), node("If", ["c"], ["y"], { then_branch: branch(), else_branch: branch() })],
      }),
    );
    const read = readModelBytes(encode(proto));
    removeUnused(buildScopes(read), new Set(["w", "v", "u"]));
    expect(read.proto.graph!.initializer.map(({ name }) => name)).toEqual(["w", "v"]);
    expect(read.proto.graph!.node).toHaveLength(2);
  });
});

describe("size", () => {
  it("tens of thousands of nodes of one name, all in the wrong order, and a chain that goes", () => {
    const count = 30_000;
    const nodes = Array.from({ length: count }, (_, i) => node("Relu", [i === count - 1 ? "w" : `v${i + 1}`], [`v${i}`], {}, "same"));
    const chain = Array.from({ length: count / 2 }, (_, i) => node("Identity", [i === 0 ? "u" : `c${i}`], [`c${i + 1}`]));
    const initializer = [raw("w", [1], weights(1)), raw("u", [1], weights(1))];
    const read = readModelBytes(encode(constantModel([...nodes, ...chain], initializer, "v0")));
    const scopes = buildScopes(read);
    expect(sortNodes(scopes)).toBe(true);
    const names = collectNames(scopes);
    const taken = Array.from({ length: count }, () => names.take("same"));
    expect([taken[0], taken[count - 1]]).toEqual(["same_1", `same_${count}`]);
    const resolve = constantResolver(read);
    for (let i = 1; i <= count / 2; i++) resolve(scopes[0], `c${i}`);
    removeUnused(scopes, new Set(["u"]));
    expect(read.proto.graph!.node).toHaveLength(count);
    expect(read.proto.graph!.initializer).toHaveLength(1);
  });
});

describe("a model that is quantized already", () => {
  it("is told by its operators, inner graphs included", async () => {
    const proto = model(
      graph({
        input: [value("x", T.FLOAT, ["n", 32])],
        output: [value("y", T.FLOAT, ["n", 8])],
        initializer: [raw("w", [32, 8], weights(256))],
        node: [node("MatMul", ["x", "w"], ["y"], {}, "mm")],
      }),
    );
    const plain = readModelBytes(encode(proto));
    expect(quantizedKind(buildScopes(plain))).toBeNull();
    for (const [dtype, kind] of [
      ["q4", "weights in blocks: 1 com.microsoft.MatMulNBits"],
      ["int8", "dynamic 8 bit: 1 MatMulInteger"],
    ] as const) {
      const once = await quantizeModelBytes(encode(proto), { dtype });
      expect(once.report.notes.join()).not.toMatch(/already/);
      const twice = await quantizeModelBytes(once.bytes, { dtype: "fp16", allowUnchanged: true });
      expect(twice.report.notes.join()).toContain(`quantized already (${kind})`);
    }
  });
});

describe("sparse weights", () => {
  it("are not said to pass 2 GiB", async () => {
    const proto = model(
      graph({
        input: [value("x", T.FLOAT, ["n", 64])],
        output: [value("y", T.FLOAT, ["n", 32])],
        node: [node("MatMul", ["x", "w"], ["y"], {}, "mm")],
      }),
    );
    const values = raw("w", [1], Float32Array.of(1));
    proto.graph!.sparseInitializer.push(
      create(SparseTensorProtoSchema, { values, indices: raw("", [1], BigInt64Array.of(5n), T.INT64), dims: [64n, 32n] }),
    );
    const { report } = await quantizeModelBytes(encode(proto), { dtype: "fp16", allowUnchanged: true });
    expect(report.layers[0].reason ?? "").not.toMatch(/2 GiB/);
  });
});
