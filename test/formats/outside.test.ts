// Adding a format touches one file: a format that the package has never heard of gets laws, packing, quantize, saving
// and matmul on every synchronous backend by its definition alone.
import { describe, expect, test } from "vitest";
import {
  dequantize,
  fromBytes,
  matmul,
  packCodes,
  prepareMatmul,
  quantize,
  tensor,
  toBytes,
  unpack,
  unpackCodes,
  wasm,
} from "../../src/index.ts";
import { lawsOf } from "../../src/testing/index.ts";
import { allFormats, defineBlock, defineCodebook, defineFloat, definePosit, float16 } from "../../formats/index.ts";

// What a user's file would hold.
const fibonacci = defineCodebook({ name: "fibonacci4", values: [0, 1, 2, 3, 5, 8, 13, 21, "-0", -1, -2, -3, -5, -8, -13, -21] });
const float5_e3m1u = defineFloat({ name: "float4_e3m1u", exponentBits: 3, mantissaBits: 1, signed: false, specials: "finite" });
const posit5 = definePosit({ name: "posit5_own", bits: 5, es: 1 });
const blocks = [fibonacci, posit5].map((element) => defineBlock({ element, scales: [{ format: float16, span: 24 }] }));

let seed = 9;
const random = () => (seed = (seed * 48271) % 2147483647) / 2147483647 - 0.5;

describe.each([fibonacci, float5_e3m1u, posit5, ...blocks].map((f) => [f.name, f] as const))("%s", (_, f) => {
  test("is not of the package", () => {
    expect(allFormats.some((g) => g.name === f.name)).toBe(false);
  });
  test.each(lawsOf(f, { runs: 40 }).map((l) => [l.name, l.check] as const))("%s", (_name, check) => check());
});

describe.each(blocks.map((f) => [f.name, f] as const))("%s multiplies", (_, f) => {
  const [m, n, k] = [3, 5, 100];
  const w = quantize(tensor(Float32Array.from({ length: n * k }, random), [n, k]), f);
  const x = Float32Array.from({ length: m * k }, random);
  const want = new Float64Array(m * n);
  const dense = dequantize(w) as Float32Array;
  const sum = new Float64Array(m * n);
  for (let i = 0; i < m; i++)
    for (let j = 0; j < n; j++)
      for (let t = 0; t < k; t++) {
        want[i * n + j] += x[i * k + t] * dense[j * k + t];
        sum[i * n + j] += Math.abs(x[i * k + t] * dense[j * k + t]);
      }
  // float32 accumulation of k products in any order.
  const check = (y: Float32Array) =>
    want.forEach((v, i) => expect(Math.abs(y[i] - v)).toBeLessThanOrEqual(sum[i] * (k + 2) * 2 ** -24 + Number.MIN_VALUE));

  test("codes pack and come back", () => {
    const codes = unpack(w);
    const bits = f.element.bits;
    expect([...unpackCodes(packCodes(codes, bits), bits, codes.length)]).toEqual([...codes]);
    expect(dequantize(fromBytes(toBytes(w)))).toEqual(dense);
  });

  test("on the reference", async () => check((await matmul(tensor(x, [m, k]), w)).data));

  test("on WebAssembly", async () => {
    const layer = prepareMatmul(w, { backend: await wasm() });
    check(layer.run(x, m));
    layer.dispose();
  });
});
