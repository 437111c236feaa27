// The container field by field: written bytes by the layout of safetensors, every field of header and metadata replaced
// by what it must not be, and what is said, word for word.
import { describe, expect, test } from "vitest";
import { defineBlock, format, type NumberFormat } from "../../formats/index.ts";
import { fromBytes, fromSafetensors, quantize, tensor, toBytes, toSafetensors, type PackedTensor } from "../../src/index.ts";
import { normalArray } from "../helpers/random.ts";

const w = quantize(tensor(normalArray(4 * 64, 1), [4, 64]), format("uint4_b32_zp"));
const nested = quantize(tensor(normalArray(2 * 64, 2), [2, 4, 16]), format("nvfp4"));
const planes = ["codes", "scales", "superScales", "offsets"] as const;

type Header = Record<string, unknown> & { __metadata__: Record<string, string> };
const encode = (json: string): Uint8Array => new TextEncoder().encode(json);
function file(json: string, data: Uint8Array): Uint8Array {
  const text = encode(json);
  const out = new Uint8Array(8 + text.length + data.length);
  new DataView(out.buffer).setBigUint64(0, BigInt(text.length), true);
  out.set(text, 8);
  out.set(data, 8 + text.length);
  return out;
}
/** The bytes by hand. */
function layout(tensors: Record<string, PackedTensor>): { header: Header; data: Uint8Array } {
  const header: Record<string, unknown> = {};
  const parts: number[] = [];
  for (const [name, t] of Object.entries(tensors))
    for (const plane of planes) {
      const bytes = t[plane];
      if (bytes === null) continue;
      header[`${name}.${plane}`] = { dtype: "U8", shape: [bytes.length], data_offsets: [parts.length, parts.length + bytes.length] };
      parts.push(...bytes);
    }
  const metas = Object.entries(tensors).map(([name, t]) => ({ name, format: t.format.definition, shape: t.shape, recipe: t.recipe }));
  header.__metadata__ = { lowbit: JSON.stringify({ version: 1, tensors: metas }) };
  return { header: header as Header, data: Uint8Array.from(parts) };
}

test("what is written, byte for byte; what is read are views of it", () => {
  const { header, data } = layout({ a: w, "b.c": nested });
  const json = JSON.stringify(header);
  expect(toSafetensors({ a: w, "b.c": nested })).toEqual(file(json.padEnd(Math.ceil(encode(json).length / 8) * 8), data));
  const bytes = toBytes(w);
  const back = fromBytes(bytes);
  expect(back).toEqual(w);
  for (const plane of planes) expect(back[plane]?.buffer).toBe(w[plane] === null ? undefined : bytes.buffer);
  expect(fromSafetensors(file(json, data))).toEqual(Object.assign(Object.create(null), { a: w, "b.c": nested }));
  for (const name of ["", "__metadata__"]) expect(() => toSafetensors({ [name]: w })).toThrow(new TypeError(`toSafetensors name: expected a tensor name, got "${name}".`)); // prettier-ignore
  expect(Object.keys(fromSafetensors(toSafetensors({})))).toEqual([]);
  expect(() => fromBytes(toSafetensors({}))).toThrow("packed tensor file: expected one packed tensor, got 0. Use fromSafetensors for files with several."); // prettier-ignore
  expect(() => fromBytes(file(json, data))).toThrow("expected one packed tensor, got 2. Use");
});

test("a format of the package comes back as itself, one of the same name but another definition as its own", () => {
  const own = defineBlock({ name: "int4_b32", element: format("int5") as NumberFormat, scales: [{ format: format("float32") as NumberFormat, span: 32 }] }); // prettier-ignore
  const x = tensor(normalArray(64, 3), [2, 32]);
  const back = fromBytes(toBytes(quantize(x, own)));
  expect(back.format).not.toBe(format("int4_b32"));
  expect(back.format.definition).toEqual(own.definition);
  expect(fromBytes(toBytes(quantize(x, format("int4_b32")))).format).toBe(format("int4_b32"));
});

describe("refused", () => {
  type Tensors = Record<string, unknown>[];
  const said = (what: string) => expect.objectContaining({ code: "E_CONTAINER", message: `packed tensor file: ${what}.` });
  /** The file of one tensor with a changed header and metadata, and bytes more or fewer. */
  const changed = (change: (header: Header, meta: { version: unknown; tensors: Tensors }) => void, more = 0) => {
    const { header, data } = layout({ w });
    const meta = JSON.parse(header.__metadata__.lowbit) as { version: unknown; tensors: Tensors };
    change(header, meta);
    if (typeof header.__metadata__ === "object" && header.__metadata__?.lowbit?.startsWith('{"version"')) header.__metadata__.lowbit = JSON.stringify(meta); // prettier-ignore
    const out = new Uint8Array(data.length + more);
    out.set(data.subarray(0, out.length));
    return () => fromSafetensors(file(JSON.stringify(header), out));
  };
  const whole = layout({ w }).data.length;

  test("the file's frame", () => {
    for (const n of [0, 9]) expect(() => fromSafetensors(new Uint8Array(n))).toThrow(said(`expected at least 10 bytes, got ${n}. Is the file whole?`)); // prettier-ignore
    const long = file("{}", new Uint8Array(0));
    new DataView(long.buffer).setBigUint64(0, 3n, true);
    expect(() => fromSafetensors(long)).toThrow(
      said("expected a header of at most 2 bytes, got 3. Is the file whole, and a safetensors file?"),
    );
    expect(() => fromSafetensors(file("{", new Uint8Array(1)))).toThrow(
      said("expected JSON in header, got something else. Is the file whole?"),
    );
    expect(() => fromSafetensors(file('"\xff', new Uint8Array(1)))).toThrow(
      said("expected JSON in header, got something else. Is the file whole?"),
    );
  });

  test("metadata", () => {
    const none = 'expected "lowbit" in __metadata__, got none. Only files written by toBytes or toSafetensors can be read';
    for (const json of ["{}", "[]", "null", '"x"', '{"__metadata__":[]}', '{"__metadata__":{"lowbit":5}}', '{"__metadata__":{}}', '{"__metadata__":"lowbit"}'])
      expect(() => fromSafetensors(file(json, new Uint8Array(0))), json).toThrow(said(none)); // prettier-ignore
    const lowbit = (text: string) => () => fromSafetensors(file(JSON.stringify({ __metadata__: { lowbit: text } }), new Uint8Array(0)));
    expect(lowbit("{")).toThrow(said("expected JSON in __metadata__.lowbit, got something else. Is the file whole?"));
    for (const text of ["[]", "{}", "5", "null", '{"tensors":{}}']) expect(lowbit(text)).toThrow(said(`expected { version, tensors } in __metadata__.lowbit, got ${text}`)); // prettier-ignore
    const long = JSON.stringify("x".repeat(200));
    expect(lowbit(long)).toThrow(said(`expected { version, tensors } in __metadata__.lowbit, got ${long.slice(0, 80)}`));
    for (const version of [0, 2, "1", null]) expect(changed((_, m) => (m.version = version))).toThrow(said(`expected version 1, got ${JSON.stringify(version)}. Read it with the version of lowbit that wrote it, or a newer one`)); // prettier-ignore
  });

  test("entries of tensors", () => {
    const entry = (value: unknown) => changed((_, m) => (m.tensors[0] = value as Record<string, unknown>));
    const each = (value: unknown) =>
      said(`expected { name, format, shape, recipe } for each tensor, got ${JSON.stringify(value).slice(0, 80)}`);
    for (const value of [null, 5, [], "w", {}]) expect(entry(value)).toThrow(each(value));
    const sound = { name: "w", format: w.format.definition, shape: w.shape, recipe: w.recipe };
    for (const wrong of [{ name: 5 }, { format: "int4" }, { format: null }, { recipe: [] }, { recipe: undefined }]) {
      const value = { ...sound, ...wrong };
      expect(entry(value), JSON.stringify(wrong)).toThrow(each(value));
    }
    expect(changed((_, m) => m.tensors.push(m.tensors[0]))).toThrow(said('expected distinct names, got "w" twice'));
    for (const shape of [undefined, 5, [], [0, 4], [4, -64], [4, 0.5], ["4", 64], [1, 1, 1, 1, 1, 1, 1, 4, 64], [2 ** 27, 2 ** 27], null])
      expect(entry({ ...sound, shape }), String(shape)).toThrow(said(`w: expected a shape of 1 to 8 positive sizes, got ${JSON.stringify(shape)}`)); // prettier-ignore
    const { header, data } = layout({ w: { ...w, shape: [4, 1, 1, 1, 1, 1, 1, 64] } });
    expect(fromSafetensors(file(JSON.stringify(header), data)).w.shape).toEqual([4, 1, 1, 1, 1, 1, 1, 64]);
    expect(fromBytes(toBytes(quantize(tensor(normalArray(64, 1), [64]), format("int8")))).shape).toEqual([64]);
  });
  test("planes", () => {
    const plane = (name: string, value: unknown) => changed((h) => (h[name] = value));
    const natural = (name: string, value: unknown) => said(`${name}: expected dtype U8 and data_offsets of two natural numbers, got ${JSON.stringify(value).slice(0, 80)}`); // prettier-ignore
    const sound = { dtype: "U8", shape: [128], data_offsets: [0, 128] };
    for (const wrong of [{ dtype: "I8" }, { data_offsets: [0] }, { data_offsets: [0, 1, 2] }, { data_offsets: 5 }, { data_offsets: [-1, 128] }, { data_offsets: [0, 0.5] }, { data_offsets: [0, 2 ** 53] }, { data_offsets: ["0", 128] }]) {
      const value = { ...sound, ...wrong };
      expect(plane("w.codes", value), JSON.stringify(wrong)).toThrow(natural("w.codes", value));
    } // prettier-ignore
    for (const value of [null, 5, [0, 128]]) expect(plane("w.codes", value)).toThrow(natural("w.codes", value));
    const long = "x".repeat(100);
    expect(plane(long, 5)).toThrow(natural(long.slice(0, 80), 5));
    expect(changed(() => undefined, 3)).toThrow(said(`expected ${whole} bytes of data, got ${whole + 3}. Is the file whole?`));
    expect(changed(() => undefined, -3)).toThrow(said(`expected ${whole} bytes of data, got ${whole - 3}. Is the file whole?`));
    const moved = (name: string, from: number, to: number) => changed((h) => ((h[name] as { data_offsets: number[] }).data_offsets = [from, to])); // prettier-ignore
    expect(moved("w.scales", 129, 160)).toThrow(said("w.scales: expected data_offsets that start at 128, got [129, 160]"));
    expect(moved("w.scales", 127, 160)).toThrow(said("w.scales: expected data_offsets that start at 128, got [127, 160]"));
    expect(moved("w.codes", 0, 120)).toThrow(said("w.scales: expected data_offsets that start at 120, got [128, 160]"));
    expect(changed((h) => (h["w.zz"] = { dtype: "U8", data_offsets: [128, 127] }))).toThrow(said("w.zz: expected data_offsets that start at 128, got [128, 127]")); // prettier-ignore
    expect(changed((h) => (h["w.more"] = { dtype: "U8", data_offsets: [128, 128] }))).toThrow(said("expected 3 byte planes, got 4. The file holds tensors that its metadata does not name")); // prettier-ignore
    const name = `${w.format.name} [4, 64]`;
    expect(changed((h) => (h["w.superScales"] = { dtype: "U8", data_offsets: [128, 128] }))).toThrow(said(`w.superScales: expected no bytes for ${name}, got 0`)); // prettier-ignore
    expect(changed((h) => delete h["w.offsets"], -4)).toThrow(said(`w.offsets: expected 4 bytes for ${name}, got none`));
    expect(changed((_, m) => (m.tensors[0].shape = [4, 66]))).toThrow(said(`w.codes: expected 132 bytes for ${w.format.name} [4, 66], got 128`)); // prettier-ignore
  });
});
