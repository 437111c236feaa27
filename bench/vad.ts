// Silero VAD v5 (npm @ricky0123/vad-web) on 30 s of speech-like sound: a voice of pulses through moving formants, in
// syllables and pauses, in noise. Its weights lie in the branches of an If. What quantization does to the
// probabilities, as files run by onnxruntime-node.
import { fileURLToPath } from "node:url";
import * as ort from "onnxruntime-node";
import type { QuantizeModelOptions } from "../src/onnx/index.ts";
import { seededRandom } from "../src/quantize/index.ts";

export const VAD = fileURLToPath(new URL("../node_modules/@ricky0123/vad-web/dist/silero_vad_v5.onnx", import.meta.url));

const RATE = 16000;
const STEP = 512;
const CONTEXT = 64;

/** A resonance of two poles. */
function resonator(): (x: number, frequency: number, width: number) => number {
  let [a, b] = [0, 0];
  return (x, frequency, width) => {
    const r = Math.exp((-Math.PI * width) / RATE);
    const y = (1 - r) * x + 2 * r * Math.cos((2 * Math.PI * frequency) / RATE) * a - r * r * b;
    [a, b] = [y, a];
    return y;
  };
}

/** Samples of a voice that speaks, pauses and speaks again. */
export function speechLike(seconds: number, seed: number): Float32Array {
  const random = seededRandom(seed);
  const out = new Float32Array(seconds * RATE);
  const formants = [resonator(), resonator(), resonator()];
  let [phase, left, voiced, pitch] = [0, 0, 0, 120];
  let target = [500, 1500, 2500];
  let now = [...target];
  let level = 0;
  for (let i = 0; i < out.length; i++) {
    if (left-- <= 0) {
      // syllables of 80 to 300 ms, a pause now and then
      const kind = random();
      voiced = kind < 0.65 ? 1 : kind < 0.8 ? 0.3 : 0;
      left = Math.floor((kind < 0.9 ? 0.08 + 0.22 * random() : 0.4 + 0.8 * random()) * RATE);
      pitch = 95 + 90 * random();
      target = [300 + 500 * random(), 900 + 1300 * random(), 2300 + 700 * random()];
    }
    level += 0.002 * (voiced - level);
    now = now.map((f, k) => f + 0.0008 * (target[k] - f));
    phase += (pitch * (1 + 0.02 * Math.sin(i / 900))) / RATE;
    let pulse = 0;
    if (phase >= 1) [phase, pulse] = [phase - 1, 1];
    const source = level * (pulse * 6 + 0.02 * (random() - 0.5));
    const voice = formants.reduce((sum, filter, k) => sum + filter(source, now[k], 60 + 50 * k) / (k + 1), 0);
    out[i] = voice + 0.002 * (random() - 0.5);
  }
  const peak = out.reduce((a, v) => Math.max(a, Math.abs(v)), 0);
  return out.map((v) => (0.6 * v) / peak);
}

/** The probability of speech in each step of 32 ms. */
export async function probabilities(path: string, sound: Float32Array): Promise<number[]> {
  const session = await ort.InferenceSession.create(path, { intraOpNumThreads: 1, logSeverityLevel: 4 });
  const rate = new ort.Tensor("int64", BigInt64Array.of(BigInt(RATE)), []);
  let state = new ort.Tensor("float32", new Float32Array(256), [2, 1, 128]);
  const out: number[] = [];
  const input = new Float32Array(CONTEXT + STEP);
  for (let at = 0; at + STEP <= sound.length; at += STEP) {
    input.copyWithin(0, STEP);
    input.set(sound.subarray(at, at + STEP), CONTEXT);
    const result = await session.run({ input: new ort.Tensor("float32", input.slice(), [1, CONTEXT + STEP]), state, sr: rate });
    out.push((result.output.data as Float32Array)[0]);
    state = result.stateN as typeof state;
  }
  await session.release();
  return out;
}

type Make = (name: string, model: string, options: QuantizeModelOptions) => Promise<{ path: string; bytes: number; seconds: number }>;

export async function vadCase(make: Make): Promise<void> {
  const sound = speechLike(30, 3);
  const float = await probabilities(VAD, sound);
  const voiced = float.filter((p) => p > 0.5).length;
  console.log(
    `silero vad: ${float.length} steps, ${voiced} of them speech, probabilities ${Math.min(...float).toFixed(3)} to ${Math.max(...float).toFixed(3)}`,
  );
  for (const [name, options] of [
    ["q8", { dtype: "q8" }],
    ["q8, every layer", { dtype: "q8", include: ["*"], perChannel: true }],
    ["int16_row", { format: "int16_row", target: "qdq" }],
  ] as [string, QuantizeModelOptions][]) {
    const made = await make(`vad-${name.replaceAll(" ", "-")}`, VAD, options);
    const found = await probabilities(made.path, sound);
    const most = Math.max(...found.map((p, i) => Math.abs(p - float[i])));
    console.log(
      `silero vad ${name}  largest change ${most.toFixed(4)}, ${made.bytes} bytes  (<= 0.02: ${most <= 0.02 ? "met" : "MISSED"})`,
    );
  }
}
