// toBytes and fromBytes: round trips of every kind of tensor, and files that are damaged or hostile.
import fc from "fast-check";
import { expect, test } from "vitest";
import { allFormats, defineBlock, defineInt, float32, format } from "../../formats/index.ts";
import { dequantize, fromBytes, fromSafetensors, isLowbitError, quantize, tensor, toBytes, toSafetensors } from "../../src/index.ts";
import { normalArray } from "../helpers/random.ts";

const x = tensor(normalArray(6 * 256, 1), [6, 256]);

test.each(allFormats.filter((f) => f.kind !== "block" && f.kind !== "opaque").map((f) => [f.name, f] as const))("%s survives", (_, f) => {
  const w = quantize(x, f);
  const back = fromBytes(toBytes(w));
  expect(back.format).toBe(f);
  expect(back).toEqual(w);
});

test.each(["int4_b32", "uint4_b32_float16_zp", "int8_row", "float8_e4m3fn_tensor"])("%s survives", (name) => {
  const w = quantize(x, format(name));
  expect(fromBytes(toBytes(w))).toEqual(w);
  expect(fromBytes(toBytes(w)).format).toBe(format(name));
});

test("a user's format travels with its definition; shapes and several tensors are kept", () => {
  const mine = defineBlock({ name: "mine", element: defineInt({ bits: 5, signed: true }), scales: [{ format: float32, span: [2, 8] }] });
  const conv = quantize(tensor(normalArray(4 * 3 * 3 * 3, 2), [4, 3, 3, 3]), format("int8_row"));
  const file = toSafetensors({ a: quantize(x, mine), "layer.0/conv": conv });
  const back = fromSafetensors(file);
  expect(Object.keys(back)).toEqual(["a", "layer.0/conv"]);
  expect(back.a.format.name).toBe("mine");
  expect(dequantize(back.a)).toEqual(dequantize(quantize(x, mine)));
  expect(back["layer.0/conv"].shape).toEqual([4, 3, 3, 3]);
  expect(() => fromBytes(file)).toThrow(expect.objectContaining({ code: "E_CONTAINER" }));
});

test("any safetensors reader finds the planes", () => {
  const file = toBytes(quantize(x, format("int4_b32")));
  const n = Number(new DataView(file.buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(file.subarray(8, 8 + n))) as Record<
    string,
    { dtype: string; data_offsets: [number, number] }
  >;
  expect(n % 8).toBe(0);
  expect(header["weight.codes"]).toEqual({ dtype: "U8", shape: [6 * 128], data_offsets: [0, 768] });
  expect(file.length).toBe(8 + n + 768 + 6 * 8 * 4);
});

const good = toBytes(quantize(x, format("uint4_b32_zp")));

test("truncation at every byte of the header and every 97th of the data is refused", () => {
  for (let n = 0; n < good.length; n += n < 900 ? 1 : 97)
    expect(() => fromBytes(good.subarray(0, n))).toThrow(expect.objectContaining({ code: "E_CONTAINER" }));
});

test("damage anywhere in the header gives a LowbitError or a sound tensor, never anything else", () => {
  const headerEnd = 8 + Number(new DataView(good.buffer).getBigUint64(0, true));
  fc.assert(
    fc.property(fc.array(fc.tuple(fc.nat(headerEnd - 1), fc.nat(255)), { minLength: 1, maxLength: 4 }), (edits) => {
      const bytes = good.slice();
      for (const [at, b] of edits) bytes[at] = b;
      try {
        const w = fromBytes(bytes);
        expect(w.codes.length).toBe(w.rows * w.rowBytes);
        dequantize(w);
      } catch (error) {
        if (!isLowbitError(error)) throw error;
      }
    }),
    { numRuns: 3000 },
  );
});

const edit = (
  change: (header: Record<string, unknown>, meta: { version: number; tensors: Record<string, unknown>[] }) => void,
  extra = 0,
) => {
  const n = Number(new DataView(good.buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(good.subarray(8, 8 + n))) as Record<string, unknown> & {
    __metadata__: { lowbit: string };
  };
  const meta = JSON.parse(header.__metadata__.lowbit) as { version: number; tensors: Record<string, unknown>[] };
  change(header, meta);
  if (header.__metadata__) header.__metadata__ = { lowbit: JSON.stringify(meta) };
  const json = new TextEncoder().encode(JSON.stringify(header));
  const out = new Uint8Array(8 + json.length + good.length - 8 - n + extra);
  new DataView(out.buffer).setBigUint64(0, BigInt(json.length), true);
  out.set(json, 8);
  out.set(good.subarray(8 + n), 8 + json.length);
  return out;
};

test.each([
  ["a newer version", edit((_, m) => (m.version = 2))],
  ["no metadata", edit((h) => delete h.__metadata__)],
  ["an unknown builder", edit((_, m) => (m.tensors[0].format = { kind: "quantum" }))],
  ["a builder from the prototype", edit((_, m) => (m.tensors[0].format = { kind: "constructor" }))],
  ["a definition without its fields", edit((_, m) => (m.tensors[0].format = { kind: "block" }))],
  ["a huge shape", edit((_, m) => (m.tensors[0].shape = [2 ** 40, 2 ** 40]))],
  ["a negative shape", edit((_, m) => (m.tensors[0].shape = [-6, 256]))],
  ["another shape", edit((_, m) => (m.tensors[0].shape = [6, 250]))],
  ["offsets beyond the file", edit((h) => ((h["weight.codes"] as { data_offsets: number[] }).data_offsets = [0, 2 ** 50]))],
  ["overlapping planes", edit((h) => ((h["weight.scales"] as { data_offsets: number[] }).data_offsets = [0, 192]))],
  ["bytes after the data", edit(() => {}, 5)],
  ["the same tensor twice", edit((_, m) => m.tensors.push(m.tensors[0]))],
  ["a plane that nobody names", edit((h) => (h["other.codes"] = { dtype: "U8", shape: [0], data_offsets: [0, 0] }))],
])("%s is refused", (_, bytes) => {
  expect(() => fromBytes(bytes)).toThrow(expect.objectContaining({ name: "LowbitError" }));
});
