// .npy files as inputs of `lowbit verify`: element types, shapes, versions, and what is refused.
import { writeFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { readFeeds } from "../../src/cli/inputs.ts";
import { parseNpy } from "../../src/onnx/calibrate/npy.ts";
import { npy, scratch } from "./run.ts";

const dir = scratch();

/** The bytes of a .npy file, by the description in numpy/lib/format.py. */
function file(header: string, data: Uint8Array, major = 1): Uint8Array {
  const length = Buffer.alloc(major === 1 ? 2 : 4);
  if (major === 1) length.writeUInt16LE(header.length);
  else length.writeUInt32LE(header.length);
  return Buffer.concat([Buffer.from([0x93, ...Buffer.from("NUMPY"), major, 0]), length, Buffer.from(header, "latin1"), data]);
}
const header = (descr: string, shape: string, order = "False"): string =>
  `{'descr': '${descr}', 'fortran_order': ${order}, 'shape': ${shape}, }\n`;

describe("parseNpy", () => {
  test.each([
    ["<f4", "float32", new Float32Array([1.5, -2, 0, 7])],
    ["<f8", "float64", new Float64Array([1.5, -2, 0, 7])],
    ["<f2", "float16", new Uint16Array([0x3c00, 0xc000, 0, 1])],
    ["<i8", "int64", new BigInt64Array([1n, -2n, 0n, 7n])],
    ["<i4", "int32", new Int32Array([1, -2, 0, 7])],
    ["|i1", "int8", new Int8Array([1, -2, 0, 7])],
    ["|u1", "uint8", new Uint8Array([1, 2, 0, 7])],
    ["|b1", "bool", new Uint8Array([1, 0, 0, 1])],
  ])("%s is %s", (descr, type, data) => {
    const bytes = new Uint8Array(data.buffer);
    for (const major of [1, 2, 3]) {
      const parsed = parseNpy(file(header(descr, "(2, 2)"), bytes, major), "test.npy");
      expect(parsed).toEqual({ type, data, dims: [2, 2] });
    }
  });
  test("Fortran order and big-endian data come in C order of this machine", () => {
    const bytes = new Uint8Array(Int16Array.of(1, 4, 2, 5, 3, 6).buffer);
    expect(parseNpy(file(header("<i2", "(2, 3)", "True"), bytes), "x").data).toEqual(Int16Array.of(1, 2, 3, 4, 5, 6));
    expect(parseNpy(file(header(">i2", "(2,)"), Uint8Array.of(1, 2, 3, 4)), "x").data).toEqual(Int16Array.of(0x102, 0x304));
  });
  test("a scalar, a vector, an odd offset in a larger buffer", () => {
    const one = new Uint8Array(new Float32Array([5]).buffer);
    expect(parseNpy(file(header("<f4", "()"), one), "x").dims).toEqual([]);
    expect(parseNpy(file(header("<f4", "(1,)"), one), "x").dims).toEqual([1]);
    const whole = npy(new Float32Array([1, 2, 3]), [3]);
    const shifted = new Uint8Array(whole.length + 1);
    shifted.set(whole, 1);
    expect(parseNpy(shifted.subarray(1), "x").data).toEqual(new Float32Array([1, 2, 3]));
  });
  test.each([
    ["no magic", new Uint8Array(100), /a \.npy file/],
    ["nothing", new Uint8Array(0), /a \.npy file/],
    ["a magic alone", file("", new Uint8Array(0)).subarray(0, 7), /truncated/],
    ["version 4", file(header("<f4", "(1,)"), new Uint8Array(4), 4), /version 1 to 3/],
    ["a header past the end", file(header("<f4", "(1,)"), new Uint8Array(0)).subarray(0, 20), /a header of/],
    ["no shape", file("{'descr': '<f4', 'fortran_order': False}\n", new Uint8Array(0)), /descr, fortran_order and shape/],
    ["complex numbers", file(header("<c8", "(1,)"), new Uint8Array(8)), /real numbers/],
    ["objects", file(header("|O", "(1,)"), new Uint8Array(8)), /one of <f4/],
    ["too few bytes", file(header("<f4", "(3, 2)"), new Uint8Array(20)), /24 bytes of data for shape \(3, 2\), got 20/],
    ["too many bytes", file(header("<f4", "(1,)"), new Uint8Array(8)), /4 bytes of data/],
  ])("refuses %s", (_, bytes, says) => {
    expect(() => parseNpy(bytes, "test.npy")).toThrow(says);
    expect(() => parseNpy(bytes, "test.npy")).toThrow(expect.objectContaining({ code: "E_CONTAINER" }) as Error);
  });
});

test("readFeeds: the i-th file of every name makes the i-th sample", async () => {
  const write = (name: string, value: number): string => {
    writeFileSync(dir.path(name), npy(new Float32Array([value]), [1]));
    return dir.path(name);
  };
  const [a, b, c] = [write("a.npy", 1), write("b.npy", 2), write("c=d.npy", 3)];
  const feeds = await readFeeds([`x=${a}`, `y=${b}`, `x=${b}`, `y=${c}`]);
  expect(feeds.map((feed) => [feed.x.data, feed.y.data].map((data) => (data as Float32Array)[0]))).toEqual([
    [1, 2],
    [2, 3],
  ]);
  await expect(readFeeds([`x=${a}`, `x=${b}`, `y=${c}`])).rejects.toThrow(/2 files for every input, got 1 for y/);
});
