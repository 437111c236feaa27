// lowbit convert --onto: a checkpoint's layers in the ONNX graph of the same model, judged by onnxruntime against a
// graph with the values that the writer of the checkpoint says they have.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { InferenceSession, Tensor } from "onnxruntime-node";
import { afterAll, expect, test } from "vitest";
import { convertCommand } from "../../src/cli/commands/convert.ts";
import { parseCommand } from "../../src/cli/spec.ts";
import { writeSafetensors, type SafeContent } from "../../src/interop/index.ts";
import {
  modelLayers,
  placeWeights,
  readModel,
  readModelBytes,
  readWeight,
  writeModel,
  writeModelBytes,
  writeWeight,
  type PlaceReport,
} from "../../src/onnx/index.ts";
import { format } from "../../formats/index.ts";
import { quantize, tensor } from "../../src/index.ts";
import { random } from "../helpers/random.ts";
import { describeShared, modelPath } from "../helpers/shared.ts";
import { encode, graph, model, node, raw, T, value, weights } from "../onnx/build.ts";
import { awqModule, gptqModule, type Written } from "../oracle/checkpoints.ts";

const folder = mkdtempSync(join(tmpdir(), "lowbit-onto-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const refuse = (code: string, text = /./) => expect.objectContaining({ code, message: expect.stringMatching(text) as string });

interface Printed extends PlaceReport {
  readonly layers: number;
}
async function convert(...argv: string[]): Promise<Printed> {
  let printed = "";
  const context = { signal: new AbortController().signal, print: (text: string) => void (printed += text) };
  expect(await convertCommand.run(parseCommand(convertCommand, [...argv, "--json"]), context)).toBe(0);
  return JSON.parse(printed) as Printed;
}

type Writer = (name: string, w: Float32Array, n: number, k: number) => Written;

/** A checkpoint folder of some weights [n, k], and the values that its layers stand for. */
async function checkpoint(
  name: string,
  quantization: Record<string, unknown>,
  modules: ReadonlyMap<string, { w: Float32Array; n: number; k: number }>,
  write: Writer,
  more: Record<string, SafeContent> = {},
): Promise<{ dir: string; values: Map<string, Float32Array> }> {
  const dir = mkdtempSync(join(folder, `${name}-`));
  const tensors: Record<string, SafeContent> = { ...more };
  const values = new Map<string, Float32Array>();
  for (const [module, { w, n, k }] of modules) {
    const written = write(module, w, n, k);
    values.set(module, written.values);
    for (const [part, content] of Object.entries(written.tensors)) tensors[`${module}.${part}`] = content;
  }
  writeFileSync(join(dir, "config.json"), JSON.stringify({ model_type: "llama", quantization_config: quantization }));
  await writeSafetensors(join(dir, "model.safetensors"), { tensors });
  return { dir, values };
}

const f32 = (values: Float32Array, shape: number[]): SafeContent => ({
  dtype: "F32",
  shape,
  bytes: new Uint8Array(values.buffer, values.byteOffset, values.byteLength),
});

describeShared("kjv-llama as checkpoints", modelPath("kjv-llama/kjv_llama.onnx"), (path) => {
  const source = readModel(path);
  const modules = new Map(
    modelLayers(source)
      .filter((layer) => layer.opType === "MatMul")
      .map((layer) => {
        const { data, stride, offset } = readWeight(source, layer);
        const w = Float32Array.from({ length: layer.rows * layer.k }, (_, i) => {
          const [r, j] = [Math.floor(i / layer.k), i % layer.k];
          return data[offset + r * stride[0] + j * stride[1]];
        });
        // the names of transformers
        const part = layer.name
          .split("/")[0]
          .replace(/(layers\.\d+)\.(\w+)/, (_, at, p) =>
            String(p).match(/^[qkvo]_/) ? `model.${at}.self_attn.${p}` : `model.${at}.mlp.${p}`,
          );
        return [part === "logits" ? "lm_head" : part, { w, n: layer.rows, k: layer.k }] as const;
      }),
  );
  afterAll(() => source.close());
  const tokens = (): BigInt64Array =>
    BigInt64Array.from(new Uint16Array(readFileSync(modelPath("kjv-llama/val.u16")!).buffer.slice(0, 512)), BigInt).slice(0, 64);

  async function logits(file: string): Promise<Float32Array> {
    const session = await InferenceSession.create(file, { logSeverityLevel: 4, intraOpNumThreads: 1 });
    const out = await session.run({ ids: new Tensor("int64", tokens(), [1, 64]) });
    await session.release();
    return out.logits.data as Float32Array;
  }

  /** The graph with the values that the checkpoint's writer says. */
  async function reference(values: ReadonlyMap<string, Float32Array>, norm?: Float32Array): Promise<string> {
    const m = readModel(path);
    for (const layer of modelLayers(m)) {
      const name = [...values.keys()].find((module) => {
        const parts = module.replace("model.", "").replace(/self_attn\.|mlp\./, "");
        return layer.name === `${parts}/node` || (layer.name === "logits/node" && module === "lm_head");
      });
      if (name !== undefined) writeWeight(m, layer, values.get(name)!);
    }
    if (norm !== undefined) {
      const at = m.proto.graph!.initializer.find((t) => t.name === "layers.1.attn_norm.weight")!;
      at.rawData = new Uint8Array(norm.buffer.slice(0));
    }
    const out = join(mkdtempSync(join(folder, "ref-")), "ref.onnx");
    await writeModel(m, out);
    m.close();
    return out;
  }

  const apart = (a: Float32Array, b: Float32Array): number => {
    const size = Math.sqrt(b.reduce((s, v) => s + v * v, 0) / b.length);
    return a.reduce((worst, v, i) => Math.max(worst, Math.abs(v - b[i])), 0) / size;
  };

  test("GPTQ of 4 bits, one layer in activation order, lm_head by a rule: all MatMulNBits, logits of the dequantized model", async () => {
    const rng = random(3);
    const order = Array.from({ length: 256 }, (_, j) => [rng.next(), j])
      .sort((a, b) => a[0] - b[0])
      .map(([, j]) => j);
    const { dir, values } = await checkpoint("gptq", { quant_method: "gptq", bits: 4, group_size: 32 }, modules, (name, w, n, k) =>
      gptqModule(w, n, k, name.endsWith("layers.2.self_attn.v_proj") ? { order } : {}),
    );
    const out = join(folder, "gptq.onnx");
    const report = await convert(dir, "--onto", path, "-o", out, "--map", "lm_head=logits/node");
    expect(report.placed.length).toBe(29);
    expect(report.placed.every(({ target, cosine }) => target === "matmulnbits" && cosine > 0.98)).toBe(true);
    expect(report.left).toEqual([]);
    const [got, want] = [await logits(out), await logits(await reference(values))];
    expect(apart(got, want)).toBeLessThan(1e-4);
    // and they are not those of the float model
    expect(apart(want, await logits(path))).toBeGreaterThan(0.02);
    // the same codes, decoded by nodes
    await convert(dir, "--onto", path, "-o", join(folder, "stored.onnx"), "--target", "stored");
    expect(apart(await logits(join(folder, "stored.onnx")), want)).toBeLessThan(1e-4);
  });

  test("AWQ with a changed norm: its floats go along, lm_head is found by its weight", async () => {
    const norm = Float32Array.from({ length: 256 }, (_, i) => 0.5 + (i % 7) / 7);
    const { dir, values } = await checkpoint(
      "awq",
      { quant_method: "awq", bits: 4, group_size: 64 },
      modules,
      (_, w, n, k) => awqModule(w, n, k, { group: 64 }),
      {
        "model.layers.1.attn_norm.weight": f32(norm, [256]),
        "model.layers.1.input_layernorm.bias": f32(norm, [256]),
      },
    );
    const out = join(folder, "awq.onnx");
    const report = await convert(dir, "--onto", path, "-o", out);
    expect(report.placed.length).toBe(29);
    expect(report.floats).toEqual([{ tensor: "model.layers.1.attn_norm.weight", to: "layers.1.attn_norm.weight", changed: true }]);
    expect(report.left).toEqual([
      { name: "model.layers.1.input_layernorm.bias", reason: expect.stringContaining("nothing in the graph") as string },
    ]);
    expect(report.kept).toContain("x0/node");
    expect(apart(await logits(out), await logits(await reference(values, norm)))).toBeLessThan(1e-4);
    expect((await convert(dir, "--onto", path, "-o", out, "--force", "--keep-floats")).floats).toEqual([]);
  });
});

const k = 64;
const two = (names: readonly string[]) => ({
  w: new Map(names.map((name, i) => [name, weights(k * k, i + 1)])),
  bytes: encode(
    model(
      graph({
        input: [value("x", T.FLOAT, ["b", k])],
        output: [value("y", T.FLOAT, ["b", k])],
        // stored [k, n]
        initializer: names.map((name, i) => {
          const w = weights(k * k, i + 1);
          return raw(
            `${name}.weight`,
            [k, k],
            Float32Array.from(w, (_, at) => w[(at % k) * k + Math.floor(at / k)]),
          );
        }),
        node: names.map((name, i) =>
          node("MatMul", [i === 0 ? "x" : `h${i}`, `${name}.weight`], [i === names.length - 1 ? "y" : `h${i + 1}`], {}, `/${name}/MatMul`),
        ),
      }),
    ),
  ),
});
const layersOf = (entries: Record<string, Float32Array>, name = "int4_b32") =>
  new Map(Object.entries(entries).map(([module, w]) => [module, async () => ({ packed: quantize(tensor(w, [k, k]), format(name)) })]));

async function run(bytes: Uint8Array): Promise<Float32Array> {
  const session = await InferenceSession.create(bytes, { logSeverityLevel: 4, intraOpNumThreads: 1 });
  const { y } = await session.run({ x: new Tensor("float32", weights(2 * k, 9), [2, k]) });
  await session.release();
  return y.data as Float32Array;
}

test("every format lands exactly: 3 bits, groups of a whole row, FP4, bfloat16 scales, minima", async () => {
  const { bytes, w } = two(["a.fc1", "b.fc2"]);
  for (const [name, target] of [
    ["uint4_b64", "matmulnbits"],
    ["int8_row", "matmulnbits"],
    ["int3_b16", "matmulnbits"],
    ["mxfp4", "matmulnbits"],
    ["float8_e4m3fn_b32", "stored"],
    ["normalfloat4_b32", "stored"],
  ] as const) {
    const m = readModelBytes(bytes);
    const entries = layersOf(Object.fromEntries(w), name);
    const report = await placeWeights(m, { layers: entries }, { accuracyLevel: 1 });
    expect(report.placed.map((p) => p.target)).toEqual([target, target]);
    const reference = readModelBytes(bytes);
    for (const layer of modelLayers(reference)) writeWeight(reference, layer, (await entries.get(layer.name.split("/")[1])!()).packed);
    const [got, want] = [await run(writeModelBytes(m)), await run(writeModelBytes(reference))];
    got.forEach((v, i) => expect(Math.abs(v - want[i]), name).toBeLessThan(1e-6));
  }
});

test("names: rules with stars, wrong values refused unless a rule says so, ambiguity, nothing", async () => {
  const { bytes, w } = two(["enc.0.attn.q", "enc.1.attn.q"]);
  const [first, second] = [...w.values()];
  const place = (entries: Record<string, Float32Array>, rules: { match: string; to: string }[] = []) =>
    placeWeights(readModelBytes(bytes), { layers: layersOf(entries) }, { rules });
  const byName = await place({ "model.encoder.0.self.q": first, "model.encoder.1.self.q": second });
  expect(byName.placed.map((p) => p.nodes)).toEqual([["/enc.0.attn.q/MatMul"], ["/enc.1.attn.q/MatMul"]]);
  // another layer of that name: its values say so
  const other = await place({ "x.0.q": second, "x.1.q": second });
  expect(other.placed.map((p) => p.module)).toEqual(["x.1.q"]);
  expect(other.left[0].reason).toMatch(/cosine/);
  expect(other.kept).toEqual(["/enc.0.attn.q/MatMul"]);
  const starred = await place({ "h0/query": first, "h1/query": second }, [{ match: "h*/query", to: "/enc.$1.attn.q/MatMul" }]);
  expect(starred.placed.length).toBe(2);
  const kept = await place({ "x.0.q": first, "x.1.q": second }, [{ match: "x.0.*", to: "keep" }]);
  expect(kept.left).toEqual([{ name: "x.0.q", reason: "a rule says keep" }]);
  const doubled = await place({ "x.0.q": first, "y.0.q": first, "x.1.q": second });
  expect(doubled.left.map((l) => l.name)).toEqual(["x.0.q", "y.0.q"]);
  await expect(place({ "a.b": first })).rejects.toThrow(refuse("E_ONNX", /got none of 1/));
  await expect(place({ "x.0.q": second })).rejects.toThrow(refuse("E_ONNX", /cosine/));
  await expect(place({ "x.0.q": first }, [{ match: "z*", to: "keep" }])).rejects.toThrow(refuse("E_ONNX", /expected to match/));
  await expect(place({ "x.0.q": first }, [{ match: "x.*.q", to: "/enc.$1/MatMul" }])).rejects.toThrow(refuse("E_ONNX", /Nearest/));
  const short = new Map([["x.0.q", async () => ({ packed: quantize(tensor(first.subarray(0, 32 * k), [32, k]), format("int4_b32")) })]]);
  await expect(placeWeights(readModelBytes(bytes), { layers: short })).rejects.toThrow(refuse("E_ONNX", /\[64, 64\]/));
});

test("the command: what it refuses, and nothing half written", async () => {
  const { bytes, w } = two(["m.fc"]);
  writeFileSync(join(folder, "m.onnx"), bytes);
  const one = new Map([["m.fc", { w: w.get("m.fc")!, n: k, k }]]);
  const { dir } = await checkpoint("refused", { quant_method: "gptq", bits: 4 }, one, (_, x, n, kk) => gptqModule(x, n, kk));
  const out = join(folder, "m_out.onnx");
  const onto = ["--onto", join(folder, "m.onnx"), "-o", out];
  await expect(convert(dir, ...onto, "--type", "q4_0")).rejects.toThrow(refuse("E_CLI", /--type/));
  await expect(convert(dir, ...onto, "--target", "qdq")).rejects.toThrow(refuse("E_CLI", /--target/));
  await expect(convert(dir, ...onto, "--map", "x")).rejects.toThrow(refuse("E_CLI", /--map/));
  await expect(convert(dir, "-o", join(folder, "x.gguf"), "--target", "stored")).rejects.toThrow(refuse("E_CLI", /--onto/));
  await expect(convert(dir, ...onto.slice(0, 3), join(folder, "x.gguf"))).rejects.toThrow(refuse("E_CLI", /\.onnx/));
  await expect(convert(dir, ...onto.slice(0, 3), join(folder, "m.onnx"), "--force")).rejects.toThrow(refuse("E_EXISTS"));
  expect((await convert(dir, ...onto)).placed[0]).toMatchObject({ module: "m.fc", format: "uint4_b32_float16_zp" });
  await expect(convert(dir, ...onto)).rejects.toThrow(refuse("E_EXISTS"));
});
