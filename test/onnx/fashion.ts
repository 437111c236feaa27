// Top-1 of a fashion-cnn model on the 2000 test images, by onnxruntime-node.
import { readFileSync } from "node:fs";
import { InferenceSession, Tensor } from "onnxruntime-node";

const fixture = (name: string): string => new URL(`../fixtures/fashion-cnn/${name}`, import.meta.url).pathname;

/** Share of the 2000 test images whose largest logit is the label's. */
export async function fashionAccuracy(path: string): Promise<number> {
  const images = Float32Array.from(readFileSync(fixture("test-images.u8")), (byte) => byte / 255);
  const labels = readFileSync(fixture("test-labels.u8"));
  const session = await InferenceSession.create(path, { logSeverityLevel: 4, intraOpNumThreads: 1 });
  let right = 0;
  // 100 at a time: dynamic quantization has one range per run, so the batch is part of the figure.
  for (let at = 0; at < labels.length; at += 100) {
    const input = new Tensor("float32", images.slice(at * 784, (at + 100) * 784), [100, 1, 28, 28]);
    const logits = (await session.run({ image: input })).logits.data as Float32Array;
    for (let i = 0; i < 100; i++) {
      let best = 0;
      for (let c = 1; c < 10; c++) if (logits[i * 10 + c] > logits[i * 10 + best]) best = c;
      if (best === labels[at + i]) right++;
    }
  }
  await session.release();
  return right / labels.length;
}
