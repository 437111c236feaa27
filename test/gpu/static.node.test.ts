// Models of static quantization on a device beside onnxruntime-node: operators on codes, and what the quantizer of this
// library writes in both forms. Nothing but shapes and lookups may run elsewhere.
import { readFileSync } from "node:fs";
import { expect, it, vi } from "vitest";
import { gpuRuntime } from "../../src/backends/webgpu/door.ts";
import { quantizeModelBytes } from "../../src/onnx/index.ts";
import type { CalibrationData } from "../../src/onnx/calibrate/sources.ts";
import type { QuantizeOptions } from "../../src/onnx/options.ts";
import { loadModel } from "../../src/runtime/index.ts";
import { encoderFeeds, encoderModel, FORMS } from "../onnx/encoder.ts";
import { compare, type Feeds } from "../runtime/judge.ts";
import { describeBackend } from "./adapter.ts";
import { CODE_CASES, codesModel } from "./code-models.ts";

const fashion = (): Uint8Array => readFileSync(new URL("../fixtures/fashion-cnn/fashion_cnn.onnx", import.meta.url));
const images = (seed: number): Feeds => ({ image: { type: "float32", dims: [2, 1, 28, 28], data: Float32Array.from({ length: 1568 }, (_, i) => Math.sin(1.7 * i + seed * Math.sin(i))) } }); // prettier-ignore
const made = async (bytes: Uint8Array, calibration: Feeds[], options: Partial<QuantizeOptions>): Promise<[Uint8Array, Feeds]> => [
  (await quantizeModelBytes(bytes, { ...options, calibration: calibration as unknown as CalibrationData })).bytes,
  calibration[0],
];

describeBackend("static quantization", (on) => {
  /** @returns how its steps ran */
  async function check(bytes: Uint8Array, feeds: Feeds, limit: number): Promise<string[]> {
    const session = await loadModel(bytes, on);
    await compare(bytes, feeds, limit, session, Number.MIN_VALUE);
    const steps = session.explain().steps.map(({ operator, kernel }) => `${operator}: ${kernel}`);
    expect(steps.filter((how) => /processor|loops/.test(how))).toEqual([]);
    await session.release();
    return steps;
  }

  it(`${CODE_CASES.length} operators on codes: onnxruntime's codes`, async () => {
    const { bytes, feeds } = codesModel(CODE_CASES);
    await check(bytes, feeds, 0);
  }, 120_000);

  it.each(["qdq", "qoperator"] as const)(
    "fashion-cnn, %s",
    async (outputs) => {
      const calibration = [images(2), images(3)];
      const steps = await check(...(await made(fashion(), calibration, { activations: "uint8", outputs })), 1e-6);
      expect(steps.filter((how) => how === "QLinearConv: int8 conv").length).toBe(3);
      // symmetric codes: Relu ends no convolution of codes, which stays one of floats
      await check(...(await made(fashion(), calibration, { activations: "int8", outputs })), 1e-6);
    },
    120_000,
  );

  it("another run writes what it is fed, and parameters", async () => {
    const [bytes, feeds] = await made(fashion(), [images(2)], { activations: "uint8", outputs: "qoperator" });
    const session = await loadModel(bytes, on);
    const first = await session.run(feeds);
    const writes = vi.spyOn(gpuRuntime(on.backend)!.device.queue, "writeBuffer");
    expect(await session.run(feeds)).toEqual(first);
    expect(writes).toHaveBeenCalledTimes(2);
    vi.restoreAllMocks();
    await session.release();
  }, 120_000);

  it("fashion-cnn with 16 bits", async () => {
    await check(...(await made(fashion(), [images(2)], { activations: "uint16" })), 1e-4);
  }, 120_000);

  it.each([
    [0, "qdq"],
    [0, "qoperator"],
    [2, "qoperator"],
  ] as const)(
    "a sentence encoder of form %i, %s",
    async (form, outputs) => {
      const calibration = encoderFeeds(2, 1) as unknown as Feeds[];
      await check(...(await made(encoderModel(FORMS[form]), calibration, { activations: "uint8", outputs })), 3e-6);
    },
    120_000,
  );
});
