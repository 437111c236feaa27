// A format of a user's own, defined here and nowhere else, goes everywhere: codec, laws, packing, files, quantize,
// every option, products.
import { expect, test } from "vitest";
import {
  decodeArray,
  defineBlock,
  defineCodebook,
  defineFloat,
  defineFormat,
  encodeArray,
  float16,
  packCodes,
  unpackCodes,
  type NumberFormat,
} from "../../formats/index.ts";
import { dequantize, fromBytes, matmul, prepareMatmul, quantize, tensor, toBytes, unpack } from "../../src/index.ts";
import { blockLaws, formatLaws } from "../../src/testing/index.ts";
import { random } from "../helpers/random.ts";

// Five bits: an unsigned-bias float that nobody ships; three bits: a table with uneven steps.
const float5_e2m2x: NumberFormat = defineFloat({ name: "float5_e2m2x", exponentBits: 2, mantissaBits: 2, bias: 3, specials: "fnuz" });
const squares3 = defineCodebook({ name: "squares3", values: [-9, -4, -1, 0, 1, 4, 9, 16] });

const formats = [float5_e2m2x, squares3].map((element) => ({
  element,
  block: defineBlock({ name: `${element.name}_mine`, element, scales: [{ format: float16, span: 24 }] }),
}));

test.each(formats.map((f) => [f.element.name, f] as const))("%s from codec to product", async (_, { element, block }) => {
  // codec
  for (let c = 0; c < 2 ** element.bits; c++) {
    const v = element.decode(c);
    if (!Number.isNaN(v)) expect(element.decode(element.encode(v))).toBe(v);
  }
  const values = Float64Array.from(
    { length: 999 },
    (
      (rng) => () =>
        rng.normal() * 2
    )(random(1)),
  );
  const codes = encodeArray(element, values, undefined, { overflow: "saturate" });
  for (const [i, v] of values.entries()) {
    const own = Math.abs(element.decode(codes[i]) - v);
    for (const w of element.order!.values) expect(own).toBeLessThanOrEqual(Math.abs(w - v));
  }
  // packing
  expect(unpackCodes(packCodes(codes, element.bits), element.bits, codes.length)).toEqual(codes);
  expect([...decodeArray(element, codes)]).toEqual(Array.from(codes, (c) => Math.fround(element.decode(c))));
  // by its definition
  const again = defineFormat(JSON.parse(JSON.stringify(block.definition)) as typeof block.definition);
  expect(again).toMatchObject({ kind: "block", name: block.name });

  // quantize and dequantize, with every kind of option
  const rng = random(2);
  const [n, k] = [7, 53];
  const x = Float32Array.from({ length: n * k }, () => rng.normal());
  for (const options of [{}, { scaleRule: "mse" }, { rounding: "stochastic", random: rng.next }, { rounding: "trunc" }] as const) {
    const w = quantize(tensor(x, [n, k]), block, options);
    expect(w.codes.length).toBe(n * Math.ceil((k * element.bits) / 8));
    const dq = dequantize(w, { dtype: "float64" });
    const all = unpack(w);
    for (let i = 0; i < n * k; i++) {
      const cell = Math.floor(i / k) * 3 + Math.floor((i % k) / 24);
      const scale = float16.decode(w.scales![2 * cell] | (w.scales![2 * cell + 1] << 8));
      expect(dq[i]).toBe(element.decode(all[i]) * scale);
    }
    // files
    const copy = fromBytes(toBytes(w));
    expect(copy.format.name).toBe(block.name);
    expect(dequantize(copy, { dtype: "float64" })).toEqual(dq);
    // products
    const a = Float32Array.from({ length: 2 * k }, () => rng.normal());
    const y = await matmul(tensor(a, [2, k]), w);
    const layer = prepareMatmul(w);
    const run = layer.run(a, 2);
    for (let m = 0; m < 2; m++)
      for (let r = 0; r < n; r++) {
        let sum = 0;
        for (let j = 0; j < k; j++) sum += a[m * k + j] * dq[r * k + j];
        expect(Math.abs(y.data[m * n + r] - sum)).toBeLessThan(1e-4);
        expect(run[m * n + r]).toBe(y.data[m * n + r]);
      }
    layer.dispose();
  }
});

test.each(formats.flatMap(({ element, block }) => [...formatLaws(element), ...blockLaws(block)].map((l) => [l.name, l] as const)))(
  "law: %s",
  (_, l) => {
    l.check();
  },
);
