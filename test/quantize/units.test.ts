// Units do not count: a Hessian in any unit gives the same codes, weights in any unit the same codes under scales of that
// unit. And codes that are decided in the steps of other libraries stay theirs where nothing moves them.
import { expect, test } from "vitest";
import { format } from "../../formats/index.ts";
import { dequantize, quantize, tensor } from "../../src/index.ts";
import type { QuantizeOptions, WeightQuantizer } from "../../src/index.ts";
import { adaround, awq, gptq, hqq, layerStatistics, mrgptq, prune, quest, refit, driftStatistics, rtn, searchRotation, searchSmoothing, type LayerStatistics } from "../../src/quantize/index.ts"; // prettier-ignore
import { gaussianWeights, inputs } from "../helpers/layers.ts";

const [rows, k] = [6, 32];
const w = gaussianWeights(rows, k, 1);
const x = inputs("power", 60, k, 2);
const collect = (unit: number): LayerStatistics & { hessian: Float64Array<ArrayBuffer> } => {
  const made = layerStatistics(k);
  made.add(x.map((v) => v * unit)); // prettier-ignore
  return made.finish();
};
const drift = (unit: number) => {
  const made = driftStatistics(k);
  made.add(x.map((v) => v * unit), x.map((v, i) => unit * (0.9 * v + 0.05 * Math.sin(i)))); // prettier-ignore
  return made.finish();
};

const makers: Record<string, (s: LayerStatistics, unit: number) => WeightQuantizer> = {
  gptq: (hessian) => gptq({ hessian }),
  "gptq with polish, of inputs in order": (hessian) => gptq({ hessian, polish: 3, actOrder: true }),
  "gptq with a search": (hessian) => gptq({ hessian, search: { method: "mse", grid: 10 } }),
  mrgptq: (hessian) => mrgptq({ hessian, seed: 3 }),
  adaround: (hessian) => adaround({ hessian, iterations: 30 }),
  awq: (statistics) => awq({ statistics, grid: 4 }),
  refit: (_, unit) => refit({ drift: drift(unit) }),
};

// the factors of AWQ's channels have a floor of 1e-4, as its authors have it
test.each(Object.entries(makers).filter(([name]) => name !== "awq"))("%s: inputs in units of 2^20 and 2^-20", (_, make) => {
  for (const name of ["int4_b16", "float4_e2m1fn_b16", "mxfp4"]) {
    if (name !== "int4_b16" && make === makers.adaround) continue;
    const [one, large, small] = [1, 2 ** 20, 2 ** -20].map((unit) =>
      quantize(tensor(w, [rows, k]), format(name), make(collect(unit), unit)),
    );
    for (const other of [large, small]) {
      expect(other.codes, name).toEqual(one.codes);
      expect(other.scales, name).toEqual(one.scales);
    }
  }
});

const more: typeof makers = { ...makers, quest: () => quest(), rtn: () => rtn({ search: { method: "mse" } }) };
test.each(Object.entries(more))("%s: weights in units of 2^20 and 2^-20", (_, make) => {
  const values = (unit: number) => {
    const packed = quantize(tensor(w.map((v) => v * unit), [rows, k]), format("int4_b16"), make(collect(1), 1)); // prettier-ignore
    return [packed.codes, dequantize(packed).map((v) => v / unit)] as const; // prettier-ignore
  };
  const one = values(1);
  for (const unit of [2 ** 20, 2 ** -20]) expect(values(unit)).toEqual(one);
});

test("pruning, searches and zero points do not know units either", () => {
  const unit = 2 ** 16;
  const scaled = w.map((v) => v * unit); // prettier-ignore
  const [one, large] = [w, scaled].map((data) => tensor(data, [rows, k]));
  const [a, b] = [collect(1), collect(unit)];
  for (const options of [{}, { hessian: a }]) {
    const values = [one, large].map((t) => dequantize(prune(t, "2:4", options)));
    expect(values[1].map((v) => v / unit)).toEqual(values[0]); // prettier-ignore
  }
  expect(dequantize(prune(one, "4x1", { hessian: b }))).toEqual(dequantize(prune(one, "4x1", { hessian: a })));
  const f = format("int4_b16");
  const smooth = [a, b].map((statistics) => searchSmoothing([{ weight: w, rows, k }], { statistics, format: f, alphas: [0.5] }));
  smooth[1].errors.forEach((e, i) => expect(e / smooth[0].errors[i]).toBeCloseTo(1, i === 0 ? 9 : 1));
  const found = [one, large].map((t) => searchRotation(t, f, { count: 3 }));
  expect(found[1].errors.map((e) => e / unit ** 2)).toEqual(found[0].errors);
  const zp = [one, large].map((t) => quantize(t, format("uint4_b16_zp"), rtn({ search: { method: "mse" } })));
  expect([zp[1].codes, zp[1].offsets]).toEqual([zp[0].codes, zp[0].offsets]);
  expect(quantize(one, format("uint4_b16_zp"), hqq({ iterations: 0 })).offsets).toEqual(quantize(one, format("uint4_b16_zp")).offsets);
});

test("codes in the float32 steps of other libraries, of zeros and ones too: a diagonal Hessian leaves them", () => {
  const data = gaussianWeights(rows, k, 7, 1);
  for (const at of [0, 3, 17, 40]) data[at] = 0;
  for (const at of [5, 21, 50]) data[at] = 1;
  const t = tensor(data, [rows, k]);
  const diagonal = new Float64Array(k * k);
  for (let i = 0; i < k; i++) diagonal[i * k + i] = 1 + i;
  const rules: Record<string, QuantizeOptions["scaleRule"][]> = { nvfp4: ["torchao", "te", "modelopt"], nvint4: ["torchao"], mxfp4: ["floor", "ceil", "rceil", "nearest", "even"], mxint8: ["floor", "rceil"] }; // prettier-ignore
  for (const [name, list] of Object.entries(rules))
    for (const scaleRule of list) {
      const plain = quantize(t, format(name), { scaleRule });
      for (const options of [{}, { staticGroups: true }, { actOrder: true }, { blockSize: 8 }]) {
        const packed = quantize(t, format(name), gptq({ hessian: diagonal, scaleRule, ...options }));
        expect([packed.codes, packed.scales, packed.superScales], `${name} ${scaleRule} ${JSON.stringify(options)}`).toEqual([plain.codes, plain.scales, plain.superScales]); // prettier-ignore
      }
    }
});
