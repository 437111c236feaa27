// GGUF files as sessions: logits equal to a forward pass written here on the file's values in float64, for each
// architecture; kjv-llama written as GGUF gives the tokens that onnxruntime-node gives for its ONNX form.
import { InferenceSession, Tensor } from "onnxruntime-node";
import { afterAll, describe, expect, test } from "vitest";
import { kjvModel } from "../../bench/gguf-llama.ts";
import { loadKjv } from "../../bench/gguf-kjv.ts";
import { format } from "../../formats/index.ts";
import { quantize, tensor } from "../../src/index.ts";
import { ggufBytes, quantizeGguf, readGguf } from "../../src/interop/index.ts";
import { loadModel } from "../../src/runtime/index.ts";
import { fileOf, HEADS, KV, LAYERS, HIDDEN, SIZE, type Form } from "./gguf-files.ts";

/** Logits of every token, from the values of a file. */
async function forward(bytes: Uint8Array, form: Form, ids: readonly number[]): Promise<number[][]> {
  const file = await readGguf(bytes);
  const values = new Map<string, Float32Array>();
  for (const [name, t] of file.tensors) values.set(name, await t.values());
  const w = (name: string): Float32Array => values.get(name)!;
  const product = (x: readonly number[], name: string): number[] => {
    const m = w(`${name}.weight`);
    const bias = values.get(`${name}.bias`);
    return Array.from({ length: m.length / x.length }, (_, r) => x.reduce((s, v, i) => s + v * m[r * x.length + i], bias?.[r] ?? 0));
  };
  const norm = (x: readonly number[], name: string): number[] => {
    const root = Math.sqrt(x.reduce((s, v) => s + v * v, 0) / x.length + 1e-5);
    return x.map((v, i) => (v / root) * w(name)[i]);
  };
  const turn = (x: readonly number[], at: number): number[] => {
    const out = [...x];
    for (let i = 0; i < SIZE / 2; i++) {
      const [a, b] = form.architecture === "llama" ? [2 * i, 2 * i + 1] : [i, i + SIZE / 2];
      const angle = (at * 5000 ** ((-2 * i) / SIZE)) / (values.get("rope_freqs.weight")?.[i] ?? 1) / (form.linear ?? 1);
      out[a] = x[a] * Math.cos(angle) - x[b] * Math.sin(angle);
      out[b] = x[b] * Math.cos(angle) + x[a] * Math.sin(angle);
    }
    return out;
  };
  const heads = (x: readonly number[], name: string | undefined, at: number | undefined): number[][] =>
    Array.from({ length: x.length / SIZE }, (_, h) => {
      const part = x.slice(h * SIZE, (h + 1) * SIZE);
      const normed = name !== undefined && form.headNorms ? norm(part, name) : part;
      return at === undefined ? normed : turn(normed, at);
    });
  const caches = Array.from({ length: LAYERS }, () => ({ k: [] as number[][][], v: [] as number[][][] }));
  const table = w("token_embd.weight");
  return ids.map((id, at) => {
    let x = Array.from(table.subarray(id * HIDDEN, (id + 1) * HIDDEN));
    for (let l = 0; l < LAYERS; l++) {
      const p = `blk.${l}`;
      const y = norm(x, `${p}.attn_norm.weight`);
      const q = heads(product(y, `${p}.attn_q`), `${p}.attn_q_norm.weight`, at);
      caches[l].k.push(heads(product(y, `${p}.attn_k`), `${p}.attn_k_norm.weight`, at));
      caches[l].v.push(heads(product(y, `${p}.attn_v`), undefined, undefined));
      const out = q.flatMap((one, h) => {
        const kv = Math.floor((h * KV) / HEADS);
        const scores = caches[l].k.map((k) => Math.exp(one.reduce((s, v, i) => s + v * k[kv][i], 0) / Math.sqrt(SIZE)));
        const sum = scores.reduce((a, b) => a + b, 0);
        return one.map((_, i) => scores.reduce((s, e, j) => s + (e / sum) * caches[l].v[j][kv][i], 0));
      });
      x = product(out, `${p}.attn_output`).map((v, i) => v + x[i]);
      const z = norm(x, `${p}.ffn_norm.weight`);
      const [gate, up] = [product(z, `${p}.ffn_gate`), product(z, `${p}.ffn_up`)];
      const gated = gate.map((v, i) => (v / (1 + Math.exp(-v))) * up[i]);
      x = product(gated, `${p}.ffn_down`).map((v, i) => v + x[i]);
    }
    return product(norm(x, "output_norm.weight"), form.tied ? "token_embd" : "output");
  });
}

const IDS = [5, 17, 2, 90, 41, 8, 33];
const worst = (a: ArrayLike<number>, b: ArrayLike<number>): number => {
  let top = 0;
  for (let i = 0; i < a.length; i++) top = Math.max(top, Math.abs(a[i] - b[i]));
  return top;
};

test.each<Form>([
  { architecture: "llama", type: "float32" },
  { architecture: "llama", type: "ggml_q4_k", factors: true },
  { architecture: "llama", type: "ggml_q6_k", tied: true, linear: 2 },
  { architecture: "qwen2", type: "ggml_q4_0", biases: true },
  { architecture: "qwen3", type: "ggml_q8_0", headNorms: true, tied: true },
  { architecture: "qwen3", type: "float16", headNorms: true },
  { architecture: "llama", type: "ggml_iq4_nl" },
])("$architecture in $type", async (form) => {
  const bytes = await fileOf(form);
  const wanted = await forward(bytes, form, IDS);
  const session = await loadModel(bytes);
  expect(session.inputNames.slice(0, 3)).toEqual(["input_ids", "attention_mask", "past_key_values.0.key"]);
  const empty = (name: string) => [name, { type: "float32", dims: [1, KV, 0, SIZE], data: new Float32Array(0) }] as const;
  const { logits } = await session.run({
    input_ids: { type: "int64", dims: [1, IDS.length], data: BigInt64Array.from(IDS, BigInt) },
    attention_mask: { type: "int64", dims: [1, IDS.length], data: new BigInt64Array(IDS.length).fill(1n) },
    ...Object.fromEntries(session.inputNames.slice(2).map(empty)),
  });
  expect(worst(logits.data as Float32Array, wanted.flat())).toBeLessThan(2e-4);
  const decoder = session.decoder();
  expect(worst(decoder.prefill(IDS.slice(0, 4)), wanted[3])).toBeLessThan(2e-4);
  for (let i = 4; i < IDS.length; i++) expect(worst(decoder.step(IDS[i]), wanted[i])).toBeLessThan(2e-4);
  expect(decoder.capacity).toBe(128);
  await session.release();
});

test("activations of 8 bits, from a Blob, a reader of ranges and the reference backend", async () => {
  const form: Form = { architecture: "llama", type: "ggml_q4_0" };
  const bytes = await fileOf(form);
  const wanted = (await forward(bytes, form, IDS)).at(-1)!;
  const rms = Math.sqrt(wanted.reduce((s, v) => s + v * v, 0) / wanted.length);
  const seen: string[] = [];
  const ranges = { size: bytes.length, read: async (at: number, n: number) => bytes.slice(at, at + n) };
  for (const source of [new Blob([bytes.slice()]), ranges]) {
    const session = await loadModel(source, {
      activations: "int8",
      onProgress: ({ stage, done, total }) => seen.push(`${stage} ${done}/${total}`),
    });
    const decoder = session.decoder({ cache: "int8" });
    expect(worst(decoder.prefill(IDS), wanted) / rms).toBeLessThan(0.15);
    await session.release();
  }
  expect(seen.slice(0, 16).at(-1)).toBe("prepare 16/16");
});

test.each<[string, () => Promise<Uint8Array>, RegExp]>([
  ["another architecture", () => fileOf({ architecture: "gemma" as "llama", type: "float32" }), /architectures llama, qwen2, qwen3, got "gemma"/],
  ["experts", () => fileOf({ architecture: "llama", type: "float32", more: { "llama.expert_count": { type: "uint32", value: 8 } } }), /without experts/],
  ["a rope scaling that it does not know", () => fileOf({ architecture: "llama", type: "float32", more: { "llama.rope.scaling.type": "yarn" } }), /none or linear, got "yarn"/],
  ["a size for each layer", () => fileOf({ architecture: "llama", type: "float32", more: { "llama.attention.head_count_kv": new Int32Array([2, 2]) } }), /for all layers/],
  ["a tensor is missing", () => fileOf({ architecture: "llama", type: "float32" }, (t) => delete t["blk.1.ffn_up.weight"]), /"blk.1.ffn_up.weight", got none/],
  ["a tensor of another shape", () => fileOf({ architecture: "llama", type: "float32" }, (t) => (t["output_norm.weight"] = t["rope"] = quantize(tensor(new Float32Array(64), [64]), format("float32")))), /of \[256\], got \[64\]/],
  ["a tensor without a use", () => fileOf({ architecture: "llama", type: "float32" }, (t) => (t["blk.0.attn_sinks.weight"] = quantize(tensor(new Float32Array(64), [64]), format("float32")))), /got also blk.0.attn_sinks.weight/],
  ["a file cut short", async () => (await fileOf({ architecture: "llama", type: "float32" })).slice(0, 5000), /GGUF/],
])("%s", async (_, make, message) => {
  const error: unknown = await loadModel(await make()).catch((e: unknown) => e);
  expect(error).toMatchObject({ name: "LowbitError" });
  expect((error as Error).message).toMatch(message);
}); // prettier-ignore

const kjv = loadKjv();
describe.skipIf(kjv === null)("kjv-llama", () => {
  const sessions: { release(): Promise<void> }[] = [];
  afterAll(async () => {
    for (const session of sessions) await session.release();
  });
  test("64 greedy tokens of its GGUF are those of its ONNX form in onnxruntime-node", async () => {
    const judge = await InferenceSession.create(kjv!.bytes, { logSeverityLevel: 4, intraOpNumThreads: 1 });
    const session = await loadModel(await ggufBytes(await quantizeGguf(kjvModel(kjv!), { type: "F32" })));
    sessions.push(judge, session);
    const prompt = Array.from(kjv!.validation.subarray(0, 12));
    const got: number[] = [];
    for await (const id of session.decoder().generate({ prompt, maxTokens: 64 })) got.push(id);
    const wanted: number[] = [];
    while (wanted.length < 64) {
      const ids = [...prompt, ...wanted];
      const { logits } = await judge.run({ ids: new Tensor("int64", BigInt64Array.from(ids, BigInt), [1, ids.length]) });
      const last = (logits.data as Float32Array).subarray(-2048);
      wanted.push(last.indexOf(last.reduce((a, b) => Math.max(a, b))));
    }
    expect(got).toEqual(wanted);
  });
});
