// Tensors of other libraries as views, and packed tensors as ndarrays.
import ndarray from "ndarray";
import { Tensor as OrtTensor } from "onnxruntime-node";
import { expect, test } from "vitest";
import { format } from "../../formats/index.ts";
import { dequantize, quantize, tensor, toNdarray } from "../../src/index.ts";

const values = Float32Array.from({ length: 24 }, (_, i) => Math.sin(i));

test("onnxruntime's tensors: floats are viewed, other numbers converted exactly", () => {
  const view = tensor(new OrtTensor("float32", values, [2, 12]));
  expect(view).toEqual({ data: values, shape: [2, 12], stride: [12, 1], offset: 0 });
  expect(view.data).toBe(values);
  expect(tensor({ type: "float16", data: Uint16Array.of(0x3c00, 0xc000), dims: [2] }).data).toEqual(Float32Array.of(1, -2));
  expect(tensor({ data: Uint16Array.of(3, 65535), dims: [2] }).data).toEqual(Float32Array.of(3, 65535));
  expect(tensor({ data: Int8Array.of(-3, 127), dims: [1, 2] }).data).toEqual(Float32Array.of(-3, 127));
  expect(tensor({ data: Int32Array.of(2 ** 31 - 1), dims: [1] }).data).toEqual(Float64Array.of(2 ** 31 - 1));
  expect(tensor(new OrtTensor("int64", BigInt64Array.of(-5n), [1])).data).toEqual(Float64Array.of(-5));
  expect(() => tensor({ data: BigInt64Array.of(2n ** 53n + 1n), dims: [1] })).toThrow(RangeError);
  expect(() => tensor({ data: ["a"], dims: [1] })).toThrow(TypeError);
  expect(() => tensor({ data: values, dims: [5, 5] })).toThrow(expect.objectContaining({ code: "E_SHAPE" }));
  expect(() => tensor({ data: values })).toThrow(TypeError);
  expect(() => tensor(values, undefined as unknown as number[])).toThrow(TypeError);
});

test("ndarrays of any strides are what their get() says, and quantize takes them", () => {
  const base = ndarray(values, [4, 6]);
  for (const nd of [
    base,
    base.transpose(1, 0),
    base.step(-1, 2),
    base.hi(3, 4).lo(1, 1),
    ndarray(new Uint8Array(values.map((v) => v * 9 + 20)), [4, 6]),
  ]) {
    const view = tensor(nd);
    const [rows, k] = view.shape;
    const got = dequantize(quantize(view, format("float32")));
    for (let r = 0; r < rows; r++) for (let j = 0; j < k; j++) expect(got[r * k + j]).toBe(nd.get(r, j));
  }
  // vectors: every third number, and backwards
  for (const [stride, offset, want] of [
    [3, 1, [1, 4, 7]],
    [-2, 5, [5, 3, 1]],
    [-1, 2, [2, 1, 0]],
  ] as const) {
    const view = tensor({ data: values, shape: [3], stride: [stride], offset });
    expect([...dequantize(quantize(view, format("float32")))]).toEqual(want.map((i) => values[i]));
  }
  expect(() => tensor({ data: values, shape: [], stride: [], offset: 0 })).toThrow(expect.objectContaining({ code: "E_SHAPE" }));
  expect(() => tensor({ data: values, shape: [4, 6], stride: [6, 2], offset: 0 })).toThrow(expect.objectContaining({ code: "E_SHAPE" }));
  expect(() => tensor({ data: values, shape: [4], stride: [-1], offset: 2 })).toThrow(expect.objectContaining({ code: "E_SHAPE" }));
});

test("a packed tensor as an ndarray, and back", () => {
  const packed = quantize(tensor(values, [2, 3, 4]), format("int8_row"));
  const { data, shape, stride, offset } = toNdarray(packed);
  const nd = ndarray(data, [...shape], [...stride], offset);
  expect(nd.shape).toEqual([2, 3, 4]);
  expect(nd.get(1, 2, 3)).toBe(dequantize(packed)[23]);
  expect(tensor(nd)).toEqual({ data, shape, stride, offset });
  expect(toNdarray(packed, { dtype: "float64" }).data).toBeInstanceOf(Float64Array);
});
