// npy and npz at their bounds: headers of every version and length, archives with comments, extra fields and sizes of 64
// bits in any part; which ranges are read; what is said, word for word.
import { crc32 as nodeCrc, deflateRawSync } from "node:zlib";
import { describe, expect, test } from "vitest";
import { npyBytes, npzBytes, parseNpy, readNpz } from "../../src/interop/index.ts";
import { parseNpz } from "../../src/interop/npy/npz.ts";
import { crc32, zipPieces, type NewEntry } from "../../src/interop/npy/zip.ts";
import { random } from "../helpers/random.ts";

const said = (message: string) => expect.objectContaining({ code: "E_CONTAINER", message });

describe("npy", () => {
  const npy = (version: number, text: string, data = new Uint8Array(0), length = text.length): Uint8Array => {
    const wide = version > 1;
    const out = Buffer.alloc((wide ? 12 : 10) + text.length + data.length);
    out.write("\x93NUMPY", 0, "latin1");
    out[6] = version;
    if (wide) out.writeUInt32LE(length, 8);
    else out.writeUInt16LE(length, 8);
    out.write(text, wide ? 12 : 10, "latin1");
    out.set(data, (wide ? 12 : 10) + text.length);
    return out;
  };
  const header = (descr = "<i2", order = "False", shape = "(2,)") =>
    `{'descr': '${descr}', 'fortran_order': ${order}, 'shape': ${shape}, }\n`;
  const refused = (expected: string, got: string) => said(`npy file: expected ${expected}, got ${got}. Write it with numpy.save.`);
  const two = new Uint8Array(Int16Array.of(1, -2).buffer);

  test("versions 1 to 3, and no others; files that end too early", () => {
    for (const version of [1, 2, 3]) {
      expect(parseNpy(npy(version, header(), two))).toEqual({
        dtype: "int16",
        shape: [2],
        stride: [1],
        offset: 0,
        data: Int16Array.of(1, -2),
      });
      const bytes = npy(version, header(), two);
      const start = (version > 1 ? 12 : 10) + header().length;
      for (let n = 0; n < bytes.length; n++) {
        const expected =
          n < 6
            ? refused("a .npy file", "another file type")
            : n < 12
              ? refused(".npy version 1 to 3", "a truncated file")
              : n < start
                ? refused(`a header of ${start} bytes`, `a file of ${n}`)
                : refused("4 bytes of data for shape (2)", String(n - start));
        expect(() => parseNpy(bytes.subarray(0, n)), String(n)).toThrow(expected);
      }
      expect(() => parseNpy(npy(version, header(), new Uint8Array(5)))).toThrow(refused("4 bytes of data for shape (2)", "5"));
    }
    for (const version of [0, 4, 255]) expect(() => parseNpy(npy(version, header(), two))).toThrow(refused(".npy version 1 to 3", version === 0 ? "a truncated file" : `version ${version}`)); // prettier-ignore
    // twelve bytes are enough to say so: a header of two
    expect(() => parseNpy(npy(1, "{}"))).toThrow(refused("descr, fortran_order and shape", '"{}"'));
    const other = npy(1, header(), two);
    other[0] = 0x92;
    expect(() => parseNpy(other)).toThrow(refused("a .npy file", "another file type"));
    expect(() => parseNpy(other, "x.npz: a.npy")).toThrow(said("x.npz: a.npy: expected a .npy file, got another file type. Write it with numpy.save.")); // prettier-ignore
  });

  test("what the header says", () => {
    for (const text of [header().replace("descr", "desc"), header().replace("fortran_order", "order"), header().replace("shape", "sizes"), header("<i2", "Maybe"), header("<i2", "False", "(2, x)"), header("<i2", "False", "2")])
      expect(() => parseNpy(npy(1, text, two)), text).toThrow(refused("descr, fortran_order and shape", JSON.stringify(text.slice(0, 80)))); // prettier-ignore
    const all = "<f4 <f8 <f2 <i8 <i4 <i2 |i1 <u8 <u4 <u2 |u1 |b1 <c8 <c16";
    for (const descr of ["i2", "|i2", "<i1", ">u1", "=b1", "<O", "<i3", "<f16", "", "x", "<M8[ns]"]) expect(() => parseNpy(npy(1, header(descr), two)), descr).toThrow(refused(`one of ${all}`, descr)); // prettier-ignore
    expect(parseNpy(npy(1, header("=i2"), two)).data).toEqual(Int16Array.of(1, -2));
    expect(parseNpy(npy(1, header(">i2"), two)).data).toEqual(Int16Array.of(256, -257));
    for (const [shape, sizes] of [["()", []], ["( 1 , 1,)", [1, 1]], ["(1,)", [1]]] as const) expect(parseNpy(npy(1, header("<i2", "True", shape), two.subarray(0, 2)))).toMatchObject({ shape: sizes, stride: sizes.map(() => 1) }); // prettier-ignore
  });

  test("the longest header of version 1, and one letter more", () => {
    const text = (shape: readonly number[]) => `{'descr': '|i1', 'fortran_order': False, 'shape': (${shape.join(", ")}), }`;
    // sizes of 15 digits, and a last one of as many as fill 65,460 letters
    const shape = [0, ...new Array<number>(3800).fill(1e14)];
    while (text(shape).length + 17 < 65_460) shape.push(1e14);
    shape.push(10 ** (65_460 - text(shape).length - 3));
    expect(text(shape).length).toBe(65_460);
    for (const more of [0, 1]) {
      const own = [...shape];
      if (more === 1) own[own.length - 1] *= 10;
      const bytes = Buffer.from(npyBytes({ data: new Int8Array(0), shape: own }));
      const start = more === 0 ? 10 : 12;
      expect([bytes[6], bytes[7]]).toEqual([1 + more, 0]);
      expect(more === 0 ? bytes.readUInt16LE(8) : bytes.readUInt32LE(8)).toBe(bytes.length - start);
      expect(bytes.length % 64).toBe(0);
      expect(bytes.toString("latin1", start)).toBe(text(own).padEnd(bytes.length - start - 1) + "\n");
      expect(parseNpy(bytes).shape).toEqual(own);
    }
  });

  test("views: each bound of shape, strides and data", () => {
    const data = Int8Array.of(0, 1, 2, 3, 4, 5);
    const bad = (shape: number[], stride: number[] | undefined, offset = 0) => {
      const shown = stride ?? shape.map((_, i) => shape.slice(i + 1).reduce((n, d) => n * d, 1));
      expect(() => npyBytes({ data, shape, offset, ...(stride === undefined ? {} : { stride }) }), `${shape} ${stride}`).toThrow(
        expect.objectContaining({ code: "E_SHAPE", message: `npy: expected a shape and strides of the 6 elements of data, got [${shape.join(", ")}] by [${shown.join(", ")}].` }), // prettier-ignore
      );
    };
    bad([5], undefined);
    bad([7], undefined);
    bad([6], undefined, 1);
    bad([-6], [1]);
    bad([1.5], [1]);
    bad([2, 3], [3]);
    bad([2], [3, 1]);
    bad([2, 3], [3, 1], 1);
    bad([3], [-1], 1);
    bad([3], [3]);
    const read = (shape: number[], stride: number[], offset = 0) => [
      ...(parseNpy(npyBytes({ data, shape, stride, offset })).data as Int8Array),
    ];
    expect(read([3], [-1], 2)).toEqual([2, 1, 0]);
    expect(read([2], [1], 4)).toEqual([4, 5]);
    expect(read([3], [2])).toEqual([0, 2, 4]);
    expect(read([0], [5], 99)).toEqual([]);
    expect(read([2, 2, 1], [0, 3, 7])).toEqual([0, 3, 0, 3]);
    // written as Fortran order where the whole of the data is so, and is no C order too
    const fortran = (shape: number[], stride: number[], offset = 0, own = data) => /fortran_order': True/.test(Buffer.from(npyBytes({ data: own, shape, stride, offset })).toString("latin1")); // prettier-ignore
    expect(fortran([2, 3], [1, 2])).toBe(true);
    expect(fortran([2, 1, 3], [1, 9, 2])).toBe(true);
    for (const [shape, stride, offset] of [[[6], [1], 0], [[6, 1], [1, 6], 0], [[1, 6], [1, 1], 0], [[2, 2], [1, 2], 0], [[2, 2], [1, 2], 2], [[2, 3], [3, 1], 0], [[2, 3], [1, 1], 0]] as const) expect(fortran([...shape], [...stride], offset), String(shape)).toBe(false); // prettier-ignore
  });

  test("a million sizes take no time to speak of", () => {
    const shape = `(${"1, ".repeat(1e6)})`;
    const read = parseNpy(npy(2, header("|i1", "False", shape), Uint8Array.of(7)));
    expect([read.shape.length, read.stride.every((s) => s === 1), read.data]).toEqual([1e6, true, Int8Array.of(7)]);
  });

  test("kinds of data and what they are called", () => {
    const dtype = (data: unknown, name?: string) => parseNpy(npyBytes({ data: data as Int8Array, shape: [2], ...(name === undefined ? {} : { dtype: name }) })).dtype; // prettier-ignore
    for (const kind of [Float32Array, Float64Array, Int32Array, Uint32Array, Int16Array, Uint16Array, Int8Array, Uint8Array]) expect(dtype(kind.of(1, 2))).toBe(kind.name.replace("Array", "").toLowerCase()); // prettier-ignore
    expect([dtype(BigInt64Array.of(1n, 2n)), dtype(BigUint64Array.of(1n, 2n))]).toEqual(["int64", "uint64"]);
    expect([dtype(Uint16Array.of(1, 2), "float16"), dtype(Uint8Array.of(1, 0), "bool"), dtype(Float32Array.of(1, 2, 3, 4), "complex64"), dtype(Float64Array.of(1, 2, 3, 4), "complex128")]).toEqual(["float16", "bool", "complex64", "complex128"]); // prettier-ignore
    const all = "float32, float64, float16, int64, int32, int16, int8, uint64, uint32, uint16, uint8, bool, complex64, complex128";
    for (const [data, name, got] of [[[1, 2], undefined, "undefined of Array"], [Float32Array.of(1, 2), "float16", "float16 of Float32Array"], [Int8Array.of(1, 2), "toString", "toString of Int8Array"], [undefined, undefined, "undefined of undefined"], ["ab", undefined, "undefined of String"], [new Uint8ClampedArray(2), "uint8", "uint8 of Uint8ClampedArray"]] as const)
      expect(() => dtype(data, name), got).toThrow(new TypeError(`npy: expected numbers in a typed array and a dtype that fits (${all}), got ${got}.`)); // prettier-ignore
  });
});

interface Entry {
  readonly name: string;
  readonly bytes: Uint8Array;
  readonly method?: number;
  /** Which of size, packed size and place stand in 64 bits; the local header has them as they are. */
  readonly wide?: readonly ("size" | "packed" | "local")[];
  /** Another extra field before it, and a comment behind. */
  readonly extra?: Uint8Array;
  readonly comment?: Uint8Array;
  readonly localExtra?: number;
  readonly change?: (central: Buffer) => void;
}

/** An archive by APPNOTE 4.3, with whatever is before and behind it. */
function archive(entries: readonly Entry[], { before = 0, comment = 0 } = {}): Buffer {
  const [parts, central]: Buffer[][] = [[Buffer.alloc(before, 0x20)], []];
  let at = before;
  for (const {
    name,
    bytes,
    method = 0,
    wide = [],
    extra = new Uint8Array(0),
    comment: note = new Uint8Array(0),
    localExtra = 0,
    change,
  } of entries) {
    const data = method === 8 ? deflateRawSync(bytes) : Buffer.from(bytes);
    const numbers = { size: bytes.length, packed: data.length, local: at };
    const field = Buffer.alloc(wide.length > 0 ? 4 + 8 * wide.length : 0);
    if (wide.length > 0) {
      field.writeUInt16LE(1, 0);
      field.writeUInt16LE(8 * wide.length, 2);
      (["size", "packed", "local"] as const).filter((w) => wide.includes(w)).forEach((w, i) => field.writeBigUInt64LE(BigInt(numbers[w]), 4 + 8 * i)); // prettier-ignore
    }
    const of = (what: keyof typeof numbers): number => (wide.includes(what) ? 0xffffffff : numbers[what]);
    const local = Buffer.alloc(30);
    local.write("PK\x03\x04", 0, "latin1");
    local.writeUInt16LE(name.length, 26);
    local.writeUInt16LE(localExtra, 28);
    const record = Buffer.alloc(46);
    record.write("PK\x01\x02", 0, "latin1");
    record.writeUInt16LE(method, 10);
    record.writeUInt32LE(crc32(bytes), 16);
    record.writeUInt32LE(of("packed"), 20);
    record.writeUInt32LE(of("size"), 24);
    record.writeUInt16LE(name.length, 28);
    record.writeUInt16LE(extra.length + field.length, 30);
    record.writeUInt16LE(note.length, 32);
    record.writeUInt32LE(of("local"), 42);
    change?.(record);
    central.push(Buffer.concat([record, Buffer.from(name, "latin1"), extra, field, note]));
    const whole = Buffer.concat([local, Buffer.from(name, "latin1"), Buffer.alloc(localExtra), data]);
    parts.push(whole);
    at += whole.length;
  }
  const directory = Buffer.concat(central);
  const end = Buffer.alloc(22 + comment);
  end.write("PK\x05\x06", 0, "latin1");
  end.writeUInt16LE(central.length, 10);
  end.writeUInt32LE(directory.length, 12);
  end.writeUInt32LE(at, 16);
  return Buffer.concat([...parts, directory, end]);
}
const npz = (expected: string, got: string) => said(`npz file: expected ${expected}, got ${got}. Write it with numpy.savez.`);
const x = npyBytes({ data: Int8Array.of(1, 2, 3), shape: [3] });
const one: Entry = { name: "x.npy", bytes: x };
const both = async (bytes: Uint8Array): Promise<string[]> => {
  const { arrays } = await readNpz(bytes);
  const found = parseNpz(bytes);
  const list: string[] = [];
  for (const [name, read] of arrays) {
    expect(await read()).toEqual(found.get(name));
    list.push(`${name} ${[...((await read()).data as Int8Array)].join()}`);
  }
  expect([...found.keys()]).toEqual([...arrays.keys()]);
  return list;
};
const refusedBy = async (bytes: Uint8Array, error: unknown): Promise<void> => {
  await expect((async () => { for (const read of (await readNpz(bytes)).arrays.values()) await read(); })()).rejects.toThrow(error as Error); // prettier-ignore
  expect(() => parseNpz(bytes)).toThrow(error as Error);
};

describe("npz", () => {
  test("comments of up to 64 KiB behind, bytes before, other files beside, no arrays at all", async () => {
    for (const comment of [0, 1, 65_535]) expect(await both(archive([one], { comment }))).toEqual(["x 1,2,3"]);
    await refusedBy(archive([one], { comment: 65_536 }), npz("a .npz file (zip)", "no zip directory"));
    expect(await both(archive([one], { before: 70_000 }))).toEqual(["x 1,2,3"]);
    expect(await both(archive([{ name: "", bytes: new Uint8Array(0) }, { name: "x.npyx", bytes: x }, one, { name: ".npy", bytes: x }]))).toEqual(["x 1,2,3", " 1,2,3"]); // prettier-ignore
    expect(await both(archive([]))).toEqual([]);
    for (const n of [0, 21]) await refusedBy(new Uint8Array(n), npz("a .npz file (zip)", "no zip directory"));
    await refusedBy(new Uint8Array(22), npz("a .npz file (zip)", "no zip directory"));
  });

  test("sizes of 64 bits in any of three places, behind other extra fields, before comments", async () => {
    const other = Uint8Array.of(0x55, 0x54, 3, 0, 1, 2, 3);
    const empty = Uint8Array.of(2, 0, 0, 0);
    for (const wide of [
      [],
      ["size"],
      ["packed"],
      ["local"],
      ["size", "packed"],
      ["size", "local"],
      ["packed", "local"],
      ["size", "packed", "local"],
    ] as Entry["wide"][])
      for (const extra of [new Uint8Array(0), other, empty])
        for (const method of [0, 8]) {
          const entries = [{ ...one, name: "a.npy", localExtra: 9 }, { ...one, method, ...(wide === undefined ? {} : { wide }), extra, comment: Uint8Array.of(1, 2) }, { ...one, name: "z.npy", localExtra: 4 }]; // prettier-ignore
          expect(await both(archive(entries)), `${wide} ${extra.length}`).toEqual(["a 1,2,3", "x 1,2,3", "z 1,2,3"]);
        }
    // an extra field without room for what it should hold leaves what the entry says, which no file has
    await refusedBy(archive([{ ...one, extra: Uint8Array.of(1, 0, 4, 0, 1, 2, 3, 4), change: (c) => c.writeUInt32LE(0xffffffff, 20) }]), npz("room for x.npy", "a damaged directory")); // prettier-ignore
    await refusedBy(archive([{ ...one, change: (c) => c.writeUInt32LE(0xffffffff, 24) }]), npz("room for x.npy", "a damaged directory"));
  });

  test("only the ranges that it needs", async () => {
    const bytes = archive(
      [
        { ...one, localExtra: 6 },
        { ...one, name: "y.npy" },
      ],
      { before: 100_000 },
    );
    const reads: number[][] = [];
    const { arrays } = await readNpz({
      size: bytes.length,
      read: (at, n) => (reads.push([at, n]), Promise.resolve(bytes.subarray(at, at + n))),
    });
    const directory = bytes.indexOf("PK\x01\x02", 0, "latin1");
    expect(reads).toEqual([[bytes.length - 65_577, 65_577], [directory, 2 * 51]]); // prettier-ignore
    reads.length = 0;
    await arrays.get("x")!();
    expect(reads).toEqual([[100_000, 30], [100_000 + 30 + 5 + 6, x.length]]); // prettier-ignore
    // the record of zip64, just before its locator
    const wide = await npzBytes({ x: { data: Int8Array.of(1, 2, 3), shape: [3] } }, { zip64: true });
    reads.length = 0;
    await readNpz({ size: wide.length, read: (at, n) => (reads.push([at, n]), Promise.resolve(wide.subarray(at, at + n))) });
    expect(reads).toEqual([[0, wide.length], [wide.length - 98, 56], [wide.length - 98 - 79, 79]]); // prettier-ignore
  });

  test("damage, word for word", async () => {
    const changed = (at: (bytes: Buffer) => number, value: number, size: number) => {
      const bytes = archive([one, { ...one, name: "y.npy" }]);
      bytes.writeUIntLE(value, at(bytes), size);
      return bytes;
    };
    const end = (offset: number) => (b: Buffer) => b.length - 22 + offset;
    const central = (offset: number) => (b: Buffer) => b.indexOf("PK\x01\x02", 0, "latin1") + offset;
    const bytes = archive([one, { ...one, name: "y.npy" }]);
    const [at, size] = [bytes.indexOf("PK\x01\x02", 0, "latin1"), bytes.length];
    await refusedBy(changed(end(16), size - 101, 4), npz("a directory inside the file", `102 bytes at ${size - 101} of ${size}`));
    await refusedBy(changed(end(12), 2 ** 28 + 1, 4), npz("a directory inside the file", `${2 ** 28 + 1} bytes at ${at} of ${size}`));
    await refusedBy(changed(end(10), 3, 2), npz("3 entries", "2 whole ones"));
    await refusedBy(changed(end(12), 101, 4), npz("2 entries", "a directory that ends in entry 2"));
    await refusedBy(changed(end(12), 96, 4), npz("2 entries", "1 whole ones"));
    await refusedBy(changed(end(12), 97, 4), npz("2 entries", "a directory that ends in entry 2"));
    await refusedBy(changed(central(0), 0, 1), npz("2 entries", "0 whole ones"));
    await refusedBy(changed(central(8), 1, 2), npz("plain entries", "x.npy, which is encrypted"));
    await refusedBy(changed(central(10), 9, 2), npz("stored or deflated arrays", "compression method 9"));
    await refusedBy(changed(central(16), 1, 4), npz("the checksum of x.npy", "another: the file is damaged"));
    await refusedBy(changed(central(24), 5, 4), npz("5 bytes of x.npy", String(x.length)));
    // a local header that is none, and one whose name pushes the data out of the file
    await refusedBy(
      changed(() => 0, 0, 1),
      npz("room for x.npy", "a damaged directory"),
    );
    await refusedBy(
      changed(() => 28, 65_535, 2),
      npz("room for x.npy", "a damaged directory"),
    );
    // the last byte that fits, and one more
    const [room, place] = [size - 30, size - 30 - x.length];
    for (const [offset, value, fits] of [[42, place, true], [42, place + 1, false], [20, room, true], [20, room + 1, false], [24, 2 ** 31 - 1, true], [24, 2 ** 31, false]] as const) {
      const error = await readNpz(changed(central(offset), value, 4)).then(() => undefined, (e: Error) => e.message); // prettier-ignore
      expect(error, `${offset} ${value}`).toBe(fits ? undefined : "npz file: expected room for x.npy, got a damaged directory. Write it with numpy.savez.");
    } // prettier-ignore
    const deflated = archive([{ ...one, method: 8 }]);
    deflated[36] ^= 255;
    await expect(readNpz(deflated).then(({ arrays }) => arrays.get("x")!())).rejects.toThrow(/^npz file: expected \d+ bytes of x\.npy, got .*\. Write it with numpy\.savez\.$|the checksum of x\.npy/); // prettier-ignore
    // an array that is none is named with its file
    const text = archive([{ name: "t.npy", bytes: Buffer.from("no array") }]);
    await refusedBy(text, said("npz file: t.npy: expected a .npy file, got another file type. Write it with numpy.save."));
  });

  test("checksums of any bytes are those of zlib", () => {
    const rng = random(4);
    for (const n of [0, 1, 2, 3, 255, 1000]) {
      const bytes = Uint8Array.from({ length: n }, () => rng.integer(256));
      if (typeof nodeCrc === "function") expect(crc32(bytes)).toBe(nodeCrc(bytes));
    }
    // published check value of CRC-32
    expect(crc32(Buffer.from("123456789"))).toBe(0xcbf43926);
    expect(crc32(new Uint8Array(0))).toBe(0);
  });
});

describe("what is written beyond 32 bits, without its bytes", () => {
  const fake = (length: number): Uint8Array => ({ length }) as Uint8Array;
  async function* list(entries: Iterable<NewEntry>): AsyncGenerator<NewEntry> {
    yield* entries;
  }
  const pieces = async (entries: Iterable<NewEntry>, zip64?: boolean): Promise<Buffer[]> => {
    const out: Buffer[] = [];
    for await (const piece of zipPieces(list(entries), zip64)) if (piece instanceof Uint8Array) out.push(Buffer.from(piece));
    return out;
  };
  const entry = (size: number, packed: number): NewEntry => ({ name: "a", method: 0, crc: 7, size, data: fake(packed) });
  const MOST = 0xffffffff;

  test("sizes", async () => {
    for (const [size, packed, wide] of [[MOST - 1, 5, false], [MOST, 5, true], [5, MOST - 1, false], [5, MOST, true]] as const) {
      const [local, central, end] = await pieces([entry(size, packed)]);
      expect([local.length, central.length]).toEqual(wide ? [51, 75] : [31, 47]);
      expect([local.readUInt16LE(4), central.readUInt16LE(4), central.readUInt16LE(6)]).toEqual(new Array(3).fill(wide ? 45 : 20));
      expect([local.readUInt32LE(18), local.readUInt32LE(22), central.readUInt32LE(20), central.readUInt32LE(24)]).toEqual(wide ? new Array(4).fill(MOST) : [packed, size, packed, size]); // prettier-ignore
      if (wide) expect([local.readBigUInt64LE(35), local.readBigUInt64LE(43), central.readBigUInt64LE(51), central.readBigUInt64LE(59), central.readBigUInt64LE(67)]).toEqual([size, packed, size, packed, 0].map(BigInt)); // prettier-ignore
      // the directory behind so many bytes needs the record as well
      expect(end.length).toBe(packed + 31 >= MOST ? 98 : 22);
    }
  }); // prettier-ignore

  test("places, of an entry and of the directory", async () => {
    for (const [first, wide] of [[MOST - 32, false], [MOST - 31, true]] as const) {
      const [one, two, , second, end] = await pieces([entry(1, first), { ...entry(1, 0), name: "b" }]);
      expect([one.length, two.length, second.length]).toEqual(wide ? [31, 51, 75] : [31, 31, 47]);
      expect(second.readUInt32LE(42)).toBe(wide ? MOST : MOST - 1);
      if (wide) expect(second.readBigUInt64LE(67)).toBe(BigInt(MOST));
      const at = BigInt(31 + first + two.length);
      expect(end.length).toBe(98);
      expect([end.readBigUInt64LE(24), end.readBigUInt64LE(32), end.readBigUInt64LE(40), end.readBigUInt64LE(48)]).toEqual([2n, 2n, BigInt(47 + second.length), at]); // prettier-ignore
      expect(end.readBigUInt64LE(64)).toBe(at + BigInt(47 + second.length));
      expect([end.readUInt16LE(84), end.readUInt16LE(86), end.readUInt32LE(88), end.readUInt32LE(92)]).toEqual([0xffff, 0xffff, MOST, MOST]);
    }
    const [, , end] = await pieces([entry(1, MOST - 32)]);
    expect([end.length, end.readUInt16LE(8), end.readUInt16LE(10), end.readUInt32LE(12), end.readUInt32LE(16)]).toEqual([22, 1, 1, 47, MOST - 1]);
    expect((await pieces([entry(1, MOST - 31)]))[2].length).toBe(98);
    expect((await pieces([])).map((b) => b.length)).toEqual([22]);
    expect((await pieces([], true)).map((b) => b.length)).toEqual([98]);
  }); // prettier-ignore

  test("65,535 entries", async () => {
    for (const count of [65_534, 65_535]) {
      const all = await pieces(Array.from({ length: count }, () => entry(0, 0)));
      expect(all[all.length - 1].length).toBe(count < 65_535 ? 22 : 98);
    }
  });
});
