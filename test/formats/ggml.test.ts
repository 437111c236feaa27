// ggml blocks: bytes of the `_ref` quantizers, an oracle of every layout on random bytes, K-quants against the
// reference's error, bad input.
import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { allFormats, defineOpaque, format, type OpaqueFormat } from "../../formats/index.ts";
import { dequantize, fromBytes, matmul, quantize, tensor, toBytes, unpack } from "../../src/index.ts";
import { awkwardBlock, random } from "../helpers/random.ts";
import { describeShared, readVectors, vectorPath } from "../helpers/shared.ts";
import { blocks, encodeFormula } from "../oracle/ggml.ts";

const opaque = (name: string) => format(`ggml_${name}`) as OpaqueFormat;
const hexBytes = (hex: string) => Uint8Array.from(hex.match(/../g)!, (h) => parseInt(h, 16));
const hexFloats = (hex: string) => new Float32Array(Uint32Array.from(hex.match(/.{8}/g)!, (h) => parseInt(h, 16)).buffer);
const squaredError = (a: Float32Array, b: Float32Array) => a.reduce((sum, v, i) => sum + (v - b[i]) ** 2, 0);

/**
 * Random blocks and what ggml's own dequantizers make of them: { type: { bytes, values } }, base64. Made with a build
 * of ggml-quants.c of August 2026.
 */
const decoded = JSON.parse(readFileSync(new URL("../fixtures/ggml/decode.json", import.meta.url), "utf8")) as Record<
  string,
  { bytes: string; values: string }
>;

test("every ggml format of the package has an oracle or blocks of the reference", () => {
  const names = allFormats.filter((f) => f.name.startsWith("ggml_")).map((f) => f.name.slice(5));
  expect(names.sort()).toEqual([...new Set([...Object.keys(blocks), ...Object.keys(decoded)])].sort());
  // activations beside products: the reference has no decoder of it
  expect(names.filter((n) => !Object.hasOwn(decoded, n))).toEqual(["q8_1"]);
});

test.each(Object.keys(decoded))("ggml_%s decodes as the reference does, bit for bit", (name) => {
  const bytes = new Uint8Array(Buffer.from(decoded[name].bytes, "base64"));
  const values = new Uint8Array(Buffer.from(decoded[name].values, "base64"));
  const got = opaque(name).decodeBytes(bytes);
  // +0 and -0 part in formats whose table has no -0 and in ours, where a code of zero meets a negative scale
  expect([...got].map((v) => v + 0)).toEqual([...new Float32Array(values.buffer)].map((v) => v + 0));
});

test.each(["iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s"])(
  "ggml_%s: its own values are found again, normal ones come near",
  (name) => {
    const rng = random(4);
    const fmt = opaque(name);
    const x = Float32Array.from({ length: 512 }, () => rng.normal());
    const once = fmt.decodeBytes(fmt.encodeBytes(x));
    const power = (a: Float32Array) => a.reduce((s, v) => s + v * v, 0);
    // what a uniform quantizer of as many levels would leave, loosely
    const share = { iq1: 0.26, iq2: 0.13, iq3: 0.05 }[name.slice(0, 3)]!;
    expect(squaredError(x, once)).toBeLessThan(share * power(x));
    expect(squaredError(once, fmt.decodeBytes(fmt.encodeBytes(once)))).toBeLessThan(0.02 * power(once));
  },
);

describe.each(Object.keys(blocks))("ggml_%s", (name) => {
  const fmt = opaque(name);
  const oracle = blocks[name];

  test("sizes", () => {
    expect([fmt.blockSize, fmt.blockBytes]).toEqual([oracle.size, oracle.bytes]);
  });

  test("decodes any bytes as the layout says", () => {
    const rng = random(11);
    for (let i = 0; i < 60; i++) {
      const bytes = Uint8Array.from({ length: oracle.bytes }, () => rng.integer(256));
      expect([...fmt.decodeBytes(bytes)]).toEqual(oracle.decode(bytes));
    }
  });

  test("is a packed tensor like any other", async () => {
    const rng = random(5);
    const [rows, k] = [3, 2 * fmt.blockSize];
    const x = Float32Array.from({ length: rows * k }, () => rng.normal());
    const w = quantize(tensor(x, [rows, k]), fmt);
    expect(w.codes.length).toBe(rows * 2 * fmt.blockBytes);
    for (let r = 0; r < rows; r++)
      expect(w.codes.subarray(r * w.rowBytes, (r + 1) * w.rowBytes)).toEqual(fmt.encodeBytes(x.subarray(r * k, (r + 1) * k)));
    expect(dequantize(w)).toEqual(fmt.decodeBytes(w.codes));
    expect(() => unpack(w)).toThrow(expect.objectContaining({ code: "E_UNSUPPORTED" }));
    const again = fromBytes(toBytes(w));
    expect(again.format).toBe(fmt);
    expect(again.codes).toEqual(w.codes);
    const y = await matmul(tensor(x.slice(0, k), [1, k]), w);
    const d = dequantize(w);
    for (let r = 0; r < rows; r++) {
      let sum = 0;
      for (let j = 0; j < k; j++) sum += x[j] * d[r * k + j];
      expect(y.data[r]).toBeCloseTo(sum, 3);
    }
  });

  test("refuses partial blocks, values that are not finite, and foreign arrays", () => {
    expect(() => fmt.encodeBytes(new Float32Array(fmt.blockSize + 1))).toThrow(expect.objectContaining({ code: "E_SHAPE" }));
    expect(() => fmt.decodeBytes(new Uint8Array(fmt.blockBytes - 1))).toThrow(expect.objectContaining({ code: "E_SHAPE" }));
    for (const bad of [NaN, Infinity, -Infinity]) {
      const x = new Float32Array(fmt.blockSize);
      x[fmt.blockSize - 1] = bad;
      expect(() => fmt.encodeBytes(x)).toThrow(expect.objectContaining({ code: "E_VALUE" }));
    }
    expect(() => fmt.encodeBytes([1, 2] as never)).toThrow(TypeError);
    expect(() => fmt.decodeBytes("00" as never)).toThrow(TypeError);
    expect(() => quantize(tensor(new Float32Array(fmt.blockSize + 1), [fmt.blockSize + 1]), fmt)).toThrow(
      expect.objectContaining({ code: "E_SHAPE" }),
    );
    expect(fmt.encodeBytes(new Float32Array(0)).length).toBe(0);
  });
});

test("a float16 scale that overflows is an error, not an infinity", () => {
  for (const name of ["q4_0", "q4_1", "q8_0", "iq4_nl", "q4_k", "q6_k", "tq1_0", "tq2_0"]) {
    const x = new Float32Array(256).fill(3e38);
    x[1] = -1;
    expect(() => opaque(name).encodeBytes(x), name).toThrow(expect.objectContaining({ code: "E_VALUE" }));
  }
});

describe.each(["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "tq1_0", "tq2_0"])("ggml_%s encodes by its formula", (name) => {
  test("awkward blocks", () => {
    const fmt = opaque(name);
    const { size, bytes, decode } = blocks[name];
    const rng = random(3);
    for (let i = 0; i < 240; i++) {
      const x = awkwardBlock(rng, size, i);
      const want = encodeFormula(name, x);
      const got = fmt.encodeBytes(x);
      // Read the codes back with the oracle's own layout: put a scale of one (and a minimum of zero) in their place.
      const plain = got.slice();
      const at = name.startsWith("tq") ? bytes - 2 : 0;
      expect(got[at] + 256 * got[at + 1]).toBe(want.d);
      plain.set([0x00, 0x3c], at);
      if (want.m !== undefined) {
        expect(got[2] + 256 * got[3]).toBe(want.m);
        plain.set([0, 0], 2);
      }
      const zero = name === "q4_0" ? 8 : name === "q5_0" ? 16 : 0;
      expect(decode(plain).map((v) => v + zero)).toEqual(want.q.map((v) => v + 0));
    }
  });
});

test("ggml_mxfp4 rounds ties toward zero, never writes -0, and takes log2 in float32", () => {
  const { encodeBytes, decodeBytes } = opaque("mxfp4");
  const x = new Float32Array(32);
  x.set([6, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, -0.25, -0.75, -1.25, -1.75, -2.5, -3.5, -5, -0]);
  const dq = decodeBytes(encodeBytes(x));
  expect([...dq.subarray(0, 16)]).toEqual([6, 0, 0.5, 1, 1.5, 2, 3, 4, 0, -0.5, -1, -1.5, -2, -3, -4, 0]);
  expect(encodeBytes(x)[0]).toBe(127);
  // One ulp under 8: log2f gives 3, so the exponent is that of 8.
  x[0] = 8 - 2 ** -21;
  expect(encodeBytes(x)[0]).toBe(128);
  x[0] = 7.99;
  expect(encodeBytes(x)[0]).toBe(127);
});

test("ggml_nvfp4 scale bytes: half up, subnormals stop at 7, 256 and more become 448", () => {
  const scaleOf = (s: number) => opaque("nvfp4").encodeBytes(new Float32Array(64).fill(s * 6))[0];
  expect([1, 1.0625, 1.0624, 255, 247, 1e6, 7.5 / 512, 6.5 / 512, 0.4 / 512, 0].map(scaleOf)).toEqual([
    0x38, 0x39, 0x38, 0x7e, 0x77, 0x7e, 7, 7, 0, 0,
  ]);
});

describe.each(["q4_k", "q6_k"])("ggml_%s search", (name) => {
  test("reproduces what its grid holds, and refines a plain fit", () => {
    const fmt = opaque(name);
    const rng = random(9);
    for (let i = 0; i < 24; i++) {
      const x = awkwardBlock(rng, 256, i);
      const dq = fmt.decodeBytes(fmt.encodeBytes(x));
      const power = x.reduce((s, v) => s + v * v, 0);
      // 4 and 6 bits on a grid per run: far better than amax over the code range for the whole block.
      const step = x.reduce((m, v) => Math.max(m, Math.abs(v)), 0) / (name === "q4_k" ? 7 : 31);
      // Kind 9 lies at the edge of what a float16 super scale can carry.
      if (i % 12 !== 9) expect(squaredError(x, dq)).toBeLessThanOrEqual(Math.min(power, (256 * step * step) / 12) + 1e-30);
    }
    const constant = new Float32Array(256).fill(-0.5);
    expect(squaredError(constant, fmt.decodeBytes(fmt.encodeBytes(constant)))).toBeLessThan(256 * 0.25 * 1e-6);
  });
});

// the other types have fixtures written by ggml itself: ggml-k.test.ts
for (const name of ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "iq4_nl", "mxfp4", "nvfp4", "q4_k", "q6_k"]) {
  const file = name.replace("_k", "_K");
  describeShared(`ggml_${name} against reference bytes`, vectorPath(`examples/gguf-${file}.jsonl`), (path) => {
    const records = readVectors<{ x?: string; bytes: string; dq: string }>(path).filter((r) => r.x !== undefined);
    test.each(records.map((r, i) => [i, r] as const))("record %d", (_, r) => {
      const fmt = opaque(name);
      const x = hexFloats(r.x!);
      const bytes = hexBytes(r.bytes);
      const dq = hexFloats(r.dq);
      expect([...fmt.decodeBytes(bytes)].map((v) => v + 0)).toEqual([...dq].map((v) => v + 0));
      if (!name.endsWith("_k")) expect(fmt.encodeBytes(x)).toEqual(bytes);
      else expect(squaredError(x, fmt.decodeBytes(fmt.encodeBytes(x)))).toBeLessThanOrEqual(squaredError(x, dq));
    });
  });
}

test("a user's opaque format, and definitions that cannot be resolved", () => {
  const pairs = defineOpaque({
    name: "sign_pairs",
    spec: "two signs and a float32 in five bytes",
    blockSize: 2,
    blockBytes: 5,
    encodeBlock(x, at, out, to) {
      new DataView(out.buffer, out.byteOffset + to).setFloat32(1, (Math.abs(x[at]) + Math.abs(x[at + 1])) / 2, true);
      out[to] = (x[at] < 0 ? 1 : 0) | (x[at + 1] < 0 ? 2 : 0);
    },
    decodeBlock(bytes, at, out, to) {
      const d = new DataView(bytes.buffer, bytes.byteOffset + at).getFloat32(1, true);
      out[to] = bytes[at] & 1 ? -d : d;
      out[to + 1] = bytes[at] & 2 ? -d : d;
    },
  });
  const w = quantize(tensor(Float32Array.of(1, -3, -2, 2), [2, 2]), pairs);
  expect([...dequantize(w)]).toEqual([2, -2, -2, 2]);
  expect(fromBytes(toBytes(w)).format).toBe(pairs);
  expect(() => defineOpaque({ ...pairs, blockSize: 0 } as never)).toThrow(expect.objectContaining({ code: "E_FORMAT" }));
  const text = new TextDecoder("latin1").decode(toBytes(w)).replaceAll("sign_pairs", "sign_pairz");
  expect(() => fromBytes(Uint8Array.from(text, (c) => c.charCodeAt(0)))).toThrow(expect.objectContaining({ code: "E_FORMAT" }));
});
