// GGUF: a file that ggml's own writer made, round trips, every kind of metadata, hostile headers.
import { readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { format } from "../../formats/index.ts";
import { dequantize, quantize, tensor } from "../../src/index.ts";
import { ggufBytes, ggufTypes, readGguf, writeGguf, type GgufContent, type GgufEntry } from "../../src/interop/index.ts";
import { survive } from "../helpers/mutate.ts";
import { random } from "../helpers/random.ts";

// Written by gguf_write_to_file of ggml (August 2026): a tensor "t.<type>" of two rows of every type, and a metadata
// value of every kind.
const whole = new Uint8Array(readFileSync(new URL("../fixtures/gguf/all-types.gguf", import.meta.url)));
const path = join(tmpdir(), `lowbit-gguf-${process.pid}.gguf`);
afterAll(() => rmSync(path, { force: true }));
const refuse = (code: string) => expect.objectContaining({ code });

describe("a file of ggml's own writer", () => {
  test("metadata of every kind", async () => {
    const file = await readGguf(whole);
    expect(file.version).toBe(3);
    const values = Object.fromEntries([...file.metadata].map(([key, { value }]) => [key, value]));
    expect(values).toEqual({
      "general.architecture": "test",
      "k.u8": 200,
      "k.i8": -5,
      "k.u16": 65535,
      "k.i16": -300,
      "k.u32": 4000000000,
      "k.i32": -7,
      "k.f32": Math.fround(0.1),
      "k.u64": 1n << 60n,
      "k.i64": -(1n << 60n),
      "k.f64": 0.1,
      "k.bool": true,
      "k.strs": ["a", "é€", ""],
      "k.f32s": Float32Array.of(1.5, -2),
      "k.i32s": Int32Array.of(1, -1, 3),
    });
    expect(file.get("k.u8")).toBe(200);
  });

  test("every type that ggml has is known and read", async () => {
    const file = await readGguf(whole);
    expect([...file.tensors.keys()].map((n) => n.slice(2).toUpperCase()).sort()).toEqual(
      [...ggufTypes().values()].map((t) => t.name).sort(),
    );
    for (const t of file.tensors.values()) {
      expect(t.name.slice(2).toUpperCase()).toBe(t.type.name);
      expect(t.shape).toEqual([2, t.type.blockSize * (t.type.blockSize < 32 ? 3 : 1)]);
      const values = await t.values();
      expect(values.length).toBe(t.shape[0] * t.shape[1]);
      expect(await t.values(1, 1)).toEqual(values.subarray(t.shape[1]));
      const id = (await t.bytes()).slice();
      expect(id).toEqual(whole.slice(t.offset, t.offset + t.byteLength));
    }
  });

  test("is written back byte for byte", async () => {
    const file = await readGguf(whole);
    const tensors: Record<string, GgufContent> = {};
    for (const t of file.tensors.values()) tensors[t.name] = { type: t.type.name, shape: t.shape, bytes: () => t.bytes() };
    expect(await ggufBytes({ metadata: file.metadata, tensors })).toEqual(whole);
  });

  test("from a path, a Blob, an ArrayBuffer and a range reader, which reads no more than it needs", async () => {
    await writeGguf(path, { metadata: {}, tensors: { "a.weight": tensor(Float32Array.of(1, 2, 3, 4), [2, 2]) } });
    const fromPath = await readGguf(path);
    expect([...(await fromPath.tensors.get("a.weight")!.values())]).toEqual([1, 2, 3, 4]);
    await fromPath.close();
    for (const source of [new Blob([whole]), whole.slice().buffer]) {
      const file = await readGguf(source);
      expect(await file.tensors.get("t.f32")!.bytes()).toEqual(await (await readGguf(whole)).tensors.get("t.f32")!.bytes());
    }
    const big = await ggufBytes({
      metadata: {},
      tensors: { w: tensor(new Float32Array(1 << 18), [1 << 18]), v: tensor(Float32Array.of(7), [1]) },
    });
    let read = 0;
    const file = await readGguf({ size: big.length, read: async (at, n) => ((read += n), big.subarray(at, at + n)) });
    expect([...(await file.tensors.get("v")!.values())]).toEqual([7]);
    expect(read).toBeLessThan(big.length / 2);
  });
});

test.each([...ggufTypes().values()].filter((t) => t.format?.kind === "opaque" || t.format?.name === "float16").map((t) => [t.name, t]))(
  "%s: packed tensors go out and come back as they are",
  async (_, type) => {
    const rng = random(3);
    const w = quantize(
      tensor(
        Float32Array.from({ length: 2 * type.blockSize }, () => rng.normal()),
        [2, type.blockSize],
      ),
      type.format!,
    );
    const file = await readGguf(await ggufBytes({ metadata: { "general.architecture": "llama" }, tensors: { w } }));
    const back = await file.tensors.get("w")!.packed();
    expect(back.codes).toEqual(w.codes);
    expect(back.format).toBe(w.format);
    expect(await file.tensors.get("w")!.values()).toEqual(Float32Array.from(dequantize(w)));
  },
);

test("metadata is inferred from values, with alignment", async () => {
  const metadata = {
    name: "x",
    n: 3,
    negative: -3,
    share: 0.5,
    wide: 2 ** 40,
    big: 5n,
    yes: true,
    words: ["a", "b"],
    numbers: [1, -2],
    mixed: [1, 0.5],
    bytes: Uint8Array.of(1, 2),
    none: [],
  };
  const bytes = await ggufBytes({ metadata, tensors: { w: tensor(Float32Array.of(1), [1]) }, alignment: 128 });
  const file = await readGguf(bytes);
  expect(Object.fromEntries([...file.metadata].map(([k, e]) => [k, e.type === "array" ? `${e.of}[]` : e.type]))).toEqual({
    name: "string", n: "uint32", negative: "int32", share: "float32", wide: "uint64", big: "uint64", yes: "bool", words: "string[]", numbers: "int32[]",
    mixed: "float32[]", bytes: "uint8[]", none: "string[]", "general.alignment": "uint32",
  }); // prettier-ignore
  expect(file.tensors.get("w")!.offset % 128).toBe(0);
  expect(file.alignment).toBe(128);
});

test("arrays of arrays are read as they were written", async () => {
  const numbers = (...value: number[]) => ({ type: "array", of: "int32", value: Int32Array.from(value) }) as const;
  const nested = { type: "array", of: "array", value: [numbers(1, 2), { type: "array", of: "array", value: [numbers(3)] }] } as const;
  const bytes = await ggufBytes({ metadata: { nested, text: "behind it" }, tensors: {} });
  const file = await readGguf(bytes);
  expect(file.metadata.get("nested")).toEqual(nested);
  expect(file.get("text")).toBe("behind it");

  const deep = (levels: number): GgufEntry => (levels === 1 ? numbers(7) : { type: "array", of: "array", value: [deep(levels - 1)] });
  const of = (levels: number) => ggufBytes({ metadata: { deep: deep(levels) }, tensors: {} });
  expect((await readGguf(await of(4))).metadata.get("deep")).toEqual(deep(4));
  // neither read nor written: a file of a few bytes could ask for any depth
  await expect(of(5)).rejects.toThrow(expect.objectContaining({ code: "E_VALUE", message: expect.stringMatching(/at most 4 deep/) }));
  const endless = { type: "array", of: "array", value: [] as unknown[] };
  endless.value.push(endless);
  for (const wrong of [
    endless,
    { type: "int3", value: 1 },
    { type: "array", of: "int3", value: [1] },
    { type: "array", of: "array", value: 5 },
  ])
    await expect(ggufBytes({ metadata: { wrong: wrong as GgufEntry }, tensors: {} })).rejects.toThrow(refuse("E_VALUE"));
});

describe("what the writer refuses", () => {
  const w = tensor(Float32Array.of(1), [1]);
  test.each([
    ["a format without a type", { tensors: { w: quantize(tensor(new Float32Array(32), [32]), format("nf4_b64")) } }, "E_UNSUPPORTED"],
    ["a long name", { tensors: { ["w".repeat(64)]: w } }, "E_VALUE"],
    ["an unknown type", { tensors: { w: { type: "Q9", shape: [1], bytes: () => new Uint8Array(1) } } }, "E_UNSUPPORTED"],
    ["a broken row", { tensors: { w: { type: "Q8_0", shape: [33], bytes: () => new Uint8Array(34) } } }, "E_SHAPE"],
    ["too few bytes", { tensors: { w: { type: "Q8_0", shape: [32], bytes: () => new Uint8Array(33) } } }, "E_SHAPE"],
    ["an odd alignment", { tensors: {}, alignment: 24 }, "E_VALUE"],
    ["a value out of range", { tensors: {}, metadata: { a: { type: "uint8", value: 256 } } }, "E_VALUE"],
    ["a value of no kind", { tensors: {}, metadata: { a: null } }, "E_VALUE"],
  ])("%s", async (_, model, code) => {
    await expect(ggufBytes({ metadata: {}, ...model } as never)).rejects.toThrow(refuse(code));
  });
  test("a file that exists, and nothing is left of a failed write", async () => {
    await writeGguf(path, { metadata: {}, tensors: { w } }, { force: true });
    await expect(writeGguf(path, { metadata: {}, tensors: { w } })).rejects.toThrow(refuse("E_EXISTS"));
  });
});

describe("what the reader refuses", () => {
  const at = (text: string) => Buffer.from(whole).indexOf(text);
  const patched = (from: number, ...bytes: number[]) => {
    const out = whole.slice();
    out.set(bytes, from);
    return out;
  };
  const huge = [255, 255, 255, 255, 255, 255, 255, 127];
  test.each([
    ["other files", Uint8Array.from({ length: 100 }, (_, i) => i), "E_CONTAINER"],
    ["nothing", new Uint8Array(0), "E_CONTAINER"],
    ["version 1", patched(4, 1), "E_UNSUPPORTED"],
    ["big-endian", patched(4, 0, 0, 0, 3), "E_UNSUPPORTED"],
    ["more tensors than fit", patched(8, ...huge), "E_CONTAINER"],
    ["more values than fit", patched(16, ...huge), "E_CONTAINER"],
    ["a key as long as the world", patched(24, ...huge), "E_CONTAINER"],
    ["an unknown type of value", patched(at("k.u8") + 4, 13), "E_CONTAINER"],
    ["the same key twice", patched(at("k.i8"), ...Buffer.from("k.u8")), "E_CONTAINER"],
    ["an unknown tensor type", patched(at("t.f32") + 5 + 4 + 16, 99), "E_UNSUPPORTED"],
    ["a removed tensor type", patched(at("t.f32") + 5 + 4 + 16, 4), "E_UNSUPPORTED"],
    ["five dimensions", patched(at("t.f32") + 5, 5), "E_CONTAINER"],
    ["a tensor beyond the file", patched(at("t.f32") + 5 + 4 + 8, ...huge), "E_CONTAINER"],
    ["an unaligned tensor", patched(at("t.f16") + 5 + 4 + 16 + 4, 1), "E_CONTAINER"],
    ["tensors on one another", patched(at("t.q4_0") + 6 + 4 + 16 + 4, 0), "E_CONTAINER"],
    ["the same tensor twice", patched(at("t.f16"), ...Buffer.from("t.f32")), "E_CONTAINER"],
    ["half a file", whole.slice(0, whole.length / 2), "E_CONTAINER"],
  ])("%s", async (_, bytes, code) => {
    await expect(readGguf(bytes)).rejects.toThrow(refuse(code));
  });
  test("a path that is none", async () => {
    await expect(readGguf("/no/such.gguf")).rejects.toThrow(refuse("E_IO"));
    await expect(readGguf(7 as never)).rejects.toThrow(TypeError);
  });

  test("any damage: an answer or a typed error, soon and in little memory", async () => {
    const small = await ggufBytes({
      metadata: { "general.architecture": "llama", words: ["a", "bc"], n: 5, f: Float32Array.of(1, 2) },
      tensors: { w: { type: "Q4_K", shape: [1, 256], bytes: () => new Uint8Array(144) }, v: tensor(Float32Array.of(1, 2), [2]) },
    });
    const result = await survive(small, small.length - 200, async (bytes) => {
      const file = await readGguf(bytes);
      for (const t of file.tensors.values()) await t.values();
    });
    expect(result.faults).toEqual([]);
    expect(result.refused).toBeGreaterThan(100);
    expect(result.slowest).toBeLessThan(1);
    expect(result.grown).toBeLessThan(64e6);
  });
});
