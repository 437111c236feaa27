// `lowbit quantize DIR --dtypes ...` for transformers.js: the files of a folder have the names that it looks for,
// config.json says where data lie, and its own classes load and run them in Node, from the folder and with no network.
// What they give is what onnxruntime gives for the same files.
import { existsSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import {
  AutoModelForCausalLM,
  AutoModelForImageTextToText,
  AutoTokenizer,
  LlamaForCausalLM,
  LlavaForConditionalGeneration,
  Tensor as HfTensor,
  env,
  pipeline,
} from "@huggingface/transformers";
import { InferenceSession, Tensor } from "onnxruntime-node";
import { beforeAll, describe, expect, test } from "vitest";
import { weights } from "../onnx/build.ts";
import { IMAGE_FEATURES, IMAGE_TOKEN, SIZES, writeImageTextModel, writeLanguageModel } from "../onnx/transformers-models.ts";
import { lowbit, scratch } from "./run.ts";

const DTYPES = ["q4", "q4f16", "q8", "fp16"] as const;
const SUFFIX = { q4: "_q4", q4f16: "_q4f16", q8: "_quantized", fp16: "_fp16" } as const;
const MODELS = ["decoder_model_merged", "embed_tokens", "vision_encoder"] as const;
const folder = scratch();

beforeAll(() => {
  env.allowRemoteModels = false;
  env.allowLocalModels = true;
  env.localModelPath = folder.path("");
  env.useFSCache = false;
  env.logLevel = 50;
});

const ids = (...tokens: number[]): BigInt64Array => BigInt64Array.from(tokens, BigInt);
const tokens = [5, IMAGE_TOKEN, IMAGE_TOKEN, IMAGE_TOKEN, IMAGE_TOKEN, 17, 40];
const { width, heads, layers, image } = SIZES;
const pixels = weights(3 * image * image, 9);

async function session(path: string): Promise<InferenceSession> {
  return InferenceSession.create(path, { logSeverityLevel: 4, intraOpNumThreads: 1 });
}

/** The caches before the first step. */
const noCache = (): Record<string, Tensor> =>
  Object.fromEntries(
    Array.from({ length: layers }, (_, l) => [`past_key_values.${l}.key`, `past_key_values.${l}.value`])
      .flat()
      .map((name) => [name, new Tensor("float32", new Float32Array(0), [1, heads, 0, width / heads])]),
  );

/**
 * What comes before the decoder's own inputs: from the token ids and how many came before them to embeddings or ids.
 */
type Head = (tokens: readonly number[]) => Promise<Record<string, Tensor>>;

/** The tokens that are likeliest one after the other, and the first logits, by onnxruntime alone. */
async function greedy(
  decoder: InferenceSession,
  head: Head,
  prompt: readonly number[],
  steps: number,
): Promise<{ made: number[]; logits: Float32Array }> {
  const made: number[] = [];
  let cache = noCache();
  let input = [...prompt];
  let seen = 0;
  let first: Float32Array | undefined;
  for (let step = 0; step < steps; step++) {
    const feeds: Record<string, Tensor> = {
      ...(await head(input)),
      attention_mask: new Tensor("int64", new BigInt64Array(seen + input.length).fill(1n), [1, seen + input.length]),
      position_ids: new Tensor("int64", ids(...input.map((_, i) => seen + i)), [1, input.length]),
      ...cache,
    };
    if (decoder.inputNames.includes("use_cache_branch")) feeds.use_cache_branch = new Tensor("bool", [seen > 0], [1]);
    const out = await decoder.run(feeds);
    const logits = out.logits.data as Float32Array;
    first ??= Float32Array.from(logits);
    const last = logits.subarray(logits.length - SIZES.vocabulary);
    const next = last.reduce((best, v, i) => (v > last[best] ? i : best), 0);
    made.push(next);
    if (next === 1) break;
    cache = Object.fromEntries(
      Object.entries(out).flatMap(([name, tensor]) =>
        name === "logits" ? [] : [[name.replace("present", "past_key_values"), tensor as Tensor]],
      ),
    );
    seen += input.length;
    input = [next];
  }
  return { made, logits: first! };
}

const largest = (a: ArrayLike<number>, b: ArrayLike<number>): number =>
  Array.from(a).reduce((most, v, i) => Math.max(most, Math.abs(v - b[i])), 0);

describe("a model of images and text in three files", () => {
  let onnx = "";
  beforeAll(async () => {
    onnx = writeImageTextModel(folder.path("image-text"));
    const { code, stderr, stdout } = await lowbit(["quantize", onnx, "--dtypes", DTYPES.join(",")]);
    expect(stderr).toBe("");
    expect(code).toBe(0);
    for (const name of MODELS) expect(stdout).toContain(name);
  });

  test("twelve files beside the three, by the names that transformers.js looks for", () => {
    const wanted = MODELS.flatMap((name) => ["", ...DTYPES.map((dtype) => SUFFIX[dtype])].map((suffix) => `${name}${suffix}.onnx`));
    expect(readdirSync(onnx).sort()).toEqual(wanted.sort());
    // nothing outside the files: nothing to say in config.json
    expect(readFileSync(folder.path("image-text/config.json"), "utf8")).not.toContain("use_external_data_format");
  });

  test.each(["fp32", ...DTYPES] as const)(
    "%s: loads as LlavaForConditionalGeneration and generates what onnxruntime does",
    async (dtype) => {
      const suffix = dtype === "fp32" ? "" : SUFFIX[dtype];
      const [decoder, embed, vision] = await Promise.all(MODELS.map((name) => session(join(onnx, `${name}${suffix}.onnx`))));
      const { image_features } = await vision.run({ pixel_values: new Tensor("float32", pixels, [1, 3, image, image]) });
      const head: Head = async (input) => {
        const { inputs_embeds } = await embed.run({ input_ids: new Tensor("int64", ids(...input), [1, input.length]) });
        const values = Float32Array.from(inputs_embeds.data as Float32Array);
        let feature = 0;
        input.forEach((token, i) => {
          if (token !== IMAGE_TOKEN || input.length === 1) return;
          values.set((image_features.data as Float32Array).subarray(feature * width, ++feature * width), i * width);
        });
        return { inputs_embeds: new Tensor("float32", values, [1, input.length, width]) };
      };
      const own = await greedy(decoder, head, tokens, 6);

      const model = (await AutoModelForImageTextToText.from_pretrained("image-text", {
        dtype,
        device: "cpu",
      })) as LlavaForConditionalGeneration;
      expect(model).toBeInstanceOf(LlavaForConditionalGeneration);
      const inputs = {
        input_ids: new HfTensor("int64", ids(...tokens), [1, tokens.length]),
        attention_mask: new HfTensor("int64", ids(...tokens.map(() => 1)), [1, tokens.length]),
        pixel_values: new HfTensor("float32", pixels, [1, 3, image, image]),
      };
      const { logits } = (await model(inputs)) as { logits: HfTensor };
      expect(largest(logits.data as Float32Array, own.logits)).toBeLessThanOrEqual(1e-5);
      const made = (await model.generate({ ...inputs, max_new_tokens: 6, do_sample: false } as never)) as HfTensor;
      expect(Array.from(made.data as BigInt64Array, Number).slice(tokens.length)).toEqual(own.made);
      await model.dispose();
      for (const one of [decoder, embed, vision]) await one.release();
    },
  );

  test("the dtypes are near the float model, and the convolution and the features of the image are among what is quantized", async () => {
    expect(IMAGE_FEATURES).toBe(4);
    const reference = await session(join(onnx, "vision_encoder.onnx"));
    const feeds = { pixel_values: new Tensor("float32", pixels, [1, 3, image, image]) };
    const float = Float32Array.from((await reference.run(feeds)).image_features.data as Float32Array);
    const power = float.reduce((sum, v) => sum + v * v, 0);
    for (const [dtype, least] of [
      ["q4", 15],
      ["q8", 25],
      ["fp16", 50],
    ] as const) {
      const quantized = await session(join(onnx, `vision_encoder${SUFFIX[dtype]}.onnx`));
      const found = (await quantized.run(feeds)).image_features.data as Float32Array;
      const noise = float.reduce((sum, v, i) => sum + (v - found[i]) ** 2, 0);
      expect(noise, dtype).toBeGreaterThan(0);
      expect(10 * Math.log10(power / noise), dtype).toBeGreaterThan(least);
      await quantized.release();
    }
    await reference.release();
  });
});

describe("a language model", () => {
  let onnx = "";
  beforeAll(async () => {
    onnx = writeLanguageModel(folder.path("language"));
    // a published model may say that its own file has data beside it: the new ones do not
    const config = folder.path("language/config.json");
    const { code, stderr } = await lowbit(["quantize", onnx, "--dtypes", "q8,q4,bnb4,q2,int8,uint8"]);
    expect(stderr).toBe("");
    expect(code).toBe(0);
    expect(existsSync(config)).toBe(true);
  });

  test.each(["q8", "q4", "bnb4", "q2", "int8", "uint8"] as const)(
    "%s: the pipeline writes text as onnxruntime's tokens say",
    async (dtype) => {
      const suffix = dtype === "q8" ? "_quantized" : `_${dtype}`;
      const decoder = await session(join(onnx, `model${suffix}.onnx`));
      const head: Head = (input) => Promise.resolve({ input_ids: new Tensor("int64", ids(...input), [1, input.length]) });
      const own = await greedy(decoder, head, [7, 30, 12], 8);
      const generate = await pipeline("text-generation", "language", { dtype, device: "cpu" });
      const [{ generated_text }] = (await generate("w7 w30 w12", { max_new_tokens: 8, do_sample: false })) as { generated_text: string }[];
      const tokenizer = await AutoTokenizer.from_pretrained("language");
      expect(generated_text).toBe(tokenizer.decode([7, 30, 12, ...own.made], { skip_special_tokens: true }));
      await generate.dispose();
      await decoder.release();
    },
  );

  test("data outside the file: config.json names it, for the new files and no others, and the model loads", async () => {
    const outside = writeLanguageModel(folder.path("outside"));
    const config = folder.path("outside/config.json");
    const said = {
      ...(JSON.parse(readFileSync(config, "utf8")) as object),
      "transformers.js_config": { use_external_data_format: false, device: "cpu" },
    };
    writeFileSync(config, JSON.stringify(said));
    expect((await lowbit(["quantize", outside, "--dtypes", "q4,fp16", "--external-data"])).code).toBe(0);
    expect(readdirSync(outside).sort()).toEqual([
      "model.onnx",
      "model_fp16.onnx",
      "model_fp16.onnx_data",
      "model_q4.onnx",
      "model_q4.onnx_data",
    ]);
    expect(JSON.parse(readFileSync(config, "utf8"))).toMatchObject({
      "transformers.js_config": { device: "cpu", use_external_data_format: { model: false, "model_q4.onnx": 1, "model_fp16.onnx": 1 } },
    });
    for (const dtype of ["q4", "fp16", "fp32"] as const) {
      const model = await AutoModelForCausalLM.from_pretrained("outside", { dtype });
      expect(model).toBeInstanceOf(LlamaForCausalLM);
      await model.dispose();
    }
    // once data were said to lie outside, a file without any has to be said too: transformers.js would look for its
    // data
    expect((await lowbit(["quantize", outside, "--dtypes", "q4", "--force"])).code).toBe(0);
    const after = JSON.parse(readFileSync(config, "utf8")) as Record<string, { use_external_data_format: Record<string, unknown> }>;
    expect(after["transformers.js_config"].use_external_data_format).toEqual({ model: false, "model_q4.onnx": 0, "model_fp16.onnx": 1 });
    await (await AutoModelForCausalLM.from_pretrained("outside", { dtype: "q4" })).dispose();
  });
});
