// runAsync of the WebAssembly backend: bands of rows with turns of the event loop between them, in the order of the
// calls, with the numbers of `run`.
import { describe, expect, it } from "vitest";
import { format } from "../../../formats/index.ts";
import { prepareMatmul, quantize, tensor, wasm } from "../../../src/index.ts";
import { inTurns } from "../../../src/backends/wasm/turns.ts";

const noise = (n: number, seed: number) => Float32Array.from({ length: n }, (_, i) => Math.sin(i * 12.9898 + seed) * 3);

const same = (a: Float32Array, b: Float32Array): boolean => a.length === b.length && a.every((v, i) => Object.is(v, b[i]));

/** A layer of one column that counts its rows and notes the bands it is called with. */
function counting(n: number, k: number) {
  const bands: number[] = [];
  const run = (x: Float32Array, m: number, out: Float32Array): Float32Array => {
    bands.push(m);
    for (let r = 0; r < m; r++) out.fill(x[r * k], r * n, (r + 1) * n);
    return out;
  };
  return { bands, run };
}

describe("products in turns", () => {
  // so large that the first band has the fewest rows
  const shape = { n: 1 << 14, k: 1 << 10 };
  const rows = (m: number): Float32Array => {
    const x = new Float32Array(m * shape.k);
    for (let r = 0; r < m; r++) x[r * shape.k] = r + 1;
    return x;
  };
  const column = (y: Float32Array, m: number): number[] => Array.from({ length: m }, (_, r) => y[r * shape.n]);
  const upTo = (m: number): number[] => Array.from({ length: m }, (_, r) => r + 1);

  it("cover every row once, 24 or more at a time, never one alone", async () => {
    for (const m of [1, 2, 23, 24, 25, 26, 48, 49, 75]) {
      const { bands, run } = counting(shape.n, shape.k);
      const out = new Float32Array(m * shape.n);
      expect(await inTurns({}, shape, run, rows(m), m, out, 0)).toBe(out);
      expect(column(out, m)).toEqual(upTo(m));
      expect(bands.reduce((a, b) => a + b, 0)).toBe(m);
      if (m > 1) expect(Math.min(...bands)).toBeGreaterThan(1);
      expect(bands.slice(0, -1).every((count) => count === 24)).toBe(true);
      expect(bands.length).toBe(Math.max(1, Math.ceil((m - 1) / 24)));
    }
  });

  it("give the event loop a turn between bands, and take longer bands where there is time", async () => {
    const m = 80;
    const { bands, run } = counting(shape.n, shape.k);
    let ticks = 0;
    let done = false;
    const tick = (): void => {
      ticks++;
      if (!done) setImmediate(tick);
    };
    setImmediate(tick);
    await inTurns({}, shape, run, rows(m), m, undefined, 0);
    done = true;
    expect(bands).toEqual([24, 24, 24, 8]);
    expect(ticks).toBeGreaterThanOrEqual(3);
    const quick = counting(shape.n, shape.k);
    await inTurns({}, shape, quick.run, rows(m), m, undefined, 1e6);
    expect(quick.bands).toEqual([24, 56]);
  });

  it("answer in the order of the calls with the numbers that were given then; one that fails holds up no other", async () => {
    const owner = {};
    const { run } = counting(shape.n, shape.k);
    const order: string[] = [];
    const x = rows(40);
    const long = inTurns(owner, shape, run, x, 40, undefined, 0).then((y) => (order.push("long"), y));
    const failing = inTurns(
      owner,
      shape,
      () => {
        throw new Error("trap");
      },
      x,
      40,
      undefined,
      0,
    ).catch((error: Error) => order.push(error.message));
    const short = inTurns(owner, shape, run, x.subarray(0, shape.k), 1, undefined, 0).then((y) => (order.push("short"), y));
    x.fill(7);
    // another owner does not wait
    const other = inTurns({}, shape, run, rows(1), 1, undefined, 0).then(() => order.push("other"));
    expect(column(await long, 40)).toEqual(upTo(40));
    expect((await short)[0]).toBe(1);
    await Promise.all([failing, other]);
    expect(order).toEqual(["other", "long", "trap", "short"]);
    // nothing is left in the way of what comes later: it runs at the call
    let called = false;
    void inTurns(owner, shape, (a, m, out) => ((called = true), run(a, m, out)), rows(2), 2, undefined, 0);
    expect(called).toBe(true);
  });

  it("give the numbers of run on one and two threads, and end with an error when the layer goes", async () => {
    const [m, n, k] = [530, 1024, 1024];
    const [x, data] = [noise(m * k, 1), noise(n * k, 2)];
    for (const threads of [1, 2]) {
      const backend = await wasm({ threads });
      for (const [name, activations] of [
        ["int4_b32", "int8"],
        ["float32", "float32"],
      ] as const) {
        const layer = prepareMatmul(quantize(tensor(data, [n, k]), format(name)), { backend, activations });
        const expected = layer.run(x, m);
        const pending = layer.runAsync(x, m);
        // a product of one's own while it is under way
        expect(same(layer.run(x.subarray(0, 2 * k), 2), expected.subarray(0, 2 * n))).toBe(true);
        expect(same(await pending, expected)).toBe(true);
        const lost = layer.runAsync(x, m);
        layer.dispose();
        await expect(lost).rejects.toMatchObject({ code: "E_DISPOSED" });
        await expect(layer.runAsync(x, m)).rejects.toMatchObject({ code: "E_DISPOSED" });
      }
      backend.dispose();
    }
  });
});
