// Sharing out the items of a job: every item once, whichever thread comes first or stays away, each thread's own range
// first; records of activations likewise.
import { describe, expect, it } from "vitest";
import { ModuleBuilder } from "../../../kernels/wasm/engine/asm.ts";
import { engine } from "../../../kernels/wasm/engine/engine.ts";
import { jobBytes, recordJob, writeJob, writeRecords, writeWork } from "../../../kernels/wasm/engine/items.ts";

const ARGS = 64;
const PAGES = 8;

describe("items of a job", () => {
  // args: a counter, then the order in which items ran (1, 2, ...) by item
  const m = new ModuleBuilder();
  writeWork(m, (f, args) => (item) => {
    const at = f.op("i32.add", f.load("i32.load", args, 4), f.op("i32.shl", item, f.i32(2)));
    const order = f.op("i32.add", f.atomic("i32.atomic.rmw.add", args, 0, f.i32(1)), f.i32(1));
    f.store("i32.store", at, 0, f.op("i32.add", f.load("i32.load", at), order));
  });
  const memory = new engine.Memory({ initial: PAGES, maximum: 65536 });
  const { work } = new engine.Instance(new engine.Module(m.bytes()), { m: { m: memory } }).exports;

  /** Runs a job on `threads`, of which those in `order` take part, one after another; the order of items. */
  function run(items: number, threads: number, order: readonly number[]): number[] {
    const at = ARGS + jobBytes(threads);
    writeJob(new Int32Array(memory.buffer, ARGS, jobBytes(threads) / 4), Int32Array.of(0, at), items, threads);
    const ran = new Int32Array(memory.buffer, at, items + 8).fill(0);
    for (const thread of order) work(ARGS, 0, thread);
    expect(ran.subarray(items).every((v) => v === 0)).toBe(true);
    return Array.from(ran.subarray(0, items));
  }

  it("runs each exactly once, also with fewer items than threads and with threads that never come", () => {
    for (const items of [0, 1, 2, 5, 16, 97])
      for (const threads of [1, 2, 3, 7, 64])
        for (const order of [[0], [threads - 1], [...Array(threads).keys()].reverse()]) {
          const ran = run(items, threads, order);
          expect(ran.slice().sort((a, b) => a - b)).toEqual(Array.from({ length: items }, (_, i) => i + 1));
        }
  });

  it("starts with the thread's own range and goes on with the next", () => {
    const ran = run(12, 3, [1]);
    expect(ran).toEqual([9, 10, 11, 12, 1, 2, 3, 4, 5, 6, 7, 8]);
  });

  it("refuses arguments that would run into the ranges", () => {
    expect(() => writeJob(new Int32Array(jobBytes(1) / 4), new Int32Array(65), 1, 1)).toThrowError(/at most 64/);
  });
});

describe("records of activations", () => {
  it("are written once each, from the rows of their tile", () => {
    const [mr, group, bytes] = [3, 8, 64];
    const m = new ModuleBuilder();
    // per record: where its rows are, and the stride
    writeRecords(m, mr, (f, x, a, count, stride) =>
      f.while(f.op("i32.gt_s", count, f.i32(0)), () => {
        f.store("i32.store", a, 0, f.op("i32.add", f.load("i32.load", a), x));
        f.store("i32.store", a, 4, stride);
        f.bump(x, 4 * group);
        f.bump(a, bytes);
        f.bump(count, -1);
      }),
    );
    const memory = new engine.Memory({ initial: PAGES, maximum: 65536 });
    const { work } = new engine.Instance(new engine.Module(m.bytes()), { m: { m: memory } }).exports;
    const [x, a] = [300_000, 4096];
    for (const [tiles, groups] of [
      [1, 1],
      [1, 5],
      [4, 7],
      [3, 700],
    ]) {
      const job = recordJob({ x, a, tiles, mr, groups, group, bytes });
      const total = tiles * groups;
      // items of one size, and a last one that may be shorter
      for (const per of [job.args[4], 1, 3, total]) {
        const args = job.args.slice();
        args[4] = per;
        writeJob(new Int32Array(memory.buffer, ARGS, jobBytes(2) / 4), args, Math.ceil(total / per), 2);
        const out = new Int32Array(memory.buffer, a, (total + 1) * (bytes / 4)).fill(0);
        work(ARGS, 0, 1);
        for (let i = 0; i < total; i++) {
          const [tile, g] = [Math.floor(i / groups), i % groups];
          expect(out[(i * bytes) / 4]).toBe(x + tile * mr * groups * group * 4 + g * group * 4);
          expect(out[(i * bytes) / 4 + 1]).toBe(groups * group * 4);
        }
        expect(out[(total * bytes) / 4]).toBe(0);
      }
    }
    expect(recordJob({ x: 0, a: 0, tiles: 2, mr: 4, groups: 128, group: 32, bytes: 96, factor: 3 })).toEqual({
      items: 2,
      args: Int32Array.of(0, 0, 128, 256, 128, 128, 96, 3, 0),
    });
    // activations of one row of a usual matrix are one item: not worth waking a thread
    expect(recordJob({ x: 0, a: 0, tiles: 1, mr: 1, groups: 128, group: 32, bytes: 64 }).items).toBe(1);
  });
});
