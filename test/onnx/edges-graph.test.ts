// Edges of graphs: constants that others read too, layers that belong together, opsets that cannot be raised, values
// beyond float16 that are looked for.
import { describe, expect, test } from "vitest";
import { LowbitError } from "../../src/index.ts";
import { isSharedConstant, writeConstant } from "../../src/onnx/edit.ts";
import { TensorProto_DataType } from "../../src/onnx/file/gen/onnx_pb.ts";
import { readFloats } from "../../src/onnx/file/values.ts";
import { buildScopes, collectNames, constantResolver, constantView, resolveConstant } from "../../src/onnx/graph/graph.ts";
import { raiseOpset } from "../../src/onnx/graph/opset.ts";
import { modelLayers, readModelBytes, type Feeds } from "../../src/onnx/index.ts";
import { analyze } from "../../src/onnx/integer/analyze.ts";
import { boundTogether } from "../../src/onnx/shared-weights.ts";
import { segmentChunks } from "../../src/onnx/file/encode.ts";
import { halfRange, halfValues } from "../../src/onnx/verify/range.ts";
import type { Runtime } from "../../src/onnx/verify/runtimes.ts";
import { T, encode, graph, model, node, raw, value, weights, type GraphInit } from "./build.ts";
import { keepTexts } from "./kept.ts";

const opened = (init: Partial<GraphInit>, opset = 17) =>
  readModelBytes(encode(model(graph({ input: [value("x", T.FLOAT, [2, 2])], output: [value("y", T.FLOAT, [])], initializer: [raw("w", [2, 2], weights(4)), raw("v", [2, 2], weights(4, 2))], node: [], ...init }), { opset }))); // prettier-ignore
const inner = (name: string, nodes: ReturnType<typeof node>[], out: string) => graph({ name, node: nodes, output: [value(out, T.FLOAT, [])] }); // prettier-ignore

describe("a constant that something else reads", () => {
  const mm = node("MatMul", ["x", "w"], ["y"], {}, "mm");
  const CASES: [string, Partial<GraphInit>, boolean][] = [
    ["nothing", { node: [mm] }, false],
    ["another node", { node: [mm, node("Add", ["x", "w"], ["z"])] }, true],
    ["the same node", { node: [node("MatMul", ["w", "w"], ["y"], {}, "mm")] }, true],
    ["a node that reads another one", { node: [mm, node("Add", ["x", "v"], ["z"])] }, false],
    ["an output of the graph", { node: [mm], output: [value("y", T.FLOAT, []), value("w", T.FLOAT, [])] }, true],
    ["an output of another constant", { node: [mm], output: [value("y", T.FLOAT, []), value("v", T.FLOAT, [])] }, false],
    ["an Identity that nothing reads", { node: [mm, node("Identity", ["w"], ["i"])] }, true],
    ["its own Identity", { node: [node("Identity", ["w"], ["i"]), node("MatMul", ["x", "i"], ["y"], {}, "mm")] }, false],
    ["two readers of its Identity", { node: [node("Identity", ["w"], ["i"]), node("MatMul", ["x", "i"], ["y"], {}, "mm"), node("Add", ["x", "i"], ["z"])] }, true], // prettier-ignore
    ["an output of its Identity", { node: [node("Identity", ["w"], ["i"]), node("MatMul", ["x", "i"], ["y"], {}, "mm")], output: [value("y", T.FLOAT, []), value("i", T.FLOAT, [])] }, true], // prettier-ignore
    ["a graph inside a node", { node: [mm, node("If", ["c"], ["z"], { then_branch: inner("t", [node("Add", ["x", "w"], ["p"])], "p"), else_branch: inner("e", [], "x") })] }, true], // prettier-ignore
    ["a graph with a constant of that name", { node: [mm, node("If", ["c"], ["z"], { then_branch: graph({ name: "t", initializer: [raw("w", [2], weights(2))], node: [node("Add", ["w", "w"], ["p"])], output: [value("p", T.FLOAT, [])] }), else_branch: inner("e", [], "x") })] }, false], // prettier-ignore
  ];
  test.each(CASES)("%s", (what, init, shared) => {
    const m = opened(init);
    // nodes of constants that lead nowhere go with them
    const gone = what === "an Identity that nothing reads";
    const [scope] = buildScopes(m);
    const reader = scope.graph.node.find(({ name }) => name === "mm")!;
    expect(isSharedConstant(m, scope, reader, 1)).toBe(shared);
    writeConstant(m, scope, reader, 1, [1, 2, 3, 4]);
    const [now] = buildScopes(m);
    expect([...readFloats(m, resolveConstant(now, reader.input[1])!.tensor)]).toEqual([1, 2, 3, 4]);
    const kept = m.proto.graph!.initializer.find(({ name }) => name === "w");
    expect(kept === undefined ? "gone" : readFloats(m, kept)[0] === 1 ? "changed" : "kept").toBe(
      gone ? "gone" : shared ? "kept" : "changed",
    );
    expect(m.proto.graph!.initializer.length).toBe(shared && !gone ? 3 : 2);
  });
});

test("layers that an input or a weight binds are of one unit", () => {
  const m = opened({
    initializer: ["a", "b", "c", "d"].map((name, i) => raw(name, [2, 2], weights(4, i))),
    node: [
      node("MatMul", ["x", "a"], ["p"], {}, "0"),
      node("MatMul", ["x", "b"], ["q"], {}, "1"),
      node("MatMul", ["p", "c"], ["r"], {}, "2"),
      node("MatMul", ["q", "c"], ["s"], {}, "3"),
      node("MatMul", ["r", "d"], ["y"], {}, "4"),
    ],
  });
  const layers = modelLayers(m);
  const units = boundTogether(layers, (layer) => (layer as (typeof layers)[0]).activation, new Map(layers.map((layer, i) => [layer, i === 3 ? layers[2] : layer]))); // prettier-ignore
  const [zero, one, two, three, four] = layers.map((layer) => units.get(layer)!);
  expect(typeof zero).toBe("object");
  expect([zero === one, two === three, zero === two, two === four, zero === four]).toEqual([true, true, false, false, false]);
});

test("opsets that cannot be raised say which they are", () => {
  const reason = (opset: number, to: number, imports?: [string, number][]) => {
    const m = opened({ node: [node("Relu", ["x"], ["y"])] }, opset);
    if (imports !== undefined) m.proto.opsetImport = imports.map(([domain, version]) => ({ ...m.proto.opsetImport[0], domain, version: BigInt(version) })); // prettier-ignore
    const scopes = buildScopes(m);
    return raiseOpset({ model: m, scopes, names: collectNames(scopes) }, to);
  };
  expect(reason(7, 11)).toBeUndefined();
  expect(reason(6, 11)).toBe("opset 6 is older than 7");
  expect(reason(7, 11, [])).toBe("opset 0 is older than 7");
  expect(reason(7, 11, [["other", 3]])).toBe("opset 0 is older than 7");
  expect(reason(7, 11, [["", 8], ["ai.onnx", 9]])).toBe("it imports two versions of the default opset"); // prettier-ignore
  expect(reason(7, 11, [["", 8], ["ai.onnx", 8]])).toBeUndefined(); // prettier-ignore
});

describe("values beyond float16 in the float32 model", () => {
  const F16 = TensorProto_DataType.FLOAT16 as number;
  const reference = () => opened({ node: [node("Mul", ["x", "w"], ["a"], {}, "mul"), node("ReduceSum", ["a"], ["b"], {}, "sum"), node("Add", ["a", "b"], ["y"], {}, "add"), node("Abs", ["y"], ["z"], {}, "abs")] }); // prettier-ignore
  const half = () => opened({ initializer: [raw("w", [2, 2], new Uint16Array(4), T.FLOAT16)], node: [node("Cast", ["x"], ["xh"], { to: BigInt(F16) }), node("Mul", ["xh", "w"], ["a"], {}, "mul"), node("ReduceSum", ["a"], ["b"], {}, "sum"), node("Cast", ["b"], ["bf"], { to: 1n }), node("Add", ["xh", "a"], ["yh"], {}, "add"), node("Cast", ["yh"], ["y"], { to: 1n }), node("Abs", ["y"], ["z"], {}, "abs")] }); // prettier-ignore
  const runtime = (values: Record<string, number[]>, asked: string[][] = []): Runtime =>
    ({
      open: async (bytes: Uint8Array) => {
        const outputs = readModelBytes(bytes).proto.graph!.output.map(({ name }) => name);
        return { run: async (_: Feeds, wanted: string[]) => (asked.push(outputs, wanted), { outputs: new Map(Object.entries(values).map(([name, list]) => [name, { type: "float32", dims: [list.length], data: Float32Array.from(list) }])) }), close: async () => undefined }; // prettier-ignore
      },
    }) as never;
  const feeds: Feeds[] = [{ x: { type: "float32", dims: [2, 2], data: new Float32Array(4) } }];
  const found = async (values: Record<string, number[]>, asked?: string[][]) =>
    (await halfRange(runtime(values, asked), { reference: reference(), model: half() }, feeds))!.map(({ value: name, node: at, what, magnitude }) => `${name} ${at} ${what} ${magnitude}`); // prettier-ignore
  test("which values are float16 in the other model", () => {
    expect([...halfValues(reference(), half())].sort()).toEqual(["a", "b", "y"]);
  });
  test("they are asked for once, with the outputs that there are", async () => {
    const asked: string[][] = [];
    const m = reference();
    await halfRange(runtime({}, asked), { reference: m, model: half() }, feeds);
    expect(asked).toEqual([["y", "a", "b"], ["a", "b", "y"]]); // prettier-ignore
    expect(m.proto.graph!.output.map(({ name }) => name)).toEqual(["y"]);
  });
  test("the largest finite magnitude of each, and sums of magnitudes", async () => {
    expect(await found({ a: [1, 2], b: [3], y: [4] })).toEqual([]);
    expect(await found({ a: [-70000, 65504], b: [3], y: [4] })).toEqual(["a mul value 70000", "b sum sum 135504"]);
    expect(await found({ a: [65504, 0], b: [1], y: [65505] })).toEqual(["y add value 65505"]);
    expect(await found({ a: [60000, -60000], b: [0], y: [Infinity, NaN] })).toEqual(["b sum sum 120000"]);
    expect(await found({ a: [60000, -60000], b: [0, 0], y: [1] })).toEqual([]);
    expect(await found({ a: [60000, 60000], b: [120000], y: [1] })).toEqual(["b sum value 120000"]);
    expect(await found({ a: [60000], b: [] })).toEqual([]);
  });
  test("over several inputs the largest; a runtime that refuses is no finding", async () => {
    let run = 0;
    const changing: Runtime = { open: async () => ({ run: async () => ({ outputs: new Map([["a", { type: "float32", dims: [1], data: Float32Array.of([70000, 90000, 80000][run++]) }]]) }), close: async () => undefined }) } as never; // prettier-ignore
    const many = await halfRange(changing, { reference: reference(), model: half() }, [feeds[0], feeds[0], feeds[0]]);
    expect(many!.map(({ magnitude }) => magnitude)).toEqual([90000]);
    const refusing: Runtime = { open: async () => { throw new Error("no"); } } as never; // prettier-ignore
    expect(await halfRange(refusing, { reference: reference(), model: half() }, feeds)).toBeNull();
  });
});

describe("constants behind nodes", () => {
  /** Shape and numbers of a constant as every reader sees it. */
  const seen = (nodes: ReturnType<typeof node>[], initializer: ReturnType<typeof raw>[], opset = 21): string => {
    const m = opened({ node: nodes, initializer }, opset);
    const [scope] = buildScopes(m);
    const constant = constantResolver(m)(scope, "c");
    if (constant === null) return "none";
    const { data, shape, stride, offset } = constantView(m, constant);
    const at = (index: number[]): number => data[index.reduce((sum, i, axis) => sum + i * stride[axis], offset)];
    const all = shape.reduce<number[][]>(
      (list, size) => list.flatMap((index) => Array.from({ length: size }, (_, i) => [...index, i])),
      [[]],
    );
    return `${constant.dataType} [${shape}] ${all.map((index) => Number(at(index).toPrecision(6))).join(" ")}`;
  };
  const floats = (name: string, dims: number[], seed = 1) => raw(name, dims, Float32Array.from({ length: dims.reduce((a, b) => a * b, 1) }, (_, i) => (i + 1) * seed)); // prettier-ignore
  const bytes = (name: string, dims: number[], type = T.INT8) => raw(name, dims, Int8Array.from({ length: dims.reduce((a, b) => a * b, 1) }, (_, i) => i - 3), type); // prettier-ignore
  test("DequantizeLinear with scales and zero points of every shape", () => {
    const lines: string[] = [];
    for (const scale of [[], [1], [6], [4], [3], [1, 1], [2, 6], [4, 2], [4, 6], [1, 6], [4, 3]])
      for (const axis of [undefined, 0, 1, -1, -2, 2])
        for (const block of [0, 2, 3]) {
          const attributes = {
            ...(axis === undefined ? {} : { axis: BigInt(axis) }),
            ...(block === 0 ? {} : { block_size: BigInt(block) }),
          };
          for (const zero of ["none", "same", "one"]) {
            const zeros = zero === "none" ? [] : [bytes("z", zero === "same" ? scale : [])];
            const inputs = ["q", "s", ...(zero === "none" ? [] : ["z"])];
            lines.push(`[${scale}] ${axis} ${block} ${zero}: ${seen([node("DequantizeLinear", inputs, ["c"], attributes)], [bytes("q", [4, 6]), floats("s", scale), ...zeros])}`); // prettier-ignore
          }
        }
    keepTexts(lines.join("\n"));
    expect(lines.filter((line) => !line.endsWith("none")).length).toBeGreaterThan(40);
  });
  test("Dropout, Cast, moves, and what is no constant", () => {
    const flag = (name: string, on: number) => raw(name, [], Uint8Array.of(on), T.BOOL);
    const w = floats("w", [2, 3]);
    const CASES: [string, ReturnType<typeof node>[], ReturnType<typeof raw>[], number?][] = [
      ["Dropout", [node("Dropout", ["w"], ["c"])], [w]],
      ["Dropout, empty training", [node("Dropout", ["w", "", ""], ["c"])], [w]],
      ["Dropout of a ratio", [node("Dropout", ["w", "r"], ["c"])], [w, floats("r", [])]],
      ["Dropout, no training", [node("Dropout", ["w", "r", "t"], ["c"])], [w, floats("r", []), flag("t", 0)]],
      ["Dropout, training", [node("Dropout", ["w", "r", "t"], ["c"])], [w, floats("r", []), flag("t", 1)]],
      ["Dropout, training asked for", [node("Dropout", ["w", "r", "x"], ["c"])], [w, floats("r", [])]],
      ...["Cast to 1", "Cast to 10", "Cast to 11", "Cast to 16", "Cast to 7", "Cast to 6"].map((name): [string, ReturnType<typeof node>[], ReturnType<typeof raw>[]] => [name, [node("Cast", ["w"], ["c"], { to: BigInt(name.slice(8)) })], [w]]), // prettier-ignore
      ...["FLOAT", "FLOAT16", "DOUBLE", "float16", "INT64", ""].map((name): [string, ReturnType<typeof node>[], ReturnType<typeof raw>[], number] => [`Cast to ${name}`, [node("Cast", ["w"], ["c"], { to: name })], [w], 5]), // prettier-ignore
      ["Cast of integers", [node("Cast", ["i"], ["c"], { to: 1n })], [raw("i", [3], BigInt64Array.of(1n, -2n, 3n), T.INT64)]],
      ["Cast of bytes", [node("Cast", ["q"], ["c"], { to: 10n })], [bytes("q", [2, 2])]],
      ["Cast of bools", [node("Cast", ["t"], ["c"], { to: 1n })], [flag("t", 1)]],
      ["Transpose", [node("Transpose", ["w"], ["c"])], [w]],
      ["Transpose there and back", [node("Transpose", ["w"], ["t"], { perm: { ints: [1, 0] } }), node("Transpose", ["t"], ["c"])], [w]],
      ["Transpose, Reshape", [node("Transpose", ["w"], ["t"]), node("Reshape", ["t", "s"], ["c"])], [w, raw("s", [1], BigInt64Array.of(-1n), T.INT64)]], // prettier-ignore
      ["Reshape of a shape that is computed", [node("Shape", ["x"], ["s"]), node("Reshape", ["w", "s"], ["c"])], [w]],
      ["Flatten", [node("Flatten", ["w"], ["c"], { axis: 0n })], [w]],
      ["Unsqueeze, Squeeze", [node("Unsqueeze", ["w", "a"], ["u"]), node("Squeeze", ["u"], ["c"])], [w, raw("a", [2], BigInt64Array.of(0n, 3n), T.INT64)]], // prettier-ignore
      ["Unsqueeze without axes", [node("Unsqueeze", ["w"], ["c"])], [w]],
      ["an operator of another domain", [Object.assign(node("Identity", ["w"], ["c"]), { domain: "other" })], [w]],
      ["a computed value", [node("Relu", ["w"], ["c"])], [w]],
      ["an input", [node("Identity", ["x"], ["c"])], []],
      ["nothing", [node("Identity", [""], ["c"])], []],
      ["a circle", [node("Identity", ["d"], ["c"]), node("Identity", ["c"], ["d"])], []],
      ["32 nodes", Array.from({ length: 32 }, (_, i) => node("Transpose", [i === 0 ? "w" : `t${i}`], [i === 31 ? "c" : `t${i + 1}`])), [w]],
      ["40 copies", Array.from({ length: 40 }, (_, i) => [node("Transpose", [i === 0 ? "w" : `r${i}`], [`t${i}`]), node("Reshape", [`t${i}`, "s"], [i === 39 ? "c" : `r${i + 1}`])]).flat(), [w, raw("s", [2], BigInt64Array.of(2n, 3n), T.INT64)]], // prettier-ignore
    ];
    keepTexts(CASES.map(([name, nodes, init, opset]) => `${name}: ${seen(nodes, init, opset)}`).join("\n"));
  });
});

test("the skeleton of a message: numbers of fields, and how deep graphs may lie", () => {
  const varint = (n: number): number[] => (n < 128 ? [n] : [(n % 128) | 128, ...varint(Math.floor(n / 128))]);
  const withField = (number: number) => readModelBytes(Uint8Array.from([...encode(model(graph({ node: [] }))), ...varint(number * 8), 1]));
  expect(() => withField(2 ** 29)).toThrow("an impossible field number");
  expect(() => withField(0)).toThrow("an impossible field number");
  expect(() => withField(2 ** 29 - 1)).not.toThrow();
  const deep = (levels: number) => {
    let at = graph({ name: "g", node: [node("Relu", ["x"], ["y"])], output: [value("y", T.FLOAT, [1])] });
    for (let i = 0; i < levels; i++) at = graph({ name: `g${i}`, node: [node("If", ["c"], ["y"], { then_branch: at, else_branch: graph({ name: "e", node: [], output: [value("x", T.FLOAT, [1])] }) })], output: [value("y", T.FLOAT, [1])] }); // prettier-ignore
    return encode(model(at));
  };
  const reads = (levels: number): boolean => {
    try {
      readModelBytes(deep(levels));
      return true;
    } catch (error) {
      expect((error as Error).message).toMatch(/deep|nested/);
      return false;
    }
  };
  const most = Array.from({ length: 60 }, (_, i) => i)
    .filter(reads)
    .at(-1);
  keepTexts(String(most));
});

describe("integer forms of values that have none", () => {
  const op = (type: string, input: string[], output = "y", attributes = {}) => node(type, input, [output], attributes, `${output}/node`);
  /** s is the sine of x, whose integer form nobody has; h is a product; i are integers, c a condition. */
  const OPERATORS: Record<string, (a: string, b: string) => ReturnType<typeof node>[]> = {
    Where: (a, b) => [op("Where", ["c", a, b])],
    Add: (a, b) => [op("Add", [a, b])],
    Sub: (a, b) => [op("Sub", [a, b])],
    Mul: (a, b) => [op("Mul", [a, b])],
    Div: (a, b) => [op("Div", [a, b])],
    Concat: (a, b) => [op("Concat", [a, b], "y", { axis: 0n })],
    MatMul: (a, b) => [op("MatMul", [a, b])],
    Gemm: (a, b) => [op("Gemm", [a, b])],
    Softmax: (a, b) => [op("Softmax", [a], "p", { axis: -1n }), op("MatMul", ["p", b])],
    "Softmax of axis 0": (a, b) => [op("Softmax", [a], "p", { axis: 0n }), op("MatMul", ["p", b])],
    "Softmax of axis 1": (a, b) => [op("Softmax", [a], "p", { axis: 1n }), op("MatMul", ["p", b])],
    "Cast to float": (a, b) => [op("Cast", ["i"], "f", { to: 1n }), op("Add", ["f", a], "g"), op("Add", ["g", b])],
    "Cast of floats": (a, b) => [op("Cast", [a], "f", { to: 1n }), op("Add", ["f", b])],
    "Cast to integers": (a, b) => [op("Cast", [a], "f", { to: 7n }), op("Cast", ["f"], "g", { to: 1n }), op("Add", ["g", b])],
    Transpose: (a, b) => [op("Transpose", [a], "t"), op("Add", ["t", b])],
    Max: (a, b) => [op("Max", [a, b])],
    Relu: (a, b) => [op("Relu", [a], "r"), op("Add", ["r", b])],
    Conv: (a, b) => [op("Conv", [a, b])],
    LayerNormalization: (a, b) => [op("LayerNormalization", [a, "v"], "n"), op("Add", ["n", b])],
  };
  const names = ["x", "h", "s", "w"];
  test.each(Object.entries(OPERATORS))("%s", (_, nodes) => {
    const said = names.flatMap((a) =>
      names.map((b) => {
        const m = opened({
          input: [value("x", T.FLOAT, [2, 2]), value("i", T.INT64, [2, 2]), value("c", T.BOOL, [2, 2])],
          output: [value("y", T.FLOAT, [2, 2])],
          node: [node("MatMul", ["x", "v"], ["h"], {}, "mm"), node("Sin", ["x"], ["s"], {}, "sin"), ...nodes(a, b)],
        });
        const made = nodes(a, b);
        const whole = made[0].attribute.some(({ i }) => i === 7n) ? "f" : "";
        for (const name of ["h", "s", ...made.map(({ output }) => output[0])])
          m.proto.graph!.valueInfo.push(value(name, name === whole ? T.INT64 : T.FLOAT, [2, 2]));
        try {
          return analyze(m).steps.map(({ out, made }) => [out, JSON.stringify({ ...made, node: undefined })].join(" "));
        } catch (error) {
          expect(error).toBeInstanceOf(LowbitError);
          return (error as Error).message;
        }
      }),
    );
    keepTexts(...said.flat());
    expect(said.flat().length).toBeGreaterThanOrEqual(16);
  });
});

test("segments as chunks: small ones together, large ones in parts, and none of nothing", () => {
  const sizes = (lengths: number[], chunk?: number) => [...segmentChunks(lengths.map((length) => new Uint8Array(length)), chunk)].map(({ length }) => length); // prettier-ignore
  expect(sizes([])).toEqual([]);
  expect(sizes([0])).toEqual([]);
  expect(sizes([5, 7])).toEqual([12]);
  expect(sizes([65536])).toEqual([65536]);
  expect(sizes([65537])).toEqual([65537]);
  expect(sizes([100_000, 100_000])).toEqual([100_000, 100_000]);
  expect(sizes([3, 100_000, 4])).toEqual([3, 100_000, 4]);
  expect(sizes([40_000, 40_000])).toEqual([40_000, 40_000]);
  expect(sizes([40_000, 25_536, 1])).toEqual([65_536, 1]);
});
