// GGUF files on a device: logits of their decoders on WebAssembly, which test/runtime judges by a forward pass in
// float64.
import { expect, it } from "vitest";
import { loadModel } from "../../src/runtime/index.ts";
import { distance } from "../helpers/distance.ts";
import { fileOf, type Form } from "../runtime/gguf-files.ts";
import { describeBackend } from "./adapter.ts";

describeBackend("GGUF", (on) => {
  it.each<[Form, "float32" | "int8", number]>([
    [{ architecture: "llama", type: "ggml_q4_k", factors: true }, "float32", 1e-5],
    [{ architecture: "qwen2", type: "ggml_q4_0", biases: true, tied: true }, "float32", 1e-5],
    // a code of an activation that falls to the other side of a tie
    [{ architecture: "qwen3", type: "ggml_q8_0", headNorms: true }, "int8", 2e-2],
  ])(
    "%j, activations of %s",
    async (form, activations, limit) => {
      const bytes = await fileOf(form);
      const [judge, session] = await Promise.all([loadModel(bytes, { activations }), loadModel(bytes, { ...on, activations })]);
      const options = { capacity: 16, cache: activations };
      const [wanted, decoder] = [judge.decoder(options), session.decoder(options)];
      const near = (a: Float32Array, b: Float32Array): void => expect(distance(a, b)).toBeLessThan(limit);
      near(wanted.prefill([5, 17, 2]), await decoder.prefill([5, 17, 2]));
      for (const id of [90, 41]) near(wanted.step(id), await decoder.step(id));
      await Promise.all([judge.release(), session.release()]);
    },
    120_000,
  );
});
