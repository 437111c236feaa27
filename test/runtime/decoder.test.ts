// The decoder against onnxruntime-node fed with caches of its own: prompts, steps, truncation, generation; and what it
// says to bad input.
import { fromBinary } from "@bufbuild/protobuf";
import { InferenceSession, Tensor } from "onnxruntime-node";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { decoderModel, type DecoderSizes } from "../../bench/decode-model.ts";
import { greedy, loadModel, sampler, type Session } from "../../src/runtime/index.ts";
import { widen } from "../../src/runtime/value.ts";
import { ModelProtoSchema } from "../../src/onnx/file/gen/onnx_pb.ts";
import { distance } from "../helpers/distance.ts";
import { encode, node } from "../onnx/build.ts";
import { halfSpelledModel, SPELLED, spelledModel, withValues } from "./spelled.ts";
import { wasm } from "../../src/index.ts";
import { quantizeModelBytes, readModelBytes, writeModelBytes } from "../../src/onnx/index.ts";

const SIZES: DecoderSizes = { hidden: 64, heads: 4, kvHeads: 2, size: 16, ffn: 96, layers: 2, vocabulary: 160, positions: 64, level: 0 };
const PROMPT = [1, 5, 9, 100, 3, 7, 22];
const bytes = decoderModel(SIZES);
const bytes512 = decoderModel({ ...SIZES, positions: 512 });

/** onnxruntime with the caches carried by hand. */
async function judge(model: Uint8Array, sizes: Pick<DecoderSizes, "layers" | "kvHeads" | "size" | "vocabulary">, half = false) {
  const session = await InferenceSession.create(model, { intraOpNumThreads: 1, logSeverityLevel: 4 });
  let total = 0;
  let past: Record<string, Tensor> = {};
  for (let i = 0; i < 2 * sizes.layers; i++)
    past[`past_key_values.${i >> 1}.${i & 1 ? "value" : "key"}`] = new Tensor(
      (half ? "float16" : "float32") as "float32",
      (half ? new Uint16Array(0) : new Float32Array(0)) as Float32Array,
      [1, sizes.kvHeads, 0, sizes.size],
    );
  return async (ids: readonly number[]): Promise<Float32Array> => {
    const positions = BigInt64Array.from(ids, (_, i) => BigInt(total + i));
    total += ids.length;
    const out = await session.run({
      input_ids: new Tensor("int64", BigInt64Array.from(ids, BigInt), [1, ids.length]),
      attention_mask: new Tensor("int64", new BigInt64Array(total).fill(1n), [1, total]),
      ...(session.inputNames.includes("position_ids") ? { position_ids: new Tensor("int64", positions, [1, ids.length]) } : {}),
      ...past,
    });
    const { logits, ...present } = out;
    past = Object.fromEntries(Object.entries(present).map(([name, value]) => [name.replace("present", "past_key_values"), value]));
    const row = (logits.data as Float32Array).subarray(-sizes.vocabulary);
    return half ? widen(row) : row;
  };
}

let session: Session;
beforeAll(async () => {
  session = await loadModel(bytes);
});
afterAll(() => session.release());

test.each([1, 2])("the logits of onnxruntime, %i threads", async (threads) => {
  const backend = await wasm({ threads });
  const own = threads === 1 ? session : await loadModel(bytes, { backend });
  const decoder = own.decoder();
  const ask = await judge(bytes, SIZES);
  let logits = decoder.prefill(PROMPT).slice();
  let wanted = await ask(PROMPT);
  expect(distance(wanted, logits)).toBeLessThan(1e-5);
  for (let i = 0; i < 20; i++) {
    const id = greedy(wanted);
    expect(greedy(logits)).toBe(id);
    wanted = await ask([id]);
    logits = decoder.step(id).slice();
    expect(distance(wanted, logits)).toBeLessThan(1e-5);
  }
  // several tokens onto a cache
  expect(distance(await ask([4, 8, 15]), decoder.prefill([4, 8, 15]))).toBeLessThan(1e-5);
  decoder.dispose();
  if (own !== session) await own.release();
  backend.dispose();
});

test("int8 activations where the products allow them", async () => {
  const model = decoderModel({ ...SIZES, level: 4 });
  const own = await loadModel(model);
  const wanted = await (await judge(bytes, SIZES))(PROMPT);
  const error = distance(wanted, own.decoder().prefill(PROMPT));
  expect(error).toBeGreaterThan(1e-4);
  expect(error).toBeLessThan(2.5e-2);
  const exact = await loadModel(model, { activations: "float32" });
  expect(distance(wanted, exact.decoder().prefill(PROMPT))).toBeLessThan(1e-5);
  await own.release();
  await exact.release();
});

test("run with caches as feeds", async () => {
  const feeds: Record<string, { type: string; dims: number[]; data: unknown }> = {
    input_ids: { type: "int64", dims: [1, PROMPT.length], data: BigInt64Array.from(PROMPT, BigInt) },
    attention_mask: { type: "int64", dims: [1, PROMPT.length], data: new BigInt64Array(PROMPT.length).fill(1n) },
  };
  for (let i = 0; i < 2 * SIZES.layers; i++)
    feeds[`past_key_values.${i >> 1}.${i & 1 ? "value" : "key"}`] = {
      type: "float32",
      dims: [1, SIZES.kvHeads, 0, SIZES.size],
      data: new Float32Array(0),
    };
  const { logits } = await session.run(feeds);
  const wanted = await (await judge(bytes, SIZES))(PROMPT);
  expect(distance(wanted, (logits.data as Float32Array).subarray(-SIZES.vocabulary))).toBeLessThan(1e-5);
});

test.each(["float32", "int8"] as const)("long prompts, part by part, again and after others: caches of %s", async (cache) => {
  const sizes = { ...SIZES, positions: 512 };
  const own = await loadModel(bytes512);
  const ids = (count: number, seed: number): number[] => Array.from({ length: count }, (_, i) => (i * (7 + 2 * seed) + seed) % 160);
  const decoder = own.decoder({ cache, sequences: 2 });
  const near = cache === "float32" ? 1e-5 : 3.5e-2;
  for (const [s, seed] of [
    [0, 1],
    [0, 2],
    [1, 3],
    [0, 4],
  ]) {
    const ask = await judge(bytes512, sizes);
    decoder.truncate(0, s);
    for (const [from, to] of [
      [0, 200],
      [200, 207],
      [207, 340],
    ]) {
      const part = ids(340, seed).slice(from, to);
      const [wanted, got] = [await ask(part), decoder.prefill(part, s)];
      expect(distance(wanted, got)).toBeLessThan(near);
    }
    expect(distance(await ask([9]), decoder.step(9, s))).toBeLessThan(near);
  }
  // the same numbers whether a part runs for the first time or is repeated
  const [first, other] = [own.decoder({ cache }), own.decoder({ cache })];
  first.prefill(ids(64, 5));
  other.prefill(ids(192, 6));
  other.reset();
  other.prefill(ids(64, 5));
  expect(other.step(3)).toEqual(first.step(3).slice());
  for (const one of [decoder, first, other]) one.dispose();
  await own.release();
});

test("truncate and reset forget; the arena stays as it is over many steps", () => {
  const decoder = session.decoder({ capacity: 40 });
  const first = decoder.prefill(PROMPT).slice();
  const after = decoder.step(3).slice();
  decoder.step(99);
  decoder.truncate(PROMPT.length);
  expect(decoder.step(3)).toEqual(after);
  decoder.reset();
  expect(decoder.length).toBe(0);
  expect(decoder.prefill(PROMPT)).toEqual(first);
  for (let i = 0; i < 300; i++) {
    if (decoder.length === 40) decoder.truncate(5);
    decoder.step(i % 100);
  }
  decoder.reset();
  expect(decoder.prefill(PROMPT)).toEqual(first);
  decoder.dispose();
  decoder.dispose();
  expect(() => decoder.step(1)).toThrow(expect.objectContaining({ code: "E_DISPOSED" }));
});

test.each([
  ["float16", 1e-3, 1 / 2],
  ["int8", 2e-2, (16 + 4) / 64],
  ["k8v4", 0.12, (16 + 8 + 8) / 128],
  ["int4", 0.2, (8 + 4) / 64],
] as const)("a cache of %s", async (cache, limit, share) => {
  const decoder = session.decoder({ cache, capacity: 32 });
  const plain = session.decoder({ capacity: 32 });
  expect(decoder.cacheBytes / plain.cacheBytes).toBeCloseTo(share, 6);
  let [a, b] = [plain.prefill(PROMPT).slice(), decoder.prefill(PROMPT).slice()];
  for (let i = 0; i < 10; i++) {
    const error = distance(a, b);
    expect(error).toBeGreaterThan(limit / 100);
    expect(error).toBeLessThan(limit);
    const id = greedy(a);
    a = plain.step(id).slice();
    b = decoder.step(id).slice();
  }
  // the same tokens at once or one by one: the same cache
  const last = decoder.step(5).slice();
  decoder.truncate(decoder.length - 1);
  expect(decoder.step(5)).toEqual(last);
  decoder.dispose();
  plain.dispose();
});

// heads of two halves, of blocks of 16 and 64 values in the Hadamard transform, turned and not; several sequences
test.each([
  [64, true],
  [64, false],
  [80, true],
  [48, false],
])("a cache of int4, heads of %i, rotary %s: one sequence and two", async (size, rotary) => {
  const own = await loadModel(decoderModel({ ...SIZES, heads: 2, kvHeads: 1, size, rotary }));
  const [plain, one] = (["float32", "int4"] as const).map((cache) => own.decoder({ cache, capacity: 32 }));
  const two = own.decoder({ cache: "int4", capacity: 32, sequences: 2 });
  const wanted = plain.prefill(PROMPT);
  const got = one.prefill(PROMPT);
  expect(distance(wanted, got)).toBeLessThan(0.2);
  expect(two.prefill(PROMPT, 1)).toEqual(got);
  two.prefill([3], 0);
  for (let i = 0; i < 5; i++) {
    const [exact, coded] = [plain.step(7 * i), one.step(7 * i)];
    expect(distance(exact, coded)).toBeLessThan(0.2);
    // a code may round the other way where rows are multiplied several at a time
    expect(distance(coded, two.steps([5, 7 * i])[1]!)).toBeLessThan(1e-2);
  }
  await own.release();
});

test("int4 keys with channels far beyond the others, which queries hardly look at: the others keep their codes", async () => {
  const model = readModelBytes(decoderModel({ ...SIZES, heads: 2, kvHeads: 1, size: 64 }));
  for (const weight of model.proto.graph!.initializer.filter(({ name }) => /\.[qk]n_w$/.test(name))) {
    const values = new Float32Array(64).fill(1);
    // a pair that the rotary embedding turns
    values[9] = values[41] = weight.name.endsWith(".kn_w") ? 30 : 1 / 30;
    weight.rawData = new Uint8Array(values.buffer);
  }
  const own = await loadModel(writeModelBytes(model));
  const [plain, coded] = (["float32", "int4"] as const).map((cache) => own.decoder({ cache, capacity: 32 }));
  const error = distance(plain.prefill(PROMPT), coded.prefill(PROMPT));
  // .24 where keys are kept as they are
  expect(error).toBeLessThan(0.18);
  await own.release();
});

test("attention spelled out in single operators: caches stay", async () => {
  const model = spelledModel();
  const own = await loadModel(model);
  const decoder = own.decoder();
  const ask = await judge(model, SPELLED);
  let wanted = await ask(PROMPT.map((id) => id % 96));
  const first = decoder.prefill(PROMPT.map((id) => id % 96)).slice();
  expect(distance(wanted, first)).toBeLessThan(1e-5);
  let after: Float32Array | undefined;
  for (let i = 0; i < 5; i++) {
    const id = greedy(wanted);
    wanted = await ask([id]);
    const logits = decoder.step(id);
    expect(distance(wanted, logits)).toBeLessThan(1e-5);
    after ??= logits.slice();
  }
  expect(decoder.length).toBe(PROMPT.length + 5);
  // room for 64 tokens at first
  expect(decoder.cacheBytes).toBe(2 * 2 * 2 * 16 * 4 * 64);
  decoder.truncate(PROMPT.length);
  expect(decoder.step(greedy(first))).toEqual(after);
  decoder.reset();
  expect(decoder.prefill(PROMPT.map((id) => id % 96))).toEqual(first);
  // caches move as they grow
  const longer = await judge(model, SPELLED);
  decoder.reset();
  for (const count of [50, 1, 13, 1, 100, 1]) {
    const ids = Array.from({ length: count }, (_, i) => (7 * i + count) % 96);
    expect(distance(await longer(ids), decoder.prefill(ids))).toBeLessThan(1e-5);
  }
  expect(decoder.cacheBytes).toBe(2 * 2 * 2 * 16 * 4 * 256);
  decoder.dispose();
  await own.release();
});

test("sizes of what the tokens make are no tokens: the step stays recorded", async () => {
  const proto = fromBinary(ModelProtoSchema, bytes);
  const { node: nodes } = proto.graph!;
  nodes.find(({ output }) => output[0] === "logits")!.output[0] = "scores";
  nodes.push(node("Shape", ["scores"], ["sizes"]), node("Reshape", ["scores", "sizes"], ["logits"]));
  const shaped = await loadModel(encode(proto));
  const [wanted, decoder] = [session.decoder({ capacity: 32 }), shaped.decoder({ capacity: 32 })];
  for (const ids of [PROMPT, [8], [9]]) expect(distance(wanted.prefill(ids), decoder.prefill(ids))).toBeLessThan(1e-5);
  expect(decoder.explain().map(({ operator }) => operator)).toContain("com.microsoft.GroupQueryAttention");
  decoder.dispose();
  wanted.dispose();
  await shaped.release();
});

test.each<[string, () => Uint8Array | Promise<Uint8Array>]>([
  ["GroupQueryAttention", () => bytes],
  ["spelled out", async () => (await quantizeModelBytes(spelledModel(), { dtype: "q4" })).bytes],
])("the product of the logits joined with another: %s", async (_, make) => {
  const model = await make();
  const [own, both] = await Promise.all([loadModel(model), loadModel(withValues(model))]);
  expect(both.explain().steps.at(-1)!.operator).toBe("lowbit.Joined");
  const [wanted, decoder] = [own.decoder({ capacity: 32 }), both.decoder({ capacity: 32 })];
  for (const ids of [[4, 90, 7], [8], [9]]) {
    const logits = decoder.prefill(ids);
    const alone = wanted.prefill(ids);
    expect(logits.length).toBe(alone.length);
    expect(distance(alone, logits)).toBeLessThan(1e-5);
  }
  await Promise.all([own.release(), both.release()]);
});

test("caches of float16 are kept as float32", async () => {
  const [own, plain] = [await loadModel(halfSpelledModel()), await loadModel(spelledModel())];
  const [decoder, wide] = [own.decoder(), plain.decoder()];
  // onnxruntime-node takes no Float16Array, and where there are such no other float16
  const ask = "Float16Array" in globalThis ? null : await judge(halfSpelledModel(), SPELLED, true);
  for (const ids of [PROMPT.map((id) => id % 96), [4], [11], [8, 2], [90]]) {
    const logits = decoder.prefill(ids);
    expect(distance(wide.prefill(ids), logits)).toBeLessThan(1e-2);
    if (ask !== null) expect(distance(await ask(ids), logits)).toBeLessThan(5e-3);
  }
  await own.release();
  await plain.release();
});

describe("several sequences", () => {
  const PROMPTS = [PROMPT, [4, 8], [90, 17, 33, 2, 5]].map((ids) => ids.map((id) => id % 96));
  const models = [
    ["GroupQueryAttention", bytes],
    ["spelled out", spelledModel()],
  ] as const;

  test.each(models.flatMap(([name, model]) => [1, 2].map((threads) => [name, threads, model] as const)))(
    "%s: each as a decoder of its own, %i threads",
    async (_, threads, model) => {
      const backend = await wasm({ threads });
      const own = await loadModel(model, { backend });
      const alone = PROMPTS.map(() => own.decoder({ capacity: 64 }));
      const all = own.decoder({ capacity: 64, sequences: 3 });
      let next = PROMPTS.map((prompt, s) => {
        const wanted = alone[s].prefill(prompt);
        expect(distance(wanted, all.prefill(prompt, s))).toBeLessThan(1e-5);
        return greedy(wanted);
      });
      for (let i = 0; i < 6; i++) {
        // one of them rests now and then
        const ids = next.map((id, s) => ((i + s) % 3 === 2 ? null : id));
        const got = all.steps(ids);
        next = next.map((id, s) => {
          if (ids[s] === null) expect(got[s]).toBeNull();
          if (ids[s] === null) return id;
          const wanted = alone[s].step(id);
          expect(distance(wanted, got[s]!)).toBeLessThan(1e-5);
          return greedy(wanted);
        });
      }
      expect(all.lengths).toEqual(alone.map(({ length }) => length));
      // alone between steps of all, and back to a part of it
      expect(distance(alone[1].step(7), all.step(7, 1))).toBeLessThan(1e-5);
      all.truncate(1, 1);
      alone[1].truncate(1);
      const wanted = alone.map((one) => one.step(11).slice());
      all.steps([11, 11, 11]).forEach((logits, s) => expect(distance(wanted[s], logits!)).toBeLessThan(1e-5));
      all.reset();
      expect(all.lengths).toEqual([0, 0, 0]);
      for (const one of [...alone, all]) one.dispose();
      await own.release();
      backend.dispose();
    },
  );

  test("one that is full rests without harm; small caches", async () => {
    for (const cache of ["float32", "int8", "k8v4"] as const) {
      const alone = session.decoder({ capacity: 8, cache });
      const all = session.decoder({ capacity: 8, cache, sequences: 2 });
      const full = [1, 2, 3, 4, 5, 6, 7, 8];
      all.prefill(full, 0);
      all.prefill([5], 1);
      expect(() => all.steps([1, 1])).toThrow(/at most 8 tokens, got 8 and 1 more/);
      for (const id of [9, 10, 11]) all.steps([null, id]);
      all.truncate(7, 0);
      alone.prefill(full.slice(0, 7));
      // a code may round the other way where rows are multiplied several at a time
      expect(distance(alone.step(8), all.steps([8, null])[0]!)).toBeLessThan(cache === "float32" ? 1e-5 : 1e-3);
      all.dispose();
      alone.dispose();
    }
  });

  test("what is wrong is said", () => {
    for (const sequences of [0, 1.5, 5000, "2"] as number[])
      expect(() => session.decoder({ sequences })).toThrow(/decoder sequences: expected 1 to 1024/);
    const all = session.decoder({ capacity: 8, sequences: 2 });
    expect(() => all.step(1, 2)).toThrow(/decoder sequence: expected 0 to 1, got 2/);
    expect(() => all.prefill([1], -1)).toThrow(RangeError);
    expect(() => all.steps([1])).toThrow(/decoder steps: expected 2 tokens or null, got 1/);
    expect(() => all.steps([1, -4])).toThrow(RangeError);
    expect(all.lengths).toEqual([0, 0]);
    all.dispose();
  });
});

describe("generate", () => {
  const collect = async (tokens: AsyncIterable<number>): Promise<number[]> => {
    const out: number[] = [];
    for await (const id of tokens) out.push(id);
    return out;
  };

  test("is greedy as steps are, and stops", async () => {
    const decoder = session.decoder();
    const wanted: number[] = [];
    let logits = decoder.prefill(PROMPT);
    for (let i = 0; i < 6; i++) {
      wanted.push(greedy(logits));
      logits = decoder.step(wanted[i]);
    }
    decoder.reset();
    expect(await collect(decoder.generate({ prompt: PROMPT, maxTokens: 6 }))).toEqual(wanted);
    decoder.reset();
    const cut = await collect(decoder.generate({ prompt: PROMPT, maxTokens: 6, stop: [wanted[2]] }));
    expect(cut).toEqual(wanted.slice(0, wanted.indexOf(wanted[2]) + 1));
    decoder.reset();
    // a full cache ends it
    const small = session.decoder({ capacity: PROMPT.length + 2 });
    expect(await collect(small.generate({ prompt: PROMPT }))).toEqual(wanted.slice(0, 3));
    small.dispose();
    decoder.dispose();
  });

  test("ends with the reason of its signal", async () => {
    const decoder = session.decoder();
    const abort = new AbortController();
    const seen: number[] = [];
    const all = (async () => {
      for await (const id of decoder.generate({ prompt: PROMPT, signal: abort.signal })) {
        seen.push(id);
        if (seen.length === 3) abort.abort(new Error("enough"));
      }
    })();
    await expect(all).rejects.toThrow("enough");
    expect(seen).toHaveLength(3);
    await expect(collect(decoder.generate({ prompt: [], maxTokens: 1, signal: AbortSignal.abort(new Error("before")) }))).rejects.toThrow(
      "before",
    );
    decoder.dispose();
  });

  test("samplers", () => {
    const logits = Float32Array.of(0, 1, 2, 3, -Infinity);
    const draws = (options: Parameters<typeof sampler>[0]): number[] => {
      const draw = sampler({ seed: 7, ...options });
      const counts = new Array<number>(5).fill(0);
      for (let i = 0; i < 4000; i++) counts[draw(logits)]++;
      return counts.map((n) => n / 4000);
    };
    const softmax = [0, 1, 2, 3].map((v) => Math.exp(v) / (1 + Math.E + Math.E ** 2 + Math.E ** 3));
    draws({}).forEach((p, i) => expect(Math.abs(p - (softmax[i] ?? 0))).toBeLessThan(0.03));
    expect(draws({ topK: 1 })).toEqual([0, 0, 0, 1, 0]);
    expect(draws({ topP: 0.7 })[1]).toBe(0);
    expect(draws({ topP: 0.7 })[2]).toBeGreaterThan(0.2);
    expect(draws({ temperature: 0.05 })).toEqual([0, 0, 0, 1, 0]);
    expect(() => sampler({ temperature: 0 })).toThrow(RangeError);
    expect(() => sampler({ topP: 2 })).toThrow(RangeError);
    expect(() => sampler({ topK: 0 })).toThrow(RangeError);
  });
});

describe("refuses", () => {
  test("tokens that do not fit, and strange ones; nothing is lost", () => {
    const decoder = session.decoder({ capacity: 8 });
    const logits = decoder.prefill(PROMPT).slice();
    expect(() => decoder.prefill([1, 2])).toThrow(
      expect.objectContaining({ code: "E_SHAPE", message: expect.stringContaining("at most 8 tokens, got 7 and 2 more") }),
    );
    expect(() => decoder.prefill([])).toThrow(RangeError);
    expect(() => decoder.step(-1)).toThrow(RangeError);
    expect(() => decoder.step(1.5)).toThrow(RangeError);
    expect(() => decoder.step(160)).toThrow(/0 to 159|160/);
    expect(() => decoder.truncate(9)).toThrow(RangeError);
    decoder.reset();
    expect(decoder.prefill(PROMPT)).toEqual(logits);
    decoder.dispose();
  });

  test("capacities beyond the rotary tables", () => {
    expect(() => session.decoder({ capacity: 65 })).toThrow(/1 to 64 tokens, got 65/);
    expect(() => session.decoder({ cache: "int3" as never })).toThrow(TypeError);
  });

  test("models without caches, and backends without a memory", async () => {
    const plain = await loadModel(bytes, { backend: "reference" });
    expect(() => plain.decoder()).toThrow(expect.objectContaining({ code: "E_UNSUPPORTED" }));
    await plain.release();
    await expect(session.run({})).rejects.toThrow(/got no/);
  });
});
