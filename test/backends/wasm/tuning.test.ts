// The tuner over layers: choices come back from JSON without measuring, on the same engine only; numbers never change.
import { expect, it } from "vitest";
import { format } from "../../../formats/index.ts";
import { prepareMatmul, quantize, tensor, wasm, type Tuning } from "../../../src/index.ts";

const weight = quantize(tensor(Float32Array.from({ length: 64 * 96 }, (_, i) => Math.sin(i)), [64, 96]), format("int4_b32")); // prettier-ignore

it("measures every kind once, gains are never below one, and choices survive as JSON", async () => {
  const backend = await wasm({ tune: true });
  const layer = prepareMatmul(weight, { backend, activations: "int8", kernel: "dot" });
  const report = backend.tuneLayers([layer, layer], { rows: [1, 64] });
  expect(report.layers).toBe(2);
  expect(report.gains).toHaveLength(2);
  expect(report.gains.every((gain) => gain >= 1)).toBe(true);
  const saved = JSON.parse(JSON.stringify(backend.tuning())) as Tuning;
  expect(saved.choices).toHaveLength(2);

  // a choice that could not have been measured now is taken as it is, so nothing was measured
  const marked = { ...saved, choices: saved.choices.map((c) => ({ ...c, gain: 1.25 })) };
  const again = await wasm({ tune: marked });
  const other = prepareMatmul(weight, { backend: again, activations: "int8", kernel: "dot" });
  const x = Float32Array.from({ length: 64 * 96 }, (_, i) => Math.cos(i));
  const y = other.run(x, 64);
  expect(again.tuning().choices.map((c) => c.gain)).toEqual([1.25]);
  expect(y).toEqual(layer.run(x, 64));
  expect(y).toEqual(prepareMatmul(weight, { backend: await wasm(), activations: "int8", kernel: "dot" }).run(x, 64));

  // choices of another engine, or of no tile, are measured anew
  for (const wrong of [
    { ...marked, engine: "other" },
    { ...marked, choices: marked.choices.map((c) => ({ ...c, mr: 99 })) },
  ]) {
    const fresh = await wasm({ tune: wrong });
    expect(prepareMatmul(weight, { backend: fresh, activations: "int8", kernel: "dot" }).run(x, 64)).toEqual(y);
    expect(fresh.tuning().choices[0].gain).not.toBe(1.25);
    expect(fresh.tuning().choices[0].mr).toBeLessThan(99);
  }
  expect(backend.tuneLayers([layer], { limitMs: 0 }).layers).toBe(0);
  await expect(wasm({ tune: { choices: [] } as never })).rejects.toThrow(/backend\.tuning/);
});

it("takes the kernel of a weight from JSON too, whichever was faster here", async () => {
  const backend = await wasm({ tune: true });
  const options = { activations: "int8" } as const;
  const names = new Map<string, string>();
  for (const kernel of ["dot", "lookup"] as const)
    names.set(kernel, prepareMatmul(weight, { backend, ...options, kernel }).explain().kernel);
  const y = prepareMatmul(weight, { backend, ...options }).run(new Float32Array(96).fill(1), 1);
  const saved = backend.tuning();
  expect(saved.families).toHaveLength(1);
  for (const kernel of ["dot", "lookup"]) {
    const again = await wasm({ tune: { ...saved, families: saved.families.map((f) => ({ ...f, kernel })) } });
    const layer = prepareMatmul(weight, { backend: again, ...options });
    expect(layer.explain().kernel).toBe(names.get(kernel));
    expect(layer.run(new Float32Array(96).fill(1), 1)).toEqual(y);
  }
});
