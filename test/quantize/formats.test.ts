// The quantizers over every named format, and scaled forms of every kind of element: a diagonal Hessian is
// round-to-nearest bit for bit, GPTQ lowers the output error on correlated inputs, AWQ never raises it. Opaque formats
// have their codes found by probing; those whose elements share bits are refused by name.
import { expect, test } from "vitest";
import { allFormats, format } from "../../formats/index.ts";
import { quantize, tensor } from "../../src/index.ts";
import type { PackedTensor } from "../../src/index.ts";
import { awq, dequantizeOriginal, gptq, layerStatistics, mrgptq, outputError } from "../../src/quantize/index.ts";
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
  for (const f of all) {
    if (f.kind === "opaque") continue;
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
});

/** Elements share bits: base-3 digits in a byte, points of a grid, pairs with an identifier. */
const SHARED = /^(ggml_tq1_0|ggml_iq1_.*|olive.*)$/;
/** A point of a grid for several elements, and a sign for each: only signs can be chosen. */
const GRID = /^ggml_iq[23]_/;

test("gptq on opaque formats: far below round-to-nearest on correlated inputs, no worse without correlation, bytes that the format reads", () => {
  const seen: string[] = [];
  for (const f of allFormats) {
    if (f.kind !== "opaque") continue;
    if (SHARED.test(f.name)) {
      expect(() => quantize(t, f, gptq({ hessian: stats })), f.name).toThrow(/expected a format with bits for each element/);
      continue;
    }
    if (GRID.test(f.name)) {
      let p;
      try {
        p = quantize(t, f, gptq({ hessian: stats }));
      } catch (cause) {
        expect(String(cause), f.name).toMatch(/expected a format with bits for each element/);
        continue;
      }
      expect(error(p), f.name).toBeLessThanOrEqual(error(quantize(t, f)));
      continue;
    }
    seen.push(f.name);
    const plain = quantize(t, f);
    const p = quantize(t, f, gptq({ hessian: stats }));
    expect(p.codes.length, f.name).toBe(plain.codes.length);
    expect(Float32Array.from(f.decodeBytes(p.codes)), f.name).toEqual(dequantizeOriginal(p));
    expect(error(p) / error(plain), f.name).toBeLessThan(0.6);
    // Without feedback the encoder's scales stay, and each value is the nearest they allow.
    const alone = quantize(t, f, gptq({ hessian: diagonal }));
    const [a, b] = [dequantizeOriginal(alone), dequantizeOriginal(plain)];
    let worst = 0;
    for (let i = 0; i < a.length; i++) worst = Math.max(worst, Math.abs(a[i] - w[i]) - Math.abs(b[i] - w[i]));
    expect(worst, f.name).toBeLessThanOrEqual(1e-7);
    // every code of an element may come, the lowest bit too: as many values to a scale as the encoder has
    const kinds = (x: Float32Array) => new Set(Array.from(x.subarray(0, f.blockSize))).size;
    expect(kinds(a), f.name).toBeGreaterThan(kinds(b) / 2);
    // Two levels, or four, gain nothing from an even spread of the weights.
    if (!/^ggml_q[12]_/.test(f.name)) expect(error(quantize(t, f, mrgptq({ hessian: stats }))), f.name).toBeLessThan(error(plain));
  }
  expect(seen.length).toBeGreaterThanOrEqual(11);
  const q4 = format("ggml_q4_0");
  for (const o of [{ actOrder: true }, { staticGroups: true }, { search: { method: "mse" as const } }, { rangeRule: "full" as const }])
    expect(() => quantize(t, q4, gptq({ hessian: stats, ...o })), JSON.stringify(o)).toThrow(
      expect.objectContaining({ code: "E_UNSUPPORTED" }),
    );
  expect(() => quantize(tensor(w.slice(0, 80), [2, 40]), q4, gptq({ hessian: new Float64Array(1600).fill(1) }))).toThrow(/32/);
});
