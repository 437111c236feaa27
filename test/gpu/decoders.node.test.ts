// Decoders on a device beside onnxruntime-node, which is fed its caches: exporters' forms of GPT-2 and an optimum
// decoder, and forms that run partly elsewhere, which `explain()` says.
import { InferenceSession, Tensor } from "onnxruntime-node";
import { expect, it, vi } from "vitest";
import { gpuRuntime } from "../../src/backends/webgpu/door.ts";
import { quantizeModelBytes } from "../../src/onnx/index.ts";
import { loadModel } from "../../src/runtime/index.ts";
import { distance } from "../helpers/distance.ts";
import { SPELLED, spelledModel } from "../runtime/spelled.ts";
import { describeBackend } from "./adapter.ts";
import { GPT, gptModel } from "./decoder-models.ts";

/** The logits of the last token, the caches kept between calls. `cut`: to so many tokens. */
async function judgeOf(bytes: Uint8Array, { layers, kvHeads, size, vocabulary }: typeof GPT | typeof SPELLED) {
  const session = await InferenceSession.create(bytes, { logSeverityLevel: 4, intraOpNumThreads: 1 });
  const names = Array.from({ length: 2 * layers }, (_, i) => `${i >> 1}.${i & 1 ? "value" : "key"}`);
  let caches = names.map(() => new Tensor("float32", new Float32Array(0), [1, kvHeads, 0, size]));
  const int64 = (list: readonly number[]): Tensor => new Tensor("int64", BigInt64Array.from(list, BigInt), [1, list.length]);
  return {
    async run(ids: readonly number[]): Promise<Float32Array> {
      const past = caches[0].dims[2];
      const feeds: Record<string, Tensor> = {
        input_ids: int64(ids),
        attention_mask: int64(new Array<number>(past + ids.length).fill(1)),
        position_ids: int64(ids.map((_, i) => past + i)),
        use_cache_branch: new Tensor("bool", Uint8Array.of(past > 0 ? 1 : 0), [1]),
        ...Object.fromEntries(names.map((name, i) => [`past_key_values.${name}`, caches[i]])),
      };
      const out = await session.run(Object.fromEntries(session.inputNames.map((name) => [name, feeds[name]])));
      caches = names.map((name) => out[`present.${name}`] as (typeof caches)[0]);
      return (out.logits.data as Float32Array).slice(-vocabulary);
    },
    cut(tokens: number): void {
      caches = caches.map(({ data, dims }) => {
        const kept = new Float32Array(kvHeads * tokens * size);
        for (let h = 0; h < kvHeads; h++) kept.set(data.subarray(h * dims[2] * size, (h * dims[2] + tokens) * size), h * tokens * size);
        return new Tensor("float32", kept, [1, kvHeads, tokens, size]);
      });
    },
    release: () => session.release(),
  };
}

const ids = (count: number, seed: number): number[] => Array.from({ length: count }, (_, i) => (i * (7 + 2 * seed) + 3 * seed) % 80);

describeBackend("decoders beside onnxruntime", (on) => {
  it.each<[string, () => Uint8Array | Promise<Uint8Array>, typeof GPT | typeof SPELLED, Record<string, number>]>([
    ["rotary embedding and grouped heads", () => spelledModel(), SPELLED, { "lowbit.Attention": 2, Concat: 4 }],
    ["the same in q4", async () => (await quantizeModelBytes(spelledModel(), { dtype: "q4" })).bytes, SPELLED, { "lowbit.Attention": 2 }],
    ["GPT-2", () => gptModel(), GPT, { "lowbit.Attention": 2, Concat: 4 }],
    ["attention that is no pattern", () => gptModel({ apart: true }), GPT, { Softmax: 2, Concat: 4 }],
    ["caches that no Concat gives", () => gptModel({ copied: true }), GPT, { "lowbit.Attention": 2 }],
    ["use_cache_branch", () => gptModel({ branch: true }), GPT, { "lowbit.Attention": 2 }],
    ["an operator without a kernel, on the processor", () => gptModel({ odd: true }), GPT, { "lowbit.Attention": 2, Sin: 0 }],
  ])(
    "%s",
    async (_, make, sizes, parts) => {
      const bytes = await make();
      const session = await loadModel(bytes, on);
      const judge = await judgeOf(bytes, sizes);
      const decoder = session.decoder({ capacity: 100 });
      const near = (wanted: Float32Array, got: Float32Array): void => expect(distance(wanted, got)).toBeLessThan(1e-5);
      near(await judge.run(ids(6, 1)), await decoder.prefill(ids(6, 1)));
      for (const id of [4, 70, 8]) near(await judge.run([id]), await decoder.step(id));
      // several tokens onto a cache, which grows
      if (parts.Concat === 4) near(await judge.run(ids(60, 2)), await decoder.prefill(ids(60, 2)));
      judge.cut(5);
      decoder.truncate(5);
      for (const id of [9, 33]) near(await judge.run([id]), await decoder.step(id));
      const made = Object.fromEntries(decoder.explain().map(({ operator, kernels }) => [operator, kernels]));
      expect(made).toMatchObject(parts);
      expect(Object.keys(made).filter((name) => made[name] === 0)).toEqual(Object.keys(parts).filter((name) => parts[name] === 0));
      await Promise.all([judge.release(), session.release()]);
    },
    120_000,
  );

  it("from the third token on no bind group is made, and no buffer but that of the logits", async () => {
    const { device } = gpuRuntime(on.backend)!;
    const session = await loadModel(gptModel(), on);
    const decoder = session.decoder({ capacity: 40 });
    await decoder.prefill(ids(3, 1));
    for (const id of [4, 70]) await decoder.step(id);
    const [groups, buffers] = [vi.spyOn(device, "createBindGroup"), vi.spyOn(device, "createBuffer")];
    for (const id of ids(20, 2)) await decoder.step(id);
    expect(groups).not.toHaveBeenCalled();
    expect(buffers.mock.calls.map(([{ label }]) => label)).toEqual(new Array(20).fill("session (result)"));
    vi.restoreAllMocks();
    await session.release();
  }, 120_000);
});
