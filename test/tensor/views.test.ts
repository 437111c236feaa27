// Views of any shape and strides against their definition, element by element; what is none, word for word.
import fc from "fast-check";
import { expect, test } from "vitest";
import { format, type NumberFormat } from "../../formats/index.ts";
import { dequantize, matmul, prepareMatmul, quantize, tensor, transpose } from "../../src/index.ts";
import { forPanels } from "../../src/tensor/quantize/panels.ts";
import { matrixView, readRows, type MatrixView, type Tensor } from "../../src/tensor/tensor.ts";

/** Places of all elements in order, by the definition of a strided view. */
function places({ shape, stride, offset }: Tensor): number[] {
  let out = [offset];
  shape.forEach((d, axis) => (out = out.flatMap((at) => Array.from({ length: d }, (_, i) => at + i * stride[axis]))));
  return out;
}

/** A view over numbers that are their own places; strides of a permuted array with gaps, some of them backwards. */
const anyView = fc
  .array(fc.record({ size: fc.integer({ min: 1, max: 4 }), gap: fc.integer({ min: 1, max: 2 }), back: fc.boolean(), key: fc.nat() }), {
    minLength: 1,
    maxLength: 5,
  }) // prettier-ignore
  .chain((axes) => fc.record({ axes: fc.constant(axes), before: fc.nat(3), narrow: fc.boolean() }))
  .map(({ axes, before, narrow }) => {
    const order = [...axes.keys()].sort((a, b) => axes[a].key - axes[b].key);
    const stride = new Array<number>(axes.length);
    let room = 1;
    for (const axis of order) {
      stride[axis] = room;
      room *= axes[axis].size * axes[axis].gap;
    }
    let offset = before;
    axes.forEach(({ size, back }, axis) => {
      if (!back) return;
      offset += (size - 1) * stride[axis];
      stride[axis] = -stride[axis];
    });
    const values = { length: room + before };
    const data = narrow ? Float32Array.from(values, (_, i) => i) : Float64Array.from(values, (_, i) => i);
    return { data, shape: axes.map(({ size }) => size), stride, offset };
  });

test("any view is its definition: as rows, by panels, quantized", () => {
  const float32 = format("float32") as NumberFormat;
  fc.assert(
    fc.property(anyView, (t) => {
      const want = places(t);
      const view = matrixView(t);
      const rows = t.shape.length === 1 ? 1 : t.shape[0];
      expect([view.rows, view.k, view.rows * view.k]).toEqual([rows, want.length / rows, want.length]);
      const got = new Float64Array(want.length);
      readRows(view, 0, rows, got);
      expect([...got]).toEqual(want);
      const last = new Float64Array(view.k);
      readRows(view, rows - 1, 1, last);
      expect([...last]).toEqual(want.slice(-view.k));
      const panels: number[] = [];
      forPanels(view, (values, row, count) => {
        expect(row).toBe(panels.length / view.k);
        panels.push(...values.subarray(0, count * view.k));
      });
      expect(panels).toEqual(want);
      expect([...dequantize(quantize(t, float32))]).toEqual(want);
      // of another library: the same, checked apart
      expect(tensor({ ...t })).toEqual(t);
      // dimensions that follow each other are one: no list of offsets is made where none is needed
      const inner = t.shape.map((d, i) => ({ d, s: t.stride[i] })).slice(t.shape.length === 1 ? 0 : 1).filter(({ d }) => d > 1); // prettier-ignore
      const even = inner.every(({ s }, i) => i === inner.length - 1 || s === inner[i + 1].s * inner[i + 1].d);
      expect(view.kOffsets === null).toBe(even);
    }),
    { numRuns: 400, seed: 4 },
  );
});

test("a view one short of its data, at either end, is refused", () => {
  fc.assert(
    fc.property(anyView, (t) => {
      const at = places(t);
      const [least, most] = [Math.min(...at), Math.max(...at)];
      const f = format("float32");
      const cut = { ...t, data: t.data.subarray(0, most) };
      const early = { ...t, offset: t.offset - least - 1 };
      for (const wrong of [cut, early])
        for (const use of [() => quantize(wrong, f), () => tensor({ ...wrong })])
          expect(use).toThrow(expect.objectContaining({ code: "E_SHAPE", message: expect.stringContaining(`expected elements within the ${wrong.data.length} numbers of data`) as string })); // prettier-ignore
      const exact = { ...t, data: t.data.subarray(0, most + 1) };
      expect([...dequantize(quantize(exact, f))]).toEqual(at);
    }),
    { numRuns: 150, seed: 9 },
  );
});

test("panels: of 16 rows, of memory as it is where rows follow each other, of one where rows are long", () => {
  const seen = (view: MatrixView) => {
    const out: [number, number, boolean][] = [];
    forPanels(view, (values, row, count) => out.push([row, count, values.buffer === view.data.buffer]));
    return out;
  };
  const x = new Float32Array(40 * 3);
  expect(seen(matrixView(tensor(x, [40, 3])))).toEqual([[0, 16, true], [16, 16, true], [32, 8, true]]); // prettier-ignore
  expect(seen(matrixView(transpose(tensor(x, [3, 40]))))).toEqual([[0, 16, false], [16, 16, false], [32, 8, false]]); // prettier-ignore
  expect(seen(matrixView({ data: x, shape: [1, 20], stride: [99, 1], offset: 5 }))).toEqual([[0, 1, true]]);
  expect(seen(matrixView({ data: x, shape: [2, 20], stride: [30, 1], offset: 5 }))).toEqual([[0, 2, false]]);
  const long = new Float32Array(2 * (2 ** 20 + 1));
  expect(seen(matrixView(tensor(long.subarray(0, 2 ** 21), [2, 2 ** 20])))).toEqual([[0, 2, true]]);
  expect(seen(matrixView(tensor(long, [2, 2 ** 20 + 1])))).toEqual([[0, 1, true], [1, 1, true]]); // prettier-ignore
  const typed: string[] = [];
  for (const data of [new Float32Array(6), new Float64Array(6)]) forPanels(matrixView(transpose(tensor(data as Float32Array, [3, 2]))), (values) => typed.push(values.constructor.name)); // prettier-ignore
  expect(typed).toEqual(["Float32Array", "Float64Array"]);
});

test("what is no tensor, by its name", () => {
  const data = new Float32Array(4);
  const kinds: [unknown, string][] = [[null, "null"], [undefined, "undefined"], [[1, 2], "Array"], [{}, "Object"], ["x", "string"], [5, "number"], [new Int8Array(2), "Int8Array"], [Object.create(null), "object"]]; // prettier-ignore
  for (const [value, name] of kinds) {
    expect(() => tensor(value as Float32Array, [2])).toThrow(
      new TypeError(`tensor data: expected a Float32Array or Float64Array, got ${name}. Convert it with Float32Array.from(data).`),
    );
    if (!Array.isArray(value)) expect(() => tensor(data, value as number[]), name).toThrow(value === undefined ? TypeError : new TypeError(`tensor shape: expected an array of sizes, got ${name}. Pass [rows, k].`)); // prettier-ignore
    const like = { data: value, dims: [2] };
    if (name !== "Array" && name !== "Int8Array") expect(() => tensor(like)).toThrow(new TypeError(`tensor data: expected numbers in a typed array, got ${name}. Read the data of the tensor from its device first.`)); // prettier-ignore
    const view = `tensor: expected { data: Float32Array | Float64Array, shape, stride, offset }, got ${name}. Make one with tensor(data, shape).`; // prettier-ignore
    expect(() => quantize(value as Tensor, format("int8"))).toThrow(new TypeError(view));
  }
  const sound = { data, shape: [2, 2], stride: [2, 1], offset: 0 };
  for (const wrong of [{ data: [1, 2, 3, 4] }, { shape: 4 }, { stride: undefined }, { stride: [1] }, { shape: [], stride: [] }])
    expect(() => quantize({ ...sound, ...wrong } as never, format("int8"))).toThrow(/^tensor: expected \{ data.*got Object\./);
  for (const shape of [[0, 2], [2, 1.5], [-1, 2]]) expect(() => quantize({ ...sound, shape }, format("int8"))).toThrow(`tensor shape: expected positive sizes, got [${shape.join(", ")}].`); // prettier-ignore
  for (const shape of [[], [2], [4, 0], [4, 1.5], [1, 1, 1, 1, 1, 1, 1, 1, 4], [-2, -2]])
    expect(() => tensor(data, shape)).toThrow(`tensor shape: expected 1 to 8 positive sizes with product 4, got [${shape.join(", ")}].`);
  expect(tensor(data, [1, 1, 1, 2, 1, 1, 1, 2])).toEqual({
    data,
    shape: [1, 1, 1, 2, 1, 1, 1, 2],
    stride: [4, 4, 4, 2, 2, 2, 2, 1],
    offset: 0,
  });
  for (const axes of [[0], [0, 0], [1, 2], [0, 1, 2], [-1, 0]]) expect(() => transpose(sound, axes)).toThrow(`transpose axes: expected a permutation of 0..1, got [${axes.join(", ")}].`); // prettier-ignore
});

test("numbers of other kinds become floats that hold them", () => {
  const of = (data: unknown, more: object = {}) => tensor({ data, dims: [2], ...more }).data;
  for (const kind of [Int8Array, Uint8Array, Uint8ClampedArray, Int16Array, Uint16Array]) expect(of(kind.of(1, 2))).toEqual(Float32Array.of(1, 2)); // prettier-ignore
  for (const kind of [Int32Array, Uint32Array]) expect(of(kind.of(1, 2 ** 30 + 1))).toEqual(Float64Array.of(1, 2 ** 30 + 1));
  expect(of(BigUint64Array.of(1n, 2n ** 53n))).toEqual(Float64Array.of(1, 2 ** 53));
  expect(of([1, 0.1])).toEqual(Float64Array.of(1, 0.1));
  expect(of(Uint16Array.of(0x3c00, 1), { type: "float16" })).toEqual(Float32Array.of(1, 2 ** -24));
  expect(of(Uint16Array.of(0x3c00, 1), { type: "uint16" })).toEqual(Float32Array.of(0x3c00, 1));
  for (const kept of [Float32Array.of(1, 2), Float64Array.of(1, 2)]) expect(of(kept)).toBe(kept);
  class Float16Array extends Array<number> {}
  expect(of(Float16Array.from([1, 0.5]))).toEqual(Float32Array.of(1, 0.5));
  expect(() => of(BigInt64Array.of(1n, -(2n ** 53n) - 1n))).toThrow(new RangeError("tensor data: expected integers that float64 holds, got -9007199254740993. Scale them first.")); // prettier-ignore
  for (const wrong of [new DataView(new ArrayBuffer(2)), [1, "2"], "12", new Set([1])]) expect(() => of(wrong)).toThrow(/expected numbers in a typed array/); // prettier-ignore
  expect(() => tensor({ data: [1], dim: [1], rank: 1 } as never)).toThrow(new TypeError("tensor: expected { data, dims } or { data, shape, stride, offset }, got data, dim, rank.")); // prettier-ignore
  // dims come before strides: onnxruntime's are in C order; strides of an ndarray may lack an offset
  expect(tensor({ data: Float32Array.of(1, 2), dims: [2], stride: [-1], offset: 1 } as never)).toEqual({ data: Float32Array.of(1, 2), shape: [2], stride: [1], offset: 0 }); // prettier-ignore
  expect(tensor({ data: Float32Array.of(1, 2, 3), shape: [2], stride: [2] } as never)).toMatchObject({ stride: [2], offset: 0 });
});

test("matmul without options is the reference", async () => {
  const w = quantize(tensor(Float32Array.of(1, 2, 3, 4), [2, 2]), format("float32"));
  expect((await matmul(tensor(Float32Array.of(1, 10), [1, 2]), w)).data).toEqual(Float32Array.of(21, 43));
  expect(prepareMatmul(w).explain().backend).toBe("reference");
  expect(prepareMatmul(w, { backend: "wasm" }).explain().backend).toBe("wasm");
  await expect(matmul(tensor(new Float32Array(3), [3]), w)).rejects.toThrow("matmul: expected x with k = 2 (the weight is [2, 2]), got [1, 3]. Transpose the side that is stored the other way."); // prettier-ignore
  for (const wrong of [null, {}, "gpu", 5]) expect(() => prepareMatmul(w, { backend: wrong as never })).toThrow(new TypeError(`prepareMatmul backend: expected "reference", "wasm" or a backend object, got ${String(wrong)}.`)); // prettier-ignore
});
