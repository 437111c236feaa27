// quantizeModel from end to end: algorithms on calibration data, rules, budgets, targets, static quantization, folders,
// recipes. Small models; what it must show on real ones is in bench/.
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { InferenceSession, Tensor } from "onnxruntime-node";
import { afterAll, describe, expect, it } from "vitest";
import type { Feeds, QuantizeBytesOptions } from "../../src/onnx/index.ts";
import { configFile, parseRecipe, quantizeFolder, quantizeModel, readModelBytes, recipeOf } from "../../src/onnx/index.ts";
import { T, encode, graph, matmulModel, model, node, raw, value, weights } from "./build.ts";
import { embedTokens } from "./transformers-models.ts";
import { quantizeModelBytes } from "./kept.ts";

const folder = mkdtempSync(join(tmpdir(), "lowbit-pipeline-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** x [b, 64] -> 3 products with a nonlinearity between -> y [b, 16]. */
const chain = () =>
  encode(
    model(
      graph({
        input: [value("x", T.FLOAT, ["b", 64])],
        output: [value("y", T.FLOAT, ["b", 16])],
        initializer: [
          raw("w1", [64, 96], weights(64 * 96, 1)),
          raw("w2", [96, 64], weights(96 * 64, 2)),
          raw("w3", [64, 16], weights(1024, 3)),
        ],
        node: [
          node("MatMul", ["x", "w1"], ["a"], {}, "one"),
          node("Relu", ["a"], ["ra"], {}, "r1"),
          node("MatMul", ["ra", "w2"], ["b"], {}, "two"),
          node("Relu", ["b"], ["rb"], {}, "r2"),
          node("MatMul", ["rb", "w3"], ["y"], {}, "three"),
        ],
      }),
    ),
  );
const feeds: Feeds[] = Array.from({ length: 8 }, (_, i) => ({ x: { type: "float32", data: weights(32 * 64, 10 + i), dims: [32, 64] } }));
const run = async (options: QuantizeBytesOptions) => {
  const made = await quantizeModelBytes(chain(), options);
  await (await InferenceSession.create(made.bytes, { logSeverityLevel: 4, intraOpNumThreads: 1 })).release();
  return made;
};

describe("algorithms on calibration data", () => {
  it.each(["gptq", "awq", "mrgptq", "hqq", "mse", "adaround", { name: "gptq", damp: 0.05 }] as const)(
    "%s, stored and in MatMulNBits",
    async (algorithm) => {
      for (const target of ["stored", "matmulnbits"] as const) {
        if (algorithm === "hqq" && target === "matmulnbits") continue;
        const { report } = await run({
          format: algorithm === "hqq" ? "uint4_b32_float16_zp" : "int4_b32",
          target,
          algorithm,
          calibration: feeds,
        });
        expect(report.quantized).toBe(3);
        expect(
          report.layers.every(
            ({ algorithm: made }) => made === (typeof algorithm === "string" ? algorithm : algorithm.name) || made === "rtn",
          ),
        ).toBe(true);
      }
    },
  );
  it("rotated weights share one matrix in the file; the nodes that turn inputs and those that turn weights back give the same", async () => {
    const outputs: Float32Array[] = [];
    for (const target of ["stored", "matmulnbits"] as const) {
      const { bytes } = await run({
        format: "int4_b32",
        target,
        algorithm: { name: "mrgptq", block: 32, damp: 0.05, actOrder: false, polish: false },
        calibration: feeds,
      });
      const names = readModelBytes(bytes).proto.graph!.initializer.map(({ name }) => name);
      expect(names.filter((name) => name.startsWith("lowbit.rotation/"))).toHaveLength(1);
      const session = await InferenceSession.create(bytes, { logSeverityLevel: 4, intraOpNumThreads: 1 });
      const { y } = await session.run({ x: new Tensor("float32", weights(8 * 64, 3), [8, 64]) });
      outputs.push(Float32Array.from(y.data as Float32Array));
      await session.release();
    }
    const size = Math.max(...outputs[0].map(Math.abs));
    outputs[0].forEach((v, i) => expect(Math.abs(v - outputs[1][i])).toBeLessThan(1e-4 * size));
  });
  it("sequential refit, with the output's figure on data held out", async () => {
    const { report } = await run({ format: "int3_b32", algorithm: "refit", sequential: true, calibration: feeds });
    for (const layer of report.layers) expect(layer.outputSqnrDb).toBeGreaterThan(5);
  });
  it("without data it says so, and writes nothing", async () => {
    const out = join(folder, "none.onnx");
    writeFileSync(join(folder, "chain.onnx"), chain());
    await expect(quantizeModel(join(folder, "chain.onnx"), out, { dtype: "q4", algorithm: "gptq" })).rejects.toMatchObject({
      code: "E_CALIBRATION",
    });
    expect(existsSync(out)).toBe(false);
  });
  it("too little memory for a Hessian: the layer is named, with what can be done", async () => {
    // 262,144 inputs: half a terabyte of sums
    const [k, out] = [262144, join(folder, "wide-out.onnx")];
    writeFileSync(join(folder, "wide.onnx"), encode(matmulModel(raw("w", [k, 1], weights(k, 5)), k, 1)));
    const calibration = [{ x: { type: "float32" as const, data: weights(k, 6), dims: [1, k] } }];
    await expect(quantizeModel(join(folder, "wide.onnx"), out, { dtype: "q4", algorithm: "gptq", calibration })).rejects.toMatchObject({
      code: "E_CALIBRATION",
      message: expect.stringMatching(
        /^layer mm: expected room for its Hessian of 262144 inputs .*got a bound of .*rtn, mse, hqq/,
      ) as string,
    });
    expect(existsSync(out)).toBe(false);
  });
});

describe("rules, budgets, targets", () => {
  it("the first rule that matches counts; one that matches nothing is an error", async () => {
    const rules = [
      { match: "one", keep: true },
      { match: "t*", format: "int8_b32" },
    ];
    const { report } = await run({ dtype: "q4", rules });
    expect(report.layers.map(({ format }) => format)).toEqual([null, "int8_b32", "int8_b32"]);
    await expect(run({ dtype: "q4", rules: [{ match: "nine", keep: true }] })).rejects.toMatchObject({ code: "E_ONNX" });
  });
  it("a budget is kept, and its rules make the same file again", async () => {
    // blocks that divide k: the last block of a row that is shorter needs an index, a percent more on weights as small
    // as these
    const candidates = ["int2_b32", "int3_b32", "int4_b32", "int8_b32"];
    const made = await run({ budget: { bitsPerWeight: 5, candidates }, calibration: feeds });
    const bits = (8 * made.report.weightBytesAfter) / (64 * 96 * 2 + 1024);
    expect(bits).toBeLessThanOrEqual(5.01);
    expect(new Set(made.report.layers.map(({ format }) => format)).size).toBeGreaterThan(0);
    const again = await run({ format: "int4_b32", rules: made.report.rules! });
    expect(again.report.layers.map(({ format }) => format)).toEqual(made.report.layers.map(({ format }) => format));
    await expect(run({ budget: { bitsPerWeight: 1 }, calibration: feeds })).rejects.toMatchObject({ code: "E_CALIBRATION" });
  });
  it("a target is reached by raising layers", async () => {
    const plain = await run({ dtype: "q2", targetSqnr: 1, calibration: feeds });
    const better = await run({ dtype: "q2", targetSqnr: 25, calibration: feeds });
    expect(plain.report.rules).toEqual([]);
    expect(better.report.rules!.length).toBeGreaterThan(0);
    expect(better.report.weightBytesAfter).toBeGreaterThan(plain.report.weightBytesAfter);
  });
  it("static: activations as integers", async () => {
    const { bytes, report } = await run({ activations: "uint8", calibration: feeds });
    expect(report.quantized).toBe(3);
    expect(readModelBytes(bytes).proto.graph!.node.some(({ opType }) => opType === "QuantizeLinear")).toBe(true);
    await expect(run({ activations: "uint8" })).rejects.toMatchObject({ code: "E_CALIBRATION" });
  });
});

describe("folders", () => {
  it("every model in every dtype, by the names of transformers.js; config.json says where data lies outside", async () => {
    const models = join(folder, "repo", "onnx");
    mkdirSync(models, { recursive: true });
    writeFileSync(join(folder, "repo", "config.json"), JSON.stringify({ model_type: "bert" }));
    for (const name of ["encoder_model", "decoder_model_merged"]) writeFileSync(join(models, `${name}.onnx`), chain());
    const report = await quantizeFolder(models, { dtypes: ["q4", "q8", "fp16", "q4f16", "bnb4"], externalData: true });
    expect(report.files.length).toBe(10);
    for (const name of ["encoder_model", "decoder_model_merged"])
      for (const suffix of ["_q4", "_quantized", "_fp16", "_q4f16", "_bnb4"]) {
        await (
          await InferenceSession.create(join(models, `${name}${suffix}.onnx`), { logSeverityLevel: 4, intraOpNumThreads: 1 })
        ).release();
        expect(existsSync(join(models, `${name}${suffix}.onnx_data`))).toBe(true);
      }
    const config = JSON.parse(readFileSync(join(folder, "repo", "config.json"), "utf8")) as Record<string, never>;
    expect(config.model_type).toBe("bert");
    expect(config["transformers.js_config"]["use_external_data_format"]["encoder_model_q4.onnx"]).toBe(1);
    // what is quantized already is no model to quantize
    await expect(quantizeFolder(models, { dtypes: ["q2"] })).resolves.toMatchObject({ files: { length: 2 } });
  });
  it("one model in several dtypes, beside itself or in a folder", async () => {
    const models = join(folder, "one");
    mkdirSync(models);
    for (const name of ["encoder", "decoder"]) writeFileSync(join(models, `${name}.onnx`), chain());
    const { files } = await quantizeFolder(join(models, "encoder.onnx"), { dtypes: ["q4", "q8"] });
    expect(files.map(({ dtype, report }) => [dtype, report!.outputs])).toEqual([
      ["q4", [join(models, "encoder_q4.onnx")]],
      ["q8", [join(models, "encoder_quantized.onnx")]],
    ]);
    const away = await quantizeFolder(join(models, "decoder.onnx"), { dtypes: ["q4"], output: join(models, "out") });
    expect(away.files.map(({ report }) => report!.outputs)).toEqual([[join(models, "out", "decoder_q4.onnx")]]);
    await expect(quantizeFolder(join(models, "none.onnx"), { dtypes: ["q4"] })).rejects.toThrow(/none\.onnx: expected a folder/);
  });
  it("a dtype has a file of every model: tables in blocks where nothing else is, else the model as it was", async () => {
    const models = join(folder, "tables");
    mkdirSync(models);
    writeFileSync(join(models, "decoder.onnx"), chain());
    writeFileSync(join(models, "embed_tokens.onnx"), encode(embedTokens()));
    const { files } = await quantizeFolder(models, { dtypes: ["q4", "q2", "q2"] });
    expect(files.map(({ dtype, report, reason }) => [dtype, report!.quantized, reason === undefined])).toEqual([
      ["q4", 3, true],
      ["q2", 3, true],
      ["q4", 1, true],
      ["q2", 0, false],
    ]);
    expect(files[3].reason).toMatch(/GatherBlockQuantized has 4 and 8 bits, not 2/);
    // it was written: its reason does not say that it was not
    expect(files[3].reason).not.toMatch(/written|allowUnchanged/);
    expect(readFileSync(join(models, "embed_tokens_q2.onnx"))).toEqual(readFileSync(join(models, "embed_tokens.onnx")));
    // not where a dtype finds nothing at all
    rmSync(join(models, "decoder.onnx"));
    await expect(quantizeFolder(models, { dtypes: ["q2"], force: true })).rejects.toMatchObject({ code: "E_UNSUPPORTED" });
  });
  it("config.json: one answer for all files becomes one by model; another folder's config is kept; what is no object is an error", async () => {
    const models = join(folder, "configs", "onnx");
    mkdirSync(models, { recursive: true });
    writeFileSync(join(models, "model.onnx"), chain());
    const config = join(folder, "configs", "config.json");
    writeFileSync(config, JSON.stringify({ "transformers.js_config": { use_external_data_format: true } }));
    const read = (path: string) => (JSON.parse(readFileSync(path, "utf8")) as Record<string, unknown>)["transformers.js_config"];
    await quantizeFolder(models, { dtypes: ["q4"] });
    expect(read(config)).toEqual({ use_external_data_format: { model: true, "model_q4.onnx": 0 } });
    const other = join(folder, "configs-out");
    mkdirSync(join(other, "onnx"), { recursive: true });
    writeFileSync(join(other, "config.json"), JSON.stringify({ mine: 1 }));
    await quantizeFolder(models, { dtypes: ["q8"], output: join(other, "onnx"), externalData: true });
    expect(JSON.parse(readFileSync(join(other, "config.json"), "utf8"))).toEqual({
      mine: 1,
      "transformers.js_config": { use_external_data_format: { "model_quantized.onnx": 1 } },
    });
    writeFileSync(config, "[]");
    await expect(quantizeFolder(models, { dtypes: ["q8"] })).rejects.toThrow(/config\.json: expected a JSON object, got \[\]/);
  });
});

describe("recipes", () => {
  it("are what options say, and are checked by field", async () => {
    const options = { dtype: "q4", exclude: [/thr.*/], rules: [{ match: "one", keep: true }] } as const;
    const recipe = JSON.parse(JSON.stringify(recipeOf(options))) as unknown;
    expect(recipe).toEqual({ version: 1, dtype: "q4", exclude: ["/thr.*/"], rules: [{ match: "one", keep: true }] });
    const { report } = await run(parseRecipe(recipe, "recipe"));
    expect(report.layers.map(({ format }) => format)).toEqual([null, "int4_b32", null]);
    expect(() => parseRecipe({ version: 1, dtypo: "q4" }, "r.json")).toThrow(/r\.json: dtypo: expected one of/);
    expect(() => parseRecipe({ version: 1, dtype: "q9" }, "r.json")).toThrow(/r\.json: dtype: expected one of fp16/);
    expect(() => parseRecipe({ version: 2 }, "r.json")).toThrow(/version: expected 1/);
    writeFileSync(join(folder, "lowbit.config.json"), JSON.stringify(recipe));
    await expect(configFile(undefined, join(folder, "chain.onnx"))).resolves.toMatchObject({ dtype: "q4" });
  });
  it("an unknown field, a wrong value and another version are refused by name", () => {
    const refused = (recipe: unknown): string => {
      try {
        parseRecipe(recipe, "recipe.json");
      } catch (error) {
        expect(error).toMatchObject({ code: "E_VALUE" });
        return (error as Error).message;
      }
      return "no error";
    };
    expect(refused({ dtype: "q4", algoritm: "gptq" })).toMatch(
      /recipe\.json: algoritm: expected one of .*algorithm.*an unknown field. Did you mean algorithm\?/,
    );
    expect(refused({ dtype: "q4", rules: [{ match: "a", formt: "int4_b32" }] })).toMatch(/recipe\.json: rules: /);
    expect(refused({ version: 2, dtype: "q4" })).toMatch(/version: expected 1, got 2/);
    expect(refused(["q4"])).toMatch(/got a list/);
    expect(refused(JSON.parse('{ "constructor": 1 }'))).toMatch(/constructor: expected one of/);
  });
  it("unknown options throw", async () => {
    await expect(run({ dtype: "q4", quantizer: 1 } as never)).rejects.toThrow(/quantizer: expected an option of quantizeModel/);
    await expect(quantizeModelBytes(encode(matmulModel(raw("w", [8, 8], weights(64)), 8, 8)), { dtype: "q1" as never })).rejects.toThrow(
      /one-bit/,
    );
  });
});
