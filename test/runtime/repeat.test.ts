// Steps that repeat their last emission: the same results whatever ran before, in other shapes and on other values, and
// when a repetition is no repetition.
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { chain, chainJob, chainSpec } from "../../kernels/wasm/nn/chain.ts";
import { rowsAt } from "../../kernels/wasm/nn/rows.ts";
import { operand, unary } from "../../kernels/wasm/nn/values.ts";
import { engineMemory } from "../../src/backends/wasm/memory.ts";
import { wasm, type WasmBackend } from "../../src/index.ts";
import { loadModel } from "../../src/runtime/index.ts";
import { createMachine, type Machine, type Slot } from "../../src/runtime/machine/machine.ts";
import { emitAgain } from "../../src/runtime/machine/repeat.ts";
import type { Value } from "../../src/runtime/value.ts";
import { encode, graph, model, node, raw, T, value } from "../onnx/build.ts";
import { f32, numbers } from "./make.ts";

let backend: WasmBackend;
beforeAll(async () => void (backend = await wasm()));
afterAll(() => backend.dispose());

describe("emitAgain", () => {
  const step = {};
  const machine = (): Machine => createMachine(engineMemory(backend));
  /** -x by a kernel; `look`: at the data while emitting. */
  const negate =
    (m: Machine, x: Slot, made: { count: number }, look = false) =>
    (): Value[] => {
      made.count++;
      if (look) made.count += 0 * x.data.length;
      const scratch = m.slot([64]);
      const y = m.slot(x.dims);
      const n = y.dims[0];
      const spec = chainSpec([unary("neg", operand(0))], ["vector"], { shared: m.memory.shared, relaxed: false });
      m.job(m.memory.kernel(chain, spec), chainJob(1, n, [rowsAt(x.address, n), rowsAt(y.address, n)]));
      m.free(scratch);
      return [y];
    };
  const fill = (m: Machine, values: number[]): Slot => {
    const x = m.slot([values.length]);
    (x.data as Float32Array).set(values);
    return x;
  };
  const run = (m: Machine, made: { count: number }, values: number[], look = false): number[] => {
    const x = fill(m, values);
    const [y] = emitAgain(m, step, [x], negate(m, x, made, look))!;
    const got = [...(y!.data as Float32Array)];
    m.free(y!);
    m.free(x);
    return got;
  };

  it("emits once for the same place and shape, and computes each time", () => {
    const m = machine();
    const made = { count: 0 };
    for (let i = 1; i < 6; i++) expect(run(m, made, [i, 2 * i, -i])).toEqual([-i, -2 * i, i]);
    expect(made.count).toBe(1);
    expect(run(m, made, [1, 2])).toEqual([-1, -2]);
    expect(made.count).toBe(2);
    m.dispose();
  });

  it("emits each time where the data decided, and leaves what it cannot know alone", () => {
    const m = machine();
    const made = { count: 0 };
    for (let i = 1; i < 5; i++) expect(run(m, made, [i], true)).toEqual([-i]);
    expect(made.count).toBe(4);
    const other: Value = { type: "float32", dims: [1], data: Float32Array.of(1) };
    const seen = { count: 0 };
    for (let i = 0; i < 3; i++) emitAgain(m, {}, [other], () => (seen.count++, [other]));
    expect(seen.count).toBe(3);
    m.dispose();
  });

  it("is a new emission where blocks lie elsewhere, and nothing of the old one stays", () => {
    const m = machine();
    const made = { count: 0 };
    const x = fill(m, [1, 2]);
    const [y] = emitAgain(m, step, [x], negate(m, x, made))!;
    // in the way of the second block that the emission takes
    const second = emitAgain(m, step, [x], negate(m, x, made))![0] as Slot;
    expect(second.address).not.toBe((y as Slot).address);
    expect(made.count).toBe(2);
    expect([...(second.data as Float32Array)]).toEqual([-1, -2]);
    for (const slot of [x, y!, second]) m.free(slot);
    const whole = m.slot([1 << 18]);
    const bytes = m.arena.bytes;
    m.free(whole);
    for (let i = 0; i < 20; i++) expect(run(m, made, [i, i])).toEqual([-i, -i]);
    m.free(m.slot([1 << 18]));
    expect(m.arena.bytes).toBe(bytes);
    m.dispose();
  });

  it("leaves steps that differ each time alone, for longer each time, and finds out when they no longer do", () => {
    const m = machine();
    const { trace } = m;
    let looks = 0;
    m.trace = (emit) => (looks++, trace(emit));
    const made = { count: 0 };
    const until = (n: number): void => {
      for (; made.count < n;) run(m, made, new Array<number>(1 + (made.count % 7)).fill(1));
    };
    for (const [runs, seen] of [
      [5, 5],
      [14, 5],
      [15, 6],
      [32, 6],
      [33, 7],
      [1000, 35],
    ]) {
      until(runs);
      expect(looks, `after ${runs} runs`).toBe(seen);
    }
    for (let i = 0; i < 60; i++) expect(run(m, made, [1, i])).toEqual([-1, -i]);
    expect(made.count).toBeLessThan(1036);
    m.dispose();
  });
});

it("sessions give what a fresh one gives, in any order of shapes and after memory has grown", async () => {
  const nodes = [
    node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"], {}, "codes"),
    node("DequantizeLinear", ["q", "scale", "zero"], ["d"], {}, "values"),
    node("MatMul", ["d", "w"], ["product"], {}, "product"),
    node("Add", ["product", "b"], ["sum"], {}, "sum"),
    node("Softmax", ["sum"], ["y"], { axis: -1n }, "softmax"),
  ];
  const initializer = [raw("w", [48, 32], Float32Array.from(numbers(1, 48 * 32))), raw("b", [32], Float32Array.from(numbers(2, 32)))];
  const input = [value("x", T.FLOAT, ["rows", 48] as never)];
  const bytes = encode(
    model(graph({ input, output: [value("y", T.FLOAT, ["rows", 32] as never)], initializer, node: nodes }), { opset: 17 }),
  );
  const session = await loadModel(bytes);
  const rows = [16, 16, 16, 2000, 16, 2000, 2000, 7, 16, 16, 16, 16, 40000, 16, 16, 16];
  for (const [i, count] of rows.entries()) {
    const feeds = { x: f32(i, [count, 48], -2 - i, 3) };
    const fresh = await loadModel(bytes);
    const [got, wanted] = [await session.run(feeds), await fresh.run(feeds)];
    expect(got.y.data, `run ${i} of ${count} rows`).toEqual(wanted.y.data);
    await fresh.release();
  }
  await session.release();
});
