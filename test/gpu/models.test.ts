// Models on a device: the plan that runs on WebAssembly, on WGSL kernels. Its judge is that plan, which others judge by
// onnxruntime. One session for each kind of model, few sizes: software drivers compile for seconds.
import { expect, it } from "vitest";
import { decoderModel, type DecoderSizes } from "../../bench/decode-model.ts";
import { gpuRuntime } from "../../src/backends/webgpu/door.ts";
import { quantizeModelBytes } from "../../src/onnx/index.ts";
import { loadModel, sampler, type RuntimeTensor, type Sampler } from "../../src/runtime/index.ts";
import type { Decoder } from "../../src/runtime/decoder.ts";
import type { DeviceDecoder } from "../../src/runtime/webgpu/decoder.ts";
import { encode, graph, model, node, raw, T, value, weights } from "../onnx/build.ts";
import { encoderFeeds, encoderModel, FORMS } from "../onnx/encoder.ts";
import { distance } from "../helpers/distance.ts";
import { SPELLED, spelledModel } from "../runtime/spelled.ts";
import { describeBackend } from "./adapter.ts";

type Feeds = Record<string, RuntimeTensor>;

const SIZES: DecoderSizes = { hidden: 64, heads: 4, kvHeads: 2, size: 16, ffn: 96, layers: 2, vocabulary: 160, positions: 64, level: 0 };

const i64 = (dims: number[], of: (i: number) => number): RuntimeTensor => ({
  type: "int64",
  dims,
  data: BigInt64Array.from({ length: dims.reduce((a, b) => a * b, 1) }, (_, i) => BigInt(of(i))),
});

/** `tokens` after `past` others, whose keys and values are waves. */
function decoderFeeds({ layers, kvHeads, size }: typeof SPELLED | DecoderSizes, tokens: number, past: number, positions: boolean): Feeds {
  const cache = (i: number): RuntimeTensor => ({
    type: "float32",
    dims: [1, kvHeads, past, size],
    data: Float32Array.from({ length: kvHeads * past * size }, (_, j) => Math.sin(1.7 * j + i)),
  });
  return {
    input_ids: i64([1, tokens], (i) => (37 * i + 5) % 90),
    attention_mask: i64([1, past + tokens], () => 1),
    ...(positions && { position_ids: i64([1, tokens], (i) => past + i) }),
    ...Object.fromEntries(Array.from({ length: 2 * layers }, (_, i) => [`past_key_values.${i >> 1}.${i & 1 ? "value" : "key"}`, cache(i)])),
  };
}

describeBackend("models", (on) => {
  /** How the steps ran, by operator. */
  async function check(bytes: Uint8Array, feeds: readonly Feeds[], limit: number): Promise<Map<string, string>> {
    const runtime = gpuRuntime(on.backend)!;
    const before = runtime.buffers;
    const [judge, session] = await Promise.all([loadModel(bytes), loadModel(bytes, on)]);
    let again = 0;
    for (const one of feeds) {
      const wanted = await judge.run(one);
      for (let turn = 0; turn < 2; turn++) {
        const got = await session.run(one);
        expect(Object.keys(got)).toEqual(Object.keys(wanted));
        for (const [name, { type, dims, data }] of Object.entries(wanted)) {
          expect([got[name].type, [...got[name].dims]], name).toEqual([type, [...dims]]);
          expect(distance(data as Float32Array, got[name].data as Float32Array), name).toBeLessThan(limit);
        }
        // a second run finds the buffers of the first
        if (turn === 1) expect(runtime.buffers).toBe(again);
        again = runtime.buffers;
      }
    }
    const how = new Map(session.explain().steps.map(({ operator, kernel }) => [operator, kernel]));
    await Promise.all([judge.release(), session.release()]);
    // what the backend keeps for the next job
    expect(runtime.buffers).toBeLessThanOrEqual(before + 4);
    return how;
  }

  it("a sentence encoder in float32 and in q4", async () => {
    const bytes = encoderModel(FORMS[0]);
    const feeds = encoderFeeds(1, 1) as unknown as Feeds[];
    const how = await check(bytes, feeds, 2e-6);
    expect([...how.values()]).not.toContain("processor");
    expect([...how.keys()]).toContain("lowbit.Attention");
    const { bytes: q4 } = await quantizeModelBytes(bytes, { dtype: "q4" });
    expect([...(await check(q4, feeds, 2e-6)).values()]).not.toContain("processor");
  }, 120_000);

  it("a table of positions without the dimension of sequences joins its norm, where there is one sequence", async () => {
    const [tokens, width] = [6, 48];
    const nodes = [node("Relu", ["x"], ["a"]), node("Add", ["a", "table"], ["b"]), node("LayerNormalization", ["b", "gain", "shift"], ["y"], { axis: -1n })]; // prettier-ignore
    const initializer = [raw("table", [tokens, width], weights(tokens * width, 3)), raw("gain", [width], weights(width, 4)), raw("shift", [width], weights(width, 5))]; // prettier-ignore
    const sizes = ["batch", tokens, width];
    const bytes = encode(
      model(graph({ input: [value("x", T.FLOAT, sizes)], output: [value("y", T.FLOAT, sizes)], initializer, node: nodes }), { opset: 17 }),
    );
    const feeds = (batch: number): Feeds => ({ x: { type: "float32", dims: [batch, tokens, width], data: weights(batch * tokens * width) } }); // prettier-ignore
    expect((await check(bytes, [feeds(1)], 1e-6)).get("lowbit.SkipLayerNorm")).toBe("kernel");
    // of several sequences it is added by a kernel of its own
    expect((await check(bytes, [feeds(3)], 1e-6)).get("lowbit.SkipLayerNorm")).toBe("one by one");
  }, 120_000);

  it("a decoder with GroupQueryAttention and packed weights", async () => {
    const bytes = decoderModel(SIZES);
    const how = await check(bytes, [decoderFeeds(SIZES, 7, 3, false)], 2e-6);
    expect(how.get("com.microsoft.GroupQueryAttention")).toBe("kernel");
    expect([...how.values()]).not.toContain("processor");
  }, 120_000);

  it("a decoder whose attention is spelled out", async () => {
    const how = await check(spelledModel(), [decoderFeeds(SPELLED, 5, 4, true)], 2e-6);
    expect(how.get("lowbit.Attention")).toBe("kernel");
    expect(how.get("lowbit.Rotary")).toBe("kernel");
  }, 120_000);

  it("a decoder keeps its cache on the device, and repeats a recorded step", async () => {
    const bytes = decoderModel(SIZES);
    const [judge, session] = await Promise.all([loadModel(bytes), loadModel(bytes, on)]);
    const [wanted, decoder] = [judge.decoder({ capacity: 32 }), session.decoder({ capacity: 32 })];
    const same = (a: Float32Array, b: Float32Array): void => expect(distance(a, b)).toBeLessThan(2e-6);
    const prompt = [1, 5, 9, 100, 3, 7, 22];
    same(wanted.prefill(prompt), await decoder.prefill(prompt));
    for (const id of [4, 150, 8]) same(wanted.step(id), await decoder.step(id));
    for (const one of [wanted, decoder]) one.truncate(5);
    // calls wait for each other
    const [first, second] = [decoder.step(17), decoder.step(18)];
    same(wanted.step(17), await first);
    same(wanted.step(18), await second);
    expect([decoder.length, decoder.capacity, decoder.cacheBytes]).toEqual([7, 32, wanted.cacheBytes]);
    expect(decoder.explain().find(({ operator }) => operator === "com.microsoft.GroupQueryAttention")?.kernels).toBeGreaterThan(0);
    const tokens = async (of: typeof wanted | typeof decoder, choose?: Sampler): Promise<number[]> => {
      const out: number[] = [];
      for await (const id of of.generate({ maxTokens: 4, ...(choose && { sampler: choose }) })) out.push(id);
      return out;
    };
    expect(await tokens(decoder)).toEqual(await tokens(wanted));
    const drawn = (): Sampler => sampler({ temperature: 2, topK: 40, topP: 0.95, seed: 3 });
    expect(await tokens(decoder, drawn())).toEqual(await tokens(wanted, drawn()));
    await expect(decoder.prefill(new Array<number>(40).fill(1))).rejects.toMatchObject({ code: "E_SHAPE" });
    await expect(decoder.step(-1)).rejects.toThrow(RangeError);
    expect(() => session.decoder({ cache: "int3" as "int4" })).toThrow(/decoder cache: expected float32/);
    await Promise.all([judge.release(), session.release()]);
    await expect(decoder.step(1)).rejects.toMatchObject({ code: "E_DISPOSED" });
  }, 120_000);

  it("caches of fewer bits and several sequences: the logits of WebAssembly", async () => {
    const bytes = decoderModel(SIZES);
    const [judge, session] = await Promise.all([loadModel(bytes), loadModel(bytes, on)]);
    // there queries are rounded to 16 bits
    const near = (a: Float32Array, b: Float32Array): void => expect(distance(a, b)).toBeLessThan(5e-5);
    for (const cache of ["float16", "int8", "k8v4", "int4"] as const) {
      const [wanted, decoder] = [judge, session].map((of) => of.decoder({ capacity: 12, cache })) as [Decoder, DeviceDecoder];
      near(wanted.prefill([1, 5, 9, 100]), await decoder.prefill([1, 5, 9, 100]));
      for (const id of [4, 150]) near(wanted.step(id), await decoder.step(id));
      expect(decoder.cacheBytes).toBe(wanted.cacheBytes);
      decoder.dispose();
    }
    for (const [size, rotary] of [
      [64, true],
      [80, true],
      [48, false],
    ] as const) {
      const bytes = decoderModel({ ...SIZES, heads: 2, kvHeads: 1, size, rotary });
      const sessions = await Promise.all([loadModel(bytes), loadModel(bytes, on)]);
      const options = { capacity: 12, sequences: 2, cache: "int4" } as const;
      const [wanted, decoder] = sessions.map((of) => of.decoder(options)) as [Decoder, DeviceDecoder];
      for (const [s, ids] of [[1, 5, 9, 100], [3]].entries()) near(wanted.prefill(ids, s), await decoder.prefill(ids, s));
      const got = await decoder.steps([5, 6]);
      wanted.steps([5, 6]).forEach((one, s) => near(one!, got[s]!));
      await Promise.all(sessions.map((of) => of.release()));
    }
    const options = { capacity: 5, sequences: 3, cache: "int8" } as const;
    const [wanted, decoder] = [judge, session].map((of) => of.decoder(options)) as [Decoder, DeviceDecoder];
    for (const [s, ids] of [[1, 2, 3], [9], [70, 80]].entries()) near(wanted.prefill(ids, s), await decoder.prefill(ids, s));
    for (const ids of [
      [5, 6, 7],
      [null, 8, 9],
      [10, null, 11],
    ]) {
      const got = await decoder.steps(ids);
      wanted.steps(ids).forEach((one, s) => (one === null ? expect(got[s]).toBeNull() : near(one, got[s]!)));
    }
    expect(decoder.lengths).toEqual([5, 3, 5]);
    // a full one rests
    near(wanted.steps([null, 3, null])[1]!, (await decoder.steps([null, 3, null]))[1]!);
    await expect(decoder.steps([null, 3, 4])).rejects.toMatchObject({ code: "E_SHAPE" });
    await expect(decoder.steps([1])).rejects.toThrow(/expected 3 tokens or null, got 1/);
    await expect(decoder.step(1, 3)).rejects.toThrow(/expected 0 to 2, got 3/);
    for (const one of [wanted, decoder]) one.truncate(1, 2);
    near(wanted.step(12, 2), await decoder.step(12, 2));
    await Promise.all([judge.release(), session.release()]);
  }, 120_000);

  it("an operator without a kernel runs on the processor", async () => {
    const nodes = [node("Relu", ["x"], ["a"]), node("Cos", ["a"], ["b"]), node("Mul", ["b", "x"], ["y"])];
    const bytes = encode(
      model(graph({ input: [value("x", T.FLOAT, ["n", 100])], output: [value("y", T.FLOAT, ["n", 100])], node: nodes }), { opset: 17 }),
    );
    const x = { type: "float32", dims: [4, 100], data: Float32Array.from({ length: 400 }, (_, i) => i / 100 - 2) };
    const how = await check(bytes, [{ x }], 1e-6);
    expect([how.get("Relu"), how.get("Cos"), how.get("Mul")]).toEqual(["kernel", "processor", "kernel"]);
    const none = { type: "float32", dims: [0, 100], data: new Float32Array(0) };
    const session = await loadModel(bytes, on);
    expect((await session.run({ x: none })).y.dims).toEqual([0, 100]);
    await session.release();
    await expect(session.run({ x })).rejects.toMatchObject({ code: "E_DISPOSED" });
  }, 120_000);
});
