// Models of which a part runs here and the rest in onnxruntime: cuts, values that cross them, sessions made of parts.
import { expect, test, vi } from "vitest";
import * as ort from "onnxruntime-node";
import { create, fromBinary } from "@bufbuild/protobuf";
import { decoderModel } from "../../bench/decode-model.ts";
import type { GraphProto, ModelProto, NodeProto } from "../../src/onnx/file/gen/onnx_pb.ts";
import { ModelProtoSchema, OperatorSetIdProtoSchema, SparseTensorProtoSchema } from "../../src/onnx/file/gen/onnx_pb.ts";
import { readModelBytes, writeModelBytes } from "../../src/onnx/file/io.ts";
import type { OnnxModel } from "../../src/onnx/file/model.ts";
import { quantizeModelBytes, type ConvertOptions as QuantizeOptions } from "../../src/onnx/index.ts";
import { loadModel, type Session } from "../../src/runtime/index.ts";
import { partition } from "../../src/runtime/compile/partition.ts";
import { describe } from "../../src/runtime/session.ts";
import { sessionOfParts } from "../../src/runtime/parts.ts";
import { encode, external, graph, model, node, raw, T, value } from "../onnx/build.ts";
import { random } from "../helpers/random.ts";
import { randomGraph } from "./graphs.ts";
import { compare } from "./judge.ts";
import { f32, i64, numbers } from "./make.ts";

/** A session of parts, however little of the model one of them has; parts go through bytes, as models of their own. */
async function inParts(given: Uint8Array | OnnxModel): Promise<Session> {
  const whole = given instanceof Uint8Array ? readModelBytes(given) : given;
  const init = {
    missing: ["?"],
    runtime: ort as never,
    profile: true,
    device: false,
    open: (part: OnnxModel) => loadModel(writeModelBytes(part)),
  };
  return (await sessionOfParts(whole, { ...describe(whole), agree: true }, init, [0, 0]))!;
}

const foreignSteps = (session: Session): string[] =>
  session
    .explain()
    .steps.filter(({ kernel }) => kernel === "onnxruntime")
    .map(({ operator }) => operator);

const bool = (name: string, v: boolean) => raw(name, [], Uint8Array.of(v ? 1 : 0), T.BOOL);
const int = (name: string, v: number) => raw(name, [], BigInt64Array.of(BigInt(v)), T.INT64);
const open = (name: string, type: number): ReturnType<typeof value> => {
  const info = value(name, type, []);
  if (info.type?.value.case === "tensorType") info.type.value.value.shape = undefined;
  return info;
};

/** A body of Loop that runs once, and takes `x` from outside. */
const body = (x: string, made: string): GraphProto =>
  graph({
    input: [value("i", T.INT64, []), value("go", T.BOOL, [])],
    output: [value("go on", T.BOOL, []), open(made, T.FLOAT)],
    node: [node("Identity", ["go"], ["go on"]), node("Neg", [x], ["minus"]), node("Neg", ["minus"], [made])],
  });

/** Nodes that hand a float32 value on through what this runtime does not have. */
const WAYS: Record<string, (x: string, y: string) => NodeProto[]> = {
  operator: (x, y) => [node("Shrink", [x], [y], { lambd: 0, bias: 0 })],
  double: (x, y) => [node("Cast", [x], [`${y} d`], { to: BigInt(T.DOUBLE) }), node("Cast", [`${y} d`], [y], { to: BigInt(T.FLOAT) })],
  string: (x, y) => [node("Cast", [x], [`${y} s`], { to: BigInt(T.STRING) }), node("Cast", [`${y} s`], [y], { to: BigInt(T.FLOAT) })],
  sequence: (x, y) => [node("SequenceConstruct", [x, x], [`${y} q`]), node("SequenceAt", [`${y} q`, "one"], [y])],
  optional: (x, y) => [node("Optional", [x], [`${y} o`]), node("OptionalGetElement", [`${y} o`], [y])],
  // the value that the body makes, of which Loop gives a list of one
  loop: (x, y) => [node("Loop", ["one", "yes"], [`${y} l`], { body: body(x, `${y} b`) }), node("Squeeze", [`${y} l`, "axis"], [y])],
  // a branch that this runtime has beside one that it has not, over a value from outside
  branch: (x, y) => [
    node("ReduceMax", [x], [`${y} m`], { keepdims: 0n }),
    node("Less", [`${y} m`, "large"], [`${y} c`]),
    node("If", [`${y} c`], [y], {
      then_branch: graph({ output: [open(`${y} t`, T.FLOAT)], node: [node("Shrink", [x], [`${y} t`], { lambd: 0, bias: 0 })] }),
      else_branch: graph({ output: [open(`${y} e`, T.FLOAT)], node: [node("Neg", [x], [`${y} e`])] }),
    }),
  ],
};

/** Puts such nodes on some values between the nodes of a graph, and makes some values outputs. */
function withForeign(bytes: Uint8Array, draw: (below: number) => number): { bytes: Uint8Array; ways: string[] } {
  const proto: ModelProto = fromBinary(ModelProtoSchema, bytes);
  const main = proto.graph!;
  // floats, whatever a quantizer put beside them
  const made = new Set(
    [...main.input.map(({ name }) => name), ...main.node.flatMap((n) => n.output)].filter((name) => /^[vx]\d+$/.test(name)),
  );
  const names = Object.keys(WAYS);
  const ways: string[] = [];
  main.node = main.node.flatMap((n) => {
    const at = draw(n.input.length);
    const x = n.input[at];
    if (draw(4) !== 0 || !made.has(x)) return [n];
    const way = names[draw(names.length)];
    const y = `w${ways.length}`;
    ways.push(way);
    n.input[at] = y;
    if (draw(4) === 0) main.output.push(open(y, T.FLOAT));
    return [...WAYS[way](x, y), n];
  });
  main.initializer.push(int("one", 1), bool("yes", true), raw("axis", [1], BigInt64Array.of(0n), T.INT64), raw("large", [], Float32Array.of(1e30))); // prettier-ignore
  return { bytes: encode(proto), ways };
}

const FIRST = Number(process.env.PARTS_SEED ?? 1);
const COUNT = Number(process.env.PARTS ?? 30);

test(`${COUNT} random graphs with nodes for onnxruntime between others: its values`, async () => {
  let most = 0;
  const seen = new Set<string>();
  for (let seed = FIRST; seed < FIRST + COUNT; seed++) {
    const { integer } = random(seed);
    const { bytes: plain, feeds, text } = randomGraph(integer, 4 + integer(14));
    const { bytes, ways } = withForeign(plain, integer);
    try {
      const session = await inParts(bytes);
      await compare(bytes, feeds, 1e-4, session);
      most = Math.max(most, foreignSteps(session).length);
      await session.release();
    } catch (error) {
      throw new Error(`seed ${seed}: ${text}; ${ways.join(" ")}`, { cause: error });
    }
    for (const way of ways) seen.add(way);
  }
  expect([...seen].sort()).toEqual(Object.keys(WAYS).sort());
  expect(most).toBeGreaterThan(2);
});

const FORMS: readonly (readonly [QuantizeOptions, number])[] = [
  [{ dtype: "q4" }, 1e-4],
  // codes of activations differ by one where sums differ in their last bits
  [{ dtype: "uint8" }, 5e-2],
  [{ dtype: "bnb4" }, 1e-4],
  [{ format: "mxfp4", target: "stored" }, 1e-4],
];

test(`${COUNT} random graphs, quantized, with nodes for onnxruntime between others`, async () => {
  for (let seed = FIRST; seed < FIRST + COUNT; seed++) {
    const { integer } = random(seed);
    const { bytes: plain, feeds, text } = randomGraph(integer, 4 + integer(14));
    const [options, limit] = FORMS[seed % FORMS.length];
    const { bytes, ways } = withForeign((await quantizeModelBytes(plain, options)).bytes, integer);
    const session = await inParts(bytes);
    await compare(bytes, feeds, limit, session).catch((error: unknown) => {
      throw new Error(`seed ${seed}, ${JSON.stringify(options)}: ${text}; ${ways.join(" ")}`, { cause: error });
    });
    await session.release();
  }
});

test.each(["FLOAT16", "INT8", "UINT8", "INT16", "UINT16", "INT32", "UINT32", "INT64", "BOOL"] as const)(
  "%s goes from part to part",
  async (type) => {
    const to = BigInt(T[type]);
    const bytes = encode(
      model(
        graph({
          input: [value("x", T.FLOAT, ["n"])],
          output: [open("y", T.FLOAT), open("b", T[type])],
          initializer: [int("one", 1)],
          node: [node("Abs", ["x"], ["p"]), node("Cast", ["p"], ["a"], { to }), ...WAYS.sequence("a", "b"), node("Cast", ["b"], ["c"], { to: BigInt(T.FLOAT) }), node("Neg", ["c"], ["y"])], // prettier-ignore
        }),
      ),
    );
    const session = await inParts(bytes);
    expect(foreignSteps(session)).toEqual(["SequenceConstruct, SequenceAt"]);
    expect(session.explain().steps.map(({ kernel }) => kernel === "onnxruntime")).toContain(false);
    const feeds = { x: f32(1, [7], -3, 3) };
    const judge = await ort.InferenceSession.create(bytes, { logSeverityLevel: 4, graphOptimizationLevel: "disabled" });
    const wanted = await judge.run({ x: new ort.Tensor(feeds.x.data, [7]) });
    const got = await session.run(feeds);
    for (const name of ["y", "b"]) expect([got[name].type, [...(got[name].data as Float32Array)]]).toEqual([wanted[name].type, [...(wanted[name].data as Float32Array)]]); // prettier-ignore
    await judge.release();
    await session.release();
  },
);

test("branches over constants, values that only a dead branch reads, sparse constants, weights outside", async () => {
  const k = raw("k", [2], Float32Array.of(2, 3));
  const sparse = create(SparseTensorProtoSchema, { values: raw("s", [1], Float32Array.of(5)), indices: raw("at", [1], BigInt64Array.of(1n), T.INT64), dims: [2n] }); // prettier-ignore
  const proto = model(
    graph({
      input: [value("x", T.FLOAT, ["n", 2])],
      output: [open("y", T.FLOAT), open("w", T.FLOAT), open("z", T.FLOAT), open("k2", T.FLOAT), open("k", T.FLOAT)],
      initializer: [bool("yes", true), k, external("w0", [2, 2], { location: "w.bin", length: "16" })],
      node: [
        ...WAYS.operator("x", "unread"),
        node("Neg", ["k"], ["k2"]),
        node("If", ["yes"], ["y"], {
          then_branch: graph({ output: [open("t", T.FLOAT)], node: [node("Mul", ["x", "k2"], ["t"])] }),
          else_branch: graph({ output: [open("e", T.FLOAT)], node: [node("Neg", ["unread"], ["e"])] }),
        }),
        node("Add", ["y", "s"], ["z"]),
        node("MatMul", ["z", "w0"], ["m"]),
        ...WAYS.operator("m", "o"),
        node("Add", ["o", "k2"], ["w"]),
      ],
    }),
  );
  proto.graph!.sparseInitializer.push(sparse);
  const outside = new Uint8Array(Float32Array.of(1, 2, 3, 4).buffer);
  const whole = readModelBytes(encode(proto), { "w.bin": outside });
  const session = await inParts(whole);
  expect(foreignSteps(session).join()).toContain("Add");
  await compare(writeModelBytes(whole), { x: f32(3, [2, 2]) }, 1e-5, session);
  await session.release();
});

test("where nodes go: beside what alone reads them; all between two readers of a sequence to onnxruntime", async () => {
  const ends = { input: [value("x", T.FLOAT, ["n"]), value("z", T.FLOAT, ["n"])], output: [open("y", T.FLOAT)] };
  const late = encode(model(graph({ ...ends, node: [node("Neg", ["z"], ["b"]), ...WAYS.operator("x", "a"), node("Add", ["a", "b"], ["y"])] }))); // prettier-ignore
  const sequence = encode(
    model(
      graph({
        ...ends,
        initializer: [int("one", 1)],
        node: [
          node("SequenceConstruct", ["x", "z"], ["q"]),
          node("SequenceAt", ["q", "one"], ["a"]),
          node("Neg", ["a"], ["b"]),
          node("SequenceInsert", ["q", "b"], ["r"]),
          node("ConcatFromSequence", ["r"], ["c"], { axis: 0n }),
          node("Abs", ["c"], ["y"]),
        ],
      }),
    ),
  );
  const cases = [[late, ["Shrink", "Neg, Add"]], [sequence, ["SequenceConstruct, SequenceAt, Neg, SequenceInsert, ConcatFromSequence", "Abs"]]] as const; // prettier-ignore
  for (const [bytes, wanted] of cases) {
    expect(partition(readModelBytes(bytes), false, [0, 0])!.map(({ operators }) => operators.join(", "))).toEqual(wanted);
    const session = await inParts(bytes);
    await compare(bytes, { x: f32(1, [3]), z: f32(2, [3]) }, 0, session);
    await session.release();
  }
});

test("inputs with a default are constants, as in either runtime's sessions", async () => {
  const bytes = encode(
    model(
      graph({
        input: [value("x", T.FLOAT, [2]), value("k", T.FLOAT, [2])],
        output: [open("y", T.FLOAT)],
        initializer: [raw("k", [2], Float32Array.of(2, 3))],
        node: [...WAYS.operator("x", "a"), node("Mul", ["a", "k"], ["y"])],
      }),
    ),
  );
  const session = await inParts(bytes);
  const feed = (...data: number[]) => ({ type: "float32", dims: [2], data: Float32Array.from(data) });
  expect((await session.run({ x: feed(1, 2) })).y.data).toEqual(Float32Array.of(2, 6));
  await expect(session.run({ x: feed(1, 2), k: feed(5, 7) })).rejects.toThrow(/Inputs with a default value cannot be fed/);
  await session.release();
});

/** Sound through STFT into products of 4 bits and NonMaxSuppression; a value in between is an output. */
async function detector(options: QuantizeOptions | null = { dtype: "q4" }): Promise<Uint8Array> {
  const weight = (name: string, k: number, n: number, seed: number) => raw(name, [k, n], numbers(seed, k * n, -0.3, 0.3));
  const proto = model(
    graph({
      input: [value("sound", T.FLOAT, [1, "samples", 1])],
      output: [open("hidden", T.FLOAT), open("chosen", T.INT64), open("sound", T.FLOAT), open("axes", T.INT64)],
      initializer: [
        int("step", 32),
        raw("window", [62], numbers(1, 62, 0.5, 1)),
        raw("most", [1], BigInt64Array.of(3n), T.INT64),
        raw("overlap", [1], Float32Array.of(0.5)),
        raw("axes", [1], BigInt64Array.of(2n), T.INT64),
        ...[0, 4, 5].map((v) => raw(`at${v}`, [1], BigInt64Array.of(BigInt(v)), T.INT64)),
        weight("w1", 32, 96, 2),
        weight("w2", 96, 96, 3),
        weight("w3", 96, 32, 4),
      ],
      node: [
        node("STFT", ["sound", "step", "window"], ["spectrum"], {}, "stft"),
        node("ReduceSumSquare", ["spectrum"], ["power"], { axes: { ints: [-1] }, keepdims: 0n }),
        node("MatMul", ["power", "w1"], ["a"], {}, "first"),
        node("Tanh", ["a"], ["b"]),
        node("MatMul", ["b", "w2"], ["c"], {}, "second"),
        node("Tanh", ["c"], ["hidden"]),
        node("MatMul", ["hidden", "w3"], ["d"], {}, "third"),
        node("Slice", ["d", "at0", "at4", "axes"], ["boxes"]),
        node("Slice", ["d", "at4", "at5", "axes"], ["e"]),
        node("Transpose", ["e"], ["scores"], { perm: { ints: [0, 2, 1] } }),
        node("NonMaxSuppression", ["boxes", "scores", "most", "overlap"], ["chosen"], {}, "nms"),
      ],
    }),
  );
  const bytes = encode(proto);
  return options === null ? bytes : (await quantizeModelBytes(bytes, options)).bytes;
}
const sound = { sound: f32(9, [1, 512, 1]) };

/** onnxruntime as a module that does not say it is native, its sessions counted; `fail`: the one that is not made. */
function counting(fail = Infinity) {
  let [made, alive, running] = [0, 0, 0];
  const InferenceSession = {
    async create(bytes: Uint8Array, options: object) {
      if (++made === fail) throw new Error("refused");
      const session = await ort.InferenceSession.create(bytes, options);
      alive++;
      return {
        outputNames: session.outputNames,
        async run(...args: Parameters<typeof session.run>) {
          running++;
          try {
            await new Promise(setImmediate);
            return await session.run(...args);
          } finally {
            running--;
          }
        },
        async release() {
          if (running > 0) throw new Error("released in a run");
          alive--;
          await session.release();
        },
      };
    },
  };
  return { runtime: { InferenceSession, Tensor: ort.Tensor } as never, alive: () => alive, made: () => made, running: () => running };
}

test("before and after packed products: what loadModel does, and explain says", async () => {
  const bytes = await detector();
  const session = await loadModel(bytes, { fallback: counting().runtime, profile: true });
  await compare(bytes, sound, 1e-4, session);
  const { runtime, missing, steps, folded } = session.explain();
  expect({ runtime, missing }).toEqual({ runtime: "lowbit", missing: ["NonMaxSuppression", "STFT"] });
  expect(folded).toBeGreaterThanOrEqual(0);
  const named = steps.map(({ name, operator, kernel }) => (kernel === "onnxruntime" ? `${name} ${operator}` : operator));
  expect([named[0], named.at(-1)]).toEqual(["model part 1 (STFT) STFT", "model part 3 (NonMaxSuppression) NonMaxSuppression"]);
  expect(named.filter((operator) => operator === "com.microsoft.MatMulNBits")).toHaveLength(3);
  expect(steps.every(({ ms }) => ms! > 0)).toBe(true);
  // what nobody asked for is not run, in either runtime
  const before = session.explain().steps.at(-1)!.ms;
  expect(Object.keys(await session.run(sound, ["hidden"]))).toEqual(["hidden"]);
  expect(session.explain().steps.at(-1)!.ms).toBe(before);
  // an input that is an output leaves as a copy
  const out = (await session.run(sound, ["sound"])).sound;
  expect(out.data).toEqual(sound.sound.data);
  expect(out.data).not.toBe(sound.sound.data);
  expect(() => session.decoder()).toThrow(/decoder: expected .* got a model with model part 1 \(STFT\); model part 3 .* in onnxruntime/);
  await session.release();
});

test("onnxruntime-web: the same parts, its module given", async () => {
  const bytes = await detector();
  const session = await loadModel(bytes, { fallback: await import("onnxruntime-web") });
  expect(foreignSteps(session)).toEqual(["STFT", "NonMaxSuppression"]);
  await compare(bytes, sound, 1e-4, session);
  await session.release();
});

test.each([
  [null, "onnxruntime"],
  [{ dtype: "q4" }, "onnxruntime"],
  [{ format: "mxfp4", target: "stored" }, "lowbit"],
] as const)("beside native kernels of onnxruntime only what it has none for runs here: %j", async (options, runtime) => {
  const bytes = await detector(options);
  const session = await loadModel(bytes, { fallback: "onnxruntime" });
  expect(session.explain().runtime).toBe(runtime);
  await compare(bytes, sound, 1e-4, session);
  await session.release();
});

test("few of the products here, or in one part: as a whole", async () => {
  const { runtime } = counting();
  // a Loop with more weights than all products outside
  const body = graph({
    input: [value("i", T.INT64, []), value("go", T.BOOL, [])],
    output: [value("go on", T.BOOL, []), open("o", T.FLOAT)],
    initializer: [raw("v", [64, 200], numbers(3, 12800))],
    node: [node("Identity", ["go"], ["go on"]), node("MatMul", ["a", "v"], ["o"])],
  });
  const made = (width: number) =>
    encode(
      model(
        graph({
          input: [value("x", T.FLOAT, [2, width])],
          output: [open("y", T.FLOAT)],
          initializer: [raw("w", [width, 64], numbers(1, 64 * width)), int("one", 1), bool("yes", true)],
          node: [node("MatMul", ["x", "w"], ["a"]), node("Loop", ["one", "yes"], ["y"], { body })],
        }),
      ),
    );
  for (const [width, wanted] of [
    [199, "onnxruntime"],
    [201, "lowbit"],
  ] as const) {
    const session = await loadModel(made(width), { fallback: runtime });
    expect(session.explain().runtime).toBe(wanted);
    await compare(made(width), { x: f32(1, [2, width]) }, 1e-5, session);
    await session.release();
  }
});

test("a part that either runtime refuses: the whole model is onnxruntime's, and nothing stays", async () => {
  const bytes = await detector();
  const { runtime, alive, made } = counting(2);
  const session = await loadModel(bytes, { fallback: runtime });
  expect([session.explain().runtime, made(), alive()]).toEqual(["onnxruntime", 3, 1]);
  await session.release();
  expect(alive()).toBe(0);
});

test("release frees every part once, and ends runs", async () => {
  const { runtime, alive, running } = counting();
  const session = await loadModel(await detector(), { fallback: runtime });
  expect(alive()).toBe(2);
  const [first, second] = [session.run(sound), session.run(sound)];
  while (running() === 0) await null;
  await Promise.all([session.release(), session.release()]);
  expect(alive()).toBe(0);
  await expect(first).rejects.toMatchObject({ code: "E_DISPOSED" });
  await expect(second).rejects.toMatchObject({ code: "E_DISPOSED" });
  await expect(session.run(sound)).rejects.toMatchObject({ code: "E_DISPOSED" });
  const stop = new AbortController();
  const loading = loadModel(await detector(), { fallback: runtime, signal: stop.signal });
  stop.abort();
  await expect(loading).rejects.toMatchObject({ code: "E_ABORTED" });
  expect(alive()).toBe(0);
});

test("errors name the part, or the feed", async () => {
  const session = await loadModel(await detector(), { fallback: counting().runtime });
  const short = { sound: f32(9, [1, 8, 1]) };
  await expect(session.run(short)).rejects.toMatchObject({
    code: "E_RUNTIME",
    message: expect.stringMatching(/^model part 1 \(STFT\): expected a run in onnxruntime with sound float32\[1, 8, 1\], got /),
  });
  await expect(session.run({})).rejects.toThrow(/expected "sound", got no "sound"/);
  await expect(session.run({ ...sound, other: sound.sound })).rejects.toThrow(/got also "other"/);
  await expect(session.run(sound, ["power"])).rejects.toThrow(/expected some of .* got "power"/);
  // a run that fails does not end the session
  expect((await session.run(sound)).hidden.dims).toEqual([1, 15, 96]);
  await session.release();
});

test("without onnxruntime: the operators that need it", async () => {
  const gone = () => {
    throw new Error("Cannot find package");
  };
  vi.doMock("onnxruntime-node", gone);
  vi.doMock("onnxruntime-web", gone);
  try {
    await expect(loadModel(await detector(), { fallback: "onnxruntime" })).rejects.toMatchObject({
      code: "E_RUNTIME",
      message: expect.stringMatching(/expected onnxruntime-node or onnxruntime-web for the operators NonMaxSuppression, STFT, got/),
    });
  } finally {
    vi.doUnmock("onnxruntime-node");
    vi.doUnmock("onnxruntime-web");
  }
});

test("words in and out: strings are fed to onnxruntime's parts and come from them", async () => {
  const strings = ["a", "b", "c", "d"];
  const encoder = node("LabelEncoder", ["words"], ["ids"], { keys_strings: { strings }, values_int64s: { ints: [0, 1, 2, 3] } });
  const decoder = node("LabelEncoder", ["best"], ["labels"], { keys_int64s: { ints: [0, 1, 2, 3] }, values_strings: { strings } });
  for (const n of [encoder, decoder]) n.domain = "ai.onnx.ml";
  const proto = model(
    graph({
      input: [value("words", T.STRING, ["n"])],
      output: [open("labels", T.STRING), open("scores", T.FLOAT)],
      initializer: [raw("table", [4, 64], numbers(1, 256)), raw("w1", [64, 64], numbers(2, 4096)), raw("w2", [64, 4], numbers(3, 256))],
      node: [
        encoder,
        node("Gather", ["table", "ids"], ["x"]),
        node("MatMul", ["x", "w1"], ["y"], {}, "first"),
        node("MatMul", ["y", "w2"], ["scores"], {}, "second"),
        node("ArgMax", ["scores"], ["best"], { axis: 1n, keepdims: 0n }),
        decoder,
      ],
    }),
  );
  proto.opsetImport.push(create(OperatorSetIdProtoSchema, { domain: "ai.onnx.ml", version: 3n }));
  const { bytes } = await quantizeModelBytes(encode(proto), { dtype: "q4" });
  const session = await loadModel(bytes, { fallback: counting().runtime });
  // the type that LabelEncoder gives is not known here: its reader stays with it
  expect(foreignSteps(session)).toEqual(["ai.onnx.ml.LabelEncoder, Gather", "ai.onnx.ml.LabelEncoder"]);
  expect([session.inputMetadata, session.outputMetadata].map(([{ type }]) => type)).toEqual(["string", "string"]);
  const words = { type: "string", dims: [3], data: ["d", "a", "c"] };
  const got = await session.run({ words });
  const judge = await ort.InferenceSession.create(bytes);
  const wanted = await judge.run({ words: new ort.Tensor("string", words.data, [3]) });
  expect(got.labels.data).toEqual(wanted.labels.data);
  for (const [i, v] of (wanted.scores.data as Float32Array).entries()) expect((got.scores.data as Float32Array)[i]).toBeCloseTo(v, 3);
  await judge.release();
  await session.release();
});

test("a decoder whose logits go on in onnxruntime is one; one with such operators inside is none, and runs", async () => {
  const sizes = { hidden: 64, heads: 4, kvHeads: 2, size: 16, ffn: 96, layers: 2, vocabulary: 160, positions: 64, level: 0 };
  const plain = decoderModel(sizes);
  const changed = (change: (main: GraphProto) => void): Uint8Array => {
    const proto = fromBinary(ModelProtoSchema, plain);
    change(proto.graph!);
    return encode(proto);
  };
  const after = changed((main) => {
    main.node.push(node("Hardmax", ["logits"], ["choice"]));
    main.output.push(open("choice", T.FLOAT));
  });
  const session = await loadModel(after, { fallback: "onnxruntime" });
  expect(foreignSteps(session)).toEqual(["Hardmax"]);
  const alone = await loadModel(plain);
  const [a, b] = [session.decoder(), alone.decoder()];
  expect(a.prefill([1, 2, 3])).toEqual(b.prefill([1, 2, 3]));
  expect(a.step(4)).toEqual(b.step(4));
  const past = (layer: number) =>
    Object.fromEntries(["key", "value"].map((of) => [`past_key_values.${layer}.${of}`, f32(layer + 1, [1, 2, 5, 16])]));
  const feeds = { input_ids: i64([1, 2], [3, 4]), attention_mask: i64([1, 7], Array<number>(7).fill(1)), ...past(0), ...past(1) };
  await compare(after, feeds, 1e-3, session);
  await session.release();
  await alone.release();
  const inside = changed((main) => {
    const first = main.node.find(({ output }) => output.includes("embedding"))!;
    first.output[0] = "table row";
    main.node.push(...WAYS.operator("table row", "embedding"));
  });
  const other = await loadModel(inside, { fallback: "onnxruntime" });
  expect(() => other.decoder()).toThrow(/in one part that runs here, got a model with model part 1 \(.*Shrink.*\) in onnxruntime/);
  await compare(inside, feeds, 1e-3, other);
  await other.release();
});
