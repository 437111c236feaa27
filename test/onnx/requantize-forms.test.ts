// Float forms of quantized operators in every spelling: their values are onnxruntime's own, and what is not the usual
// graph stays, with all that it reads.
import { InferenceSession, Tensor } from "onnxruntime-node";
import { describe, expect, test } from "vitest";
import { encodeHalf } from "../../src/onnx/file/half.ts";
import type { NodeProto, TensorProto, ValueInfoProto } from "../../src/onnx/file/gen/onnx_pb.ts";
import { dequantizeWeights, readModelBytes, writeModelBytes } from "../../src/onnx/index.ts";
import { T, encode, graph, model, node, raw, value, weights } from "./build.ts";
import { keep } from "./kept.ts";

const contrib = (op: string, inputs: string[], outputs: string[], attributes = {}): NodeProto =>
  Object.assign(node(op, inputs, outputs, attributes, "op"), { domain: "com.microsoft" });
function made(nodes: NodeProto[], initializer: TensorProto[], input: ValueInfoProto): Uint8Array {
  const proto = model(graph({ input: [input], output: [value("y", T.FLOAT, [])], initializer, node: nodes }), { opset: 21, ir: 10 });
  proto.opsetImport.push({ ...proto.opsetImport[0], domain: "com.microsoft", version: 1n });
  return encode(proto);
}
function floatForm(bytes: Uint8Array) {
  const opened = readModelBytes(bytes);
  const notes = dequantizeWeights(opened);
  keep(opened, ...notes);
  return { bytes: writeModelBytes(opened), notes, operators: opened.proto.graph!.node.map(({ opType }) => opType) };
}
async function run(bytes: Uint8Array, feeds: Record<string, Tensor>): Promise<Float32Array> {
  const session = await InferenceSession.create(bytes, { logSeverityLevel: 4, intraOpNumThreads: 1, graphOptimizationLevel: "disabled" });
  const { y } = await session.run(feeds);
  await session.release();
  return Float32Array.from(y.data as Float32Array);
}
/** Within float32's rounding of sums in another order. */
function close(got: Float32Array, want: Float32Array): void {
  expect(got.length).toBe(want.length);
  const size = Math.max(...want.map(Math.abs));
  for (let i = 0; i < want.length; i++) expect(Math.abs(got[i] - want[i])).toBeLessThanOrEqual(1e-5 * size);
}
const bytes = (count: number, seed: number): Uint8Array => Uint8Array.from(weights(count, seed), (v) => (v * 5000) & 255);
const positive = (count: number, seed: number): Float32Array => weights(count, seed).map((v) => 0.01 + Math.abs(v) / 10);

describe("MatMulNBits", () => {
  const [k, n] = [80, 5];
  const feeds = { x: new Tensor("float32", weights(3 * k, 9), [3, k]) };
  const input = value("x", T.FLOAT, ["m", k]);
  const product = (bits: number, block: number, zeros: "none" | "packed" | "float", bias: boolean) => {
    const blocks = Math.ceil(k / block);
    const init = [
      raw("q", [n, blocks, (block * bits) / 8], bytes((n * blocks * block * bits) / 8, bits), T.UINT8),
      raw("s", [n * blocks], positive(n * blocks, 2)),
      raw("z", zeros === "float" ? [n, blocks] : [n * Math.ceil((blocks * bits) / 8)], zeros === "float" ? weights(n * blocks, 5).map((v) => 8 + 9 * v) : bytes(n * Math.ceil((blocks * bits) / 8), 7), zeros === "float" ? T.FLOAT : T.UINT8), // prettier-ignore
      raw("b", [n], weights(n, 4)),
    ];
    const inputs = ["x", "q", "s", zeros === "none" ? "" : "z", "", bias ? "b" : ""];
    while (inputs.at(-1) === "") inputs.pop();
    const used = init.filter(({ name }) => inputs.includes(name));
    return made([contrib("MatMulNBits", inputs, ["y"], { K: BigInt(k), N: BigInt(n), bits: BigInt(bits), block_size: BigInt(block) })], used, input); // prettier-ignore
  };
  test.each([
    [4, 32, "none", false],
    [4, 16, "packed", true],
    [4, 32, "float", false],
    [8, 32, "none", true],
    [8, 16, "packed", false],
    [2, 16, "none", false],
    [2, 32, "packed", true],
  ] as const)("%i bits, blocks of %i, zero points %s, bias %s", async (bits, block, zeros, bias) => {
    const before = product(bits, block, zeros, bias);
    const float = floatForm(before);
    expect(float.notes).toEqual(["weights dequantized: 1 com.microsoft.MatMulNBits"]);
    expect(float.operators).toEqual(bias ? ["MatMul", "Add"] : ["MatMul"]);
    close(await run(float.bytes, feeds), await run(before, feeds));
  });
  test("4 bits where nothing is said", async () => {
    const settings = { K: BigInt(k), N: BigInt(n), block_size: 32n };
    const init = [raw("q", [n, 3, 16], bytes(n * 48, 1), T.UINT8), raw("s", [n * 3], positive(n * 3, 2))];
    const of = (more: object) => made([contrib("MatMulNBits", ["x", "q", "s"], ["y"], { ...settings, ...more })], init, input);
    const float = floatForm(of({}));
    expect(float.operators).toEqual(["MatMul"]);
    close(await run(float.bytes, feeds), await run(of({ bits: 4n }), feeds));
  });
  test("with another order of columns, or scales of another number: it stays", () => {
    const init = [raw("q", [n, 3, 16], bytes(n * 48, 1), T.UINT8), raw("s", [n * 3], positive(n * 3, 2)), raw("g", [96], new Int32Array(96), T.INT32), raw("few", [n * 2], positive(n * 2, 2))]; // prettier-ignore
    const settings = { K: BigInt(k), N: BigInt(n), bits: 4n, block_size: 32n };
    for (const inputs of [
      ["x", "q", "s", "", "g"],
      ["x", "q", "few"],
      ["x", "q", "x"],
      ["x", "x", "s"],
      ["x", "q", "s", "x"],
    ]) {
      const { notes, operators } = floatForm(made([contrib("MatMulNBits", inputs, ["y"], settings)], init, input));
      expect([inputs, operators, notes.length]).toEqual([inputs, ["MatMulNBits"], 1]);
    }
    const odd = floatForm(made([contrib("MatMulNBits", ["x", "q", "s"], ["y"], { ...settings, bits: 3n })], init, input));
    expect(odd.operators).toEqual(["MatMulNBits"]);
  });
});

describe("tables", () => {
  const [rows, k] = [9, 32];
  const input = value("ids", T.INT64, ["n"]);
  const feeds = { ids: new Tensor("int64", BigInt64Array.of(0n, 8n, 3n, 3n), [4]) };
  const gathered = (name: string, out: string) => node("Gather", [name, "ids"], [out], {}, `gather_${out}`);
  const codes = raw(
    "q",
    [rows, k],
    Int8Array.from(bytes(rows * k, 3), (v) => v - 128),
    T.INT8,
  );
  const scales = raw("s", [rows, 1], positive(rows, 4));

  test.each([
    [4, "none", 16],
    [4, "packed", 16],
    [8, "none", 32],
    [8, "packed", 16],
  ] as const)("GatherBlockQuantized of %i bits in uint8, zero points %s", async (bits, zeros, block) => {
    const blocks = k / block;
    const init = [
      raw("q", [rows, (k * bits) / 8], bytes((rows * k * bits) / 8, 2), T.UINT8),
      raw("s", [rows, blocks], positive(rows * blocks, 3)),
      raw("z", [rows, Math.ceil((blocks * bits) / 8)], bytes(rows * Math.ceil((blocks * bits) / 8), 6), T.UINT8),
    ].slice(0, zeros === "none" ? 2 : 3);
    const inputs = zeros === "none" ? ["q", "ids", "s"] : ["q", "ids", "s", "z"];
    const settings = { bits: BigInt(bits), block_size: BigInt(block), quantize_axis: 1n, gather_axis: 0n };
    const before = made([contrib("GatherBlockQuantized", inputs, ["y"], settings)], init, input);
    const float = floatForm(before);
    expect(float.operators).toEqual(["Gather"]);
    close(await run(float.bytes, feeds), await run(before, feeds));
  });

  test.each([
    ["codes first", ["c", "g"]],
    ["scales first", ["g", "c"]],
  ])("codes and a scale per row, gathered apart: %s", async (_, factors) => {
    const nodes = [gathered("q", "r"), node("Cast", ["r"], ["c"], { to: 1n }), gathered("s", "g"), node("Mul", factors, ["y"])];
    const before = made(nodes, [codes, scales], input);
    const float = floatForm(before);
    expect(float.operators).toEqual(["Gather"]);
    expect(readModelBytes(float.bytes).proto.graph!.initializer.map(({ dataType, dims }) => [dataType, dims.join()])).toEqual([
      [T.FLOAT, `${rows},${k}`],
    ]);
    close(await run(float.bytes, feeds), await run(before, feeds));
  });

  test("a row of codes, then its scale; with a zero point, and transposed indices", async () => {
    const nodes = [gathered("q", "r"), node("DequantizeLinear", ["r", "s0", "z0"], ["y"])];
    const before = made(nodes, [codes, raw("s0", [], Float32Array.of(0.02)), raw("z0", [], Int8Array.of(7), T.INT8)], input);
    const float = floatForm(before);
    expect(float.operators).toEqual(["Gather"]);
    close(await run(float.bytes, feeds), await run(before, feeds));
  });

  test.each<[string, NodeProto[], TensorProto[]]>([
    ["other indices", [gathered("q", "r"), node("Cast", ["r"], ["c"], { to: 1n }), node("Gather", ["s", "other"], ["g"]), node("Mul", ["c", "g"], ["y"])], [codes, scales, raw("other", [4], BigInt64Array.of(1n, 2n, 3n, 4n), T.INT64)]], // prettier-ignore
    ["codes that are read elsewhere too", [gathered("q", "r"), node("Cast", ["r"], ["c"], { to: 1n }), gathered("s", "g"), node("Mul", ["c", "g"], ["m"]), node("Add", ["m", "c"], ["y"])], [codes, scales]], // prettier-ignore
    ["scales of another number", [gathered("q", "r"), node("Cast", ["r"], ["c"], { to: 1n }), gathered("s", "g"), node("Mul", ["c", "g"], ["y"])], [codes, raw("s", [rows, k], positive(rows * k, 4))]], // prettier-ignore
    ["float numbers", [gathered("q", "r"), node("Cast", ["r"], ["c"], { to: 1n }), gathered("s", "g"), node("Mul", ["c", "g"], ["y"])], [raw("q", [rows, k], weights(rows * k)), scales]], // prettier-ignore
    ["no Gather", [node("Cast", ["q"], ["c"], { to: 1n }), node("Mul", ["c", "s"], ["m"]), gathered("m", "y")], [codes, scales]],
  ])("%s: it stays", (_, nodes, init) => {
    const before = made(nodes, init, input);
    const { operators, bytes: after } = floatForm(before);
    expect(operators).toEqual(nodes.map(({ opType }) => opType));
    expect(Buffer.compare(after, before)).toBe(0);
  });
});

describe("dynamic quantization", () => {
  const k = 8;
  const input = value("x", T.FLOAT, ["m", k]);
  const feeds = { x: new Tensor("float32", weights(3 * k, 9), [3, k]) };
  const init = [
    raw("w", [k, 4], bytes(k * 4, 1), T.UINT8),
    raw("wz", [], Uint8Array.of(125), T.UINT8),
    raw("ws", [], Float32Array.of(0.02)),
  ];
  const dynamic = (more: NodeProto[], scales: string[], factors: string[]) => [
    node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"]),
    node("MatMulInteger", ["xq", "w", "xz", "wz"], ["i"], {}, "mm"),
    node("Cast", ["i"], ["c"], { to: 1n }),
    node("Mul", scales, ["both"]),
    node("Mul", factors, ["y"]),
    ...more,
  ];
  test.each([
    [
      ["xs", "ws"],
      ["c", "both"],
    ],
    [
      ["ws", "xs"],
      ["both", "c"],
    ],
  ])("scales %j, product %j", async (scales, factors) => {
    const before = made(dynamic([], scales, factors), init, input);
    const float = floatForm(before);
    expect(float.operators).toEqual(["MatMul"]);
    const [got, want] = [await run(float.bytes, feeds), await run(before, feeds)];
    const size = Math.max(...want.map(Math.abs));
    want.forEach((v, i) => expect(Math.abs(v - got[i])).toBeLessThan(0.03 * size));
  });
  test("what else nobody reads is not its business", () => {
    const idle = [node("Mul", ["x", "x"], ["idle"], {}, "idle"), node("Abs", ["x"], ["idle2"], {}, "idle2")];
    const { operators } = floatForm(made(dynamic(idle, ["xs", "ws"], ["c", "both"]), init, input));
    expect(operators).toEqual(["MatMul", "Mul", "Abs"]);
  });
  test("codes and scales that something else reads stay for it", async () => {
    const more = [node("DequantizeLinear", ["xq", "xs", "xz"], ["back"]), node("ReduceMax", ["back"], ["m"], { keepdims: 0n })];
    const nodes = dynamic([], ["xs", "ws"], ["c", "both"]);
    nodes[4].output[0] = "p";
    const before = made([...nodes, ...more, node("Add", ["p", "m"], ["y"])], init, input);
    const float = floatForm(before);
    expect(float.operators).toEqual(["DynamicQuantizeLinear", "MatMul", "DequantizeLinear", "ReduceMax", "Add"]);
    expect(await run(float.bytes, feeds)).toHaveLength(12);
  });
  test("a Cast to another type, or a result that is read twice: it stays", () => {
    const half = dynamic([], ["xs", "ws"], ["c", "both"]);
    half[2] = node("Cast", ["i"], ["c0"], { to: 6n });
    half.splice(3, 0, node("Cast", ["c0"], ["c"], { to: 1n }));
    expect(floatForm(made(half, init, input)).operators).toContain("MatMulInteger");
    const twice = dynamic([node("Neg", ["i"], ["more"])], ["xs", "ws"], ["c", "both"]);
    expect(floatForm(made(twice, init, input)).operators).toContain("MatMulInteger");
  });
});

describe("DynamicQuantizeLSTM", () => {
  const [steps, size, hidden] = [4, 8, 4];
  const gates = 4 * hidden;
  const input = value("x", T.FLOAT, [steps, 1, size]);
  const feeds = { x: new Tensor("float32", weights(steps * size, 9), [steps, 1, size]) };
  const all: TensorProto[] = [
    raw("w", [1, size, gates], bytes(size * gates, 1), T.UINT8),
    raw("r", [1, hidden, gates], bytes(hidden * gates, 2), T.UINT8),
    ...["w", "r"].flatMap((name, i) => [raw(`${name}s`, [1], Float32Array.of(0.01 + 0.01 * i)), raw(`${name}z`, [1], Uint8Array.of(120 + i), T.UINT8)]), // prettier-ignore
  ];
  const inputs = ["x", "w", "r", "", "", "", "", "", "ws", "wz", "rs", "rz"];
  const lstm = (names = inputs, more: NodeProto[] = [], init = all) =>
    made([...more, contrib("DynamicQuantizeLSTM", names, ["y"], { hidden_size: BigInt(hidden) })], init, input);
  test("becomes LSTM", async () => {
    const float = floatForm(lstm());
    expect(float.operators).toEqual(["LSTM"]);
    const [got, want] = [await run(float.bytes, feeds), await run(lstm(), feeds)];
    expect(got).toHaveLength(steps * hidden);
    want.forEach((v, i) => expect(Math.abs(v - got[i])).toBeLessThan(0.02));
  });
  test.each([1, 2, 8, 9, 10, 11])("input %i is computed: it stays", (at) => {
    const name = inputs[at];
    const { operators } = floatForm(lstm(inputs.with(at, "made"), [node("Abs", [name], ["made"])]));
    expect(operators).toEqual(["Abs", "DynamicQuantizeLSTM"]);
  });
  test("scales of another number, or codes of two dimensions: it stays", () => {
    for (const [name, tensor] of [["ws", raw("few", [2], positive(2, 1))], ["rz", raw("few", [3], Uint8Array.of(1, 2, 3), T.UINT8)], ["w", raw("few", [size, gates], bytes(size * gates, 1), T.UINT8)]] as const) // prettier-ignore
      expect([name, floatForm(lstm(inputs.with(inputs.indexOf(name), "few"), [], [...all, tensor])).operators]).toEqual([name, ["DynamicQuantizeLSTM"]]); // prettier-ignore
  });
  test("a scale and a zero point for each gate's row", async () => {
    const init = [...all.slice(0, 2), ...["w", "r"].flatMap((name, i) => [raw(`${name}s`, [1, gates], positive(gates, 3 + i)), raw(`${name}z`, [1, gates], Uint8Array.from({ length: gates }, (_, j) => 120 + j), T.UINT8)])]; // prettier-ignore
    const float = floatForm(lstm(inputs, [], init));
    expect(float.operators).toEqual(["LSTM"]);
    const opened = readModelBytes(float.bytes);
    const codes = bytes(size * gates, 1);
    const made = new Float32Array(opened.proto.graph!.initializer.find(({ dims }) => dims.join() === `1,${gates},${size}`)!.rawData!.slice().buffer); // prettier-ignore
    const scales = positive(gates, 3);
    for (let j = 0; j < gates; j++)
      for (let i = 0; i < size; i++) expect(made[j * size + i]).toBe(Math.fround((codes[i * gates + j] - 120 - j) * scales[j]));
  });
});

test("float16 scales give float16 weights", () => {
  const init = [raw("q", [3, 1, 16], bytes(48, 1), T.UINT8), raw("s", [3], Uint16Array.of(1, 2, 3).map((v) => encodeHalf(v / 100)), T.FLOAT16)]; // prettier-ignore
  const nodes = [contrib("MatMulNBits", ["x", "q", "s"], ["y"], { K: 32n, N: 3n, bits: 4n, block_size: 32n })];
  const { bytes: after } = floatForm(made(nodes, init, value("x", T.FLOAT16, ["m", 32])));
  expect(readModelBytes(after).proto.graph!.initializer.map(({ dataType, dims }) => [dataType, dims.join()])).toEqual([
    [T.FLOAT16, "32,3"],
  ]);
});
