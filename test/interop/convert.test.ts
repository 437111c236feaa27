// lowbit convert: a Llama checkpoint to GGUF and between types, with llama.cpp's choices of types.
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { convertCommand } from "../../src/cli/commands/convert.ts";
import { parseCommand } from "../../src/cli/spec.ts";
import { floatModel, ggufBytes, quantizeGguf, readGguf, readImatrix, writeSafetensors, type SafeContent } from "../../src/interop/index.ts";
import { tensor } from "../../src/index.ts";
import { random } from "../helpers/random.ts";

const folder = mkdtempSync(join(tmpdir(), "lowbit-convert-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const path = (name: string) => join(folder, name);
const refuse = (code: string) => expect.objectContaining({ code });

async function convert(...argv: string[]): Promise<Record<string, unknown>> {
  let printed = "";
  const context = { signal: new AbortController().signal, print: (text: string) => void (printed += text) };
  expect(await convertCommand.run(parseCommand(convertCommand, [...argv, "--json"]), context)).toBe(0);
  return JSON.parse(printed) as Record<string, unknown>;
}

const [hidden, heads, wide, vocabulary] = [256, 4, 288, 16];
const q = Float32Array.from({ length: hidden * hidden }, (_, i) => Math.floor(i / hidden));
beforeAll(async () => {
  const rng = random(2);
  const matrix = (rows: number, k: number, values?: Float32Array): SafeContent => {
    const data = values ?? Float32Array.from({ length: rows * k }, () => rng.normal());
    return { dtype: "F32", shape: [rows, k], bytes: new Uint8Array(data.buffer) };
  };
  const ones = (k: number): SafeContent => ({ dtype: "F32", shape: [k], bytes: new Uint8Array(new Float32Array(k).fill(1).buffer) });
  const layer = "model.layers.0.";
  await writeSafetensors(path("model.safetensors"), {
    tensors: {
      "model.embed_tokens.weight": matrix(vocabulary, hidden),
      "model.norm.weight": ones(hidden),
      "lm_head.weight": matrix(vocabulary, hidden),
      [`${layer}input_layernorm.weight`]: ones(hidden),
      [`${layer}post_attention_layernorm.weight`]: ones(hidden),
      [`${layer}self_attn.q_proj.weight`]: matrix(hidden, hidden, q),
      [`${layer}self_attn.k_proj.weight`]: matrix(hidden, hidden),
      [`${layer}self_attn.v_proj.weight`]: matrix(hidden, hidden),
      [`${layer}self_attn.o_proj.weight`]: matrix(hidden, hidden),
      [`${layer}mlp.gate_proj.weight`]: matrix(wide, hidden),
      [`${layer}mlp.up_proj.weight`]: matrix(wide, hidden),
      [`${layer}mlp.down_proj.weight`]: matrix(hidden, wide),
    },
  });
  const config = { model_type: "llama", hidden_size: hidden, intermediate_size: wide, num_hidden_layers: 1, num_attention_heads: heads };
  const more = { max_position_embeddings: 64, rms_norm_eps: 1e-5, vocab_size: vocabulary, eos_token_id: 0 };
  writeFileSync(path("config.json"), JSON.stringify({ ...config, ...more }));
  const vocab = Object.fromEntries(Array.from({ length: 14 }, (_, i) => [String.fromCharCode(97 + i), i]));
  writeFileSync(
    path("tokenizer.json"),
    JSON.stringify({
      model: { type: "BPE", vocab, merges: ["a b", ["c", "d"]] },
      added_tokens: [{ id: 14, content: "<s>", special: true }],
    }),
  );
});

test("a folder as F16: names, rows of heads in rotary order, tokenizer; then other types of that file", async () => {
  expect(await convert(folder, "-o", path("f16.gguf"))).toMatchObject({ types: { F16: 9, F32: 3 } });
  const file = await readGguf(path("f16.gguf"));
  // halves of a head become neighbours: 0, 32, 1, 33, ... for heads of 64
  const rows = (await file.tensors.get("blk.0.attn_q.weight")!.values()).filter((_, i) => i % hidden === 0);
  expect([...rows.subarray(0, 4)]).toEqual([0, 32, 1, 33]);
  expect([...rows.subarray(64, 68)]).toEqual([64, 96, 65, 97]);
  expect(file.get("llama.attention.head_count")).toBe(heads);
  expect((file.get("tokenizer.ggml.tokens") as string[]).slice(12)).toEqual(["m", "n", "<s>", "[PAD15]"]);
  expect([...(file.get("tokenizer.ggml.token_type") as Int32Array)].slice(12)).toEqual([1, 1, 3, 5]);
  expect(file.get("tokenizer.ggml.merges")).toEqual(["a b", "c d"]);
  // rows of 288 are no super-blocks; the output matrix keeps more bits
  expect(await convert(path("f16.gguf"), "--type", "q4_k", "-o", path("q4.gguf"))).toMatchObject({
    types: { Q4_K: 7, Q5_0: 1, Q6_K: 1, F32: 3 },
  });
  const rule = await convert(
    path("f16.gguf"),
    "-t",
    "q4_k",
    "--pure",
    "--rule",
    "blk.*.attn_v.weight=q8_0",
    "--rule",
    "token_embd.weight=keep",
    "-o",
    path("r.gguf"),
  );
  expect(rule).toMatchObject({ types: { Q4_K: 6, Q5_0: 1, Q8_0: 1, F16: 1, F32: 3 } });
  await expect(convert(path("q4.gguf"), "-t", "q8_0", "-o", path("x.gguf"))).rejects.toThrow(refuse("E_UNSUPPORTED"));
  await convert(path("q4.gguf"), "-t", "q8_0", "--allow-requantize", "-o", path("q8.gguf"));
  await expect(convert(path("f16.gguf"), "-o", path("q8.gguf"))).rejects.toThrow(refuse("E_EXISTS"));
  await expect(convert(path("f16.gguf"), "-t", "q9", "-o", path("y.gguf"))).rejects.toThrow(refuse("E_UNSUPPORTED"));
  await expect(convert(path("f16.gguf"))).rejects.toThrow(refuse("E_CLI"));
  expect(readdirSync(folder).filter((f) => f.includes(".tmp"))).toEqual([]);
});

test("an importance matrix lowers the error of its columns", async () => {
  const rng = random(5);
  const x = Float32Array.from({ length: 4 * 256 }, () => rng.normal());
  const model = floatModel(await readGguf(await ggufBytes({ metadata: {}, tensors: { "blk.0.ffn_up.weight": tensor(x, [4, 256]) } })));
  const sums = Float32Array.from({ length: 256 }, (_, j) => (j % 16 === 0 ? 900 : 1));
  const imatrix = await readImatrix(
    await ggufBytes({
      metadata: {},
      tensors: { "blk.0.ffn_up.weight.in_sum2": tensor(sums, [1, 256]), "blk.0.ffn_up.weight.counts": tensor(Float32Array.of(9), [1, 1]) },
    }),
  );
  expect(imatrix.get("blk.0.ffn_up.weight")![16]).toBeCloseTo(100);
  const error = async (importance?: ReadonlyMap<string, Float32Array>) => {
    const file = await readGguf(
      await ggufBytes(quantizeGguf(model, { type: "q4_k", ...(importance === undefined ? {} : { importance }) })),
    );
    const y = await file.tensors.get("blk.0.ffn_up.weight")!.values();
    return x.reduce((s, v, i) => s + sums[i % 256] * (v - y[i]) ** 2, 0);
  };
  expect(await error(imatrix)).toBeLessThan(0.9 * (await error()));
});

test("a matrix is asked for by pieces of a megabyte of values, and every row lands in its place", async () => {
  const [rows, k] = [4104, 256];
  const asked: number[] = [];
  const values = (row = 0, count = rows) => {
    asked.push(count);
    const x = new Float32Array(count * k);
    for (let r = 0; r < count; r++) x.fill(1 + ((row + r) % 113), r * k, (r + 1) * k);
    return Promise.resolve(x);
  };
  const model = { metadata: new Map(), tensors: new Map([["blk.0.ffn_up.weight", { dtype: "F32", shape: [rows, k], values }]]) };
  const file = await readGguf(await ggufBytes(quantizeGguf(model, { type: "q8_0" })));
  expect(asked).toEqual([4096, 8]);
  const got = await file.tensors.get("blk.0.ffn_up.weight")!.values();
  expect(got.length).toBe(rows * k);
  // 127 steps to the row's one value, whose scale is a float16
  for (let i = 0; i < got.length; i += 255)
    if (Math.abs(got[i] / (1 + (Math.floor(i / k) % 113)) - 1) > 1e-3) expect.fail(`value ${i}: ${got[i]}`);
});
