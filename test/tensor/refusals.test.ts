// What tensors, formats, options and files of other kinds are told, and what lies just inside the bounds.
import { expect, test } from "vitest";
import { format, type Format, type OpaqueFormat } from "../../formats/index.ts";
import {
  dotInt16, fromSafetensors, prepareConv2d, quantize, tensor, toSafetensors, wasm, type Conv2dOptions, type QuantizeOptions,
} from "../../src/index.ts"; // prettier-ignore
import { normalArray } from "../helpers/random.ts";

const said = (run: () => unknown): { name: string; message: string } => {
  try {
    run();
  } catch (thrown) {
    return thrown as Error;
  }
  return { name: "none", message: "" };
};
const w = tensor(normalArray(4 * 256, 3), [4, 256]);

test.each([null, undefined, 5, "int4_b32", {}, { kind: 3 }])("quantize: %j is no format", (given) => {
  expect(said(() => quantize(w, given as unknown as Format))).toMatchObject({
    name: "TypeError",
    message: expect.stringMatching(/quantize format: expected a format descriptor/) as string,
  });
});

test.each([
  [{ rangeRule: "strange" }, /quantize rangeRule: expected "/],
  [{ overflow: "strange" }, /quantize overflow: expected "/],
  [{ rounding: "strange" }, /quantize rounding: expected "/],
  [{ arithmetic: "strange" }, /quantize arithmetic: expected "/],
])("quantize: %j is none of its choices", (options, text) => {
  const { name, message } = said(() => quantize(w, format("int4_b32"), options as unknown as QuantizeOptions));
  expect(name).toBe("TypeError");
  expect(message).toMatch(text);
  expect(message).toMatch(/got strange/);
});

test("blocks of ggml are the bytes of their encoder; NaN and infinities are named by row and column", () => {
  const f = format("ggml_q8_0") as OpaqueFormat;
  expect(quantize(w, f).codes).toEqual(f.encodeBytes(w.data as Float32Array));
  for (const bad of [NaN, Infinity, -Infinity]) {
    const values = (w.data as Float32Array).slice();
    values[2 * 256 + 7] = bad;
    const { message } = said(() => quantize(tensor(values, [4, 256]), f));
    expect(message).toMatch(/2/);
    expect(message).toMatch(/7/);
  }
});

test("dotInt16 takes two Int16Arrays", () => {
  const [a, b] = [Int16Array.of(1, 2), [1, 2] as unknown as Int16Array];
  for (const [x, y] of [[a, b], [b, a], [b, b]] as const) expect(said(() => dotInt16(x, y)).message).toMatch(/expected two Int16Arrays/); // prettier-ignore
  expect(dotInt16(a, a)).toBe(5);
});

test("views reach their last element and not beyond", () => {
  const like = (shape: number[], stride: number[], offset: number, count: number) => () =>
    tensor({ data: new Float32Array(count), shape, stride, offset });
  expect(like([3, 2], [2, 1], 0, 6)().shape).toEqual([3, 2]);
  expect(like([3], [2], 0, 5)().stride).toEqual([2]);
  expect(like([3], [-2], 4, 5)().offset).toBe(4);
  for (const refused of [
    like([3], [2], 0, 4),
    like([3], [-2], 3, 5),
    like([3, 2], [1], 0, 6),
    like([2], [0.5], 0, 4),
    like([2], [1], 0.5, 4),
  ])
    expect(said(refused).message).toMatch(/expected elements within the|expected integers/);
});

const SMALL = toSafetensors({ w: quantize(w, format("int4_b32")) });
/** The file with another header. */
function rewritten(change: (header: Record<string, { data_offsets?: number[] } & Record<string, string>>) => void): Uint8Array {
  const length = Number(new DataView(SMALL.buffer, SMALL.byteOffset).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(SMALL.subarray(8, 8 + length))) as Parameters<typeof change>[0];
  change(header);
  const json = new TextEncoder().encode(JSON.stringify(header));
  const data = SMALL.subarray(8 + length);
  const out = new Uint8Array(8 + json.length + data.length);
  new DataView(out.buffer).setBigUint64(0, BigInt(json.length), true);
  out.set(json, 8);
  out.set(data, 8 + json.length);
  return out;
}

test("files: what is wrong is named", () => {
  expect(said(() => fromSafetensors("x" as unknown as Uint8Array)).message).toMatch(/fromSafetensors/);
  const broken = rewritten(() => undefined);
  broken[8] = 0x7d;
  expect(said(() => fromSafetensors(broken)).message).toMatch(/header/);
  expect(said(() => fromSafetensors(rewritten((h) => (h.__metadata__.lowbit = "{")))).message).toMatch(/__metadata__\.lowbit/);
  for (const offsets of [[-1, 4], [0.5, 4], [0], [0, 1, 2]])
    expect(said(() => fromSafetensors(rewritten((h) => (h["w.codes"].data_offsets = offsets)))).message).toMatch(/two natural numbers/); // prettier-ignore
});

test("files: a plane without bytes at the place of another", () => {
  const file = rewritten((h) => {
    const { data_offsets: offsets } = h["w.scales"];
    // listed after what begins there
    h["z.none"] = { dtype: "U8", data_offsets: [offsets![0], offsets![0]] } as never;
  });
  expect(said(() => fromSafetensors(file)).message).not.toMatch(/data_offsets that start at/);
});

test("a header that fills the file is read for what it is", () => {
  const json = new TextEncoder().encode('{"__metadata__":{}}');
  const file = new Uint8Array(8 + json.length);
  new DataView(file.buffer).setBigUint64(0, BigInt(json.length), true);
  file.set(json, 8);
  expect(said(() => fromSafetensors(file)).message).toMatch(/"lowbit" in __metadata__/);
  new DataView(file.buffer).setBigUint64(0, BigInt(json.length + 1), true);
  expect(said(() => fromSafetensors(file)).message).toMatch(/a header of at most/);
});

test("convolutions: pads", async () => {
  const backend = await wasm();
  const filters = quantize(tensor(normalArray(2 * 9, 1), [2, 1, 3, 3]), format("int8_row"));
  const prepare = (pads: unknown) => said(() => prepareConv2d(filters, { backend, pads: pads as Conv2dOptions["pads"] }));
  expect(prepare(0).name).toBe("none");
  expect(prepare([[0, 0], [0, 0]]).name).toBe("none"); // prettier-ignore
  for (const pads of [-1, 0.5, [[0, 0], [0, -1]], [[-1, 0], [0, 0]]]) expect(prepare(pads).message).toMatch(/prepareConv2d pads: expected integers from 0/); // prettier-ignore
  expect(prepare("other").message).toMatch(/prepareConv2d pads: expected "valid", "same", a number or pairs, got other/);
  backend.dispose();
});
