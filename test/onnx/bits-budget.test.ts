// Bits by budget: importances are what a run of one's own gives, the plan stays within the budget as it is stored, and
// beats one format for all.
import { describe, expect, test } from "vitest";
import { format } from "../../formats/index.ts";
import { dequantize, quantize } from "../../src/index.ts";
import { relativeLoss } from "../../src/quantize/index.ts";
import {
  BUDGET_CANDIDATES,
  measureImportance,
  modelLayers,
  planBudget,
  quantizeModelBytes,
  readModelBytes,
  readWeight,
  writeModelBytes,
  writeWeight,
} from "../../src/onnx/index.ts";
import { referenceRun } from "../../src/onnx/passes/check.ts";
import { encoderFeeds, encoderModel } from "./encoder.ts";
import { calibrationOn } from "./statistics.ts";

const bytes = encoderModel({ activation: "relu", outlier: 6 });
const feeds = encoderFeeds(2);
const CANDIDATES = ["int2_b32", "int3_b32", "int4_b32", "int8_b32"];

async function noise(formats: ReadonlyMap<string, string>, on = feeds): Promise<number> {
  const m = readModelBytes(bytes);
  const want = await referenceRun(m, on);
  for (const layer of modelLayers(m))
    if (formats.has(layer.name)) writeWeight(m, layer, dequantize(quantize(readWeight(m, layer), format(formats.get(layer.name)!))));
  const got = await referenceRun(m, on);
  let total = 0;
  want.outputs.forEach((outputs, f) => {
    const a = outputs.get("head")!.data;
    const b = got.outputs[f].get("head")!.data;
    let [signal, error] = [0, 0];
    for (let i = 0; i < a.length; i++) [signal, error] = [signal + a[i] ** 2, error + (a[i] - b[i]) ** 2];
    total += error / signal / on.length;
  });
  return total;
}

describe("importance", () => {
  test("damage at the output per loss of the layer, and the model is left as it was", async () => {
    const m = readModelBytes(bytes);
    const importance = await measureImportance(m, feeds, { candidates: CANDIDATES });
    expect(Buffer.compare(writeModelBytes(m), bytes)).toBe(0);
    expect(importance.size).toBe(13);
    for (const name of [...importance.keys()].slice(3, 7)) {
      const layer = modelLayers(m).find((l) => l.name === name)!;
      const weight = readWeight(m, layer);
      const loss = relativeLoss({ name, weight }, quantize(weight, format("int2_b32")));
      expect((await noise(new Map([[name, "int2_b32"]]))) / loss / importance.get(name)!).toBeCloseTo(1, 3);
    }
  });

  test("by divergence of distributions, of chosen layers", async () => {
    const m = readModelBytes(bytes);
    const names = modelLayers(m)
      .slice(3, 5)
      .map((l) => l.name);
    const importance = await measureImportance(m, feeds, { candidates: CANDIDATES, layers: names, measure: "kl" });
    expect([...importance.keys()]).toEqual(names);
    for (const value of importance.values()) expect(value).toBeGreaterThan(0);
  });

  test("unknown layers, no inputs, no candidates", async () => {
    const m = readModelBytes(bytes);
    await expect(measureImportance(m, feeds, { candidates: CANDIDATES, layers: ["nothing"] })).rejects.toThrow(/got "nothing"/);
    await expect(measureImportance(m, [], { candidates: CANDIDATES })).rejects.toThrow(/at least one input/);
    await expect(measureImportance(m, feeds, { candidates: [] })).rejects.toThrow(/at least one format/);
  });
});

describe("budget", () => {
  test("stays within the stored bits and beats one format for all", async () => {
    const m = readModelBytes(bytes);
    const layers = modelLayers(m).filter((l) => l.opType === "MatMul");
    const statistics = await calibrationOn(feeds)(
      m,
      layers.map((l) => l.name),
      { hessian: true },
    );
    const uniform = new Map(layers.map((l) => [l.name, "int3_b32"]));
    const weights = layers.reduce((n, l) => n + l.rows * l.k, 0);
    const stored = (name: string, f: string): number => {
      const packed = quantize(
        readWeight(
          m,
          layers.find((l) => l.name === name)!,
        ),
        format(f),
      );
      return packed.codes.length + (packed.scales?.length ?? 0) + (packed.offsets?.length ?? 0);
    };
    const bits = (8 * layers.reduce((n, l) => n + stored(l.name, "int3_b32"), 0)) / weights;
    const report = await planBudget(m, feeds, { bitsPerWeight: bits, statistics, candidates: CANDIDATES });
    const chosen = new Map(report.rules.map(({ match, format: f }) => [match, f as string]));
    expect([...chosen.keys()].toSorted()).toEqual(layers.map((l) => l.name).toSorted());
    const total = [...chosen].reduce((n, [name, f]) => n + stored(name, f), 0);
    expect((8 * total) / weights).toBeLessThanOrEqual(bits + 1e-9);
    expect(report.bitsPerWeight).toBeCloseTo((8 * total) / weights, 6);
    expect(new Set(chosen.values()).size).toBeGreaterThan(1);
    const heldOut = encoderFeeds(2, 2, 9);
    expect(await noise(chosen, heldOut)).toBeLessThan(await noise(uniform, heldOut));
    expect(report.notes[0]).toMatch(/stored bits per weight \(budget/);
  });

  test("without candidates: those around the budget, as the target stored holds them", async () => {
    const m = readModelBytes(bytes);
    for (const bitsPerWeight of [3, 4.5]) {
      const { rules, bitsPerWeight: planned } = await planBudget(m, feeds, { bitsPerWeight, importance: new Map() });
      expect(planned).toBeLessThanOrEqual(bitsPerWeight);
      expect(planned).toBeGreaterThan(bitsPerWeight - 0.5);
      for (const rule of rules) {
        expect(BUDGET_CANDIDATES).toContain(rule.format);
        expect(rule.target).toBe("stored");
        expect(rule.format).not.toBe("int8_b128_float16");
      }
    }
  });

  test("a budget below the smallest format is refused with what it needs", async () => {
    const m = readModelBytes(bytes);
    await expect(planBudget(m, feeds, { bitsPerWeight: 1, importance: new Map() })).rejects.toThrow(/1/);
  });
});

describe("quantizeModel with a budget", () => {
  test("few calibration vectors are enough: layers are then compared by rounding", async () => {
    const few = encoderFeeds(2, 1, 3);
    const { report } = await quantizeModelBytes(bytes, { budget: { bitsPerWeight: 3.5 }, calibration: few });
    expect(report.quantized).toBeGreaterThan(0);
  });
});
