// Runs that end as the last one did: what is repeated and what is not, and results that are those of a machine that
// never ran before, bit by bit.
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { engineMemory } from "../../src/backends/wasm/memory.ts";
import { wasm, type WasmBackend } from "../../src/index.ts";
import { readModelBytes } from "../../src/onnx/index.ts";
import { makePlan, readGraph, type Plan } from "../../src/runtime/compile/plan.ts";
import { execute } from "../../src/runtime/machine/execute.ts";
import { createMachine, type Machine } from "../../src/runtime/machine/machine.ts";
import { createReplay, type Replay } from "../../src/runtime/machine/replay.ts";
import { encode, graph, model, node, raw, T, value } from "../onnx/build.ts";
import type { Value } from "../../src/runtime/value.ts";
import { numbers } from "./make.ts";

let backend: WasmBackend;
beforeAll(async () => void (backend = await wasm()));
afterAll(() => backend.dispose());

const WIDTH = 48;
const initializer = [
  ...[0, 1, 2].map((i) => raw(`w${i}`, [WIDTH, WIDTH], numbers(i + 1, WIDTH * WIDTH))),
  raw("limit", [], Float32Array.of(1)),
  raw("flat", [1], BigInt64Array.of(-1n), T.INT64),
  raw("zero", [1], BigInt64Array.of(0n), T.INT64),
  raw("one", [1], BigInt64Array.of(1n), T.INT64),
  raw("rest", [2], BigInt64Array.of(1n, BigInt(WIDTH)), T.INT64),
]; // prettier-ignore
const layers = (from: string, to: string) =>
  [0, 1, 2].flatMap((i) => [
    node("MatMul", [i === 0 ? from : `s${i - 1}`, `w${i}`], [`p${i}`]),
    node("Softmax", [`p${i}`], [i === 2 ? to : `s${i}`], { axis: -1n }),
  ]);

async function planOf(nodes: Parameters<typeof graph>[0]["node"]): Promise<Plan> {
  const input = [value("x", T.FLOAT, ["rows", WIDTH] as never), value("limit", T.FLOAT, []), value("more", T.FLOAT, [1])];
  const output = [value("y", T.FLOAT, ["rows", WIDTH] as never)];
  const read = readModelBytes(encode(model(graph({ input, output, initializer, node: nodes }), { opset: 17 })));
  return makePlan(read, readGraph(read), { backend, activations: "auto" });
}

interface Ran {
  readonly y: Float32Array;
  /** The step from which on the run was a repetition. */
  readonly from: number | null;
}

async function run(machine: Machine, plan: Plan, replay: Replay, data: Float32Array, feeds?: Record<string, Value>): Promise<Ran> {
  let from: number | null = null;
  const watched: Replay = {
    ...replay,
    ending(step, values) {
      const ending = replay.ending(step, values);
      if (ending !== undefined) from = step;
      return ending;
    },
  };
  const fed = new Map(Object.entries(feeds ?? { x: { type: "float32", dims: [data.length / WIDTH, WIDTH], data } }));
  const read = await execute({ machine, plan, fed, replay: watched });
  const y = (read("y")!.data as Float32Array).slice();
  machine.reset();
  return { y, from };
}

function machineOf(plan: Plan): { machine: Machine; replay: Replay } {
  const machine = createMachine(engineMemory(backend));
  for (const constant of plan.constants.values()) machine.constant(constant);
  return { machine, replay: createReplay(machine) };
}

/** What a machine gives that never ran before. */
async function fresh(plan: Plan, data: Float32Array, feeds?: Record<string, Value>): Promise<Float32Array> {
  const { machine, replay } = machineOf(plan);
  const { y } = await run(machine, plan, replay, data, feeds);
  machine.dispose();
  return y;
}

/** Runs of so many rows each, with their own values; from where each repeated. */
async function runs(plan: Plan, rows: readonly number[], before: (machine: Machine, i: number) => void = () => {}) {
  const { machine, replay } = machineOf(plan);
  const from: (number | null)[] = [];
  for (const [i, count] of rows.entries()) {
    before(machine, i);
    const data = numbers(100 + i, count * WIDTH);
    const ran = await run(machine, plan, replay, data);
    expect(ran.y, `run ${i} of ${count} rows`).toEqual(await fresh(plan, data));
    from.push(ran.from);
  }
  machine.dispose();
  return from;
}

describe("runs that end as the last one did", () => {
  it("repeat all that comes after the step that takes the feeds in", async () => {
    const plan = await planOf(layers("x", "y"));
    expect(plan.steps.length).toBe(6);
    // the first run learns the steps, the second where they repeat, the third what they run
    expect(await runs(plan, [5, 5, 5, 5, 5, 5])).toEqual([null, null, null, 1, 1, 1]);
  });

  it("are learnt anew in another shape", async () => {
    const plan = await planOf(layers("x", "y"));
    const from = await runs(plan, [5, 5, 5, 5, 9, 9, 9, 9, 9, 5, 9, 300, 300, 300, 300, 300, 5, 5, 5, 5, 5]);
    expect(from[3]).toBe(1);
    expect(from[4]).toBe(null);
    expect(from.slice(9, 12)).toEqual([null, null, null]);
    expect(from.at(-1)).toBe(1);
    const many = await runs(plan, [...Array.from({ length: 40 }, (_, i) => 5 + (i % 13)), ...new Array<number>(40).fill(5)]);
    expect(many.slice(0, 40)).toEqual(new Array(40).fill(null));
    expect(many.at(-1)).toBe(1);
  });

  it("are not repeated where memory is taken that was free", async () => {
    const plan = await planOf(layers("x", "y"));
    /** In the way: of all that the run takes; of what it takes after the first step, which finds its places as before. */
    const ways: ((machine: Machine) => void)[] = [
      (machine) => void machine.slot([64]),
      (machine) => {
        const room = machine.slot([2 * 5 * WIDTH]);
        machine.slot([64]);
        machine.free(room);
      },
    ];
    for (const way of ways) {
      const from = await runs(plan, new Array<number>(10).fill(5), (machine, i) => void (i === 4 && way(machine)));
      expect(from.slice(0, 5)).toEqual([null, null, null, 1, null]);
      expect(from.at(-1)).toBe(1);
    }
  });

  it("go through what the model works out of shapes", async () => {
    const plan = await planOf([
      node("Softmax", ["x"], ["s"], { axis: -1n }),
      node("Shape", ["s"], ["shape"]),
      node("Slice", ["shape", "zero", "one"], ["rows"]),
      node("Concat", ["rows", "rest"], ["wanted"], { axis: 0n }),
      node("Reshape", ["s", "wanted"], ["b"]),
      ...layers("b", "y"),
    ]);
    const from = await runs(plan, [7, 7, 7, 7, 7, 9, 9, 9, 9, 9, 7, 7, 7, 7, 7]);
    expect([from[4], from[9], from[14]]).toEqual([1, 1, 1]);
    expect(plan.steps.length).toBe(11);
  });

  it("are not repeated with what was fed in place of a constant, or fed in place of another shape", async () => {
    const optional = await planOf([node("Softmax", ["x"], ["s"], { axis: -1n }), node("Add", ["s", "limit"], ["b"]), ...layers("b", "y")]);
    // where the shape comes in, everything lies where it lay in the last run, and has the dimensions that it had
    const shaped = await planOf([
      node("Softmax", ["x"], ["s"], { axis: -1n }),
      node("Shape", ["s"], ["shape"]),
      node("Reshape", ["s", "flat"], ["row"]),
      node("Add", ["row", "more"], ["sum"]),
      node("Reshape", ["sum", "shape"], ["b"]),
      ...["c", "d", "y"].map((name, i) => node("Softmax", [["b", "c", "d"][i]], [name], { axis: -1n })),
    ]);
    const fed = (name: string, v: number) => ({ [name]: { type: "float32" as const, dims: [1], data: Float32Array.of(v) } });
    const cases = [
      [optional, (i: number) => (i === 5 ? fed("limit", 3) : {}), () => [8, WIDTH]],
      [shaped, (i: number) => fed("more", i), (i: number) => (i === 5 ? [16, WIDTH / 2] : [8, WIDTH])],
    ] as const;
    for (const [plan, more, dims] of cases) {
      const { machine, replay } = machineOf(plan);
      for (let i = 0; i < 6; i++) {
        const x = { type: "float32" as const, dims: dims(i), data: numbers(i, 8 * WIDTH) };
        const ran = await run(machine, plan, replay, x.data, { x, ...more(i) });
        expect(ran.from === null, `run ${i}`).toBe(i < 3 || i === 5);
        expect(ran.y).toEqual(await fresh(plan, x.data, { x, ...more(i) }));
      }
      machine.dispose();
    }
  });

  it("begin behind what the data decide", async () => {
    const branch = (op: string): ReturnType<typeof graph> =>
      graph({ input: [], output: [value("b", T.FLOAT, ["rows", WIDTH] as never)], initializer: [], node: [node(op, ["s"], ["b"])] });
    const plan = await planOf([
      node("Softmax", ["x"], ["s"], { axis: -1n }),
      node("ReduceMax", ["x"], ["most"], { keepdims: 0n }),
      node("Greater", ["most", "limit"], ["is"]),
      node("If", ["is"], ["b"], { then_branch: branch("Neg"), else_branch: branch("Abs") }),
      ...layers("b", "y"),
    ]);
    const { machine, replay } = machineOf(plan);
    const from: (number | null)[] = [];
    for (let i = 0; i < 12; i++) {
      // the branch changes in mid-way, when all has repeated for long
      const data = numbers(i, 4 * WIDTH, -1, i < 6 ? 0.5 : 3);
      const ran = await run(machine, plan, replay, data);
      expect(ran.y, `run ${i}`).toEqual(await fresh(plan, data));
      from.push(ran.from);
    }
    const last = plan.steps.findLastIndex(({ guards }) => guards.length > 0);
    expect(last).toBeGreaterThan(2);
    expect(from[5]).toBeGreaterThan(last);
    expect(from.at(-1)).toBe(from[5]);
    machine.dispose();
  });

  it("have their turns, and end where they are told to", async () => {
    const plan = await planOf(layers("x", "y"));
    const slow: Replay = {
      ending: (step) => (step === 0 ? { calls: Array.from({ length: 9 }, () => [() => wait(10)]), values: new Map() } : undefined),
      ran: () => undefined,
      end: () => undefined,
    };
    let turns = 0;
    const aborted = (): void => {
      if (++turns === 3) throw new Error("told to");
    };
    const fed = new Map([["x", { type: "float32" as const, dims: [1, WIDTH], data: numbers(1, WIDTH) }]]);
    await expect(execute({ machine: machineOf(plan).machine, plan, fed, replay: slow, aborted })).rejects.toThrow("told to");
    expect(turns).toBe(3);
  });
});

function wait(ms: number): void {
  const end = performance.now() + ms;
  while (performance.now() < end);
}
