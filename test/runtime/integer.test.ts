// Integer operators on kernels: the same int32 as the loops for every type and kind of zero point, and onnxruntime's
// codes and floats for what goes around them.
import { InferenceSession, Tensor } from "onnxruntime-node";
import { expect, it, test } from "vitest";
import { toBinary } from "@bufbuild/protobuf";
import { ModelProtoSchema } from "../../src/onnx/file/gen/onnx_pb.ts";
import { seededRandom } from "../../src/quantize/random.ts";
import { loadModel } from "../../src/runtime/index.ts";
import { encode, graph, model, node, raw, T, value, type AttributeValue } from "../onnx/build.ts";
import { compare } from "./judge.ts";
import { bytesOf, f32, ints, numbers, type Case } from "./make.ts";

const types = [
  ["uint8", T.UINT8, 0],
  ["int8", T.INT8, 128],
] as const;

for (const [aName, aType, aLess] of types)
  for (const [bName, bType, bLess] of types)
    for (const [zeros, vector] of [
      ["none", false],
      ["one", false],
      ["columns", false],
      ["columns", true],
    ] as const)
      it(`multiplies ${aName}${vector ? " (a vector)" : ""} by ${bName}, zero points: ${zeros}`, async () => {
        const random = seededRandom(5);
        const [k, n] = [37, 21];
        const codes = (count: number, less: number, of: string): Uint8Array | Int8Array => {
          const list = Array.from({ length: count }, () => Math.floor(256 * random()) - less);
          return of === "int8" ? Int8Array.from(list) : Uint8Array.from(list);
        };
        const initializer = [raw("b", [k, n], codes(k * n, bLess, bName), bType)];
        const input = ["a", "b"];
        if (zeros !== "none") {
          initializer.push(raw("za", [], codes(1, aLess, aName), aType));
          initializer.push(raw("zb", zeros === "one" ? [] : [n], codes(zeros === "one" ? 1 : n, bLess, bName), bType));
          input.push("za", "zb");
        }
        const bytes = toBinary(
          ModelProtoSchema,
          model(
            graph({
              input: [value("a", aType, vector ? [k] : ["batch", "rows", k])],
              output: [value("y", T.INT32, vector ? [n] : ["batch", "rows", n])],
              initializer,
              node: [node("MatMulInteger", input, ["y"])],
            }),
          ),
        );
        const feeds = { a: { type: aName, dims: vector ? [k] : [2, 3, k], data: codes(vector ? k : 6 * k, aLess, aName) } };
        const sessions = await Promise.all([loadModel(bytes), loadModel(bytes, { backend: "reference" })]);
        const [kernel, loops] = await Promise.all(sessions.map((session) => session.run(feeds)));
        expect(kernel).toEqual(loops);
        expect(sessions[0].explain().steps[0].kernel).toBe("int8");
        expect(sessions[1].explain().steps[0].kernel).toBe("loops");
        await Promise.all(sessions.map((session) => session.release()));
      });

/** Codes of 7 bits: onnxruntime's sums of uint8 by int8 saturate on some processors. */
const seven = (seed: number, count: number): Int8Array => Int8Array.from(numbers(seed, count, -64, 64));
const image = (seed: number, dims: number[]) => ({
  type: "uint8",
  dims,
  data: Uint8Array.from(numbers(seed, dims.reduce((a, b) => a * b), 0, 256)),
}); // prettier-ignore

/** On kernels, twice, and equal to onnxruntime's. */
async function onKernels(name: string, one: Case, kernel = "kernel", limit = 0): Promise<void> {
  const bytes = bytesOf(name, one);
  const session = await loadModel(bytes);
  for (let turn = 0; turn < 2; turn++) await compare(bytes, one.feeds, limit, session);
  expect(session.explain().steps.map((step) => step.kernel)).toEqual([kernel]);
  await session.release();
}

const WINDOWS: [string, number[], number[], Record<string, AttributeValue>][] = [
  ["3 x 3 of strides 2, padded", [2, 6, 9, 13], [8, 6, 3, 3], { strides: ints(2, 2), pads: ints(1, 1, 1, 1) }],
  ["1 x 1", [1, 32, 7, 9], [20, 32, 1, 1], {}],
  ["two groups, dilated", [1, 6, 11, 12], [4, 3, 3, 2], { group: 2n, dilations: ints(2, 3) }],
  ["depthwise", [1, 5, 10, 8], [10, 1, 3, 3], { group: 5n, auto_pad: "SAME_UPPER", strides: ints(2, 1) }],
  ["1-D", [2, 4, 50], [6, 4, 5], { pads: ints(2, 2) }],
];
test.each(WINDOWS)("ConvInteger and QLinearConv: %s", async (_, dims, filters, attributes) => {
  const count = filters.reduce((a, b) => a * b);
  const [outputs] = filters;
  const w = raw("w", filters, seven(3, count), T.INT8);
  const zero = raw("xz", [], Uint8Array.of(119), T.UINT8);
  await onKernels("ConvInteger", { feeds: { x: image(1, dims) }, initializer: [w, zero], attributes }, "int8 conv");
  for (const [type, yz] of [
    ["uint8", Uint8Array.of(128)],
    ["int8", Int8Array.of(-3)],
  ] as const)
    // prettier-ignore
    await onKernels(
      "QLinearConv",
      {
        feeds: { x: type === "uint8" ? image(1, dims) : { ...image(1, dims), type, data: Int8Array.from(image(1, dims).data) } },
        initializer: [
          w,
          type === "uint8" ? zero : raw("xz", [], Int8Array.of(-7), T.INT8),
          raw("xs", [], Float32Array.of(0.021)),
          raw("ws", [outputs], numbers(4, outputs, 0.002, 0.01)),
          raw("wz", [outputs], new Int8Array(outputs), T.INT8),
          raw("ys", [], Float32Array.of(0.31)),
          raw("yz", [], yz, type === "uint8" ? T.UINT8 : T.INT8),
          raw("b", [outputs], Int32Array.from(numbers(5, outputs, -900, 900)), T.INT32),
        ],
        order: ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz", "b"],
        attributes,
      },
      "int8 conv",
    );
});

test("QLinearMatMul", async () => {
  const scalars = [raw("as", [], Float32Array.of(0.02)), raw("az", [], Uint8Array.of(120), T.UINT8), raw("ys", [], Float32Array.of(0.4)), raw("yz", [], Uint8Array.of(99), T.UINT8)]; // prettier-ignore
  for (const columns of [false, true])
    await onKernels(
      "QLinearMatMul",
      {
        feeds: { a: image(1, [2, 5, 37]) },
        initializer: [
          ...scalars,
          raw("b", [37, 21], seven(2, 37 * 21), T.INT8),
          raw("bs", columns ? [21] : [], numbers(3, columns ? 21 : 1, 0.002, 0.01)),
          raw("bz", columns ? [21] : [], columns ? seven(4, 21) : Int8Array.of(3), T.INT8),
        ],
        order: ["a", "as", "az", "b", "bs", "bz", "ys", "yz"],
      },
      "int8",
    );
});

test("codes of values and values of codes", async () => {
  const zero = (type: "UINT8" | "INT8" | "UINT16" | "INT16", list: number[]) => {
    const data = { UINT8: Uint8Array, INT8: Int8Array, UINT16: Uint16Array, INT16: Int16Array }[type].from(list);
    return raw("zero", list.length === 1 ? [] : [list.length], data, T[type]);
  };
  const x = f32(1, [3, 5, 67], -20, 20);
  // halves, and what is beyond the codes
  x.data.set([0.1, 0.3, -0.1, 0.5, 1e9, -1e9, Infinity, -Infinity, -0]);
  await onKernels("DynamicQuantizeLinear", { feeds: { x: f32(1, [3, 5, 67], -20, 20) }, outputs: ["y", "scale", "zero"] });
  await onKernels("DynamicQuantizeLinear", { feeds: { x: f32(2, [40, 1024], 1, 3) }, outputs: ["y", "scale", "zero"] });
  await onKernels("DynamicQuantizeLinear", { feeds: { x: f32(3, [700], -3, -1) }, outputs: ["y", "scale", "zero"] });
  for (const type of ["UINT8", "INT8", "UINT16", "INT16"] as const) {
    const [one, three] = [zero(type, [type.startsWith("U") ? 130 : -5]), zero(type, [1, 2, 3])];
    const scale = raw("s", [], Float32Array.of(0.2));
    const scales = raw("s", [3], Float32Array.of(0.2, 0.1, 0.7));
    await onKernels("QuantizeLinear", { feeds: { x }, initializer: [scale, one], opset: 21 });
    await onKernels("QuantizeLinear", { feeds: { x }, initializer: [scales, three], attributes: { axis: 0n }, opset: 21 });
  }
  const codes = image(4, [3, 5, 67]);
  const int32 = { type: "int32", dims: [3, 5, 67], data: Int32Array.from(codes.data, (v) => (v - 100) * 70001) };
  await onKernels("DequantizeLinear", { feeds: { x: codes }, initializer: [raw("s", [], Float32Array.of(0.3)), raw("zero", [], Uint8Array.of(7), T.UINT8)] }); // prettier-ignore
  await onKernels("DequantizeLinear", { feeds: { x: codes }, initializer: [raw("s", [5], numbers(1, 5, 0.1, 1)), raw("zero", [5], Uint8Array.of(1, 2, 3, 4, 5), T.UINT8)], attributes: { axis: 1n } }); // prettier-ignore
  await onKernels("DequantizeLinear", { feeds: { x: int32 }, initializer: [raw("s", [], Float32Array.of(0.3))] });
});

test.each([false, true])("dynamic quantization around a product of floats, bias: %s", async (hasBias) => {
  for (const kind of ["conv", "matmul"] as const) {
    const conv = kind === "conv";
    const outputs = 12;
    const dims = conv ? [1, 8, 9, 11] : [2, 30, 24];
    const filters = conv ? [outputs, 8, 3, 3] : [24, outputs];
    const along = conv ? [outputs, 1, 1] : [outputs];
    const parts = conv ? { pads: ints(1, 1, 1, 1) } : undefined;
    const last = hasBias ? [node("Add", ["bias", "scaled"], ["y"])] : [node("Identity", ["scaled"], ["y"])];
    const bytes = encode(
      model(
        graph({
          input: [value("x", T.FLOAT, dims)],
          output: [value("y", T.FLOAT, dims.map(() => "d"))],
          initializer: [
            raw("w", filters, seven(6, filters.reduce((a, b) => a * b)), T.INT8),
            raw("ws", along, numbers(7, outputs, 0.001, 0.01)),
            raw("bias", conv ? [1, ...along] : along, numbers(8, outputs)),
          ],
          node: [
            node("DynamicQuantizeLinear", ["x"], ["q", "xs", "xz"]),
            node(conv ? "ConvInteger" : "MatMulInteger", ["q", "w", "xz"], ["sums"], parts),
            node("Cast", ["sums"], ["floats"], { to: BigInt(T.FLOAT) }),
            node("Mul", ["xs", "ws"], ["scales"]),
            node("Mul", ["floats", "scales"], ["scaled"]),
            ...last,
          ],
        }),
        { opset: 17, ir: 8 },
      ),
    );
    const feeds = { x: f32(9, dims) };
    const session = await loadModel(bytes);
    for (let turn = 0; turn < 2; turn++) await compare(bytes, feeds, 0, session);
    expect(session.explain().steps.map(({ operator }) => operator)).toContain("lowbit.Scaled");
    await session.release();
  }
}); // prettier-ignore

/** Codes between QuantizeLinear and DequantizeLinear around a convolution and a product, as static quantizers write them. */
function qdqModel(hasRelu: boolean, biasScale: number): Uint8Array {
  const [outputs, columns] = [8, 11];
  const u8 = (name: string, v: number) => raw(name, [], Uint8Array.of(v), T.UINT8);
  const one = (name: string, v: number) => raw(name, [], Float32Array.of(v));
  const around = (x: string, y: string, scale: string, zero: string) => [
    node("QuantizeLinear", [x, scale, zero], [`${y}/codes`]),
    node("DequantizeLinear", [`${y}/codes`, scale, zero], [y]),
  ];
  const ws = numbers(7, outputs, 0.001, 0.01);
  return encode(
    model(
      graph({
        input: [value("x", T.FLOAT, [1, 6, 9, 10])],
        output: [value("y", T.FLOAT, [1, outputs, 9, columns])],
        initializer: [
          ...[one("xs", 0.02), u8("xz", 120), one("ys", 0.05), u8("yz", hasRelu ? 0 : 90), one("zs", 0.07), u8("zz", 131)],
          raw("w", [outputs, 6, 3, 3], seven(6, outputs * 54), T.INT8),
          raw("ws", [outputs], ws),
          raw("wz", [outputs], new Int8Array(outputs), T.INT8),
          raw("b", [outputs], Int32Array.from(numbers(8, outputs, -900, 900)), T.INT32),
          raw(
            "bs",
            [outputs],
            Float32Array.from(ws, (s) => Math.fround(biasScale * Math.fround(Math.fround(0.02) * s))),
          ),
          raw("bz", [outputs], new Int32Array(outputs), T.INT32),
          raw("m", [10, columns], seven(9, 10 * columns), T.INT8),
          ...[one("ms", 0.01), raw("mz", [], Int8Array.of(0), T.INT8)],
        ],
        node: [
          ...around("x", "x2", "xs", "xz"),
          node("DequantizeLinear", ["w", "ws", "wz"], ["w2"], { axis: 0n }),
          node("DequantizeLinear", ["b", "bs", "bz"], ["b2"], { axis: 0n }),
          node("Conv", ["x2", "w2", "b2"], ["c"], { pads: ints(1, 1, 1, 1) }),
          ...(hasRelu ? [node("Relu", ["c"], ["r"])] : []),
          ...around(hasRelu ? "r" : "c", "c2", "ys", "yz"),
          node("DequantizeLinear", ["m", "ms", "mz"], ["m2"]),
          node("MatMul", ["c2", "m2"], ["p"]),
          ...around("p", "y", "zs", "zz"),
        ],
      }),
      { opset: 17, ir: 8 },
    ),
  );
}

test.each([false, true])("convolutions and products between codes are integer ones, Relu: %s", async (hasRelu) => {
  const bytes = qdqModel(hasRelu, 1);
  const feeds = { x: f32(9, [1, 6, 9, 10]) };
  const session = await loadModel(bytes);
  const judge = await InferenceSession.create(bytes, { intraOpNumThreads: 1, logSeverityLevel: 3 });
  const wanted = await judge.run({ x: new Tensor("float32", feeds.x.data, feeds.x.dims) });
  for (let turn = 0; turn < 2; turn++) expect((await session.run(feeds)).y.data).toEqual(wanted.y.data);
  expect(session.explain().steps.map(({ operator, kernel }) => `${operator}: ${kernel}`)).toEqual([
    "QuantizeLinear: kernel",
    "QLinearConv: int8 conv",
    "QLinearMatMul: int8",
    "DequantizeLinear: kernel",
  ]);
  // floats give the same but for codes beside a tie
  await judge.release();
  await session.release();
  // a bias of another scale stays one of floats
  const other = await loadModel(qdqModel(hasRelu, 1.5));
  await compare(qdqModel(hasRelu, 1.5), feeds, 0.08, other);
  expect(other.explain().steps.map(({ operator }) => operator)).toContain("Conv");
  await other.release();
});

test("a product of codes says what it expected", async () => {
  const one: Case = { feeds: { x: image(1, [1, 3, 4, 4]) }, initializer: [raw("w", [2, 4, 3, 3], seven(1, 72), T.INT8)] };
  const session = await loadModel(bytesOf("ConvInteger", one));
  await expect(session.run(one.feeds)).rejects.toThrow("expected an image of 4 channels, got [1, 3, 4, 4]");
  await session.release();
});

test("an operator on codes whose result has no zero point, and so no known type, is missing", async () => {
  const codes = { type: "int8", dims: [3], data: Int8Array.of(-100, 5, 7) };
  const scale = (name: string) => raw(name, [], Float32Array.of(0.1));
  const order = ["x", "xs", "", "z", "zs", "", "ys"];
  const bytes = bytesOf("com.microsoft.QLinearAdd", { feeds: { x: codes, z: codes }, initializer: [scale("xs"), scale("zs"), scale("ys")], order }); // prettier-ignore
  await expect(loadModel(bytes)).rejects.toThrow(/got also com.microsoft.QLinearAdd/);
});
