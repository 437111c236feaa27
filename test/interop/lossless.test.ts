// loadLossless: bfloat16 tensors of safetensors and modules of DFloat11, bit for bit; damaged modules are refused.
import { expect, it } from "vitest";
import { losslessBits } from "../../src/index.ts";
import { loadLossless } from "../../src/interop/index.ts";
import { dfloat11Module } from "../oracle/dfloat11.ts";

type Entry = { dtype: string; shape: number[]; bytes: Uint8Array };
/** A safetensors file, byte by byte. */
function file(entries: Record<string, Entry>): Uint8Array {
  let at = 0;
  const header: Record<string, object> = {};
  for (const [name, { dtype, shape, bytes }] of Object.entries(entries)) {
    header[name] = { dtype, shape, data_offsets: [at, at + bytes.length] };
    at += bytes.length;
  }
  const text = new TextEncoder().encode(JSON.stringify(header));
  const length = new Uint8Array(8);
  new DataView(length.buffer).setUint32(0, text.length, true);
  return Uint8Array.from([...length, ...text, ...Object.values(entries).flatMap((e) => [...e.bytes])]);
}
const u8 = (bytes: Uint8Array): Entry => ({ dtype: "U8", shape: [bytes.length], bytes });
const words = Array.from({ length: 60 }, (_, i) => (i * 2654435761) & 0xffff).map((w, i) => (w & 0x807f) | ((100 + (i % 19)) << 7));

it("loads bfloat16 tensors by name and shape, and no others", async () => {
  const all = Uint16Array.from({ length: 12 }, (_, i) => 0x3f80 + i * 1000);
  const source = file({
    "a.weight": { dtype: "BF16", shape: [3, 4], bytes: new Uint8Array(all.buffer) },
    "b.weight": { dtype: "F32", shape: [1], bytes: new Uint8Array(4) },
  });
  const found = await loadLossless(source);
  expect([...found.keys()]).toEqual(["a.weight"]);
  expect(found.get("a.weight")!.shape).toEqual([3, 4]);
  expect(losslessBits(found.get("a.weight")!)).toEqual(all);
  expect((await loadLossless(source, { filter: (name) => name !== "a.weight" })).size).toBe(0);
});

it("loads modules of DFloat11, with codes over several tables and weights stored together", async () => {
  const module = Object.fromEntries(Object.entries(dfloat11Module(words)).map(([part, bytes]) => [`layers.0.${part}`, u8(bytes)]));
  const one = await loadLossless(file(module), { shapeOf: (_name, _part, n) => [n / 10, 10] });
  expect([...losslessBits(one.get("layers.0")!)]).toEqual(words);
  expect(one.get("layers.0")!.shape).toEqual([6, 10]);
  const split = { dtype: "I64", shape: [2], bytes: new Uint8Array(BigInt64Array.of(24n, 60n).buffer) };
  const two = await loadLossless(file({ ...module, "layers.0.split_positions": split }));
  expect([...two.keys()]).toEqual(["layers.0.0", "layers.0.1"]);
  expect([...losslessBits(two.get("layers.0.1")!)]).toEqual(words.slice(24));
});

it("refuses damaged modules of DFloat11", async () => {
  const module = dfloat11Module(words);
  const broken = (change: Record<string, Uint8Array>): Promise<unknown> =>
    loadLossless(file(Object.fromEntries(Object.entries({ ...module, ...change }).map(([part, bytes]) => [`m.${part}`, u8(bytes)]))));
  await expect(broken({ encoded_exponent: module.encoded_exponent.subarray(0, 9) })).rejects.toThrow(/whole checkpoint of DFloat11/);
  await expect(broken({ luts: module.luts.subarray(0, 300) })).rejects.toThrow(/tables of 256/);
  await expect(broken({ sign_mantissa: module.sign_mantissa.subarray(1) })).rejects.toThrow(/59 values/);
  await expect(broken({ luts: module.luts.map((v) => (v < 240 ? v : 240)) })).rejects.toThrow(/a table below 3, got 16/);
});
