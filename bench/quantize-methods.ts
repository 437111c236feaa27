// The quantizers on synthetic data beside the figures that the notes on algorithms give (part D2): expected and
// measured, row by row. Seeded, so that runs repeat; the generators are not those of the notes, so figures agree to
// sampling. Run: npx tsx bench/quantize-methods.ts
import { defineBlock, float32, format, uint4 } from "../formats/index.ts";
import { dequantize, quantize, tensor, type Format, type WeightQuantizer } from "../src/index.ts";
import {
  adaround,
  awq,
  dequantizeOriginal,
  gaussianClip,
  gptq,
  hadamardRotation,
  hqq,
  layerStatistics,
  outputError,
  rtn,
  type LayerStatistics,
} from "../src/quantize/index.ts";
import { gaussianWeights, inputs, type InputKind } from "../test/helpers/layers.ts";
import { random } from "../test/helpers/random.ts";
import { bipolar4 } from "../formats/index.ts";

const row = (what: string, expected: string, measured: number | string) =>
  console.log(
    `${what.padEnd(64)} ${expected.padStart(12)} ${(typeof measured === "number" ? measured.toPrecision(4) : measured).padStart(12)}`,
  );
row("case", "expected", "measured");

const [rows, k, tokens] = [256, 512, 2048];
const w = gaussianWeights(rows, k, 1);
const t = tensor(w, [rows, k]);
const search = { method: "mse" as const };
const collect = (kind: InputKind, rho?: number) => {
  const acc = layerStatistics(k);
  acc.add(inputs(kind, tokens, k, 2, rho));
  return acc.finish();
};
const error = (stats: LayerStatistics, f: string, q: WeightQuantizer) =>
  outputError(w, dequantizeOriginal(quantize(t, format(f), q)), rows, stats.hessian!);
const ratio = (stats: LayerStatistics, f: string, q: WeightQuantizer) => error(stats, f, q) / error(stats, f, rtn());

const iid = collect("iid");
const ar = collect("ar");
const power = collect("power");
const outliers = collect("outliers", 0.5);
row("GPTQ / RTN, 4 bits g128, iid", ".877", ratio(iid, "int4_b128", gptq({ hessian: iid })));
for (const [bits, want] of [
  [4, ".168"],
  [3, ".171"],
  [2, ".182"],
] as const)
  row(`GPTQ / RTN, ${bits} bits g128, AR(.9)`, want, ratio(ar, `uint${bits}_b128_zp`, gptq({ hessian: ar })));
for (const name of ["ggml_q4_0", "ggml_iq4_nl", "ggml_mxfp4", "ggml_q4_k", "ggml_q6_k"])
  row(`GPTQ / RTN, ${name}, AR(.9)`, "-", ratio(ar, name, gptq({ hessian: ar })));
row("GPTQ / RTN, power-law spectrum", ".088", ratio(power, "int4_b128", gptq({ hessian: power })));
row("  with act-order", ".082", ratio(power, "int4_b128", gptq({ hessian: power, actOrder: true })));
row("  with act-order and MSE scales", ".071", ratio(power, "int4_b128", gptq({ hessian: power, actOrder: true, search })));
row("GPTQ / RTN, outlier channels and AR(.5)", ".669", ratio(outliers, "int4_b128", gptq({ hessian: outliers })));
row("  with act-order", ".510", ratio(outliers, "int4_b128", gptq({ hessian: outliers, actOrder: true })));
row("  with act-order and MSE scales", ".447", ratio(outliers, "int4_b128", gptq({ hessian: outliers, actOrder: true, search })));
const base = error(ar, "int4_b128", gptq({ hessian: ar }));
for (const [damp, want] of [
  [1e-4, "1.0"],
  [0.1, "1.23"],
  [1, "2.3"],
] as const)
  row(`GPTQ damp ${damp} against 0.01`, want, error(ar, "int4_b128", gptq({ hessian: ar, damp })) / base);
row("GPTQ blocks of 32 against 128", "1.0000", error(ar, "int4_b128", gptq({ hessian: ar, blockSize: 32, staticGroups: true })) / error(ar, "int4_b128", gptq({ hessian: ar, staticGroups: true }))); // prettier-ignore

const relative = (x: Float64Array | Float32Array, f: Format, n: number, q: WeightQuantizer = rtn()) => {
  const y = dequantize(quantize(tensor(x, [x.length / n, n]), f, q), { dtype: "float64" });
  let [e, p, a] = [0, 0, 0];
  for (let i = 0; i < x.length; i++) {
    e += (x[i] - y[i]) ** 2;
    a += Math.abs(x[i] - y[i]);
    p += x[i] * x[i];
  }
  return { relative: e / p, mean: a / x.length };
};
const rng = random(5);
const spiky = Float64Array.from({ length: 256 * 4096 }, () => rng.normal());
const channels = Array.from({ length: 8 }, () => rng.integer(4096));
for (let i = 0; i < 256; i++) for (const c of channels) spiky[i * 4096 + c] *= 60;
const rotated = (block: number) => {
  const y = spiky.slice();
  hadamardRotation(4096, { block, seed: 1 }).apply(y);
  return y;
};
const kurtosis = (x: Float64Array) => {
  let [m2, m4] = [0, 0];
  for (const v of x) {
    m2 += v * v;
    m4 += v ** 4;
  }
  return m4 / x.length / (m2 / x.length) ** 2;
};
row("kurtosis, 8 of 4096 channels x 60", "1203", kurtosis(spiky));
for (const [block, want] of [
  [16, "75.8"],
  [32, "38.3"],
  [128, "10.1"],
  [4096, "2.98"],
] as const)
  row(`  after Hadamard ${block}`, want, kurtosis(rotated(block)));
const full = rotated(4096);
for (const [name, before, after] of [["int4_row", ".127", ".0154"], ["int8_row", "8.15e-3", "4.67e-5"], ["mxfp4", "2.11e-2", "1.28e-2"], ["nvfp4", "3.88e-3", "9.46e-3"], ["float8_e4m3fn_row", "4.4e-4", "7.1e-4"]] as const) {
  row(`${name}, outlier channels`, before, relative(spiky, format(name), 4096).relative);
  row(`  after Hadamard 4096`, after, relative(full, format(name), 4096).relative);
} // prettier-ignore
const laplace = Float64Array.from({ length: 1 << 20 }, () => rng.laplace());
const soft = (block: number) => {
  const y = laplace.slice();
  hadamardRotation(1024, { block }).apply(y);
  return y;
};
row("kurtosis of Laplace data", "6.0", kurtosis(laplace));
row("  after Hadamard 16", "3.19", kurtosis(soft(16)));
for (const [name, block, before, after] of [["mxfp4", 32, "1.608e-2", "1.324e-2"], ["nvfp4", 16, "8.62e-3", "9.22e-3"], ["nvint4", 16, "1.054e-2", "6.92e-3"]] as const) {
  row(`${name}, Laplace`, before, relative(laplace, format(name), 1024).relative);
  row(`  after Hadamard ${block}`, after, relative(soft(block), format(name), 1024).relative);
} // prettier-ignore

const small = Float32Array.from({ length: 1 << 18 }, () => 0.02 * rng.normal());
const levels = [{ format: float32, span: 64 }];
const real = defineBlock({ name: "u4_real_zero", element: uint4, scales: levels, offset: { role: "zeroPoint", levels } });
row("HQQ g64: mean |error| of RTN", "1.5605e-3", relative(small, format("uint4_b64_zp"), 1024).mean);
row("  HQQ, real zero points", "1.4524e-3", relative(small, real, 1024, hqq()).mean);
row("  HQQ relMSE", "7.34e-3", relative(small, real, 1024, hqq()).relative);
row("INT4 g128 with MSE scales, relMSE", "1.116e-2", relative(small, format("int4_b128"), 1024, rtn({ search })).relative);
row("NVFP4 with MSE scales, relMSE", "7.39e-3", relative(small, format("nvfp4"), 1024, rtn({ search })).relative);
row("QuEST clip, 4 bits", "2.51393", gaussianClip(bipolar4).clip);
row("  error", "0.011543", gaussianClip(bipolar4).relativeError);

for (const [kind, want] of [
  ["ar", ".225"],
  ["iid", "-"],
] as const) {
  const acc = layerStatistics(64);
  acc.add(inputs(kind, 1000, 64, 1));
  const stats = acc.finish();
  const v = gaussianWeights(32, 64, 41);
  const e = (q: WeightQuantizer) => outputError(v, dequantize(quantize(tensor(v, [32, 64]), format("int4_row"), q)), 32, stats.hessian!);
  row(`AdaRound / nearest, 32 x 64, ${kind === "ar" ? "AR(.9)" : "iid"}`, want, e(adaround({ hessian: stats })) / e(rtn({ search })));
}
const spikes = inputs("iid", 400, k, 9);
for (let i = 0; i < 400; i++) for (let c = 0; c < 5; c++) spikes[i * k + c * 97 + 3] *= 50;
const acc = layerStatistics(k);
acc.add(spikes);
const stats = acc.finish();
row("AWQ / RTN, 5 of 512 channels x 50, W4 g128", "<= 1", ratio(stats, "int4_b128", awq({ statistics: stats })));
