// npy and npz: files built here by the descriptions of NEP 1 and APPNOTE, every type and order, and our own read back;
// what a reader must refuse.
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { crc32 as nodeCrc, deflateRawSync } from "node:zlib";
import fc from "fast-check";
import { afterAll, describe, expect, test } from "vitest";
import { npyBytes, npzBytes, parseNpy, readNpy, readNpz, writeNpy, writeNpz, type NpyInput } from "../../src/interop/index.ts";
import { crc32 } from "../../src/interop/npy/zip.ts";
import { contiguous, type NpyData } from "../../src/interop/npy/npy.ts";
import { parseNpz } from "../../src/interop/npy/npz.ts";

const folder = mkdtempSync(join(tmpdir(), "lowbit-npy-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const damaged = (text: RegExp) => expect.objectContaining({ code: "E_CONTAINER", message: expect.stringMatching(text) as string });

function npy(descr: string, shape: string, data: ArrayBufferView, order = "False"): Uint8Array {
  const header = `{'descr': '${descr}', 'fortran_order': ${order}, 'shape': ${shape}, }`;
  const padded = header.padEnd(Math.ceil((header.length + 11) / 64) * 64 - 11) + "\n";
  const length = Buffer.alloc(2);
  length.writeUInt16LE(padded.length);
  return Buffer.concat([
    Buffer.from("\x93NUMPY\x01\x00", "latin1"),
    length,
    Buffer.from(padded),
    Buffer.from(data.buffer, data.byteOffset, data.byteLength),
  ]);
}

const SAMPLES: [dtype: string, descr: string, data: NpyInput["data"]][] = [
  ["float32", "f4", Float32Array.of(1.5, -0, NaN, Infinity, 2, 3)],
  ["float64", "f8", Float64Array.of(1.5, -0, NaN, -Infinity, 2, 1e300)],
  ["float16", "f2", Uint16Array.of(0x3c00, 0x8000, 0x7e00, 1, 2, 3)],
  ["int64", "i8", BigInt64Array.of(-1n, 2n ** 62n, 0n, 3n, 4n, -(2n ** 63n))],
  ["uint64", "u8", BigUint64Array.of(1n, 2n ** 64n - 1n, 0n, 3n, 4n, 5n)],
  ["int32", "i4", Int32Array.of(-1, 2 ** 31 - 1, 0, 3, 4, -(2 ** 31))],
  ["uint32", "u4", Uint32Array.of(1, 2 ** 32 - 1, 0, 3, 4, 5)],
  ["int16", "i2", Int16Array.of(-1, 32767, 0, 3, 4, -32768)],
  ["uint16", "u2", Uint16Array.of(1, 65535, 0, 3, 4, 5)],
  ["int8", "i1", Int8Array.of(-1, 127, 0, 3, 4, -128)],
  ["uint8", "u1", Uint8Array.of(1, 255, 0, 3, 4, 5)],
  ["bool", "b1", Uint8Array.of(1, 0, 0, 1, 1, 0)],
  ["complex64", "c8", Float32Array.from({ length: 12 }, (_, i) => i - 5)],
  ["complex128", "c16", Float64Array.from({ length: 12 }, (_, i) => i - 5)],
];
/** Bytes of every number turned around. */
const turned = (data: NpyInput["data"]): Uint8Array => {
  const bytes = new Uint8Array(data.buffer.slice(0));
  for (let at = 0; at < bytes.length; at += data.BYTES_PER_ELEMENT) bytes.subarray(at, at + data.BYTES_PER_ELEMENT).reverse();
  return bytes;
};

describe("npy", () => {
  test.each(SAMPLES)("%s: both byte orders, both orders of axes, and back", (dtype, descr, data) => {
    const mark = data.BYTES_PER_ELEMENT === 1 ? "|" : "<";
    expect(parseNpy(npy(`${mark}${descr}`, "(2, 3)", data))).toEqual({ dtype, shape: [2, 3], stride: [3, 1], offset: 0, data });
    expect(parseNpy(npy(`${mark}${descr}`, "(2, 3)", data, "True"))).toEqual({ dtype, shape: [2, 3], stride: [1, 2], offset: 0, data });
    if (mark === "<") expect(parseNpy(npy(`>${descr}`, "(6,)", turned(data))).data).toEqual(data);
    // byte for byte what numpy.save writes
    expect(Buffer.from(npyBytes({ dtype, data, shape: [2, 3] }))).toEqual(npy(`${mark}${descr}`, "(2, 3)", data));
    expect(Buffer.from(npyBytes({ dtype, data, shape: [2, 3], stride: [1, 2] }))).toEqual(npy(`${mark}${descr}`, "(2, 3)", data, "True"));
    // any other view is written in C order
    const parts = dtype.startsWith("complex") ? 2 : 1;
    const flipped = parseNpy(npyBytes({ dtype, data, shape: [3], stride: [-2], offset: 5 }));
    const at = (i: number) => Array.from(data.slice(i * parts, (i + 1) * parts) as Float32Array);
    expect(Array.from(flipped.data as Float32Array)).toEqual([5, 3, 1].flatMap(at));
  });

  test("scalars, empty arrays, long shapes; through files", async () => {
    for (const shape of [[], [0], [0, 3], Array.from({ length: 32 }, () => 1)]) {
      const data = new Float32Array(shape.reduce((a, b) => a * b, 1));
      expect(parseNpy(npyBytes({ data, shape })).shape).toEqual(shape);
    }
    const path = join(folder, "a.npy");
    await writeNpy(path, { data: Float32Array.of(1, 2), shape: [2] });
    expect((await readNpy(path)).data).toEqual(Float32Array.of(1, 2));
    await expect(writeNpy(path, { data: Float32Array.of(1), shape: [1] })).rejects.toThrow(expect.objectContaining({ code: "E_EXISTS" }));
    expect((await readNpy(new Blob([npyBytes({ data: Int8Array.of(3), shape: [1] })]))).dtype).toBe("int8");
  });

  test("views in C order: their own data where they lie so, else a copy", () => {
    const data = Float32Array.of(1, 2, 3, 4, 5, 6);
    const view = (shape: number[], stride: number[], offset = 0) => contiguous<NpyData>({ dtype: "float32", shape, stride, offset, data });
    expect(view([2, 3], [3, 1])).toBe(data);
    // strides of axes of one element say nothing
    expect(view([1, 6], [99, 1])).toBe(data);
    expect(view([3, 2], [1, 3])).toEqual(Float32Array.of(1, 4, 2, 5, 3, 6));
    expect(view([2, 2], [1, 2])).toEqual(Float32Array.of(1, 3, 2, 4));
    expect(view([2, 2], [-1, -2], 5)).toEqual(Float32Array.of(6, 4, 5, 3));
    expect(view([2], [1], 1)).toEqual(Float32Array.of(2, 3));
    expect(view([4], [1])).toEqual(data.slice(0, 4));
    expect(view([2, 2, 1], [3, 1, 7])).toEqual(Float32Array.of(1, 2, 4, 5));
    const complex = contiguous<NpyData>({ dtype: "complex64", shape: [2], stride: [-1], offset: 2, data });
    expect(complex).toEqual(Float32Array.of(5, 6, 3, 4));
  });

  test("what is refused", () => {
    expect(() => npyBytes({ data: new Float32Array(5), shape: [2, 3] })).toThrow(expect.objectContaining({ code: "E_SHAPE" }));
    expect(() => npyBytes({ data: new Float32Array(5), shape: [2, 3], stride: [3, 1] })).toThrow(
      expect.objectContaining({ code: "E_SHAPE" }),
    );
    expect(() => npyBytes({ data: new Float32Array(6), shape: [6], dtype: "float16" })).toThrow(TypeError);
    expect(() => npyBytes({ data: [1, 2] as unknown as Float32Array, shape: [2] })).toThrow(TypeError);
    expect(() => parseNpy(npy("|O", "(1,)", new Uint8Array(8)))).toThrow(damaged(/one of <f4/));
    expect(() => parseNpy(npy("<f4", "(9007199254740993, 4)", new Uint8Array(8)))).toThrow(damaged(/bytes of data/));
  });
});

/**
 * An archive, entry by entry: method 8 is deflate; with `wide` sizes of 64 bits as numpy writes them, and the record of
 * zip64. `stamped`: versions, the flag of UTF-8 names, one disk and 1 January 1980, which readers do not look at.
 */
function zip(files: Record<string, Uint8Array>, method: 0 | 8, wide: boolean, stamped = false): Buffer {
  const [parts, central]: Buffer[][] = [[], []];
  let at = 0;
  for (const [name, bytes] of Object.entries(files)) {
    const data = method === 8 ? deflateRawSync(bytes) : Buffer.from(bytes);
    const sizes = (full: boolean): Buffer => {
      if (!wide) return Buffer.alloc(0);
      const extra = Buffer.alloc(full ? 28 : 20);
      extra.writeUInt16LE(1, 0);
      extra.writeUInt16LE(extra.length - 4, 2);
      extra.writeBigUInt64LE(BigInt(bytes.length), 4);
      extra.writeBigUInt64LE(BigInt(data.length), 12);
      if (full) extra.writeBigUInt64LE(BigInt(at), 20);
      return extra;
    };
    const common = (extra: Buffer): Buffer => {
      const b = Buffer.alloc(26);
      b.writeUInt16LE(wide ? 45 : 20, 0);
      if (stamped) b.writeUInt16LE(0x800, 2);
      b.writeUInt16LE(method, 4);
      if (stamped) b.writeUInt16LE(0x21, 8);
      b.writeUInt32LE(typeof nodeCrc === "function" ? nodeCrc(bytes) : crc32(bytes), 10);
      b.writeUInt32LE(wide ? 0xffffffff : data.length, 14);
      b.writeUInt32LE(wide ? 0xffffffff : bytes.length, 18);
      b.writeUInt16LE(name.length, 22);
      b.writeUInt16LE(extra.length, 24);
      return b;
    };
    const rest = Buffer.alloc(14);
    rest.writeUInt32LE(wide ? 0xffffffff : at, 10);
    const made = wide && stamped ? 45 : 20;
    central.push(
      Buffer.concat([
        Buffer.from(`PK\x01\x02${String.fromCharCode(made)}\x00`, "latin1"),
        common(sizes(true)),
        rest,
        Buffer.from(name, stamped ? "latin1" : "utf8"),
        sizes(true),
      ]),
    );
    const local = Buffer.concat([
      Buffer.from("PK\x03\x04", "latin1"),
      common(sizes(false)),
      Buffer.from(name, stamped ? "latin1" : "utf8"),
      sizes(false),
      data,
    ]);
    parts.push(local);
    at += local.length;
  }
  const directory = Buffer.concat(central);
  const end = Buffer.alloc(22);
  end.write("PK\x05\x06", 0, "latin1");
  for (const offset of [8, 10]) end.writeUInt16LE(wide ? 0xffff : central.length, offset);
  end.writeUInt32LE(wide ? 0xffffffff : directory.length, 12);
  end.writeUInt32LE(wide ? 0xffffffff : at, 16);
  const record = Buffer.alloc(wide ? 76 : 0);
  if (wide) {
    record.write("PK\x06\x06", 0, "latin1");
    record.writeBigUInt64LE(44n, 4);
    if (stamped) for (const offset of [12, 14]) record.writeUInt16LE(45, offset);
    if (stamped) record.writeUInt32LE(1, 72);
    for (const offset of [24, 32]) record.writeBigUInt64LE(BigInt(central.length), offset);
    record.writeBigUInt64LE(BigInt(directory.length), 40);
    record.writeBigUInt64LE(BigInt(at), 48);
    record.write("PK\x06\x07", 56, "latin1");
    record.writeBigUInt64LE(BigInt(at + directory.length), 64);
  }
  return Buffer.concat([...parts, directory, record, end]);
}

describe("npz", () => {
  const x = Float32Array.from({ length: 300 }, (_, i) => i % 7);
  const files = {
    "x.npy": npy("<f4", "(3, 100)", x),
    "arr_1.npy": npy("<i8", "()", BigInt64Array.of(5n)),
    "note.txt": Buffer.from("no array"),
  };

  test.each([
    [0, false],
    [8, false],
    [0, true],
    [8, true],
  ] as const)("compression %d, zip64 %s", async (method, wide) => {
    const bytes = zip(files, method, wide);
    const { arrays, close } = await readNpz(bytes);
    expect([...arrays.keys()]).toEqual(["x", "arr_1"]);
    expect(await arrays.get("x")!()).toMatchObject({ dtype: "float32", shape: [3, 100], data: x });
    expect((await arrays.get("arr_1")!()).data).toEqual(BigInt64Array.of(5n));
    await close();
    expect([...parseNpz(bytes).keys()]).toEqual(["x", "arr_1"]);
    const ours = await npzBytes({ x: { data: x, shape: [3, 100] } }, { compress: method === 8, zip64: wide });
    expect((await (await readNpz(ours)).arrays.get("x")!()).data).toEqual(x);
    if (method === 8) expect(ours.length).toBeLessThan(700);
    // arrays are read by ranges, when asked for
    const large = await npzBytes({ big: { data: new Float32Array(1e5), shape: [1e5] }, x: { data: x, shape: [300] } }, { zip64: wide });
    let read = 0;
    const source = { size: large.length, read: (at: number, n: number) => Promise.resolve(large.subarray(at, at + (read += n) * 0 + n)) };
    expect((await (await readNpz(source)).arrays.get("x")!()).data).toEqual(x);
    expect(read).toBeLessThan(70_000);
  });

  test.each([false, true])("what we write is such an archive, byte for byte: zip64 %s", async (wide) => {
    const arrays = { x: { data: x, shape: [3, 100] }, é: { data: Int8Array.of(1, 2), shape: [2] } };
    const entries = { "x.npy": npy("<f4", "(3, 100)", x), "é.npy": npy("|i1", "(2,)", Int8Array.of(1, 2)) };
    // the builder counts names in UTF-16: give it the bytes of UTF-8
    const latin = Object.fromEntries(Object.entries(entries).map(([name, data]) => [Buffer.from(name).toString("latin1"), data]));
    const want = zip(latin, 0, wide, true);
    expect(Buffer.from(await npzBytes(arrays, { zip64: wide })).toString("hex")).toBe(want.toString("hex"));
  });

  test("any one field of the end record that does not hold sends to the record of zip64", async () => {
    const [plain, wide] = [false, true].map((is) => zip({ "x.npy": npy("<f4", "(300,)", x) }, 0, is));
    // the fields of both: entries on this disk and in all, bytes of the directory, its place
    const fields = [[8, 2], [10, 2], [12, 4], [16, 4]] as const; // prettier-ignore
    const at = wide.indexOf("PK\x01\x02", 0, "latin1");
    const truth = [1, 1, wide.indexOf("PK\x06\x06", 0, "latin1") - at, at];
    for (const only of [1, 2, 3]) {
      const bytes = Buffer.from(wide);
      fields.forEach(([offset, size], i) => i !== only && bytes.writeUIntLE(truth[i], bytes.length - 22 + offset, size));
      expect((await (await readNpz(bytes)).arrays.get("x")!()).data).toEqual(x);
      // without a locator before it there is nothing else to go by
      bytes.write("PK\x06\x00", bytes.length - 42, "latin1");
      await expect(readNpz(bytes)).rejects.toThrow(damaged(/./));
    }
    // a locator that leads past the end, and one that leads to something else
    for (const [to, said] of [
      [wide.length, /record before the end/],
      [0, /a zip64 record/],
    ] as const) {
      // prettier-ignore
      const bytes = Buffer.from(wide);
      bytes.writeBigUInt64LE(BigInt(to), bytes.length - 42 + 8);
      await expect(readNpz(bytes)).rejects.toThrow(damaged(said));
    }
    expect((await (await readNpz(plain)).arrays.get("x")!()).data).toEqual(x);
  });

  test("entries that are encrypted, or whose sizes reach past the file, are refused", async () => {
    const bytes = zip({ "x.npy": npy("<f4", "(300,)", x) }, 0, false);
    const central = bytes.indexOf("PK\x01\x02", 0, "latin1");
    const changed = (offset: number, value: number, size = 2): Buffer => {
      const copy = Buffer.from(bytes);
      copy.writeUIntLE(value, central + offset, size);
      return copy;
    };
    await expect(readNpz(changed(8, 1))).rejects.toThrow(damaged(/encrypted/));
    // other flags are none of ours to mind: UTF-8 names, sizes behind the data
    for (const flags of [2, 0x808]) expect([...(await readNpz(changed(8, flags))).arrays.keys()]).toEqual(["x"]);
    for (const [offset, value] of [
      [42, bytes.length - 29],
      [20, bytes.length - 29],
      [24, 2 ** 32 - 2],
    ] as const)
      // prettier-ignore
      await expect(readNpz(changed(offset, value, 4))).rejects.toThrow(damaged(/x\.npy|room/));
  });

  test("without zlib, as in a browser", async () => {
    const { process } = globalThis as unknown as { process: { getBuiltinModule?: unknown } };
    const { getBuiltinModule } = process;
    process.getBuiltinModule = undefined;
    try {
      const bytes = await npzBytes({ x: { data: x, shape: [300] } }, { compress: true });
      expect((await (await readNpz(bytes)).arrays.get("x")!()).data).toEqual(x);
      const broken = Uint8Array.from(bytes);
      broken[120] ^= 255;
      await expect((await readNpz(broken)).arrays.get("x")!()).rejects.toThrow(damaged(/x\.npy/));
    } finally {
      process.getBuiltinModule = getBuiltinModule;
    }
  });

  test("files on disk, whole or not at all", async () => {
    const path = join(folder, "a.npz");
    await writeNpz(path, Object.fromEntries(SAMPLES.map(([dtype, , data]) => [dtype, { dtype, data, shape: [6] }])), { compress: true });
    const { arrays, close } = await readNpz(path);
    for (const [dtype, , data] of SAMPLES) expect(await arrays.get(dtype)!()).toMatchObject({ dtype, data });
    await close();
    await expect(writeNpz(join(folder, "b.npz"), { a: { data: x, shape: [7] } })).rejects.toThrow(
      expect.objectContaining({ code: "E_SHAPE" }),
    );
    expect(readdirSync(folder).filter((name) => name.includes("b.npz"))).toEqual([]);
  });

  test("damaged archives: an error of ours, at once", async () => {
    const whole = zip(files, 8, true);
    await fc.assert(
      fc.asyncProperty(fc.nat(whole.length - 1), fc.integer({ min: 1, max: 255 }), fc.boolean(), async (at, flip, cut) => {
        const bytes = cut ? whole.subarray(0, at) : Buffer.from(whole);
        if (!cut) bytes[at] ^= flip;
        try {
          for (const [name, array] of (await readNpz(bytes)).arrays) expect((await array()).data.length, name).toBeLessThan(1000);
        } catch (error) {
          expect((error as { code?: string }).code).toBe("E_CONTAINER");
        }
      }),
      { numRuns: 400, seed: 5, verbose: 0 },
    );
    const wrong = Buffer.from(zip(files, 0, false));
    wrong[300] ^= 1;
    await expect((await readNpz(wrong)).arrays.get("x")!()).rejects.toThrow(damaged(/checksum/));
    await expect(readNpz(new Uint8Array(0))).rejects.toThrow(damaged(/zip/));
  });
});

test("an archive is written from what was read: a Map of arrays", async () => {
  const read = parseNpz(
    await npzBytes({ x: { data: Float32Array.of(1, 2, 3, 4), shape: [2, 2] }, n: { data: Int32Array.of(7), shape: [] } }),
  );
  const again = parseNpz(await npzBytes(read, { compress: true }));
  expect([...again.keys()]).toEqual(["x", "n"]);
  expect(again).toEqual(read);
});
