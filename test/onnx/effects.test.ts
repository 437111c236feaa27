// What an option, an input or an order changes: each test would pass without it only if the code did not read it.
import { create } from "@bufbuild/protobuf";
import { existsSync, lstatSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { defineBlock, defineCodebook, float32, format } from "../../formats/index.ts";
import { tableValues } from "../../src/onnx/dequantize/codes.ts";
import { openStatistics } from "../../src/onnx/calibrate/file.ts";
import { inputGroups, passesOf, type InputGroup } from "../../src/onnx/calibrate/statistics.ts";
import { floatTensor } from "../../src/onnx/edit.ts";
import { ValueInfoProtoSchema, type NodeProto, type TensorProto } from "../../src/onnx/file/gen/onnx_pb.ts";
import { readBytes, tensorBytes } from "../../src/onnx/file/values.ts";
import { buildScopes, constantResolver, definingScope, inferTypes, resolveConstant } from "../../src/onnx/graph/graph.ts";
import {
  applyPasses,
  calibrateModel,
  calibrateToFile,
  convertModel,
  decideWeights,
  measureSensitivity,
  modelLayers,
  quantizeModel,
  quantizeModelBytes,
  readModel,
  readModelBytes,
  writeWeight,
  type Feeds,
} from "../../src/onnx/index.ts";
import { cutModel } from "../../src/onnx/calibrate/taps.ts";
import { findParting } from "../../src/onnx/verify/parting.ts";
import { shardsBeside } from "../../src/onnx/journal/shard.ts";
import { openRun } from "../../src/onnx/run.ts";
import { nbitsPlan } from "../../src/onnx/targets/nbits.ts";
import { imageFeeds } from "../../src/onnx/verify/images.ts";
import { T, encode, graph, matmulModel, model, node, raw, value, weights } from "./build.ts";

const folder = mkdtempSync(join(tmpdir(), "lowbit-effects-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const K = 32;
const w = (name: string, seed: number, dims = [K, K]): TensorProto => raw(name, dims, weights(dims.reduce((a, b) => a * b, 1), seed)); // prettier-ignore
const built = (node: NodeProto[], initializer: TensorProto[], x: (number | string)[], output: string[] = ["y"]) =>
  model(graph({ input: [value("x", T.FLOAT, x)], output: output.map((name) => create(ValueInfoProtoSchema, { name })), initializer, node })); // prettier-ignore
const feed = (dims: number[], seed = 7): Feeds => ({
  x: {
    type: "float32",
    data: weights(
      dims.reduce((a, b) => a * b, 1),
      seed,
    ),
    dims,
  },
});

describe("what a search over layers looks at", () => {
  test("outputs that were not asked for do not count", async () => {
    const bytes = encode(built([node("MatMul", ["x", "a"], ["y"], {}, "one"), node("MatMul", ["x", "b"], ["z"], {}, "two")], [w("a", 1), w("b", 2)], ["n", K], ["y", "z"])); // prettier-ignore
    const quantizeWith = async (rules: readonly { match: string }[]) =>
      (await quantizeModelBytes(bytes, { dtype: "q2", ...(rules.length > 0 ? { rules: rules as never } : {}), allowUnchanged: true })).bytes; // prettier-ignore
    const of = async (outputs?: string[]) =>
      (await measureSensitivity(bytes, quantizeWith, { layers: ["one", "two"], feeds: [feed([8, K])], ...(outputs ? { outputs } : {}) })).layers.map(({ name, sqnrDb }) => [name, sqnrDb === Infinity]).sort(); // prettier-ignore
    expect(await of()).toEqual([["one", false], ["two", false]]); // prettier-ignore
    expect(await of(["y"])).toEqual([["one", false], ["two", true]]); // prettier-ignore
    expect(await of(["z"])).toEqual([["one", true], ["two", false]]); // prettier-ignore
  });
  test("a target is searched over the layers that would be quantized", async () => {
    const nodes = [
      node("Conv", ["x", "c"], ["m"], { kernel_shape: { ints: [1, 1] } }, "conv"),
      node("MatMul", ["m", "a"], ["h"], {}, "one"),
      node("MatMul", ["h", "b"], ["y"], {}, "two"),
    ];
    const bytes = encode(built(nodes, [w("c", 3, [2, 2, 1, 1]), w("a", 1), w("b", 2)], [1, 2, 4, K]));
    const calibration = [feed([1, 2, 4, K]), feed([1, 2, 4, K], 8)];
    const noted = async (options: object) => {
      const { report } = await quantizeModelBytes(bytes, { targetSqnr: 60, calibration, ...options } as never);
      return /with all (\d+) layers quantized; [\w.]+ dB with (\d+) left out/.exec(report.notes.join("\n"))?.slice(1).map(Number);
    };
    // q4 has no convolutions: MatMul alone is tried
    expect(await noted({ dtype: "q2", allowUnchanged: true })).toEqual([2, 2]);
    expect((await noted({ activations: "uint8", allowUnchanged: true }))![0]).toBe(3);
  });
});

test("static quantization that finds nothing is an error, or where that is allowed the model as it is", async () => {
  const bytes = encode(matmulModel(w("w", 1), K, K));
  const options = { activations: "uint8", opTypes: ["Conv"], calibration: [feed([4, K])] } as const;
  await expect(quantizeModelBytes(bytes, options)).rejects.toThrow("expected operators with a constant weight in the main graph, got none");
  const same = await quantizeModelBytes(bytes, { ...options, allowUnchanged: true });
  expect(same.report.layers.map(({ name, format, reason }) => [name, format, reason])).toEqual([
    ["mm", null, "MatMul is not quantized unless opTypes (--op-types) names it"],
  ]);
  expect(same.report).toMatchObject({ quantized: 0, leftAlone: 1 });
  expect(Buffer.compare(same.bytes, bytes)).toBe(0);
  const half = await quantizeModelBytes(bytes, { ...options, allowUnchanged: true, dtype: "fp16" });
  expect(readModelBytes(half.bytes).proto.graph!.initializer.map(({ dataType }) => dataType)).toEqual([T.FLOAT16]);
});

describe("outputs and what lies beside them", () => {
  test("a run that can go on writes through a link, unless it may not", async () => {
    const input = join(folder, "in.onnx");
    writeFileSync(input, encode(matmulModel(w("w", 1), K, K)));
    mkdirSync(join(folder, "far"));
    const [link, target] = [join(folder, "out.onnx"), join(folder, "far", "out.onnx")];
    writeFileSync(target, "old");
    symlinkSync(target, link);
    await expect(quantizeModel(input, link, { dtype: "q4", resume: true, force: true, followLinks: false })).rejects.toThrow("got a link");
    await quantizeModel(input, link, { dtype: "q4", resume: true, force: true });
    expect([lstatSync(link).isSymbolicLink(), existsSync(target)]).toEqual([true, true]);
    expect(readModel(target).proto.graph!.node.map(({ opType }) => opType)).toEqual(["MatMulNBits"]);
  });
  test("shards are in the order of their numbers, not of their names", () => {
    const output = join(folder, "many.onnx");
    for (let i = 1; i <= 12; i++) writeFileSync(`${output}.${i}-of-12.shard`, "");
    writeFileSync(`${join(folder, "any.onnx")}.1-of-2.shard`, "");
    expect(shardsBeside(output).map(({ index }) => index)).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    expect(shardsBeside(output)[9].path).toBe(`${output}.10-of-12.shard`);
  });
  test("statistics with nothing held out have nothing held out", async () => {
    const input = join(folder, "stat.onnx");
    writeFileSync(input, encode(matmulModel(w("w", 1), K, K)));
    for (const [holdOut, held] of [
      [0, false],
      [0.5, true],
    ] as const) {
      // prettier-ignore
      const output = join(folder, `${holdOut}.stats`);
      await calibrateToFile(input, [feed([8, K]), feed([8, K], 8)], output, { holdOut });
      using opened = readModel(input);
      const statistics = openStatistics(output, opened);
      expect(statistics.hash).toMatch(/^[0-9a-f]{64}$/);
      const { heldOut } = statistics.of(inputGroups(opened, modelLayers(opened)).groups[0]);
      expect([holdOut, heldOut !== null]).toEqual([holdOut, held]);
      statistics.close();
    }
  });
});

describe("groups of layers in passes", () => {
  const group = (k: number, bytes: number, name = "g"): InputGroup =>
    ({ input: name, view: { k, groups: 1 }, layers: [{ name, bytes }] }) as never;
  test("a pass ends where its sums or its weights would pass the bound, not before", () => {
    const cut = (memory: number, stretch?: number, copies = 1): number[] =>
      passesOf([10, 20, 10, 20].map((k) => group(k, 100)), memory, copies, stretch).map((pass) => pass.length); // prettier-ignore
    expect(cut(8000)).toEqual([4]);
    expect(cut(7999)).toEqual([3, 1]);
    expect(cut(4000)).toEqual([2, 2]);
    expect(cut(3999)).toEqual([1, 1, 1, 1]);
    expect(cut(8000, undefined, 2)).toEqual([2, 2]);
    expect(cut(8000, 400)).toEqual([4]);
    expect(cut(8000, 399)).toEqual([3, 1]);
    expect(cut(8000, 200)).toEqual([2, 2]);
    expect(cut(8000, 199)).toEqual([1, 1, 1, 1]);
  });
  test("a layer that does not fit alone is named, with both sizes", () => {
    expect(() => passesOf([group(8, 1), group(1024, 1, "wide")], 2 ** 22, 1)).toThrow(
      "layer wide: expected room for its Hessian of 1024 inputs (8 MiB), got a bound of 4 MiB.",
    );
  });
});

describe("constants", () => {
  const found = (nodes: NodeProto[], initializer: TensorProto[], opset = 21) => {
    const read = readModelBytes(encode(Object.assign(built(nodes, initializer, [4]), { opsetImport: model(graph({ node: [] }), { opset }).opsetImport }))); // prettier-ignore
    return constantResolver(read)(buildScopes(read)[0], "y");
  };
  test("a zero point that is computed is no constant, one that is left out is none", () => {
    const init = [raw("q", [4], Int8Array.of(1, 2, 3, 4), T.INT8), raw("s", [], Float32Array.of(0.5)), raw("z", [], Int8Array.of(1), T.INT8)]; // prettier-ignore
    const point = node("Cast", ["x"], ["made"], { to: 3n });
    expect(found([point, node("DequantizeLinear", ["q", "s", "made"], ["y"])], init)).toBeNull();
    expect(found([point, node("DequantizeLinear", ["q", "made", "z"], ["y"])], init)).toBeNull();
    for (const inputs of [["q", "s", "z"], ["q", "s", ""], ["q", "s"]]) expect(found([node("DequantizeLinear", inputs, ["y"])], init)?.shape).toEqual([4]); // prettier-ignore
  });
  test("a size of zero is the input's, or zero where that is allowed", () => {
    const shaped = (dims: number[], to: number[], attributes = {}) =>
      found([node("Reshape", ["w", "to"], ["y"], attributes)], [raw("w", dims, new Float32Array(dims.reduce((a, b) => a * b, 1))), raw("to", [to.length], BigInt64Array.from(to, BigInt), T.INT64)])?.shape; // prettier-ignore
    expect(shaped([3, 4], [0, 2, 2])).toEqual([3, 2, 2]);
    expect(shaped([3, 0], [0, 3])).toBeUndefined();
    expect(shaped([3, 0], [0, 3], { allowzero: 0n })).toBeUndefined();
    expect(shaped([3, 0], [0, 3], { allowzero: 1n })).toEqual([0, 3]);
    expect(shaped([3, 0], [3, 0])).toEqual([3, 0]);
  });
  test("an empty tensor has no bytes, wherever they would be", () => {
    const read = readModelBytes(encode(matmulModel(w("w", 1), K, K)));
    expect(readBytes(read, raw("none", [0, 4], new Float32Array(0)))).toHaveLength(0);
    const typed = Object.assign(raw("typed", [2], new Float32Array(0)), { floatData: [1, 2] });
    expect(() => readBytes(read, typed)).toThrow('tensor "typed": expected raw data, got typed fields');
  });
  test("the first value that is not finite is named", () => {
    const read = readModelBytes(encode(matmulModel(w("w", 1, [4, 4]), 4, 4)));
    for (const at of [0, 1, 15])
      expect(() => writeWeight(read, modelLayers(read)[0], new Float32Array(16).fill(NaN, at))).toThrow(`got NaN at index ${at}.`);
  });
});

test("a name that is left out is no value, whatever is stored without a name", () => {
  const inner = graph({ output: [value("r", T.FLOAT, [4])], node: [node("Clip", ["x", "", "top"], ["r"])] });
  const read = readModelBytes(encode(built([node("If", ["c"], ["y"], { then_branch: inner, else_branch: inner })], [raw("", [], Float32Array.of(1)), raw("top", [], Float32Array.of(2)), raw("c", [], Uint8Array.of(1), T.BOOL)], [4]))); // prettier-ignore
  const scopes = buildScopes(read);
  const inside = scopes.find(({ parent }) => parent !== null)!;
  expect(["x", "top", "r", "none", ""].map((name) => definingScope(inside, name))).toEqual([scopes[0], scopes[0], inside, null, null]);
  expect([resolveConstant(inside, ""), constantResolver(read)(inside, ""), resolveConstant(inside, "top")?.name]).toEqual([null, null, "top"]); // prettier-ignore
});

test("tables in blocks along any axis: a scale, and a zero point, for each block of each column", () => {
  const [a, b, c] = [3, 8, 2];
  for (const axis of [0, 1, 2])
    for (const blockSize of [2, 3]) {
      const shape = [a, b, c];
      const blocked = shape.map((size, i) => (i === axis ? Math.ceil(size / blockSize) : size));
      const many = (dims: readonly number[]): number => dims.reduce((x, y) => x * y, 1);
      const codes = { data: Float64Array.from({ length: many(shape) }, (_, i) => (i * 7) % 16), shape, dataType: T.UINT4 };
      const of = (seed: number) => ({ data: weights(many(blocked), seed), shape: blocked, dataType: T.FLOAT });
      const [scales, zeros] = [of(1), { ...of(2), data: Float32Array.from({ length: many(blocked) }, (_, i) => (i * 5) % 16) }];
      for (const zeroPoints of [null, zeros]) {
        const { values, shape: made } = tableValues(codes, scales, zeroPoints, { axis, blockSize, perByte: 1, zero: 8 });
        expect(made).toEqual(shape);
        for (let i = 0, at = 0; i < a; i++)
          for (let j = 0; j < b; j++)
            for (let l = 0; l < c; l++, at++) {
              const [x, y, z] = [i, j, l].map((v, d) => (d === axis ? Math.floor(v / blockSize) : v));
              const group = (x * blocked[1] + y) * blocked[2] + z;
              const point = zeroPoints === null ? 8 : zeroPoints.data[group];
              expect(values[at]).toBe(Math.fround((codes.data[at] - point) * scales.data[group]));
            }
      }
    }
});

test("tables of two codes in a byte, their zero points too: rows of each are whole bytes", () => {
  for (const [rows, k, blockSize] of [
    [3, 32, 8],
    [4, 24, 8],
    [2, 16, 16],
  ]) {
    // prettier-ignore
    const blocks = k / blockSize;
    const bytes = (row: number): number => Math.ceil(row / 2);
    const code = (i: number): number => (i * 7 + 3) % 16;
    const point = (i: number): number => (i * 5 + 1) % 16;
    const packed = (row: number, of: (i: number) => number) =>
      Float64Array.from({ length: rows * bytes(row) }, (_, i) => {
        const [r, at] = [Math.floor(i / bytes(row)), 2 * (i % bytes(row))];
        return of(r * row + at) + 16 * (at + 1 < row ? of(r * row + at + 1) : 0);
      });
    const codes = { data: packed(k, code), shape: [rows, k / 2], dataType: T.UINT8 };
    const scales = { data: weights(rows * blocks), shape: [rows, blocks], dataType: T.FLOAT };
    const zeros = { data: packed(blocks, point), shape: [rows, bytes(blocks)], dataType: T.UINT8 };
    const { values, shape } = tableValues(codes, scales, zeros, { axis: 1, blockSize, perByte: 2, zero: 8 });
    expect(shape).toEqual([rows, k]);
    values.forEach((got, i) => {
      const group = Math.floor(i / blockSize);
      expect(got).toBe(Math.fround((code(i) - point(group)) * scales.data[group]));
    });
  }
});

test("a tensor of a type that nobody knows has no bytes", () => {
  expect([T.FLOAT, T.INT4, 99].map((type) => tensorBytes(raw("t", [3, 3], new Float32Array(0), type)))).toEqual([36, 5, 0]);
});

test("types that Cast named before opset 6", () => {
  const of = (attributes: Record<string, string>): number | undefined => {
    const scopes = buildScopes(readModelBytes(encode(built([node("Cast", ["x"], ["c"], attributes), node("Neg", ["c"], ["y"])], [], [2]))));
    return inferTypes(scopes, 5).get(scopes[0])!.get("c");
  };
  expect([{ to: "FLOAT16" }, { to: "int64" }, { to: "nope" }, { to: "constructor" }, {}].map(of as never)).toEqual([T.FLOAT16, T.INT64, 0, 0, 0]); // prettier-ignore
});

test("a backend that is given sums the products of the inputs", async () => {
  let asked = 0;
  const backend = new Proxy({}, { get: () => void asked++ }) as never;
  const read = (): ReturnType<typeof readModelBytes> => readModelBytes(encode(matmulModel(w("w", 1), K, K)));
  const opened = read();
  await decideWeights(opened, modelLayers(opened), () => ({ format: format("int4_b32"), algorithm: "gptq" }), [feed([64, K])], { backend }).catch(() => undefined); // prettier-ignore
  expect(asked).toBeGreaterThan(0);
});

describe("inputs that were given", () => {
  test("passes are checked on them: random ones need not fit the model", async () => {
    // five rows or none
    const shape = raw("five", [2], BigInt64Array.of(5n, BigInt(K)), T.INT64);
    const nodes = [node("Reshape", ["x", "five"], ["r"]), node("LayerNormalization", ["r", "g"], ["h"], {}, "norm"), node("MatMul", ["h", "a"], ["y"], {}, "one")]; // prettier-ignore
    const bytes = encode(built(nodes, [shape, w("a", 1), w("g", 3, [K])], ["n", K]));
    const options = { dtype: "q4", passes: ["fold-norm"] } as const;
    await expect(applyPasses(readModelBytes(bytes), options.passes)).rejects.toMatchObject({ code: "E_RUNTIME" });
    const { notes } = await convertModel(readModelBytes(bytes), { ...options, calibration: [feed([5, K])] });
    expect(notes.join("\n")).toMatch(/fold-norm: outputs differ by at most/);
  });
  test("a model that cannot run on them says whose they are", async () => {
    const session = await openRun(encode(matmulModel(w("w", 1), K, K)));
    await expect(session.run(feed([2, 3]))).rejects.toThrow(/^run: .*Give other inputs\.$/s);
    await session.release();
  });
  test("images for a model of bytes are their pixels, with the preset raw alone", async () => {
    const { default: sharp } = await import("sharp");
    const path = join(folder, "dots.png");
    const pixels = Uint8Array.from({ length: 12 }, (_, i) => 20 * i);
    writeFileSync(path, await sharp(pixels, { raw: { width: 2, height: 2, channels: 3 } }).png().toBuffer()); // prettier-ignore
    const inputs = (type: string) => [{ name: "x", type, shape: [1, 2, 2, 3] }] as never;
    const [{ x }] = await imageFeeds(path, "raw", inputs("uint8"), 1);
    expect([x.type, x.data]).toEqual(["uint8", pixels]);
    expect((await imageFeeds(path, "unit", inputs("float32"), 1))[0].x.type).toBe("float32");
    expect((await imageFeeds(path, "raw", inputs("float16"), 1))[0].x.data).toBeInstanceOf(Uint16Array);
    for (const [preset, type] of [["unit", "uint8"], ["raw", "int8"]]) await expect(imageFeeds(path, preset, inputs(type), 1)).rejects.toThrow(`got ${type}`); // prettier-ignore
  });
});

test("numbers of the file that do not end, or are too long, are damage", () => {
  const bytes = encode(matmulModel(w("w", 1), K, K));
  for (const more of [[0x80], [0x08, 0x80], [0x08, ...new Array<number>(10).fill(0xff), 0x01]])
    expect(() => readModelBytes(Uint8Array.from([...bytes, ...more]))).toThrow(/an unfinished number/);
});

test("a NaN of any bits stays one in bfloat16", () => {
  const read = readModelBytes(encode(matmulModel(w("w", 1), K, K)));
  const values = new Float32Array(Uint32Array.of(0x7fffffff, 0xffffffff, 0x7f800001, 0x7f800000, 0x3f808000).buffer);
  const { rawData } = floatTensor(read, "t", [5], values, T.BFLOAT16);
  const codes = [...new Uint16Array(rawData!.slice().buffer)];
  expect(codes.map((code) => (code & 0x7f80) === 0x7f80 && (code & 0x7f) !== 0)).toEqual([true, true, true, false, false]);
  expect(codes.slice(3)).toEqual([0x7f80, 0x3f80]);
});

test("a plan of MatMulNBits has room for the largest value of a format beside its zero", () => {
  const plan = (values: number[]) => nbitsPlan(defineBlock({ element: defineCodebook({ name: "some", values }), scales: [{ format: float32, span: 32 }] }), 64); // prettier-ignore
  // of 4 bits codes are -8 to 7
  expect(plan([-8, -4, -2, -1, 0, 1, 2, 4])).toMatchObject({ bits: 4, asIs: false });
  expect(plan([-8, -4, -2, 0, 1, 2, 4, 8])).toMatchObject({ bits: 8, asIs: false });
  expect(plan([-1, 0, 1, 2])).toMatchObject({ bits: 4 });
  expect(plan([-2, -1, 0, 1])).toMatchObject({ bits: 2 });
});

describe("the node where two runtimes part", () => {
  const bytes = encode(built([node("Relu", ["x"], ["r"], {}, "one"), node("Neg", ["r"], ["y"], {}, "two")], [w("w", 1)], [K]));
  /** A runtime whose values are all v; how many of its sessions are open. */
  const fake = (v: number, fails = false) => {
    const state = { open: 0 };
    const open = async () => {
      state.open++;
      return {
        run: async (_: Feeds, names: readonly string[]) => {
          if (fails) throw new Error("no such output");
          return { outputs: new Map(names.map((name) => [name, { type: "float32", dims: [2], data: Float32Array.of(v, 1) }])) };
        },
        close: async () => void state.open--,
      };
    };
    return { state, runtime: { name: "fake", version: "1", open } as never };
  };
  const parts = (output: string, other: ReturnType<typeof fake>) =>
    findParting(bytes, { output, feeds: feed([K]), sqnrDb: 3, limitDb: 40 }, { trusted: fake(2).runtime, other: other.runtime });
  test("is named, or why there is none", async () => {
    expect(await parts("y", fake(3))).toMatchObject({ node: "one", opType: "Relu", value: "r", inputsDb: Infinity });
    expect(await parts("w", fake(3))).toMatchObject({ node: null, value: "w", reason: "no node makes it" });
    const gone = (await parts("y", fake(2))).reason;
    expect(gone).toBe("the difference is gone where values between one and two are outputs: it is in what the runtime fuses there");
  });
  test("a runtime that fails is left without sessions", async () => {
    const failing = fake(3, true);
    expect((await parts("y", failing)).reason).toBe("the runtimes do not give intermediate values: no such output");
    expect(failing.state.open).toBe(0);
  });
});

test("a cut keeps what is known of the values that it makes, and of no others", () => {
  const proto = built([node("Relu", ["x"], ["a"]), node("Neg", ["a"], ["b"]), node("Abs", ["b"], ["y"])], [], [K]);
  for (const name of ["a", "b", "y"]) proto.graph!.valueInfo.push(value(name, T.FLOAT, [K]));
  const read = readModelBytes(encode(proto));
  const known = (...args: Parameters<typeof cutModel>) => cutModel(...args).proto.graph!.valueInfo.map(({ name }) => name);
  expect(known(read, ["b"])).toEqual(["a", "b"]);
  expect(known(read, ["y"], new Map([["a", value("a", T.FLOAT, [K])]]))).toEqual(["b", "y"]);
});

test("calibration behind weights of several MB, which the runtime gets as a file", async () => {
  const wide = 1040;
  const [first, second] = [w("a", 1, [4, wide]), w("m", 2, [wide, wide])];
  const nodes = [node("MatMul", ["x", "a"], ["h"], {}, "one"), node("MatMul", ["h", "m"], ["t"], {}, "two"), node("MatMul", ["t", "b"], ["y"], {}, "three")]; // prettier-ignore
  const read = readModelBytes(encode(built(nodes, [first, second, w("b", 3, [wide, 2])], ["n", 4])));
  const { layers } = await calibrateModel(read, [feed([3, 4])], { layers: ["three"], holdOut: 0 });
  const [x, a, m] = [weights(12, 7), weights(4 * wide, 1), weights(wide * wide, 2)];
  const h = Float64Array.from({ length: 3 * wide }, (_, i) => [0, 1, 2, 3].reduce((sum, j) => sum + x[4 * Math.floor(i / wide) + j] * a[j * wide + (i % wide)], 0)); // prettier-ignore
  let square = 0;
  for (let r = 0; r < 3; r++) square += h.subarray(r * wide, (r + 1) * wide).reduce((sum, v, j) => sum + v * m[j * wide], 0) ** 2;
  const [{ hessian, rows }] = layers.get("three")!.statistics;
  expect(rows).toBe(3);
  expect(hessian![0] / square).toBeCloseTo(1, 4);
});
