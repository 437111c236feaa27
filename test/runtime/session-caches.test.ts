// Present keys and values that the next run takes as past stay in memory: the numbers of onnxruntime-node, whatever is
// read, fed again, written to or kept in between.
import { InferenceSession, Tensor } from "onnxruntime-node";
import { describe, expect, test } from "vitest";
import { decoderModel, type DecoderSizes } from "../../bench/decode-model.ts";
import { engineMemory } from "../../src/backends/wasm/memory.ts";
import { wasm } from "../../src/index.ts";
import { loadModel, type RuntimeTensor, type Session } from "../../src/runtime/index.ts";
import { isHeld } from "../../src/runtime/session-caches.ts";
import { halfTable } from "../../src/onnx/file/half.ts";
import { encode, graph, model, node, raw, T, value } from "../onnx/build.ts";
import { halfSpelledModel, SPELLED, spelledModel } from "./spelled.ts";

const SIZES: DecoderSizes = { hidden: 64, heads: 4, kvHeads: 2, size: 16, ffn: 96, layers: 2, vocabulary: 160, positions: 400, level: 0 };
const MODELS = [
  ["GroupQueryAttention", decoderModel(SIZES), 64],
  ["spelled out", spelledModel(), SPELLED.size * SPELLED.heads],
] as const;

type Feeds = Record<string, RuntimeTensor>;
type Past = Record<string, RuntimeTensor>;

const empty = (): Past =>
  Object.fromEntries(
    Array.from({ length: 4 }, (_, i) => [
      `past_key_values.${i >> 1}.${i & 1 ? "value" : "key"}`,
      { type: "float32", dims: [1, 2, 0, 16], data: new Float32Array(0) },
    ]),
  );

const int64 = (values: readonly number[]): RuntimeTensor => ({
  type: "int64",
  dims: [1, values.length],
  data: BigInt64Array.from(values, BigInt),
});

function feedsOf(names: readonly string[], ids: readonly number[], past: Past): Feeds {
  const before = Object.values(past)[0].dims[2];
  const total = before + ids.length;
  const feeds: Feeds = { input_ids: int64(ids), attention_mask: int64(new Array<number>(total).fill(1)), ...past };
  if (names.includes("position_ids")) feeds.position_ids = int64(ids.map((_, i) => before + i));
  return feeds;
}

const nextOf = (out: Record<string, RuntimeTensor>): Past =>
  Object.fromEntries(
    Object.entries(out)
      .filter(([name]) => name !== "logits")
      .map(([name, value]) => [name.replace("present", "past_key_values"), value]),
  );

interface Both {
  /** Runs ids after the caches of either runtime and compares what comes out. */
  step(ids: readonly number[], past: { own: Past; theirs: Past }): Promise<{ own: Past; theirs: Past }>;
}

const close = (got: RuntimeTensor, wanted: RuntimeTensor): void => {
  expect(got.dims).toEqual(wanted.dims);
  const [a, b] = [got.data as Float32Array, wanted.data as Float32Array];
  expect(a.length).toBe(b.length);
  expect(Math.max(0, ...a.map((v, i) => Math.abs(v - b[i])))).toBeLessThan(1e-4);
};

async function both(model: Uint8Array, session: Session): Promise<Both> {
  const judge = await InferenceSession.create(model, { intraOpNumThreads: 1, logSeverityLevel: 4 });
  return {
    async step(ids, { own, theirs }) {
      const got = await session.run(feedsOf(session.inputNames, ids, own));
      const feeds = Object.entries(feedsOf(judge.inputNames, ids, theirs)).map(([name, of]) => [
        name,
        new Tensor(of.type as "float32", of.data as Float32Array, of.dims),
      ]);
      const wanted = (await judge.run(Object.fromEntries(feeds) as Record<string, Tensor>)) as unknown as Record<string, RuntimeTensor>;
      close(got.logits, wanted.logits);
      return { own: nextOf(got), theirs: nextOf(wanted) };
    },
  };
}

const compare = (past: { own: Past; theirs: Past }): void => {
  for (const name of Object.keys(past.own)) close(past.own[name], past.theirs[name]);
};
const start = (): { own: Past; theirs: Past } => ({ own: empty(), theirs: empty() });
const held = (past: Past): boolean => Object.values(past).every(isHeld);

test.each(MODELS)("%s: caches stay over a prompt and tokens, and are read right", async (_, model) => {
  const session = await loadModel(model);
  const { step } = await both(model, session);
  let past = await step([1, 5, 9, 33, 3, 7, 22], start());
  for (let i = 0; i < 6; i++) past = await step([(11 * i) % 90], past);
  // more than there is room for at first, and several tokens at once
  past = await step(
    Array.from({ length: 90 }, (_, i) => (7 * i) % 90),
    past,
  );
  past = await step([4], past);
  expect(held(past.own)).toBe(true);
  compare(past);
  expect(held(past.own)).toBe(false);
  // fed after it was read: like any other
  past = await step([17], past);
  compare(past);
  await session.release();
});

test.each(MODELS)("%s: an older cache, one that was written to, and those of other sequences", async (_, model) => {
  const session = await loadModel(model);
  const { step } = await both(model, session);
  const first = await step([1, 2, 3], start());
  const newer = await step([4], first);
  const other = await step([40, 41], start());
  // back to the older one: the newer keeps its tokens
  const branch = await step([5, 6], first);
  compare(await step([7], newer));
  compare(newer);
  compare(branch);
  // a third sequence pushes the first out of memory; its tensors stay
  const third = await step([50], start());
  const fourth = await step([60, 61], start());
  for (const past of [await step([9], other), await step([9], third), await step([9], fourth), first]) compare(past);
  const written = await step([8, 8, 8], start());
  for (const side of [written.own, written.theirs]) for (const of of Object.values(side)) (of.data as Float32Array).fill(0.25);
  await step([3], written);
  await session.release();
});

test.each(MODELS)("%s: caches outlive the session, memory stays flat, some outputs alone", async (_, model) => {
  const backend = await wasm();
  const session = await loadModel(model, { backend });
  const { step } = await both(model, session);
  let past = await step([1, 2, 3], start());
  const { buffer } = engineMemory(backend);
  const before = buffer.byteLength;
  for (let i = 0; i < 40; i++) {
    const one = await session.run(feedsOf(session.inputNames, [i, 2], empty()));
    await session.run(feedsOf(session.inputNames, [3], nextOf(one)));
  }
  expect(engineMemory(backend).buffer.byteLength).toBe(before);
  past = await step([4], past);
  const alone = await session.run(feedsOf(session.inputNames, [6], past.own), ["logits"]);
  expect(Object.keys(alone)).toEqual(["logits"]);
  past = await step([6], past);
  await session.release();
  compare(past);
  backend.dispose();
});

describe("caches of float16", () => {
  const table = halfTable();
  /** What onnxruntime's tensors of float16 hold. */
  const Half = (globalThis as unknown as { Float16Array?: typeof Uint16Array }).Float16Array ?? Uint16Array;
  /** Codes, whatever class the engine gives them in. */
  const bits = ({ data }: RuntimeTensor): Uint16Array => {
    const { buffer, byteOffset, length } = data as Uint16Array;
    return new Uint16Array(buffer, byteOffset, length);
  };
  const floats = (of: RuntimeTensor): Float32Array => Float32Array.from(bits(of), (code) => table[code]);

  const bytes = halfSpelledModel();
  const none = (): Past =>
    Object.fromEntries(Object.entries(empty()).map(([name, of]) => [name, { ...of, type: "float16", data: new Half(0) }]));
  /** Ours, read before it is fed again. */
  const read = (past: Past): Past =>
    Object.fromEntries(Object.entries(past).map(([name, of]) => [name, { type: of.type, dims: of.dims, data: bits(of).slice() }]));

  test("stay as those of float32 do, and are the numbers that leave and come back, bit for bit", async () => {
    const [session, plain] = [await loadModel(bytes), await loadModel(bytes)];
    // onnxruntime-node takes no Float16Array, and where there are such no other float16
    const judge = Half === Uint16Array ? await InferenceSession.create(bytes, { intraOpNumThreads: 1, logSeverityLevel: 4 }) : null;
    let [kept, carried, theirs] = [none(), none(), none()];
    for (const ids of [[1, 5, 9, 33, 3, 7, 22], [4], [11], Array.from({ length: 80 }, (_, i) => (7 * i) % 90), [8], [2, 3]]) {
      const feeds = feedsOf(session.inputNames, ids, kept);
      const out = await session.run(feeds);
      const wanted = await plain.run(feedsOf(session.inputNames, ids, carried));
      expect(bits(out.logits)).toEqual(bits(wanted.logits));
      if (judge !== null) {
        const theirFeeds = Object.entries(feedsOf(judge.inputNames, ids, theirs)).map(([name, of]) => [
          name,
          new Tensor(of.type as "float32", of.data as Float32Array, of.dims),
        ]);
        const judged = (await judge.run(Object.fromEntries(theirFeeds) as Record<string, Tensor>)) as unknown as Record<
          string,
          RuntimeTensor
        >;
        const [a, b] = [floats(out.logits), floats(judged.logits)];
        const scale = Math.sqrt(b.reduce((sum, v) => sum + v * v, 0) / b.length);
        expect(Math.max(...a.map((v, i) => Math.abs(v - b[i]))) / scale).toBeLessThan(2e-2);
        theirs = nextOf(judged);
      }
      [kept, carried] = [nextOf(out), read(nextOf(wanted))];
      expect(held(kept)).toBe(true);
    }
    for (const name of Object.keys(kept)) {
      expect(kept[name].type).toBe("float16");
      expect(kept[name].dims).toEqual(carried[name].dims);
      expect(bits(kept[name])).toEqual(bits(carried[name]));
    }
    expect(held(kept)).toBe(false);
    // fed after it was read
    const after = await session.run(feedsOf(session.inputNames, [6], kept));
    expect(bits(after.logits)).toEqual(bits((await plain.run(feedsOf(session.inputNames, [6], carried))).logits));
    await session.release();
    await plain.release();
  });

  test("outlive the session", async () => {
    const session = await loadModel(bytes);
    const past = nextOf(await session.run(feedsOf(session.inputNames, [1, 2, 3], none())));
    const again = nextOf(await session.run(feedsOf(session.inputNames, [1, 2, 3], none())));
    const wanted = read(again);
    await session.release();
    expect(held(past)).toBe(true);
    for (const [name, of] of Object.entries(read(past))) expect(of.data).toEqual(wanted[name].data);
  });
});

test("batches and padded prompts are computed as before", async () => {
  const session = await loadModel(MODELS[0][1]);
  const judge = await InferenceSession.create(MODELS[0][1], { intraOpNumThreads: 1, logSeverityLevel: 4 });
  const caches = (): Feeds =>
    Object.fromEntries(Object.keys(empty()).map((name) => [name, { type: "float32", dims: [2, 2, 0, 16], data: new Float32Array(0) }]));
  const ids: RuntimeTensor = { type: "int64", dims: [2, 3], data: BigInt64Array.from([1, 2, 3, 4, 5, 6], BigInt) };
  const ones: RuntimeTensor = { type: "int64", dims: [2, 3], data: new BigInt64Array(6).fill(1n) };
  const feeds = { input_ids: ids, attention_mask: ones, ...caches() };
  const got = await session.run(feeds);
  const wanted = (await judge.run(
    Object.fromEntries(
      Object.entries(feeds).map(([name, of]) => [name, new Tensor(of.type as "float32", of.data as Float32Array, of.dims)]),
    ),
  )) as unknown as Record<string, RuntimeTensor>;
  for (const name of session.outputNames) close(got[name], wanted[name]);
  await session.release();
});

test("caches that are cut, each to a length of its own, are what the model makes of them", async () => {
  const i64 = (name: string, ...values: number[]) => raw(name, [values.length], BigInt64Array.from(values, BigInt), T.INT64);
  const sides = ["key", "value"] as const;
  const bytes = encode(
    model(
      graph({
        input: [
          value("x", T.FLOAT, [1, 2, "n", 16]),
          ...sides.map((side) => value(`past_key_values.0.${side}`, T.FLOAT, [1, 2, `past ${side}`, 16])),
        ],
        output: [
          value("y", T.FLOAT, [1, 2, "n", 16]),
          ...sides.map((side) => value(`present.0.${side}`, T.FLOAT, [1, 2, `kept ${side}`, 16])),
        ],
        initializer: [i64("end", 1000), i64("axis", 2), i64("key.from", -4), i64("value.from", -3)],
        node: [
          node("Neg", ["x"], ["y"], {}, "y"),
          ...sides.flatMap((side) => [
            node("Concat", [`past_key_values.0.${side}`, "x"], [`${side}.all`], { axis: 2n }, side),
            node("Slice", [`${side}.all`, `${side}.from`, "end", "axis"], [`present.0.${side}`], {}, `${side}.cut`),
          ]),
        ],
      }),
      { opset: 17 },
    ),
  );
  const session = await loadModel(bytes);
  let kept: [number[], number[]] = [[], []];
  let past: Past = Object.fromEntries(
    sides.map((side) => [`past_key_values.0.${side}`, { type: "float32", dims: [1, 2, 0, 16], data: new Float32Array(0) }]),
  );
  let token = 0;
  const rows = (tokens: readonly number[]): RuntimeTensor => ({
    type: "float32",
    dims: [1, 2, tokens.length, 16],
    data: new Float32Array(2 * tokens.length * 16).map((_, at) => tokens[Math.floor(at / 16) % tokens.length]),
  });
  for (const count of [5, 1, 2]) {
    const tokens = Array.from({ length: count }, () => token++);
    const { y: _, ...presents } = await session.run({ x: rows(tokens), ...past });
    kept = [[...kept[0], ...tokens].slice(-4), [...kept[1], ...tokens].slice(-3)];
    past = nextOf(presents);
    for (const [i, side] of sides.entries()) close(presents[`present.0.${side}`], rows(kept[i]));
  }
  await session.release();
});
