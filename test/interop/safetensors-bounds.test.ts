// safetensors at their bounds: each field of a header, ranges that are read, kinds of arrays, indexes of shards, modules
// of DFloat11; what is said, word for word. Sources of every kind.
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { format } from "../../formats/index.ts";
import { losslessBits, quantize, tensor } from "../../src/index.ts";
import { ggufBytes, loadLossless, npyBytes, npzBytes, readGguf, readNpy, readNpz, readSafetensors, safetensorsBytes, writeSafetensors, type ByteSource, type SafeContent } from "../../src/interop/index.ts"; // prettier-ignore
import { openSource } from "../../src/interop/source.ts";

const folder = mkdtempSync(join(tmpdir(), "lowbit-safetensors-bounds-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const said = (code: string, message: string) => expect.objectContaining({ code, message });
const damaged = (expected: string, got: string, label = "safetensors file") => said("E_CONTAINER", `${label}: expected ${expected}, got ${got}. Is it a whole safetensors file?`); // prettier-ignore
const file = (header: unknown, data = new Uint8Array(0), length?: number): Uint8Array => {
  const json = typeof header === "string" ? Buffer.from(header, "latin1") : Buffer.from(JSON.stringify(header));
  const out = Buffer.alloc(8 + json.length + data.length);
  out.writeBigUInt64LE(BigInt(length ?? json.length));
  out.set(json, 8);
  out.set(data, 8 + json.length);
  return out;
};
const w = { dtype: "F32", shape: [2], data_offsets: [0, 8] };
const eight = new Uint8Array(8);

describe("what is read", () => {
  const refused = (bytes: Uint8Array, error: unknown) => expect(readSafetensors(bytes)).rejects.toThrow(error as Error);

  test("the frame, from nothing to one byte too many", async () => {
    for (const n of [0, 9]) await refused(new Uint8Array(n), damaged("at least 10 bytes", String(n)));
    await refused(file("{}", undefined, 3), damaged("a header of at most 2 bytes", "3"));
    await refused(file("{}", undefined, 2 ** 40), damaged("a header of at most 2 bytes", String(2 ** 40)));
    expect((await readSafetensors(file("{}"))).tensors.size).toBe(0);
    for (const json of ["[]", "5 ", "null", '"ab"']) await refused(file(json), damaged("a header { name: { dtype, shape, data_offsets } }", json.trim())); // prettier-ignore
    await refused(file("{ "), expect.objectContaining({ code: "E_CONTAINER", message: expect.stringMatching(/^safetensors file: expected JSON in UTF-8, got .*\. Is it a whole safetensors file\?$/) as string })); // prettier-ignore
    await refused(file('{"\xff":1}'), expect.objectContaining({ code: "E_CONTAINER", message: expect.stringMatching(/expected JSON in UTF-8/) as string })); // prettier-ignore
    const whole = file({ w }, eight);
    for (let n = 10; n < whole.length; n++) {
      const header = whole.length - 8;
      await refused(whole.subarray(0, n), n < header ? damaged(`a header of at most ${n - 8} bytes`, String(header - 8)) : damaged("8 bytes of data", String(n - header))); // prettier-ignore
    }
    await refused(file({ w }, new Uint8Array(9)), damaged("8 bytes of data", "9"));
    // a reader that says more than there may be of a header: what is asked for is inside
    const reads: number[][] = [];
    await readSafetensors({ size: whole.length, read: (at, n) => (reads.push([at, n]), Promise.resolve(whole.subarray(at, at + n))) });
    expect(reads).toEqual([[0, 1], [0, 8], [8, whole.length - 16]]); // prettier-ignore
  });

  test("entries", async () => {
    for (const dtype of ["F31", "f32", undefined, 5, null, "toString"]) await refused(file({ w: { ...w, dtype } }, eight), damaged('a dtype of safetensors for "w"', dtype === undefined ? "nothing" : JSON.stringify(dtype))); // prettier-ignore
    for (const entry of [null, 5, [], "w"]) await refused(file({ w: entry }, eight), damaged('a dtype of safetensors for "w"', "nothing"));
    for (const change of [{ shape: 2 }, { shape: [-2] }, { shape: [2.5] }, { shape: ["2"] }, { shape: [1, 1, 1, 1, 1, 1, 1, 1, 2] }, { data_offsets: [0] }, { data_offsets: [0, 8, 8] }, { data_offsets: 8 }, { data_offsets: [-8, 0] }, { data_offsets: [0, 8.5] }]) {
      const entry = { ...w, ...change };
      await refused(file({ w: entry }, eight), damaged('shape and data_offsets of "w"', JSON.stringify(entry).slice(0, 80)));
    } // prettier-ignore
    await refused(file({ w: { ...w, shape: [3] } }, eight), damaged('12 bytes of "w" (F32 [3])', "offsets 0 to 8"));
    await refused(file({ w: { ...w, data_offsets: [8, 0] } }, eight), damaged('8 bytes of "w" (F32 [2])', "offsets 8 to 0"));
    await refused(file({ w: { ...w, shape: [2 ** 30, 2 ** 30] } }, eight), damaged(`${2 ** 62} bytes of "w" (F32 [${2 ** 30}, ${2 ** 30}])`, "offsets 0 to 8")); // prettier-ignore
    await refused(file({ w: { dtype: "F4", shape: [3], data_offsets: [0, 1.5] } }, eight), damaged('shape and data_offsets of "w"', '{"dtype":"F4","shape":[3],"data_offsets":[0,1.5]}')); // prettier-ignore
    await refused(file({ w: { dtype: "F4", shape: [3], data_offsets: [0, 2] } }, new Uint8Array(2)), damaged('1.5 bytes of "w" (F4 [3])', "offsets 0 to 2")); // prettier-ignore
    await refused(
      file({ w, v: { ...w, data_offsets: [9, 17] } }, new Uint8Array(17)),
      damaged('"v" at 8, without holes or overlaps', "offset 9"),
    );
    await refused(
      file({ w, v: { ...w, data_offsets: [7, 15] } }, new Uint8Array(15)),
      damaged('"v" at 8, without holes or overlaps', "offset 7"),
    );
    for (const meta of [5, null, [], { a: 1 }, { a: "b", c: null }]) await refused(file({ __metadata__: meta }), damaged("text in __metadata__", JSON.stringify(meta))); // prettier-ignore
    expect([...(await readSafetensors(file({ __metadata__: { a: "b", "": "" } }))).metadata]).toEqual([["a", "b"], ["", ""]]); // prettier-ignore
    const long = "n".repeat(200);
    await refused(file({ [long]: { ...w, dtype: "X" } }, eight), damaged(`a dtype of safetensors for "${"n".repeat(79)}`, '"X"'));
  });

  test("elements are of the kind that the type says, codes where no array is", async () => {
    const kinds: Record<string, [string, number]> = {
      F64: ["Float64Array", 8], F32: ["Float32Array", 4], F16: ["Uint16Array", 2], BF16: ["Uint16Array", 2], I64: ["BigInt64Array", 8], I32: ["Int32Array", 4], I16: ["Int16Array", 2], I8: ["Int8Array", 1],
      U64: ["BigUint64Array", 8], U32: ["Uint32Array", 4], U16: ["Uint16Array", 2], U8: ["Uint8Array", 1], BOOL: ["Uint8Array", 1], C64: ["Float32Array", 8], F8_E4M3: ["Uint8Array", 1], F8_E5M2: ["Uint8Array", 1], F8_E8M0: ["Uint8Array", 1],
    }; // prettier-ignore
    for (const [dtype, [kind, bytes]] of Object.entries(kinds)) {
      const data = Uint8Array.from({ length: 2 * bytes }, (_, i) => (i % bytes === 0 ? 1 + i / bytes : 0));
      const { tensors } = await readSafetensors(file({ w: { dtype, shape: [2], data_offsets: [0, 2 * bytes] } }, data));
      const elements = await tensors.get("w")!.elements();
      expect(elements.constructor.name, dtype).toBe(kind);
      expect(new Uint8Array(elements.buffer)).toEqual(data);
      expect(tensors.get("w")).toMatchObject({ name: "w", dtype, shape: [2], byteLength: 2 * bytes });
    }
  });

  test("rows: the ranges that are asked for", async () => {
    const bytes = file({ m: { dtype: "F16", shape: [2, 3, 4], data_offsets: [8, 56] }, w }, new Uint8Array(56));
    const start = bytes.length - 56;
    const reads: number[][] = [];
    const { tensors } = await readSafetensors({ size: bytes.length, read: (at, n) => (reads.push([at - start, n]), Promise.resolve(bytes.subarray(at, at + n))) }); // prettier-ignore
    const m = tensors.get("m")!;
    const asked = async (row?: number, count?: number) => {
      reads.length = 0;
      expect((await m.values(row, count)).length * 2).toBe(reads[0][1]);
      return reads[0];
    };
    expect(await asked()).toEqual([8, 48]);
    expect(await asked(1)).toEqual([16, 40]);
    expect(await asked(undefined, 2)).toEqual([8, 16]);
    expect(await asked(5, 1)).toEqual([48, 8]);
    expect(await asked(6, 0)).toEqual([56, 0]);
    for (const [row, count] of [[6, 1], [5, 2], [-1, 1], [0, 7], [0.5, 1], [0, 0.5], [7, 0], [0, -1]]) await expect(m.bytes(row, count)).rejects.toThrow(new RangeError(`m: expected rows within 6, got ${count} from ${row} on.`)); // prettier-ignore
    await expect(m.bytes(7)).rejects.toThrow(new RangeError("m: expected rows within 6, got -1 from 7 on."));
    const odd = (await readSafetensors(file({ w: { dtype: "F6_E2M3", shape: [2, 2], data_offsets: [0, 3] } }, new Uint8Array(3)))).tensors.get("w")!; // prettier-ignore
    await expect(odd.values(0, 1)).rejects.toThrow(
      said("E_UNSUPPORTED", "w: expected rows of whole bytes, got rows of 12 bits. Read all of it."),
    );
  });
});

describe("indexes", () => {
  const part = async (...values: number[]) => safetensorsBytes({ metadata: { [`m${values[0]}`]: "x" }, tensors: Object.fromEntries(values.map((v) => [`t${v}`, { dtype: "U8", shape: [1], bytes: Uint8Array.of(v) }])) }); // prettier-ignore
  const index = (map: unknown) => new TextEncoder().encode(JSON.stringify({ weight_map: map }));
  const label = "safetensors file";
  const refused = async (map: unknown, error: unknown, shards?: Record<string, ByteSource>) =>
    expect(readSafetensors(index(map), { shards: shards ?? { a: await part(1, 2) } })).rejects.toThrow(error as Error);

  test("tensors of several shards, in the index's order, with all their metadata", async () => {
    const opened: string[] = [];
    const counted = (name: string, bytes: Uint8Array) => ({ size: bytes.length, read: (at: number, n: number) => Promise.resolve(bytes.subarray(at, at + n)), close: () => (opened.push(name), Promise.resolve()) }); // prettier-ignore
    const shards = { a: counted("a", await part(1, 2)), b: counted("b", await part(3)), c: counted("c", await part(4)) };
    const read = await readSafetensors(index({ t3: "b", t1: "a", t2: "a" }), { shards });
    expect([...read.tensors.keys()]).toEqual(["t3", "t1", "t2"]);
    expect([...(await read.tensors.get("t2")!.values())]).toEqual([2]);
    expect([...read.metadata.keys()].sort()).toEqual(["m1", "m3"]);
    await read.close();
    expect(opened.sort()).toEqual(["a", "b"]);
    // shards that were opened are closed where another is not found
    opened.length = 0;
    await expect(readSafetensors(index({ t1: "a", x: "d" }), { shards })).rejects.toThrow(damaged('a shard "d"', "only 3 others"));
    expect(opened).toEqual(["a"]);
  });

  test("what an index must be", async () => {
    for (const map of [undefined, null, 5, [], "a", { t1: 5 }, { t1: null }]) await refused(map, damaged("weight_map: a file by tensor name", map === undefined ? "nothing" : JSON.stringify(map))); // prettier-ignore
    for (const name of ["../a", "b/a", "b\\a", "c:a", "..", ".", ""]) await refused({ t1: name }, damaged("names of shards beside the index", JSON.stringify(name))); // prettier-ignore
    await refused({ t1: "toString" }, damaged('a shard "toString"', "only 1 others"));
    await refused({ t5: "a" }, damaged('"t5" in a', "a shard without it"));
    await expect(readSafetensors(new TextEncoder().encode("{"), { shards: {} })).rejects.toThrow(
      /^safetensors file: expected JSON in UTF-8/,
    );
    expect((await readSafetensors(index({}), { shards: {} })).tensors.size).toBe(0);
    // with shards to choose from, a file that is no index is still a file
    expect((await readSafetensors(await part(7), { shards: {} })).tensors.size).toBe(1);
    await expect(readSafetensors(new Uint8Array(0), { shards: {} })).rejects.toThrow(damaged("at least 10 bytes", "0", label));
    await refused({ t1: "a" }, said("E_CONTAINER", "safetensors file: expected the shard a beside it, got none that can be read. Download it too."), { a: join(folder, "none") }); // prettier-ignore
    await refused({ t1: "a" }, damaged("at least 10 bytes", "1"), { a: new Uint8Array(1) });
    // of many names, more than shards may be
    const many = Object.fromEntries(Array.from({ length: 10_001 }, (_, i) => [`t${i}`, `s${i}`]));
    await refused(many, damaged("at most 10000 shards", "10001"));
    delete many.t0;
    await refused(many, damaged('a shard "s1"', "only 1 others"));
    // JSON by its name is an index, whatever it begins with
    const path = join(folder, "model.json");
    writeFileSync(path, '{"a":1}');
    await expect(readSafetensors(path)).rejects.toThrow(damaged("weight_map: a file by tensor name", "nothing", path));
  });
});

describe("what is written", () => {
  const content = (dtype: string, shape: number[], bytes: SafeContent["bytes"]): SafeContent => ({ dtype, shape, bytes });

  test("wide elements first, then by name; a header that fills words of eight; bytes when asked for", async () => {
    const order: string[] = [];
    const lazy = (name: string, n: number) => () => (order.push(name), Promise.resolve(new Uint8Array(n).fill(n)));
    const made = await safetensorsBytes({
      metadata: { k: "v" },
      tensors: new Map([["b", content("U8", [3], lazy("b", 3))], ["a", content("U8", [1], lazy("a", 1))], ["z", content("F64", [1], lazy("z", 8))], ["m", content("F16", [2], lazy("m", 4))], ["n", content("F32", [], new Uint8Array(4).fill(5))]]),
    }); // prettier-ignore
    expect(order).toEqual(["z", "m", "a", "b"]);
    const json = '{"__metadata__":{"k":"v"},"z":{"dtype":"F64","shape":[1],"data_offsets":[0,8]},"n":{"dtype":"F32","shape":[],"data_offsets":[8,12]},"m":{"dtype":"F16","shape":[2],"data_offsets":[12,16]},"a":{"dtype":"U8","shape":[1],"data_offsets":[16,17]},"b":{"dtype":"U8","shape":[3],"data_offsets":[17,20]}}'; // prettier-ignore
    const data = [8, 8, 8, 8, 8, 8, 8, 8, 5, 5, 5, 5, 4, 4, 4, 4, 1, 3, 3, 3];
    expect(Buffer.from(made)).toEqual(file(json.padEnd(Math.ceil(json.length / 8) * 8), Uint8Array.from(data)));
    expect(Buffer.from(await safetensorsBytes({ tensors: {} }))).toEqual(file("{}      "));
    const path = join(folder, "a.safetensors");
    await writeSafetensors(path, { tensors: {} });
    await expect(writeSafetensors(path, { tensors: {} })).rejects.toThrow(expect.objectContaining({ code: "E_EXISTS" }));
    await writeSafetensors(path, { tensors: { u: content("U8", [1], Uint8Array.of(9)) } }, { force: true });
    const read = await readSafetensors(path);
    expect([...(await read.tensors.get("u")!.values())]).toEqual([9]);
    await read.close();
    await expect(read.tensors.get("u")!.values()).rejects.toThrow(said("E_DISPOSED", `${path}: expected an open file, got one that was closed. Open it again.`)); // prettier-ignore
  });

  test("what is refused", async () => {
    const refused = (name: string, given: SafeContent, error: unknown) => expect(safetensorsBytes({ tensors: { [name]: given } })).rejects.toThrow(error as Error); // prettier-ignore
    for (const dtype of ["F31", "toString", ""]) await refused("w", content(dtype, [1], eight), expect.objectContaining({ code: "E_UNSUPPORTED", message: expect.stringMatching(new RegExp(`^w: expected a dtype of safetensors \\(BOOL, F4, .*U64\\), got "${dtype}"\\.$`)) as string })); // prettier-ignore
    const shape = (name: string, dtype: string, sizes: number[]) => said("E_SHAPE", `${name}: expected a shape of natural sizes whose elements fill whole bytes, got ${dtype} [${sizes.join(", ")}].`); // prettier-ignore
    for (const sizes of [[-1], [0.5], [2 ** 40, 2 ** 40], [NaN]]) await refused("w", content("U8", sizes, eight), shape("w", "U8", sizes));
    await refused("w", content("F4", [3], new Uint8Array(2)), shape("w", "F4", [3]));
    await refused("__metadata__", content("U8", [1], eight), shape("__metadata__", "U8", [1]));
    await refused("w", content("F32", [2], new Uint8Array(7)), said("E_SHAPE", "w: expected 8 bytes for F32 [2], got 7."));
    await refused(
      "w",
      content("F32", [2], () => new Uint8Array(9)),
      said("E_SHAPE", "w: expected 8 bytes for F32 [2], got 9."),
    );
    expect((await safetensorsBytes({ tensors: { w: content("F4", [0, 3], new Uint8Array(0)) } })).length % 8).toBe(0);
    expect((await readSafetensors(await safetensorsBytes({ tensors: { constructor: content("U8", [1], Uint8Array.of(1)) } }))).tensors.has("constructor")).toBe(true); // prettier-ignore
  });
});

describe("modules of DFloat11", () => {
  // one table: codes 0 (exponent 5), 10 (6), 110 (7), 111 (8)
  const table = Uint8Array.from({ length: 256 }, (_, i) => (i < 128 ? 5 : i < 192 ? 6 : i < 224 ? 7 : 8));
  const lengths = new Uint8Array(256);
  lengths.set([1, 2, 3, 3], 5);
  const luts = Uint8Array.from([...table, ...lengths]);
  // 5 6 7 8 5: 0 10 110 111 0
  const stream = Uint8Array.of(0b01011011, 0b10000000);
  const plain = Uint8Array.of(0x81, 2, 3, 4, 0x85);
  const words = [0x8281, 0x0302, 0x0383, 0x0404, 0x8285];
  const five = (n: number) => new Uint8Array(Uint32Array.of(0, n).buffer);
  type Parts = Partial<Record<"luts" | "encoded_exponent" | "sign_mantissa" | "output_positions", Uint8Array>> & {
    split_positions?: bigint[];
  };
  const load = async (change: Parts, options = {}) => {
    const { split_positions: splits, ...bytes } = change;
    const parts = { luts, encoded_exponent: stream, sign_mantissa: plain, output_positions: five(5), ...bytes };
    const tensors: Record<string, SafeContent> = Object.fromEntries(Object.entries(parts).map(([part, b]) => [`m.${part}`, { dtype: "U8", shape: [b.length], bytes: b }])); // prettier-ignore
    if (splits !== undefined) tensors["m.split_positions"] = { dtype: "I64", shape: [splits.length], bytes: new Uint8Array(BigInt64Array.from(splits).buffer) }; // prettier-ignore
    return loadLossless(await safetensorsBytes({ tensors }), options);
  };
  const refused = (change: Parts, expected: string, got: string) => expect(load(change)).rejects.toThrow(said("E_CONTAINER", `m: expected ${expected}, got ${got}. Is it a whole checkpoint of DFloat11?`)); // prettier-ignore

  test("codes, signs and mantissas; cuts between weights", async () => {
    const one = await load({});
    expect([...losslessBits(one.get("m")!)]).toEqual(words);
    expect(one.get("m")!.shape).toEqual([5]);
    expect([...losslessBits((await load({ split_positions: [] })).get("m")!)]).toEqual(words);
    const cut = async (...at: bigint[]) => [...(await load({ split_positions: at }))].map(([name, t]) => [name, ...losslessBits(t)]);
    // ends that are no cut: before the first and behind the last
    expect(await cut(0n, 5n, -3n, 9n)).toEqual([["m", ...words]]);
    expect(await cut(2n)).toEqual([["m.0", ...words.slice(0, 2)], ["m.1", ...words.slice(2)]]); // prettier-ignore
    expect(await cut(1n, 4n, 5n)).toEqual([["m.0", words[0]], ["m.1", ...words.slice(1, 4)], ["m.2", words[4]]]); // prettier-ignore
    const shaped = await load({ split_positions: [1n] }, { shapeOf: (_: string, part: number, n: number) => (part === 1 ? [2, n / 2] : undefined), filter: (name: string) => name !== "m.0" }); // prettier-ignore
    expect([...shaped].map(([name, t]) => [name, t.shape])).toEqual([["m.1", [2, 2]]]);
    // a part that is missing: no module, and no tensors of bfloat16
    const lone = await safetensorsBytes({ tensors: { "m.luts": { dtype: "U8", shape: [512], bytes: luts }, e: { dtype: "BF16", shape: [0, 2], bytes: new Uint8Array(0) }, s: { dtype: "BF16", shape: [], bytes: Uint8Array.of(0x80, 0x3f) } } }); // prettier-ignore
    expect([...(await loadLossless(lone))].map(([name, t]) => [name, t.shape, ...losslessBits(t)])).toEqual([["s", [1], 0x3f80]]);
  });

  test("damage", async () => {
    const sizes = "tables of 256 entries and a row of code lengths";
    for (const n of [256, 511, 513, 0]) await refused({ luts: new Uint8Array(n) }, sizes, `${n} bytes`);
    for (const n of [0, 3, 5]) await refused({ output_positions: new Uint8Array(n) }, "output_positions: 32-bit words", `${n} bytes`);
    expect((await load({ output_positions: new Uint8Array(Uint32Array.of(5).buffer) })).size).toBe(1);
    await refused({ output_positions: five(4) }, "5 values, as sign_mantissa has", "4");
    await refused({ encoded_exponent: stream.subarray(0, 1) }, "codes of 1 to 32 bits within the stream", "3");
    await refused({ encoded_exponent: new Uint8Array(0) }, "codes of 5 values", "0");
    // the last code may end with the stream, and not behind it
    const eight = { sign_mantissa: new Uint8Array(8), output_positions: five(8) };
    expect((await load({ ...eight, encoded_exponent: new Uint8Array(1) })).get("m")!.k).toBe(8);
    await refused({ ...eight, encoded_exponent: Uint8Array.of(1) }, "codes of 1 to 32 bits within the stream", "2");
    const long = (length: number) => { const own = luts.slice(); own[256 + 5] = length; return own; }; // prettier-ignore
    await refused({ luts: long(0) }, "codes of 1 to 32 bits within the stream", "0");
    await refused({ luts: long(33), encoded_exponent: new Uint8Array(64) }, "codes of 1 to 32 bits within the stream", "33");
    expect((await load({ luts: long(32), encoded_exponent: new Uint8Array(20) })).get("m")!.k).toBe(5);
    // entries from 240 on name another table, which there must be
    const pointing = luts.map((v, i) => (i < 256 && v === 8 ? 255 : v));
    await refused({ luts: pointing }, "a table below 1", "1");
    const other = Uint8Array.from([...pointing.subarray(0, 256), ...new Uint8Array(256).fill(239), ...lengths]);
    other[2 * 256 + 239] = 9;
    const read = await load({ luts: other, sign_mantissa: new Uint8Array(2), output_positions: five(2), encoded_exponent: Uint8Array.of(0xff, 0x80) }); // prettier-ignore
    expect([...losslessBits(read.get("m")!)]).toEqual([239 << 7, 5 << 7]);
    await refused({ split_positions: [3n, 2n] }, "split_positions in ascending order", "3, 2");
    await refused({ split_positions: [2n, 2n] }, "split_positions in ascending order", "2, 2");
  });
});

describe("sources", () => {
  const content = (dtype: string): SafeContent => ({ dtype, shape: [2], bytes: Uint8Array.from({ length: { F32: 8, F64: 16, F16: 4, I8: 2, I64: 16, C64: 16 }[dtype]! }, (_, i) => i * 3) }); // prettier-ignore
  const bytes = Uint8Array.of(1, 2, 3, 4);
  test("of every kind: what is read, and what closing does", async () => {
    const path = join(folder, "source");
    writeFileSync(path, bytes);
    let closed = 0;
    const reader = { size: 4, read: (at: number, n: number) => Promise.resolve(bytes.subarray(at, at + n)), close: () => Promise.resolve(void closed++) }; // prettier-ignore
    for (const source of [path, bytes, bytes.slice().buffer, new Blob([bytes]), reader, { size: 4, read: reader.read }] as ByteSource[]) {
      const opened = await openSource(source, "thing");
      const label = typeof source === "string" ? source : "thing";
      expect([opened.label, opened.size]).toEqual([label, 4]);
      expect([...(await opened.read(1, 2))]).toEqual([2, 3]);
      expect([...(await opened.read(4, 0)), ...(await opened.read(0, 4))]).toEqual([1, 2, 3, 4]);
      for (const [at, n] of [[0, 5], [4, 1], [-1, 1], [1, -1], [NaN, 1]]) await expect(opened.read(at, n)).rejects.toThrow(said("E_CONTAINER", `${label}: expected ${n} bytes at ${at}, got a file of 4. Is the file whole?`)); // prettier-ignore
      await opened.close();
      await opened.close();
      await expect(opened.read(0, 1)).rejects.toThrow(said("E_DISPOSED", `${label}: expected an open file, got one that was closed. Open it again.`)); // prettier-ignore
    }
    expect(closed).toBe(1);
  });

  test("bytes in any kind of array, and readers of them, give the same numbers", async () => {
    const values = Float32Array.from({ length: 64 }, (_, i) => i - 7.5);
    const npy = npyBytes({ data: values, shape: [8, 8] });
    const files: [string, Uint8Array, (source: ByteSource) => Promise<unknown>][] = [
      ["safetensors", await safetensorsBytes({ tensors: Object.fromEntries(["F32", "F64", "F16", "I8", "I64", "C64"].map((dtype) => [dtype, content(dtype)])) }), async (source) => { const { tensors } = await readSafetensors(source); return Promise.all([...tensors.values()].flatMap((t) => [t.elements(), t.values(), t.bytes()])); }],
      ["gguf", await ggufBytes({ metadata: { f: Float32Array.of(1, 2), u: 7, d: { type: "float64", value: 0.1 } }, tensors: { w: tensor(values, [2, 32]), q: quantize(tensor(values, [2, 32]), format("ggml_q8_0")) } }), async (source) => { const file = await readGguf(source); return [...file.metadata, ...(await Promise.all([...file.tensors.values()].flatMap((t) => [t.values(), t.bytes(), t.packed()])))]; }],
      ["npy", npy, readNpy],
      ["npz", await npzBytes({ x: { data: values, shape: [64] } }, { compress: true }), async (source) => (await readNpz(source)).arrays.get("x")!()],
    ]; // prettier-ignore
    for (const [name, bytes, read] of files) {
      const want = await read(new Uint8Array(bytes));
      const padded = Buffer.alloc(bytes.length + 24, 0xee);
      padded.set(bytes, 8);
      const shared = new Uint8Array(new SharedArrayBuffer(bytes.length));
      shared.set(bytes);
      const own = Buffer.from(bytes);
      const sources: ByteSource[] = [own, Buffer.from(padded.buffer, padded.byteOffset + 8, bytes.length), shared, padded.subarray(8, 8 + bytes.length)]; // prettier-ignore
      sources.push({ size: own.length, read: (at, n) => Promise.resolve(own.subarray(at, at + n)) });
      for (const [i, source] of sources.entries()) expect(await read(source), `${name} ${i}`).toEqual(want);
    }
  });

  test("what is none, and readers that give other than they were asked for", async () => {
    for (const [source, got] of [[null, "null"], [undefined, "undefined"], [5, "number"], [{}, "object"], [{ size: 4 }, "object"], [{ read: () => 0 }, "object"], [{ size: "4", read: () => 0 }, "object"], [[1], "object"]] as const) await expect(openSource(source as never, "thing")).rejects.toThrow(new TypeError(`thing: expected a path, bytes, a Blob or { size, read(at, length) }, got ${got}.`)); // prettier-ignore
    for (const size of [-1, 0.5, NaN, 2 ** 53]) await expect(openSource({ size, read: () => Promise.resolve(bytes) }, "thing")).rejects.toThrow(new RangeError(`thing: expected a reader with a size of bytes, got ${size}.`)); // prettier-ignore
    expect((await openSource({ size: 0, read: () => Promise.resolve(bytes) }, "thing")).size).toBe(0);
    for (const n of [3, 5]) {
      const opened = await openSource({ size: 9, read: () => Promise.resolve(new Uint8Array(n)) }, "thing");
      await expect(opened.read(2, 4)).rejects.toThrow(said("E_IO", `thing: expected 4 bytes at 2, got ${n}. Did the file change while it was read?`)); // prettier-ignore
    }
  });
});
