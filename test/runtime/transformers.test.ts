// lowbit/transformers: five pipelines of transformers.js from local folders, its default device, with and without the
// import: the same results.
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { env, pipeline, RawImage, type DataType } from "@huggingface/transformers";
import { InferenceSession, Tensor } from "onnxruntime-node";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { quantizeModelBytes } from "../../src/onnx/index.ts";
import { encode, graph, model, node, raw, T, value } from "../onnx/build.ts";
import type * as Door from "../../src/runtime/transformers.ts";
import { numbers } from "./make.ts";
import { writePipelines } from "./pipelines.ts";
import { halfSpelledModel, SPELLED } from "./spelled.ts";

const folder = mkdtempSync(join(tmpdir(), "lowbit-pipelines-"));
const plain = InferenceSession.create;
let door: typeof Door;
const heard: string[] = [];

beforeAll(async () => {
  env.allowRemoteModels = false;
  env.allowLocalModels = true;
  env.localModelPath = folder;
  env.useFSCache = false;
  writePipelines(folder);
  // as users have it: an import for its effect
  door = await import("../../src/runtime/transformers.ts");
  await door.ready;
  door.settings.say = (message) => heard.push(message);
});
const own = (): typeof plain => InferenceSession.create;
let here: typeof plain;
beforeAll(() => void (here = own()));
afterEach(() => {
  heard.length = 0;
  InferenceSession.create = here;
});
afterAll(() => {
  door.uninstall();
  expect(own()).toBe(plain);
  rmSync(folder, { recursive: true, force: true });
});

type Run = (dtype: DataType) => Promise<unknown>;
/** Numbers of any nest of results, and everything else, by path. */
function flatten(of: unknown, path = ""): [string, unknown][] {
  if (ArrayBuffer.isView(of)) return Array.from(of as unknown as ArrayLike<number>, (v, i): [string, unknown] => [`${path}.${i}`, v]);
  if (typeof of !== "object" || of === null) return [[path, of]];
  return Object.entries(of).flatMap(([key, inner]) => flatten(inner, `${path}.${key}`));
}

const sound = numbers(5, 8000, -0.5, 0.5).map((v, i) => v * Math.sin(i / 40));
const image = new RawImage(Uint8ClampedArray.from(numbers(6, 24 * 24 * 3, 0, 255)), 24, 24, 3);

/** Runs of each pipeline; no device is named. */
const PIPELINES: Record<string, Run> = {
  "feature-extraction": async (dtype) => {
    const extract = await pipeline("feature-extraction", "features", { dtype });
    const out = await extract(["w5 w9 w30", "w7 w8"], { pooling: "mean", normalize: true });
    await extract.dispose();
    return { dims: out.dims, data: out.data };
  },
  "text-classification": async (dtype) => {
    const classify = await pipeline("text-classification", "classes", { dtype });
    const out = await classify(["w5 w9 w30", "w61 w3"], { top_k: 3 });
    await classify.dispose();
    return out;
  },
  "text-generation": async (dtype) => {
    const generate = await pipeline("text-generation", "language", { dtype });
    const out = await generate("w7 w30 w12", { max_new_tokens: 8, do_sample: false });
    await generate.dispose();
    return out;
  },
  "automatic-speech-recognition": async (dtype) => {
    const listen = await pipeline("automatic-speech-recognition", "speech", { dtype });
    const out = await listen(sound);
    await listen.dispose();
    return out;
  },
  "automatic-speech-recognition by Whisper": async (dtype) => {
    const listen = await pipeline("automatic-speech-recognition", "whisper", { dtype });
    const out = await listen(sound, { max_new_tokens: 12 });
    await listen.dispose();
    return out;
  },
  "image-classification": async (dtype) => {
    const look = await pipeline("image-classification", "images", { dtype });
    const out = await look(image, { top_k: 5 });
    await look.dispose();
    return out;
  },
};

test.each(["text-generation", "automatic-speech-recognition by Whisper"])("%s leaves caches in memory: nobody reads them", async (name) => {
  const { prototype } = InferenceSession as unknown as { prototype: InferenceSession };
  const { run } = prototype;
  const seen = { made: 0, read: 0 };
  prototype.run = async function (this: InferenceSession, ...args: Parameters<typeof run>) {
    const out = await run.apply(this, args);
    for (const tensor of Object.values(out)) {
      const data = Object.getOwnPropertyDescriptor(tensor, "data");
      if (data?.get === undefined) continue;
      seen.made++;
      Object.defineProperty(tensor, "data", { ...data, get: () => (seen.read++, data.get!.call(tensor) as unknown) });
    }
    return out;
  } as typeof run;
  try {
    await PIPELINES[name]("fp32");
  } finally {
    prototype.run = run;
  }
  // keys and values of each layer and token
  expect(seen.made).toBeGreaterThanOrEqual(16);
  expect(seen.read).toBe(0);
});

test.each(Object.entries(PIPELINES))("%s", async (_, run) => {
  let foreign = 0;
  InferenceSession.create = (async (...args: Parameters<typeof plain>) => {
    foreign++;
    return plain.apply(InferenceSession, args);
  }) as typeof plain;
  const wanted = flatten(await run("fp32"));
  expect(foreign).toBeGreaterThan(0);
  const handlers: object[] = [];
  InferenceSession.create = (async (...args: Parameters<typeof plain>) => {
    const session = await here.apply(InferenceSession, args);
    handlers.push((session as unknown as { handler: object }).handler);
    return session;
  }) as typeof plain;
  const got = flatten(await run("fp32"));
  // this runtime's handler is a plain object, onnxruntime's a class
  expect(handlers.length).toBeGreaterThan(0);
  for (const handler of handlers) expect(handler.constructor).toBe(Object);
  expect(heard).toEqual([]);
  expect(got.length).toBeGreaterThan(0);
  expect(got.map(([path]) => path)).toEqual(wanted.map(([path]) => path));
  got.forEach(([path, v], i) => {
    const other = wanted[i][1];
    if (typeof v === "number") expect(v, path).toBeCloseTo(other as number, 4);
    else {
      expect(v, path).toEqual(other);
      expect(v, path).not.toBe("");
    }
  });
});

const small = (opType: string): Uint8Array =>
  encode(
    model(
      graph({
        input: [value("x", T.FLOAT, ["n", 4])],
        output: [value("y", T.FLOAT, ["n", 4])],
        node: [node(opType, ["x"], ["y"])],
      }),
    ),
  );
const x = new Tensor("float32", Float32Array.of(1, 2, 3, 4), [1, 4]);

test("a session is onnxruntime's class, with its tensors, and runs here", async () => {
  const session = await InferenceSession.create(small("Neg"));
  expect(session).toBeInstanceOf(InferenceSession);
  expect(session.inputMetadata).toEqual([{ name: "x", isTensor: true, type: "float32", shape: ["n", 4] }]);
  const { y } = await session.run({ x });
  expect(y).toBeInstanceOf(Tensor);
  expect([...(y.data as Float32Array)]).toEqual([-1, -2, -3, -4]);
  await expect(session.run({})).rejects.toThrow(/'x' is missing/);
  await session.release();
  await expect(session.run({ x })).rejects.toMatchObject({ code: "E_DISPOSED" });
});

test("what cannot run here runs in onnxruntime, said once", async () => {
  for (let i = 0; i < 2; i++) {
    const session = await InferenceSession.create(small("Hardmax"));
    expect([...((await session.run({ x })).y.data as Float32Array)]).toEqual([0, 0, 0, 1]);
    await session.release();
  }
  expect(heard).toHaveLength(1);
  expect(heard[0]).toMatch(/runs in onnxruntime.*Hardmax/);
  // a device that is asked for by name is onnxruntime's without a word
  await expect(InferenceSession.create(small("Neg"), { executionProviders: ["qnn"] })).rejects.toThrow();
  expect(heard).toHaveLength(1);
});

test("parts that cannot run here run in onnxruntime beside stored weights here, said once", async () => {
  const [k, n] = [64, 96];
  const of = graph({
    input: [value("x", T.FLOAT, ["n", k])],
    output: [value("y", T.FLOAT, ["n", n]), value("z", T.FLOAT, ["n", n])],
    initializer: [raw("w", [k, n], numbers(3, k * n, -0.3, 0.3))],
    node: [node("MatMul", ["x", "w"], ["y"]), node("Hardmax", ["y"], ["z"])],
  });
  const { bytes } = await quantizeModelBytes(encode(model(of)), { target: "stored", format: "int4_b32" });
  const feed = { x: new Tensor("float32", numbers(4, 3 * k, -1, 1), [3, k]) };
  const wanted = await (await plain.call(InferenceSession, bytes)).run(feed);
  const path = join(folder, "hardmax.onnx");
  writeFileSync(path, bytes);
  for (const source of [bytes, path]) {
    const session = await InferenceSession.create(source as Uint8Array);
    const own = await session.run(feed);
    for (const name of ["y", "z"]) {
      expect(own[name]).toBeInstanceOf(Tensor);
      expect(own[name].dims).toEqual([3, n]);
      (own[name].data as Float32Array).forEach((v, i) => expect(v).toBeCloseTo((wanted[name].data as Float32Array)[i], 4));
    }
    await session.release();
    await expect(session.run(feed)).rejects.toMatchObject({ code: "E_DISPOSED" });
  }
  expect(heard).toEqual(["lowbit: parts of a session run in onnxruntime: Hardmax"]);
});

test("a model that neither loads is onnxruntime's error", async () => {
  const path = join(folder, "damaged.onnx");
  writeFileSync(path, Uint8Array.of(1, 2, 3));
  await expect(InferenceSession.create(path)).rejects.toThrow();
});

test("a cache of a session is a tensor of onnxruntime: shape, data, copies, disposal", async () => {
  const session = await InferenceSession.create(join(folder, "language", "onnx", "model.onnx"));
  const dimsOf = (of: (typeof session.inputMetadata)[number], tokens: number): number[] =>
    "shape" in of ? of.shape.map((d, i) => (i === 0 ? 1 : i === 2 ? tokens : Number(d))) : [];
  const past = Object.fromEntries(
    session.inputMetadata.filter(({ name }) => name.startsWith("past")).map((of) => [of.name, new Tensor("float32", [], dimsOf(of, 0))]),
  );
  const int64 = (count: number): Tensor => new Tensor("int64", new BigInt64Array(count).fill(1n), [1, count]);
  const others = { input_ids: int64(3), attention_mask: int64(3), position_ids: int64(3) };
  const feeds = Object.fromEntries(Object.entries({ ...others, ...past }).filter(([name]) => session.inputNames.includes(name)));
  const out = await session.run(feeds);
  const [first, second] = session.outputNames.filter((name) => name.startsWith("present")).map((name) => out[name]);
  const wanted = dimsOf(
    session.inputMetadata.find(({ name }) => name.startsWith("past"))!,
    3,
  );
  const size = wanted.reduce((a, b) => a * b, 1);
  expect(first).toBeInstanceOf(Tensor);
  expect(Object.getOwnPropertyDescriptor(first, "data")?.get).toBeTypeOf("function");
  expect([first.type, first.dims, first.size, first.location]).toEqual(["float32", wanted, size, "cpu"]);
  expect(first.reshape([size]).data).toEqual(first.data);
  expect(await first.getData()).toBe(first.data);
  second.dispose();
  await session.release();
  expect(first.data.length).toBe(size);
});

test("a cache of float16 is one of onnxruntime's float16 tensors", async () => {
  const session = await InferenceSession.create(halfSpelledModel());
  const half = (globalThis as unknown as { Float16Array?: new (n: number) => Uint16Array }).Float16Array ?? Uint16Array;
  const past = session.inputNames
    .filter((name) => name.startsWith("past"))
    .map((name): [string, Tensor] => [name, new Tensor("float16", new half(0), [1, SPELLED.kvHeads, 0, SPELLED.size])]);
  const int64 = (from: bigint): Tensor => new Tensor("int64", BigInt64Array.of(from, from + 1n, from + 2n), [1, 3]);
  const mask = new Tensor("int64", new BigInt64Array(3).fill(1n), [1, 3]);
  const out = await session.run({ input_ids: int64(4n), attention_mask: mask, position_ids: int64(0n), ...Object.fromEntries(past) });
  const first = out["present.0.key"];
  expect(first).toBeInstanceOf(Tensor);
  expect(Object.getOwnPropertyDescriptor(first, "data")?.get).toBeTypeOf("function");
  const dims = [1, SPELLED.kvHeads, 3, SPELLED.size];
  expect([first.type, first.dims, first.size]).toEqual(["float16", dims, 3 * SPELLED.kvHeads * SPELLED.size]);
  expect(first.data).toBeInstanceOf(half);
  expect(first.data.length).toBe(first.size);
  await session.release();
});
