// safetensors of anyone: every dtype, shards, hostile headers. Files are put together here by the rules of the format,
// apart from the writer.
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { readSafetensors, safetensorsBytes, writeSafetensors } from "../../src/interop/index.ts";
import { survive } from "../helpers/mutate.ts";

const folder = mkdtempSync(join(tmpdir(), "lowbit-safetensors-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const refuse = (code: string) => expect.objectContaining({ code });

/** The container by hand: length, JSON, data. */
function file(header: unknown, data: Uint8Array = new Uint8Array(0)): Uint8Array {
  const json = new TextEncoder().encode(typeof header === "string" ? header : JSON.stringify(header));
  const out = new Uint8Array(8 + json.length + data.length);
  new DataView(out.buffer).setBigUint64(0, BigInt(json.length), true);
  out.set(json, 8);
  out.set(data, 8 + json.length);
  return out;
}
const bytesOf = (a: ArrayBufferView) => new Uint8Array(a.buffer, a.byteOffset, a.byteLength);

/** dtype, its bytes for the values, the values. Codes by the definitions of the formats. */
const dtypes: [string, Uint8Array, number[]][] = [
  ["F64", bytesOf(Float64Array.of(1.5, -2)), [1.5, -2]],
  ["F32", bytesOf(Float32Array.of(0.5, -3)), [0.5, -3]],
  ["F16", bytesOf(Uint16Array.of(0x3c00, 0xc000)), [1, -2]],
  ["BF16", bytesOf(Uint16Array.of(0x3f80, 0xc040)), [1, -3]],
  ["F8_E4M3", Uint8Array.of(0x38, 0xc0), [1, -2]],
  ["F8_E5M2", Uint8Array.of(0x3c, 0xc0), [1, -2]],
  ["F8_E8M0", Uint8Array.of(127, 129), [1, 4]],
  ["F8_E4M3FNUZ", Uint8Array.of(0x40, 0xc8), [1, -2]],
  ["F8_E5M2FNUZ", Uint8Array.of(0x40, 0xc4), [1, -2]],
  ["F6_E2M3", Uint8Array.of(0x08 | (0x28 << 6), (0x28 >> 2) | (0x10 << 4), (0x10 >> 4) | (0x1f << 2)), [1, -1, 2, 7.5]],
  ["F6_E3M2", Uint8Array.of(0x0c | (0x2c << 6), (0x2c >> 2) | (0x10 << 4), (0x10 >> 4) | (0x1f << 2)), [1, -1, 2, 28]],
  ["F4", Uint8Array.of(0xa2, 0x7f), [1, -1, -6, 6]],
  ["I64", bytesOf(BigInt64Array.of(-5n, 7n)), [-5, 7]],
  ["I32", bytesOf(Int32Array.of(-5, 7)), [-5, 7]],
  ["I16", bytesOf(Int16Array.of(-5, 7)), [-5, 7]],
  ["I8", bytesOf(Int8Array.of(-5, 7)), [-5, 7]],
  ["U64", bytesOf(BigUint64Array.of(5n, 7n)), [5, 7]],
  ["U32", bytesOf(Uint32Array.of(5, 7)), [5, 7]],
  ["U16", bytesOf(Uint16Array.of(5, 7)), [5, 7]],
  ["U8", Uint8Array.of(5, 200), [5, 200]],
  ["BOOL", Uint8Array.of(1, 0), [1, 0]],
  ["C64", bytesOf(Float32Array.of(1, 2, 3, 4)), [1, 2, 3, 4]],
];

test.each(dtypes)("%s", async (dtype, data, values) => {
  const shape = dtype === "C64" ? [2] : [values.length];
  const opened = await readSafetensors(file({ w: { dtype, shape, data_offsets: [0, data.length] } }, data));
  const w = opened.tensors.get("w")!;
  expect([...(await w.values())]).toEqual(values);
  expect(await w.bytes()).toEqual(data);
  const again = await readSafetensors(
    await safetensorsBytes({ metadata: { format: "pt" }, tensors: { w: { dtype, shape, bytes: data } } }),
  );
  expect([...(await again.tensors.get("w")!.values())]).toEqual(values);
  expect(again.metadata.get("format")).toBe("pt");
});

test("rows, Blobs, range readers that read no more than they need", async () => {
  const data = bytesOf(Float32Array.from({ length: 1 << 16 }, (_, i) => i));
  const whole = file(
    {
      w: { dtype: "F32", shape: [256, 256], data_offsets: [0, data.length] },
      "": { dtype: "U8", shape: [0], data_offsets: [data.length, data.length] },
    },
    data,
  );
  let read = 0;
  const opened = await readSafetensors({ size: whole.length, read: async (at, n) => ((read += n), whole.subarray(at, at + n)) });
  expect([...(await opened.tensors.get("w")!.values(3, 1))].slice(0, 3)).toEqual([768, 769, 770]);
  expect(read).toBeLessThan(2000);
  await expect(opened.tensors.get("w")!.bytes(255, 2)).rejects.toThrow(RangeError);
  expect([...(await (await readSafetensors(new Blob([whole]))).tensors.get("w")!.values(0, 1))][1]).toBe(1);
});

test("shards by their index, from a folder and from given sources", async () => {
  const part = (v: number) => ({ dtype: "F32", shape: [1], bytes: bytesOf(Float32Array.of(v)) });
  await writeSafetensors(join(folder, "a.safetensors"), { tensors: { x: part(1) } });
  await writeSafetensors(join(folder, "b.safetensors"), { tensors: { y: part(2) } });
  const index = join(folder, "model.safetensors.index.json");
  const write = (map: Record<string, unknown>) => writeFileSync(index, JSON.stringify({ weight_map: map }));
  write({ x: "a.safetensors", y: "b.safetensors" });
  const opened = await readSafetensors(index);
  expect([...(await opened.tensors.get("y")!.values())]).toEqual([2]);
  await opened.close();
  const bytes = new TextEncoder().encode(JSON.stringify({ weight_map: { x: "a" } }));
  const given = await readSafetensors(bytes, { shards: { a: await safetensorsBytes({ tensors: { x: part(5) } }) } });
  expect([...(await given.tensors.get("x")!.values())]).toEqual([5]);
  for (const map of [{ x: "missing.safetensors" }, { z: "a.safetensors" }, { x: "../a.safetensors" }, { x: 5 }]) {
    write(map);
    await expect(readSafetensors(index)).rejects.toThrow(refuse("E_CONTAINER"));
  }
  await expect(writeSafetensors(join(folder, "a.safetensors"), { tensors: {} })).rejects.toThrow(refuse("E_EXISTS"));
});

test("rows: those of a matrix, of a vector, of a scalar; outside is refused", async () => {
  const data = bytesOf(Float32Array.of(1, 2, 3, 4, 5, 6));
  const opened = await readSafetensors(
    file({ m: { dtype: "F32", shape: [3, 2], data_offsets: [0, 24] }, s: { dtype: "F32", shape: [], data_offsets: [24, 28] } }, bytesOf(Float32Array.of(1, 2, 3, 4, 5, 6, 7))),
  ); // prettier-ignore
  const [m, s] = [opened.tensors.get("m")!, opened.tensors.get("s")!];
  expect([...(await m.values(1))]).toEqual([3, 4, 5, 6]);
  expect([...(await m.values(undefined, 1))]).toEqual([1, 2]);
  expect([...(await m.values(3, 0))]).toEqual([]);
  expect(await m.bytes(1, 1)).toEqual(data.subarray(8, 16));
  expect([...(await s.values(0, 1)), ...(await s.values())]).toEqual([7, 7]);
  for (const [row, count] of [
    [-1, 1],
    [0.5, 1],
    [2, 2],
    [0, -1],
    [0, 1.5],
    [4, 0],
  ])
    // prettier-ignore
    await expect(m.bytes(row, count)).rejects.toThrow(RangeError);
  const odd = await readSafetensors(file({ w: { dtype: "F4", shape: [2, 3], data_offsets: [0, 3] } }, new Uint8Array(3)));
  await expect(odd.tensors.get("w")!.bytes(0, 1)).rejects.toThrow(refuse("E_UNSUPPORTED"));
  expect((await odd.tensors.get("w")!.bytes()).length).toBe(3);
});

test("no tensors at all, in the fewest bytes", async () => {
  const opened = await readSafetensors(file("{}"));
  expect([opened.tensors.size, opened.metadata.size]).toEqual([0, 0]);
});

test("a shard that is missing or damaged is named as what it is", async () => {
  const index = (name: string) => writeFileSync(join(folder, "broken.safetensors.index.json"), JSON.stringify({ weight_map: { w: name } }));
  const open = () => readSafetensors(join(folder, "broken.safetensors.index.json"));
  index("gone.safetensors");
  await expect(open()).rejects.toThrow(expect.objectContaining({ code: "E_CONTAINER", message: expect.stringMatching(/shard gone\.safetensors/) as string })); // prettier-ignore
  writeFileSync(join(folder, "torn.safetensors"), file("{", new Uint8Array(4)));
  index("torn.safetensors");
  await expect(open()).rejects.toThrow(expect.objectContaining({ code: "E_CONTAINER", message: expect.stringMatching(/JSON in UTF-8/) as string })); // prettier-ignore
  for (const name of ["../torn.safetensors", "..", "a\\b", "c:d", ""]) {
    index(name);
    await expect(open()).rejects.toThrow(expect.objectContaining({ code: "E_CONTAINER", message: expect.stringMatching(/beside the index/) as string })); // prettier-ignore
  }
});

describe("refused", () => {
  const w = { dtype: "F32", shape: [1], data_offsets: [0, 4] };
  const four = new Uint8Array(4);
  test.each([
    ["nothing", new Uint8Array(0)],
    ["a header beyond the file", file({ w }, four).fill(255, 0, 6)],
    ["no JSON", file("{", four)],
    ["a list", file([], four)],
    ["an unknown dtype", file({ w: { ...w, dtype: "Q4" } }, four)],
    ["a dtype of Object.prototype", file({ w: { ...w, dtype: "constructor" } }, four)],
    ["offsets that do not fit", file({ w: { ...w, shape: [2] } }, four)],
    ["sizes that overflow", file({ w: { ...w, shape: [2 ** 40, 2 ** 40] } }, four)],
    ["negative sizes", file({ w: { ...w, shape: [-1] } }, four)],
    ["overlaps", file({ w, v: w }, four)],
    ["holes", file({ w: { ...w, data_offsets: [4, 8] } }, new Uint8Array(8))],
    ["data that no tensor names", file({ w }, new Uint8Array(8))],
    ["metadata that is no text", file({ __metadata__: { a: 1 }, w }, four)],
    ["half bytes", file({ w: { dtype: "F4", shape: [3], data_offsets: [0, 2] } }, new Uint8Array(2))],
  ])("%s", async (_, bytes) => {
    await expect(readSafetensors(bytes)).rejects.toThrow(refuse("E_CONTAINER"));
  });

  test("any damage: an answer or a typed error, soon and in little memory", async () => {
    const sound = await safetensorsBytes({
      metadata: { a: "b" },
      tensors: Object.fromEntries(dtypes.map(([dtype, bytes, v]) => [dtype, { dtype, shape: dtype === "C64" ? [2] : [v.length], bytes }])),
    });
    const result = await survive(sound, sound.length - 100, async (bytes) => {
      const opened = await readSafetensors(bytes);
      for (const t of opened.tensors.values()) await t.values();
    });
    expect(result.faults).toEqual([]);
    expect(result.refused).toBeGreaterThan(100);
    expect(result.slowest).toBeLessThan(1);
    expect(result.grown).toBeLessThan(64e6);
  });
});

test("a tensor between others, one without values at the place of another, and one of eight dimensions", async () => {
  const data = bytesOf(Float32Array.of(1, 2, 3, 4, 5, 6));
  const read = await readSafetensors(
    file(
      {
        c: { dtype: "F32", shape: [1, 1, 1, 1, 1, 1, 1, 2], data_offsets: [16, 24] },
        b: { dtype: "F32", shape: [2], data_offsets: [8, 16] },
        a: { dtype: "F32", shape: [2], data_offsets: [0, 8] },
        none: { dtype: "F32", shape: [0], data_offsets: [8, 8] },
      },
      data,
    ),
  );
  const value = async (name: string): Promise<number[]> => Array.from(await read.tensors.get(name)!.values());
  expect([await value("a"), await value("b"), await value("c"), await value("none")]).toEqual([[1, 2], [3, 4], [5, 6], []]);
  expect((await read.tensors.get("b")!.bytes()).length).toBe(8);
  const nine = { dtype: "F32", shape: [1, 1, 1, 1, 1, 1, 1, 1, 1], data_offsets: [0, 4] };
  await expect(readSafetensors(file({ nine }, data.subarray(0, 4)))).rejects.toEqual(refuse("E_CONTAINER"));
});
