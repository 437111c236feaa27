// The quantizers over every named format, and scaled forms of every kind of element: a diagonal Hessian is round-to-nearest bit for bit, GPTQ lowers the
// output error on correlated inputs, AWQ never raises it. Opaque formats are refused by name and counted.
import { expect, test } from "vitest";
import { allFormats, format } from "../../formats/index.ts";
import { quantize, tensor } from "../../src/index.ts";
import type { PackedTensor } from "../../src/index.ts";
import { awq, dequantizeOriginal, gptq, layerStatistics, outputError } from "../../src/quantize/index.ts";
import { gaussianWeights, inputs } from "../helpers/layers.ts";

const [rows, k] = [8, 256];
const acc = layerStatistics(k);
acc.add(inputs("ar", 300, k, 2));
const stats = acc.finish();
const diagonal = new Float64Array(k * k);
for (let i = 0; i < k; i++) diagonal[i * k + i] = 1 + i;
const w = gaussianWeights(rows, k, 1, 0.5);
const t = tensor(w, [rows, k]);
const scaled = ["nf4_b64", "bipolar4_b128", "posit8_es2_b32", "int8_row", "uint4_b64_zp", "int6_b64", "float8_e4m3fn_row"];
const all = [...allFormats, ...scaled.map((n) => format(n))];
const error = (p: PackedTensor) => outputError(w, dequantizeOriginal(p), rows, stats.hessian!);

test("gptq and awq on every format", () => {
  let opaque = 0;
  for (const f of all) {
    if (f.kind === "opaque") {
      opaque++;
      expect(() => quantize(t, f, gptq({ hessian: stats })), f.name).toThrow(/E_UNSUPPORTED|opaque/);
      continue;
    }
    const plain = quantize(t, f);
    const same = quantize(t, f, gptq({ hessian: diagonal }));
    expect(Buffer.compare(same.codes, plain.codes), f.name).toBe(0);
    expect(same.scales, f.name).toEqual(plain.scales);
    expect(same.superScales, f.name).toEqual(plain.superScales);
    expect(same.offsets, f.name).toEqual(plain.offsets);
    const before = error(plain);
    const after = error(quantize(t, f, gptq({ hessian: stats })));
    // Formats that hold float32 weights exactly leave nothing to lower.
    if (before === 0) expect(after, f.name).toBe(0);
    else expect(after / before, f.name).toBeLessThan(0.999);
    expect(error(quantize(t, f, awq({ statistics: stats, grid: 2, search: null }))), f.name).toBeLessThanOrEqual(before * (1 + 1e-6));
  }
  expect(opaque).toBeLessThan(all.length / 2);
});
