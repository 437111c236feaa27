// quantize and verify on models that are known to be hard: PP-OCRv4's recogniser (weights in Constant nodes), whose
// convolutions do not survive dynamic int8, and Silero VAD (weights inside If). Random inputs and rendered lines of
// text must tell the good files from the bad.
import { existsSync, writeFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { recogniserInput, textLines } from "../../examples/text-lines.mjs";
import { lowbit, npy, recogniser, scratch, silero } from "./run.ts";

const dir = scratch();

interface Verified {
  ok: boolean;
  layers?: { name: string; opType: string; sqnrDb: number | string }[];
  outputs: { name: string; sqnrDb: number | string; cosine: number; argmaxAgreement: number | null }[];
}
interface Quantized {
  quantized: number;
  leftAlone: number;
  layers: { name: string; opType: string; format: string | null; reason?: string }[];
  verify?: Verified;
}

const lines = textLines()
  .slice(0, 3)
  .flatMap(({ image }, i) => {
    const path = dir.path(`line${i}.npy`);
    writeFileSync(path, npy(recogniserInput(image), [1, 3, image.height, image.width]));
    return ["--inputs", `x=${path}`];
  });

const quantize = async (input: string, name: string, ...args: string[]): Promise<{ code: number | null; report: Quantized }> => {
  const { code, stdout } = await lowbit(["quantize", input, "-o", dir.path(name), ...args, "--json"]);
  return { code, report: JSON.parse(stdout) as Quantized };
};

const verify = async (name: string, ...args: string[]): Promise<{ code: number | null; report: Verified }> => {
  const { code, stdout } = await lowbit(["verify", recogniser, dir.path(name), ...args, "--json"]);
  return { code, report: JSON.parse(stdout) as Verified };
};

/** As onnxruntime's tool does it: every layer, one scale each. */
const asTool = (): string[] => {
  const config = dir.path("tool.json");
  writeFileSync(config, JSON.stringify({ version: 1, perChannel: false, include: ["*"] }));
  return ["--config", config];
};

describe("the PP-OCRv4 recogniser", () => {
  test("dynamic q8 by default: on text as fp32", async () => {
    const { code } = await quantize(recogniser, "default_q8.onnx", "--dtype", "q8", "--verify", "1");
    expect(code).toBe(0);
    const text = await verify("default_q8.onnx", ...lines);
    expect(text.code).toBe(0);
    expect(text.report.outputs[0].sqnrDb).toBeGreaterThan(12);
    expect(text.report.outputs[0].argmaxAgreement).toBeGreaterThan(0.95);
  });
  test.each([
    ["q8", ["--op-types", "MatMul"]],
    ["int8", ["--op-types", "MatMul"]],
    ["q4", []],
  ])("%s %j agrees with fp32, on random inputs and on text", async (dtype, options) => {
    const name = `good_${dtype}.onnx`;
    const { code, report } = await quantize(recogniser, name, "--dtype", dtype, ...options, "--verify", "1");
    expect(code).toBe(0);
    expect(report.verify!.ok).toBe(true);
    expect(report.layers.filter((layer) => layer.format !== null).map((layer) => layer.opType)).toEqual(new Array(9).fill("MatMul"));
    const text = await verify(name, ...lines);
    expect(text.code).toBe(0);
    expect(text.report.outputs[0].sqnrDb).toBeGreaterThan(18);
    expect(text.report.outputs[0].argmaxAgreement).toBeGreaterThan(0.97);
  });
  test("dynamic q8 of its convolutions with one scale each: exit 3 on random inputs and on text, and the report names the layers", async () => {
    const name = "bad_q8.onnx";
    const { code, report } = await quantize(recogniser, name, "--dtype", "q8", ...asTool(), "--verify", "2");
    expect(code).toBe(3);
    expect(report.verify!.ok).toBe(false);
    const convolutions = report.layers.filter((layer) => layer.opType === "Conv" && layer.format !== null);
    expect(convolutions.length).toBe(38);
    for (const layer of convolutions) expect(layer.name).toMatch(/^p2o\.Conv\.\d+$/);
    const text = await verify(name, ...lines);
    expect(text.code).toBe(3);
    expect(text.report.outputs[0].sqnrDb).toBeLessThan(10);
    // Where the models part: every layer is named, the first convolutions are still good, the damage is in the
    // middle.
    for (const layers of [report.verify!.layers!, text.report.layers!]) {
      expect(layers.map((layer) => layer.name)).toEqual(report.layers.map((layer) => layer.name));
      expect(layers[0].sqnrDb).toBeGreaterThan(30);
      expect(layers.slice(15, 30).filter((layer) => Number(layer.sqnrDb) < 10).length).toBeGreaterThan(3);
    }
    // A lower threshold accepts it: the exit code follows --min-sqnr.
    expect((await verify(name, ...lines.slice(0, 2), "--min-sqnr=-20")).code).toBe(0);
  });
  test("verify --layers lists all layers of a model that agrees", async () => {
    await quantize(recogniser, "layers.onnx", "--dtype", "q4");
    const { code, report } = await verify("layers.onnx", "--layers", "-n", "1");
    expect(code).toBe(0);
    expect(report.layers).toHaveLength(51);
    // Convolutions before the first product are the same in both models.
    expect(report.layers![0]).toMatchObject({ name: "p2o.Conv.0", sqnrDb: "Infinity" });
    for (const layer of report.layers!) expect(Number(layer.sqnrDb), layer.name).toBeGreaterThan(10);
  });
  test("the text report of a failed verification names operators, layers and what to try", async () => {
    const out = dir.path("advice.onnx");
    const { code, stdout } = await lowbit(["quantize", recogniser, "-o", out, "-d", "int8", ...asTool(), "--verify", "1"]);
    expect(code).toBe(3);
    expect(stdout).toMatch(/^FAILED: expected every output to reach 10 dB$/m);
    expect(stdout).toMatch(/^The models part here \(\d\d of 51 layers are below 10 dB/m);
    expect(stdout).toMatch(/^ {2}p2o\.Conv\.\d+ \(Conv, \d+\.\d dB\)$/m);
    expect(stdout).toMatch(/Quantized operators: Conv, MatMul\. Try --op-types MatMul, or --per-channel/);
  });
});

describe("Silero VAD", () => {
  test("q8 quantizes convolutions inside If; every other layer has a reason; the file runs", async () => {
    const { report } = await quantize(silero, "vad_q8.onnx", "--dtype", "q8", "--verify", "2", "--min-sqnr=-20");
    expect(report.quantized).toBeGreaterThan(0);
    for (const layer of report.layers) if (layer.format === null) expect(layer.reason, layer.name).toMatch(/\w/);
    expect(report.verify!.ok).toBe(true);
  });
  test("q4 has nothing to quantize: that is an error, and with --allow-unchanged a copy that is equal, layer by layer", async () => {
    const out = dir.path("vad_q4.onnx");
    const refused = await lowbit(["quantize", silero, "-o", out, "-d", "q4"]);
    expect([refused.code, existsSync(out)]).toEqual([1, false]);
    expect(refused.stderr).toMatch(/E_UNSUPPORTED: q4: expected a layer to quantize, got none of 44.*--allow-unchanged/s);
    const { code, stdout } = await lowbit(["quantize", silero, "-o", out, "-d", "q4", "--allow-unchanged", "--verify", "1"]);
    expect(code).toBe(0);
    expect(stdout).toMatch(/left alone: q4 has no form of Conv/);
    expect(stdout).toMatch(/^stateN .* exact /m);
  });
});
