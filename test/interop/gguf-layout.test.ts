// GGUF field by field: a file put together here by the layout of ggml's gguf.md, cut at every byte, with every field at
// and beyond its bounds; what is said about it, word for word.
import { describe, expect, test } from "vitest";
import { tensor } from "../../src/index.ts";
import { ggufBytes, readGguf, type GgufValue } from "../../src/interop/index.ts";

type Field = readonly [what: string, bytes: Uint8Array];
const bytesOf = (a: ArrayBufferView): Uint8Array => new Uint8Array(a.buffer, a.byteOffset, a.byteLength);
const u32 = (what: string, v: number): Field => [what, bytesOf(Uint32Array.of(v))];
const u64 = (what: string, v: bigint | number): Field => [what, bytesOf(BigUint64Array.of(BigInt(v)))];
const text = (what: string, s: string | Uint8Array): Field[] => {
  const bytes = typeof s === "string" ? new TextEncoder().encode(s) : s;
  return [u64(`length of ${what}`, bytes.length), [what, bytes]];
};
const joined = (fields: readonly Field[]): Uint8Array => Uint8Array.from(fields.flatMap(([, bytes]) => [...bytes]));
const head = (tensors: number, values: number, version = 3): Field[] => [
  u32("magic number", 0x46554747),
  u32("version", version),
  u64("number of tensors", tensors),
  u64("number of metadata values", values),
];
const info = (name: string, sizes: number[], type: number, offset: bigint | number): Field[] => [
  ...text("a tensor name", name),
  u32(`dimensions of "${name}"`, sizes.length),
  ...sizes.map((d) => u64(`size of "${name}"`, d)),
  u32(`type of "${name}"`, type),
  u64(`offset of "${name}"`, offset),
];
const key = (name: string, type: number): Field[] => [...text("a metadata key", name), u32("type of a value", type)];
const list = (of: number, count: number): Field[] => [u32("type of a value", of), u64("length of an array", count)];

// uint8, int8, uint16, int16, uint32, int32, float32, bool, string, array, uint64, int64, float64
const every: Field[] = [
  ...[["uint8", Uint8Array.of(9)], ["int8", Int8Array.of(-9)], ["uint16", Uint16Array.of(900)], ["int16", Int16Array.of(-900)], ["uint32", Uint32Array.of(9e4)], ["int32", Int32Array.of(-9e4)], ["float32", Float32Array.of(0.5)]].flatMap(
    ([name, data], id) => [...key(`v.${name as string}`, id), [name, bytesOf(data as Uint8Array)] as Field],
  ),
  ...key("v.bool", 7), ["a bool", Uint8Array.of(1)],
  ...key("v.string", 8), ...text("a string", "é€"),
  ...key("v.bytes", 8), ...text("a string", Uint8Array.of(0xff, 0xfe)),
  ...key("v.numbers", 9), ...list(3, 3), ["an array", bytesOf(Int16Array.of(1, -2, 3))],
  ...key("v.words", 9), ...list(8, 2), ...text("a string", "ab"), ...text("a string", ""),
  ...key("v.flags", 9), ...list(7, 2), ["a bool", Uint8Array.of(0)], ["a bool", Uint8Array.of(7)],
  ...key("v.lists", 9), ...list(9, 2), ...list(0, 1), ["an array", Uint8Array.of(5)], ...list(9, 1), ...list(12, 1), ["an array", bytesOf(Float64Array.of(0.25))],
  ...key("v.uint64", 10), ["uint64", bytesOf(BigUint64Array.of(2n ** 64n - 1n))],
  ...key("v.int64", 11), ["int64", bytesOf(BigInt64Array.of(-(2n ** 63n)))],
  ...key("v.float64", 12), ["float64", bytesOf(Float64Array.of(0.1))],
]; // prettier-ignore
const VALUES = 17;
const infos: Field[] = [
  ...info("a", [3, 2], 0, 0),
  ...info("s", [], 24, 32),
  ...info("q", [32, 2, 1], 8, 64),
  ...info("none", [0, 4], 0, 160),
];
const fields: Field[] = [...head(4, VALUES), ...every, ...infos];
const header = joined(fields);
const start = Math.ceil(header.length / 32) * 32;
const data = new Uint8Array(160);
data.set(bytesOf(Float32Array.of(1, 2, 3, 4, 5, 6)), 0);
data[32] = 200;
for (const [row, scale] of [0x3c00, 0x4000].entries()) {
  data.set(bytesOf(Uint16Array.of(scale)), 64 + 34 * row);
  for (let i = 0; i < 32; i++) data[66 + 34 * row + i] = i;
}
const whole = new Uint8Array(start + data.length);
whole.set(header);
whole.set(data, start);
const said = (expected: string, got: string) =>
  expect.objectContaining({ code: "E_CONTAINER", message: `GGUF file: expected ${expected}, got ${got}. Is it a whole GGUF file?` });

test("every kind of value and tensor, by hand", async () => {
  const file = await readGguf(whole);
  expect(Object.fromEntries(file.metadata)).toEqual({
    "v.uint8": { type: "uint8", value: 9 },
    "v.int8": { type: "int8", value: -9 },
    "v.uint16": { type: "uint16", value: 900 },
    "v.int16": { type: "int16", value: -900 },
    "v.uint32": { type: "uint32", value: 9e4 },
    "v.int32": { type: "int32", value: -9e4 },
    "v.float32": { type: "float32", value: 0.5 },
    "v.bool": { type: "bool", value: true },
    "v.string": { type: "string", value: "é€" },
    "v.bytes": { type: "string", value: Uint8Array.of(0xff, 0xfe) },
    "v.numbers": { type: "array", of: "int16", value: Int16Array.of(1, -2, 3) },
    "v.words": { type: "array", of: "string", value: ["ab", ""] },
    "v.flags": { type: "array", of: "bool", value: [false, true] },
    "v.lists": {
      type: "array",
      of: "array",
      value: [
        { type: "array", of: "uint8", value: Uint8Array.of(5) },
        { type: "array", of: "array", value: [{ type: "array", of: "float64", value: Float64Array.of(0.25) }] },
      ],
    },
    "v.uint64": { type: "uint64", value: 2n ** 64n - 1n },
    "v.int64": { type: "int64", value: -(2n ** 63n) },
    "v.float64": { type: "float64", value: 0.1 },
  });
  const shapes = [...file.tensors.values()].map(({ name, type, shape, offset, byteLength }) => [
    name,
    type.name,
    shape,
    offset - start,
    byteLength,
  ]);
  expect(shapes).toEqual([["a", "F32", [2, 3], 0, 24], ["s", "I8", [1], 32, 1], ["q", "Q8_0", [1, 2, 32], 64, 68], ["none", "F32", [4, 0], 160, 0]]); // prettier-ignore
  const values = async (name: string, ...rows: number[]) => [...(await file.tensors.get(name)!.values(...rows))];
  expect(await values("a")).toEqual([1, 2, 3, 4, 5, 6]);
  expect(await values("a", 1)).toEqual([4, 5, 6]);
  expect(await values("a", 0, 1)).toEqual([1, 2, 3]);
  expect(await values("a", 2, 0)).toEqual([]);
  expect(await values("s")).toEqual([-56]);
  expect(await values("q", 1, 1)).toEqual(Array.from({ length: 32 }, (_, i) => 2 * i));
  expect(await values("none")).toEqual([]);
  for (const [row, count] of [[0, 3], [-1, 1], [0.5, 1], [1, 2], [3, 0], [0, -1], [0, 0.5]]) await expect(file.tensors.get("a")!.bytes(row, count)).rejects.toThrow(RangeError); // prettier-ignore
  const { packed } = file.tensors.get("q")!;
  expect((await packed()).recipe).toEqual({ version: 1, algorithm: "gguf", type: "Q8_0" });
  await expect(file.tensors.get("none")!.packed()).rejects.toThrow('none: expected a type with a format, and values, got F32 [4, 0]. Read its bytes or values.'); // prettier-ignore
});

test("the writer gives the same bytes for these values and tensors", async () => {
  const file = await readGguf(whole);
  const tensors = new Map([...file.tensors].filter(([name]) => name !== "none" && name !== "s").map(([name, t]) => [name, { type: t.type.name, shape: t.shape, bytes: () => t.bytes() }])); // prettier-ignore
  const again = await readGguf(await ggufBytes({ metadata: file.metadata, tensors }));
  expect([...again.metadata]).toEqual([...file.metadata]);
  for (const name of tensors.keys()) expect(await again.tensors.get(name)!.bytes()).toEqual(await file.tensors.get(name)!.bytes());
});

test("cut anywhere in the header: the field that does not fit is named", async () => {
  let from = 0;
  for (const [what, bytes] of fields) {
    for (let length = from; length < from + bytes.length; length++) {
      const cut = whole.subarray(0, length);
      const error = await readGguf(cut).then(() => undefined, (e: Error) => e); // prettier-ignore
      // counts are looked at before what they count: those say that it does not fit
      const { message } = error as Error;
      const exact = `GGUF file: expected ${what} inside the file, got ${bytes.length} bytes at ${from} of ${length}. Is it a whole GGUF file?`;
      if (message !== exact)
        expect(message).toMatch(/^GGUF file: expected a (number of (tensors|metadata values)|length of (an array|a string|a metadata key|a tensor name)) that fits into the file, got \d+\. Is/); // prettier-ignore
      else expect(message).toBe(exact);
    }
    from += bytes.length;
  }
  // the data: the first tensor that does not fit
  for (let length = header.length; length < whole.length; length++) {
    const at = length < start + 24 ? '24 bytes of "a" at ' + start : length < start + 33 ? `1 bytes of "s" at ${start + 32}` : length < start + 132 ? `68 bytes of "q" at ${start + 64}` : `0 bytes of "none" at ${start + 160}`; // prettier-ignore
    await expect(readGguf(whole.subarray(0, length))).rejects.toThrow(said(at, `a file of ${length}`));
  }
});

describe("bounds", () => {
  const read = (...parts: Field[][]) => readGguf(joined(parts.flat()));
  const F32 = (name: string, offset: bigint | number, ...sizes: number[]) => info(name, sizes, 0, offset);

  test("a header that ends with the file; versions 2 and 3 and no others", async () => {
    for (const version of [2, 3]) {
      const file = await read(head(0, 0, version));
      expect([file.version, file.alignment, file.tensors.size, file.metadata.size]).toEqual([version, 32, 0, 0]);
    }
    const refused = (version: number, got: string) =>
      expect(read(head(0, 0, version))).rejects.toThrow(
        expect.objectContaining({
          code: "E_UNSUPPORTED",
          message: `GGUF file: expected GGUF version 2 or 3 (little-endian), got ${got}. Convert it with llama.cpp's tools.`,
        }),
      );
    await refused(1, "version 1");
    await refused(4, "version 4");
    await refused(0x03000000, "a big-endian file");
    await expect(readGguf(joined([u32("", 0x47475546), ...head(0, 0)]))).rejects.toThrow(
      said('a file that begins with "GGUF"', "0x47475546"),
    );
  });

  test("counts: as many as fit, and one more", async () => {
    // a value takes 13 bytes at least, a tensor 24: what follows is read until it ends
    const room = (n: number): Field => ["", new Uint8Array(n)];
    await expect(read(head(0, 2), [room(26)])).rejects.toThrow(said("distinct metadata keys", '""'));
    await expect(read(head(0, 2), [room(25)])).rejects.toThrow(said("a number of metadata values that fits into the file", "2"));
    await expect(read(head(1, 0), [room(15)])).rejects.toThrow(said("a number of tensors that fits into the file", "1"));
    await expect(read(head(2 ** 53, 0))).rejects.toThrow(said("a possible number of tensors", "9007199254740992"));
    await expect(read(head(2 ** 53 - 1, 0))).rejects.toThrow(said("a number of tensors that fits into the file", "9007199254740991"));
    const strings = (n: number, ...rest: Field[]) => read(head(0, 1), key("k", 9), list(8, n), rest);
    expect((await strings(1, ...text("", ""))).get("k")).toEqual([""]);
    await expect(strings(2, ...text("", ""))).rejects.toThrow(said("a length of an array that fits into the file", "2"));
    const lists = (n: number, ...rest: Field[]) => read(head(0, 1), key("k", 9), list(9, n), rest);
    expect((await lists(1, ...list(0, 0))).get("k")).toEqual([{ type: "array", of: "uint8", value: new Uint8Array(0) }]);
    await expect(lists(2, ...list(0, 0))).rejects.toThrow(said("a length of an array that fits into the file", "2"));
  });

  test("arrays within arrays: four deep, and five", async () => {
    const nested = (depth: number): Field[] => [...Array.from({ length: depth - 1 }, () => list(9, 1)).flat(), ...list(4, 0)];
    await expect(read(head(0, 1), key("k", 9), nested(4))).resolves.toBeDefined();
    await expect(read(head(0, 1), key("k", 9), nested(5))).rejects.toThrow(said("arrays at most 4 deep", "deeper ones"));
  });

  test("types of values, names that are no UTF-8, keys and names twice", async () => {
    await expect(read(head(0, 1), key("k", 13))).rejects.toThrow(said("a type of values 0 to 12", "13"));
    await expect(read(head(0, 1), text("", Uint8Array.of(255)), [["", new Uint8Array(9)]])).rejects.toThrow(said("UTF-8 in a metadata key", "other bytes")); // prettier-ignore
    await expect(read(head(0, 2), key("k", 0), [["", Uint8Array.of(1)]], key("k", 0), [["", Uint8Array.of(1)]])).rejects.toThrow(said("distinct metadata keys", '"k"')); // prettier-ignore
    await expect(read(head(1, 0), text("", Uint8Array.of(255)), [["", new Uint8Array(24)]])).rejects.toThrow(said("UTF-8 in a tensor name", "other bytes")); // prettier-ignore
    await expect(read(head(2, 0), F32("w", 0, 0), F32("w", 0, 0))).rejects.toThrow(said("distinct tensor names", '"w"'));
    // two tensors without values at one place
    expect((await read(head(2, 0), F32("w", 0, 0), F32("v", 0, 0), [["", new Uint8Array(64)]])).tensors.size).toBe(2);
  });

  test("alignment: a power of two up to 2^20, as uint32", async () => {
    const of = (type: number, value: ArrayBufferView) => read(head(0, 1), key("general.alignment", type), [["", bytesOf(value)]]);
    for (const value of [1, 2, 8, 64, 2 ** 20]) expect((await of(4, Uint32Array.of(value))).alignment).toBe(value);
    for (const value of [0, 3, 24, 2 ** 21, 2 ** 31]) await expect(of(4, Uint32Array.of(value))).rejects.toThrow(said("general.alignment to be a power of two up to 2^20", String(value))); // prettier-ignore
    await expect(of(5, Int32Array.of(32))).rejects.toThrow(said("general.alignment to be a power of two up to 2^20", "32"));
    await expect(of(10, BigUint64Array.of(32n))).rejects.toThrow(said("general.alignment to be a power of two up to 2^20", "32"));
  });

  test("dimensions, whole blocks, sizes that no file has, places", async () => {
    const filled: Field = ["", new Uint8Array(256)];
    const one = (sizes: number[], type = 0, offset: bigint | number = 0) => read(head(1, 0), info("w", sizes, type, offset), [filled]);
    expect((await one([1, 2, 1, 3])).tensors.get("w")!.shape).toEqual([3, 1, 2, 1]);
    await expect(one([1, 1, 1, 1, 1])).rejects.toThrow(said('at most 4 dimensions of "w"', "5"));
    await expect(one([33], 8)).rejects.toThrow(said('rows of "w" to be whole blocks of 32 (Q8_0)', "rows of 33"));
    await expect(one([2 ** 40, 2 ** 40])).rejects.toThrow(said('a possible shape of "w"', `[${2 ** 40}, ${2 ** 40}]`));
    // a count that is safe, whose bytes are not
    await expect(one([2 ** 52])).rejects.toThrow(said('a possible shape of "w"', `[${2 ** 52}]`));
    await expect(one([1], 0, 16)).rejects.toThrow(said('an offset of "w" that is a multiple of 32', "16"));
    await expect(one([1], 4)).rejects.toThrow('tensor "w": expected a type of ggml, got 4. It was removed from ggml, or is newer than this library.'); // prettier-ignore
    const two = (first: number, second: number) => read(head(2, 0), F32("a", first, 9), F32("b", second, 8), [filled]);
    expect((await two(0, 64)).tensors.size).toBe(2);
    expect((await two(32, 0)).tensors.size).toBe(2);
    await expect(two(0, 32)).rejects.toThrow(said('"b" behind the tensor before it, at 36 or later', "offset 32"));
    await expect(two(0, 0)).rejects.toThrow(said('"a" behind the tensor before it, at 32 or later', "offset 0"));
  });

  test("a header longer than what is fetched at first, and what is read of it", async () => {
    const words = Array.from({ length: 30_000 }, (_, i) => `word ${i} ${"x".repeat(i % 40)}`);
    const bytes = await ggufBytes({ metadata: { words, last: 7 }, tensors: { w: tensor(Float32Array.of(1, 2), [2]) } });
    const reads: number[][] = [];
    const source = {
      size: bytes.length,
      read: (at: number, n: number) => (reads.push([at, n]), Promise.resolve(bytes.subarray(at, at + n))),
    };
    const file = await readGguf(source);
    expect(file.get("words")).toEqual(words);
    expect(file.get("last")).toBe(7);
    // four times as much, up to the file's end
    expect(reads).toEqual([2 ** 18, 2 ** 20, bytes.length].filter((_, i, all) => i === 0 || all[i - 1] < bytes.length).map((n) => [0, Math.min(n, bytes.length)])); // prettier-ignore
    reads.length = 0;
    expect([...(await file.tensors.get("w")!.values())]).toEqual([1, 2]);
    expect(reads).toEqual([[file.tensors.get("w")!.offset, 8]]);
  });
});

describe("what the writer takes, at its bounds", () => {
  const w = tensor(Float32Array.of(1), [1]);
  const refused = async (model: object, code: string, message: string) => expect(ggufBytes({ metadata: {}, tensors: {}, ...model } as never)).rejects.toThrow(expect.objectContaining({ code, message })); // prettier-ignore
  test("alignments, said by the model or by its metadata", async () => {
    for (const alignment of [1, 2, 64, 2 ** 20]) {
      const models: Pick<Parameters<typeof ggufBytes>[0], "alignment" | "metadata">[] = [{ alignment, metadata: {} }, { metadata: { "general.alignment": alignment } }, { alignment, metadata: { "general.alignment": 32 } }]; // prettier-ignore
      for (const model of models) {
        const bytes = await ggufBytes({ ...model, tensors: { a: w, b: w } });
        const file = await readGguf(bytes);
        expect([file.alignment, file.get("general.alignment")]).toEqual([alignment, alignment]);
        expect([file.tensors.get("a")!.offset % alignment, file.tensors.get("b")!.offset - file.tensors.get("a")!.offset]).toEqual([0, Math.max(4, alignment)]); // prettier-ignore
        expect(bytes.length).toBe(file.tensors.get("b")!.offset + Math.max(4, alignment));
      }
    }
    for (const alignment of [0, -1, 3, 24, 2 ** 21, 0.5, NaN]) await refused({ alignment }, "E_VALUE", `GGUF alignment: expected a power of two up to 2^20, got ${alignment}. Leave it out for 32.`); // prettier-ignore
  });
  test("names, shapes and bytes", async () => {
    expect((await readGguf(await ggufBytes({ metadata: {}, tensors: { [`${"w".repeat(61)}é`]: w } }))).tensors.size).toBe(1);
    for (const name of ["w".repeat(64), `${"w".repeat(62)}é`]) await refused({ tensors: { [name]: w } }, "E_VALUE", `tensor "${name}": expected a name below 64 bytes, which is ggml's limit. Shorten it.`); // prettier-ignore
    const of = (shape: number[], type = "F32", bytes = new Uint8Array(4 * Math.abs(shape.reduce((a, b) => a * b, 1)))) => ({ tensors: new Map([["w", { type, shape, bytes: () => bytes }]]) }); // prettier-ignore
    for (const shape of [[3], [2, 3], [1, 2, 3], [4, 1, 2, 3]]) {
      const file = await readGguf(await ggufBytes({ metadata: new Map(), ...of(shape) }));
      expect(file.tensors.get("w")!.shape).toEqual(shape);
    }
    for (const shape of [[], [1, 1, 1, 1, 1], [0], [2, 0], [-1], [1.5], [NaN]]) await refused(of(shape, "F32", new Uint8Array(4)), "E_SHAPE", `w: expected 1 to 4 positive sizes, the last a multiple of 1 (F32), got [${shape.join(", ")}].`); // prettier-ignore
    for (const shape of [[33], [32, 16]]) await refused(of(shape, "q8_0"), "E_SHAPE", `w: expected 1 to 4 positive sizes, the last a multiple of 32 (Q8_0), got [${shape.join(", ")}].`); // prettier-ignore
    for (const n of [7, 9]) await refused(of([2], "F32", new Uint8Array(n)), "E_SHAPE", `w: expected 8 bytes, got ${n}. Give the bytes of its type and shape.`); // prettier-ignore
    await refused(of([2], "F33"), "E_UNSUPPORTED", 'w: expected a type of ggml, got "F33".');
  });
  test("values of a type, at the ends of its range", async () => {
    const value = (type: string, v: unknown) => ggufBytes({ metadata: { k: { type, value: v } as never }, tensors: {} });
    for (const [type, least, most] of [["uint8", 0, 255], ["int8", -128, 127], ["uint16", 0, 65535], ["int16", -32768, 32767], ["uint32", 0, 2 ** 32 - 1], ["int32", -(2 ** 31), 2 ** 31 - 1]] as const) {
      for (const v of [least, most]) expect((await readGguf(await value(type, v))).metadata.get("k")).toEqual({ type, value: v });
      for (const v of [least - 1, most + 1, 0.5, NaN, "1", true, 1n, null]) await expect(value(type, v)).rejects.toThrow(`metadata k: expected a value of type ${type}, got ${String(v)} (${typeof v}).`);
    } // prettier-ignore
    for (const [type, v, is] of [["uint64", 5, 5n], ["int64", -5, -5n], ["uint64", 2n ** 64n - 1n, 2n ** 64n - 1n], ["int64", -(2n ** 63n), -(2n ** 63n)], ["float32", 0.1, Math.fround(0.1)], ["float64", 0.1, 0.1], ["float32", NaN, NaN], ["bool", false, false], ["string", "é", "é"], ["string", Uint8Array.of(255), Uint8Array.of(255)]] as const)
      expect((await readGguf(await value(type, v))).get("k"), type).toEqual(is); // prettier-ignore
    for (const [type, v] of [["uint64", -1n], ["uint64", 2n ** 64n], ["int64", 2n ** 63n], ["uint64", 0.5], ["int64", 2 ** 53], ["float32", 1n], ["float64", "1"], ["bool", 1], ["string", 5], ["string", [65]]] as const)
      await expect(value(type, v), `${type} ${String(v)}`).rejects.toThrow(`metadata k: expected a value of type ${type}, got`); // prettier-ignore
    // numbers as a list are written as those of a typed array
    const list = (value: unknown) => ggufBytes({ metadata: { k: { type: "array", of: "int16", value } as never }, tensors: {} });
    expect(await list([1, -2])).toEqual(await list(Int16Array.of(1, -2)));
    expect(await list(Int8Array.of(1, -2))).toEqual(await list(Int16Array.of(1, -2)));
    await expect(list([1, 2 ** 15])).rejects.toThrow("metadata k: expected a value of type int16, got 32768 (number).");
    for (const none of [5, "ab", null])
      await expect(list(none)).rejects.toThrow(`metadata k: expected an array of int16, got ${String(none)}.`);
  });
});

test("values without a type: what they become, at the ends of each range", async () => {
  const of = async (value: unknown): Promise<unknown> => {
    const entry = (await readGguf(await ggufBytes({ metadata: { k: value as GgufValue }, tensors: {} }))).metadata.get("k")!;
    return entry.type === "array" ? [`${entry.of}[]`, Array.from(entry.value as number[])] : [entry.type, entry.value];
  };
  for (const [value, type] of [
    ["", "string"], [true, "bool"], [false, "bool"], [0, "uint32"], [1, "uint32"], [2 ** 32 - 1, "uint32"], [-1, "int32"], [-(2 ** 31), "int32"], [0.5, "float32"], [0n, "uint64"], [-1n, "int64"],
  ] as const)
    expect(await of(value)).toEqual([type, value]); // prettier-ignore
  expect(await of(2 ** 32)).toEqual(["uint64", 2n ** 32n]);
  expect(await of(-(2 ** 31) - 1)).toEqual(["int64", -(2n ** 31n) - 1n]);
  expect(await of([0, 1])).toEqual(["uint32[]", [0, 1]]);
  expect(await of([-1, -2])).toEqual(["int32[]", [-1, -2]]);
  expect(await of([1, -1])).toEqual(["int32[]", [1, -1]]);
  expect(await of([1, 2 ** 40])).toEqual(["int64[]", [1n, 2n ** 40n]]);
  expect(await of([1, -(2 ** 40)])).toEqual(["int64[]", [1n, -(2n ** 40n)]]);
  expect(await of([2 ** 40, -(2 ** 40)])).toEqual(["int64[]", [2n ** 40n, -(2n ** 40n)]]);
  expect(await of([1, 0.5, -1])).toEqual(["float32[]", [1, 0.5, -1]]);
  expect(await of([0.5, 2 ** 40])).toEqual(["float32[]", [0.5, 2 ** 40]]);
  expect(await of(["a", "b"])).toEqual(["string[]", ["a", "b"]]);
  expect(await of([true, false])).toEqual(["bool[]", [true, false]]);
  expect(await of([])).toEqual(["string[]", []]);
  for (const data of [Uint8Array, Int8Array, Uint16Array, Int16Array, Uint32Array, Int32Array, Float32Array, Float64Array])
    expect(await of(data.of(1, 2)), data.name).toEqual([`${data.name.replace("Array", "").toLowerCase()}[]`, [1, 2]]);
  expect(await of(BigInt64Array.of(-1n))).toEqual(["int64[]", [-1n]]);
  for (const wrong of [[1, "a"], [true, 1], [null], {}, null, undefined, new Map(), [{}], { type: "x", value: 1 }])
    await expect(of(wrong), String(wrong)).rejects.toThrow(/metadata k: expected/);
});
