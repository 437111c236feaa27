// Functions of integer-only models on kernels beside their loops, bit for bit: sizes with tails, batches, factors of
// columns and rows, sums of softmax, and what the kernels leave to the loops.
import { afterAll, beforeAll, expect, test } from "vitest";
import { momentsJob, moments } from "../../kernels/wasm/nn/moments.ts";
import { engineMemory } from "../../src/backends/wasm/memory.ts";
import { packMatrix } from "../../src/backends/wasm/nn/integer.ts";
import { wasm, type WasmBackend } from "../../src/backends/wasm/backend.ts";
import { INTEGER_DOMAIN } from "../../src/onnx/integer/functions.ts";
import { seededRandom } from "../../src/quantize/index.ts";
import { emitLinear, INTEGER_FUNCTIONS } from "../../src/runtime/machine/integer-functions.ts";
import { createMachine, type Machine } from "../../src/runtime/machine/machine.ts";
import { operators } from "../../src/runtime/ops/index.ts";
import type { Inputs } from "../../src/runtime/ops/operator.ts";
import type { Value } from "../../src/runtime/value.ts";
import { node } from "../onnx/build.ts";

let backend: WasmBackend;
let m: Machine;
beforeAll(async () => {
  backend = await wasm();
  m = createMachine(engineMemory(backend));
});
afterAll(() => {
  m.dispose();
  backend.dispose();
});

const random = seededRandom(21);
const int = (low: number, high: number): number => Math.floor(low + random() * (high - low + 1));
const size = (dims: readonly number[]): number => dims.reduce((a, b) => a * b, 1);
const int32 = (dims: number[], low: number, high: number): Value => ({ type: "int32", dims, data: Int32Array.from({ length: size(dims) }, () => int(low, high)) }); // prettier-ignore
const bytes = (dims: number[], low = 1, high = 255): Value => ({ type: "uint8", dims, data: Uint8Array.from({ length: size(dims) }, () => int(low, high)) }); // prettier-ignore
const int64 = (dims: number[], make: (i: number) => bigint | number): Value => ({ type: "int64", dims, data: BigInt64Array.from({ length: size(dims) }, (_, i) => BigInt(make(i))) }); // prettier-ignore
const number = (v: bigint | number): Value => int64([], () => v);
const limits = (shift: number): Value[] => [shift, -127, 127].map(number);
const factor = (dims: number[] = []): Value => int64(dims, () => int(2 ** 29, 2 ** 31 - 1));

/** Slots of the machine for what lies there in a model. */
function slots(inputs: Inputs): Inputs {
  return inputs.map((value) => {
    if (value === undefined || value.type === "int64") return value;
    const slot = m.slot(value.dims, value.type as "int32");
    slot.data.set(value.data as never);
    return slot;
  });
}

const plain = (values: readonly (Value | undefined)[]) => values.map((v) => v && { type: v.type, dims: [...v.dims], data: v.data.slice() });

function both(name: string, inputs: Inputs) {
  const own = node(name, [], ["y"], {}, name);
  own.domain = INTEGER_DOMAIN;
  const emit = new Map(INTEGER_FUNCTIONS).get(`${INTEGER_DOMAIN}.${name}`)!;
  const made = emit(m, slots(inputs), own);
  const kernel = made && plain(made);
  m.settle();
  m.reset();
  const loops = operators.get(`${INTEGER_DOMAIN}.${name}`)!.run(inputs, own);
  return { kernel, loops: plain(Array.isArray(loops) ? (loops as Value[]) : [loops as Value]) };
}

const cases: Record<string, () => Inputs> = {
  Requantize: () => [int32([3, 5, 8], -30000, 30000), factor(), ...limits(38)],
  RequantizeUint8: () => [int32([2, 12], -30000, 30000), factor([12]), ...limits(38)],
  "Requantize by rows": () => [int32([4, 3, 8], -30000, 30000), factor([4, 3, 1]), ...limits(38)],
  Add: () => [int32([2, 3, 8], -30000, 30000), factor(), int32([2, 3, 8], -30000, 30000), factor(), ...limits(39)],
  "Add a row": () => [int32([2, 3, 8], -30000, 30000), factor(), int32([1, 1, 8], -30000, 30000), factor(), ...limits(39)],
  MultiplyUint8: () => [int32([2, 8], -2000, 2000), int32([2, 8], -2000, 2000), factor(), ...limits(45)],
  LayerNorm: () => [int32([5, 12], -32767, 32767), number(7), factor([12]), int64([12], () => BigInt(int(-(2 ** 20), 2 ** 20)) << 24n), number(45), number(-32767), number(32767)], // prettier-ignore
  RmsNormUint8: () => [int32([5, 12], -32767, 32767), number(7), factor([12]), int64([12], () => 0), ...limits(47)],
  Lookup: () => [int32([3, 8], -30000, 30000), factor(), number(38), number(-100), number(100), bytes([201])],
  "Lookup of words": () => [int32([3, 8], -30000, 30000), factor(), number(38), number(-100), number(100), int32([201], -9e8, 9e8)],
  Exp: () => [int32([2, 3, 12], -30000, 30000), factor(), number(40), number(60), bytes([61], 0, 255)],
  Product: () => [bytes([2, 3, 5, 7]), bytes([2, 3, 7, 12]), factor(), ...limits(36)],
  "ProductUint8 of whole blocks": () => [bytes([2, 9, 8]), bytes([2, 8, 32]), factor(), ...limits(36)],
  WeighUint8: () => [bytes([1, 4, 20], 0), bytes([1, 20, 16]), factor(), ...limits(36)],
  Attend: () => [bytes([2, 5, 9], 0), int64([2, 5, 1], () => int(300, 2000)), bytes([2, 9, 20]), number(2 ** 40), ...limits(36)],
  "Attend with a factor beyond 32 bits": () => [bytes([2, 5, 9], 0), int64([2, 5, 1], (i) => (i === 3 ? 1 : 900)), bytes([2, 9, 20]), number(2 ** 40), ...limits(36)], // prettier-ignore
};

test.each(Object.keys(cases))("%s", (name) => {
  for (let round = 0; round < 3; round++) {
    const { kernel, loops } = both(name.split(" ")[0], cases[name]());
    expect(kernel).toEqual(loops);
  }
});

test.each([
  ["Requantize", () => [int32([3, 5], -9, 9), factor([5]), ...limits(38)]],
  ["Product", () => [bytes([2, 3, 5]), bytes([1, 5, 4]), factor(), ...limits(36)]],
  ["Add", () => [int32([1, 8], -9, 9), factor(), int32([4, 8], -9, 9), factor(), ...limits(38)]],
] as const)("%s of other sizes is left to the loops", (name, inputs) => {
  expect(both(name, inputs()).kernel).toBeUndefined();
});

test.each([
  [5, 7, 12, true],
  [8, 20, 32, false],
  [3, 9, 7, true],
] as const)("Linear of %i rows, %i to %i channels", (rows, k, n, isColumns) => {
  const w = bytes([k, n]);
  const turned = new Int8Array(n * k);
  for (let i = 0; i < k; i++) for (let j = 0; j < n; j++) turned[j * k + i] = Number(w.data[i * n + j]) - 128;
  const matrix = packMatrix(engineMemory(backend), turned, n, k, [0]);
  for (const isNarrow of [false, true]) {
    const inputs: Inputs = [bytes([1, rows, k]), w, int32([n], -9999, 9999), factor(isColumns ? [n] : []), ...limits(36)];
    const own = node("Linear", [], ["y"]);
    const y = emitLinear(m, { kind: "product", matrix, plans: new Map() }, isNarrow, slots(inputs), own)!;
    const got = plain([y]);
    m.reset();
    expect(got).toEqual(plain([operators.get(`${INTEGER_DOMAIN}.Linear${isNarrow ? "Uint8" : ""}`)!.run(inputs, own) as Value]));
  }
  matrix.dispose();
});

test("moments: sums and squares beyond 32 bits", () => {
  const x = int32([3, 64], -(2 ** 31), 2 ** 31 - 1);
  const memory = engineMemory(backend);
  const [at, y] = [memory.allocate(4 * 192), memory.allocate(48)];
  new Int32Array(memory.buffer, at.address, 192).set(x.data as Int32Array);
  const { items, args } = momentsJob({ rows: 3, width: 64, x: at.address, y: y.address });
  memory.run(memory.kernel(moments, { shared: memory.shared }), items, args);
  const got = new BigInt64Array(memory.buffer.slice(y.address, y.address + 48));
  for (let r = 0; r < 3; r++) {
    const row = Array.from((x.data as Int32Array).subarray(64 * r, 64 * r + 64), BigInt);
    expect(got[2 * r]).toBe(row.reduce((a, b) => a + b, 0n));
    expect(got[2 * r + 1]).toBe(
      BigInt.asIntN(
        64,
        row.reduce((a, b) => a + b * b, 0n),
      ),
    );
  }
  at.free();
  y.free();
});
