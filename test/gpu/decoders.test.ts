// Decoders on a device whose attention is spelled out: their caches stay there. The judge is the decoder on WebAssembly,
// which test/runtime judges by onnxruntime; decoders.node.test.ts has onnxruntime itself.
import { fromBinary } from "@bufbuild/protobuf";
import { expect, it } from "vitest";
import { decoderModel, type DecoderSizes } from "../../bench/decode-model.ts";
import { gpuRuntime } from "../../src/backends/webgpu/door.ts";
import { ModelProtoSchema } from "../../src/onnx/file/gen/onnx_pb.ts";
import { quantizeModelBytes } from "../../src/onnx/index.ts";
import { loadModel } from "../../src/runtime/index.ts";
import type { Decoder } from "../../src/runtime/decoder.ts";
import type { DeviceDecoder } from "../../src/runtime/webgpu/decoder.ts";
import { distance } from "../helpers/distance.ts";
import { encode, node } from "../onnx/build.ts";
import { halfSpelledModel, spelledModel, withValues } from "../runtime/spelled.ts";
import { describeBackend } from "./adapter.ts";
import { gptModel } from "./decoder-models.ts";

const near = (wanted: Float32Array, got: Float32Array): void => expect(distance(wanted, got)).toBeLessThan(5e-6);

const GROUPED: DecoderSizes = { hidden: 64, heads: 4, kvHeads: 2, size: 16, ffn: 96, layers: 1, vocabulary: 80, positions: 64, level: 0 };

const ids = (count: number, seed: number): number[] => Array.from({ length: count }, (_, i) => (i * (7 + 2 * seed) + 3 * seed) % 80);

describeBackend("decoders of spelled-out attention", (on) => {
  it.each([
    ["rotary embedding and grouped heads", () => spelledModel()],
    ["the same with caches of float16", () => halfSpelledModel()],
    ["GPT-2", () => gptModel()],
    ["GPT-2, attention that is no pattern", () => gptModel({ apart: true })],
  ])(
    "%s: prompts, tokens, several sequences, caches that grow",
    async (_, make) => {
      const bytes = make();
      const runtime = gpuRuntime(on.backend)!;
      const before = runtime.buffers;
      const [judge, session] = await Promise.all([loadModel(bytes), loadModel(bytes, on)]);
      const options = { capacity: 150, sequences: 2 };
      const [wanted, decoder] = [judge.decoder(options), session.decoder(options)];
      near(wanted.prefill(ids(7, 1)), await decoder.prefill(ids(7, 1)));
      near(wanted.prefill(ids(3, 2), 1), await decoder.prefill(ids(3, 2), 1));
      for (const id of [4, 70, 8]) near(wanted.step(id), await decoder.step(id));
      const small = decoder.cacheBytes;
      // past the room that there is at first
      near(wanted.prefill(ids(55, 3)), await decoder.prefill(ids(55, 3)));
      expect(decoder.cacheBytes).toBeGreaterThan(small);
      for (const list of [
        [5, 6],
        [null, 9],
        [10, null],
      ] as const) {
        const got = await decoder.steps(list);
        wanted.steps(list).forEach((one, s) => (one === null ? expect(got[s]).toBeNull() : near(one, got[s]!)));
      }
      expect(decoder.lengths).toEqual(wanted.lengths);
      for (const one of [wanted, decoder]) one.truncate(20);
      // calls wait for each other
      const [first, second] = [decoder.step(17), decoder.prefill([18, 19])];
      near(wanted.step(17), await first);
      near(wanted.prefill([18, 19]), await second);
      const parts = new Map(decoder.explain().map(({ operator, kernels }) => [operator, kernels]));
      expect(parts.get("MatMul")).toBeGreaterThan(0);
      expect([...parts.values()]).not.toContain(0);
      await expect(decoder.prefill(ids(130, 1))).rejects.toMatchObject({ code: "E_SHAPE" });
      await Promise.all([judge.release(), session.release()]);
      await expect(decoder.step(1)).rejects.toMatchObject({ code: "E_DISPOSED" });
      expect(runtime.buffers).toBeLessThanOrEqual(before + 4);
    },
    120_000,
  );

  it("GroupQueryAttention beside an operator without a kernel: step by step, which explain() says", async () => {
    const proto = fromBinary(ModelProtoSchema, decoderModel(GROUPED));
    const { node: nodes } = proto.graph!;
    const last = nodes.find(({ output }) => output[0] === "logits")!;
    last.output[0] = "angles";
    nodes.push(node("Sin", ["angles"], ["logits"]));
    const bytes = encode(proto);
    const [judge, session] = await Promise.all([loadModel(bytes), loadModel(bytes, on)]);
    for (const first of ["prefill", "steps"]) {
      const options = { capacity: 20, sequences: 2 };
      const [wanted, decoder] = [judge.decoder(options), session.decoder(options)];
      if (first === "prefill") near(wanted.prefill([4, 9, 70], 1), await decoder.prefill([4, 9, 70], 1));
      for (const list of [
        [5, 6],
        [7, null],
        [8, 9],
      ] as const) {
        // prettier-ignore
        const got = await decoder.steps(list);
        wanted.steps(list).forEach((one, s) => one !== null && near(one, got[s]!));
      }
      expect(decoder.lengths).toEqual(wanted.lengths);
      expect(decoder.explain()).toContainEqual({ operator: "Sin", kernels: 0 });
      expect(decoder.explain()).toContainEqual({ operator: "com.microsoft.GroupQueryAttention", kernels: 1 });
      // what has no kernel over caches of codes stays refused
      await expect(session.decoder({ cache: "int8" }).step(1)).rejects.toThrow(/operators with kernels on the device, got Sin/);
    }
    await Promise.all([judge.release(), session.release()]);
  }, 120_000);

  it("a decoder that is disposed of within a call leaves nothing behind", async () => {
    const runtime = gpuRuntime(on.backend)!;
    for (const bytes of [gptModel({ odd: true }), decoderModel(GROUPED)]) {
      const session = await loadModel(bytes, on);
      await session.decoder({ capacity: 20 }).prefill([1, 2]);
      const before = runtime.buffers;
      for (const first of [true, false]) {
        const decoder = session.decoder({ capacity: 20 });
        if (!first) await decoder.prefill([3, 4]);
        const call = decoder.prefill([5, 6, 7]).catch((error: unknown) => error);
        await Promise.resolve();
        await Promise.resolve();
        decoder.dispose();
        await call;
        expect(runtime.buffers).toBe(before);
      }
      await session.release();
    }
  }, 120_000);

  it("the product of the logits joined with another", async () => {
    const { bytes: q4 } = await quantizeModelBytes(spelledModel(), { dtype: "q4" });
    for (const bytes of [decoderModel(GROUPED), q4]) {
      const [judge, session] = await Promise.all([loadModel(bytes), loadModel(withValues(bytes), on)]);
      const [wanted, decoder] = [judge.decoder({ capacity: 20 }), session.decoder({ capacity: 20 })];
      for (const list of [ids(3, 1), [8]]) near(wanted.prefill(list), await decoder.prefill(list));
      await Promise.all([judge.release(), session.release()]);
    }
  }, 120_000);

  it("generates, and refuses caches of fewer bits", async () => {
    const bytes = gptModel();
    const [judge, session] = await Promise.all([loadModel(bytes), loadModel(bytes, on)]);
    const tokens = async (of: Pick<Decoder | DeviceDecoder, "generate">): Promise<number[]> => {
      const out: number[] = [];
      for await (const id of of.generate({ prompt: ids(5, 4), maxTokens: 6 })) out.push(id);
      return out;
    };
    expect(await tokens(session.decoder())).toEqual(await tokens(judge.decoder()));
    expect(() => session.decoder({ cache: "int8" })).toThrow(/expected GroupQueryAttention/);
    expect(() => session.decoder({ capacity: 0 })).toThrow(/decoder capacity/);
    await Promise.all([judge.release(), session.release()]);
  }, 120_000);
});
