// Random inputs of a verification: sizes of open dimensions, distributions, switches; what is tried, in which order,
// until the model runs and an output says something.
import { describe, expect, test } from "vitest";
import { inputDims, type Feeds, type InputMetadata } from "../../src/onnx/verify/feeds.ts";
import { CrashError } from "../../src/onnx/verify/process.ts";
import { randomFeeds } from "../../src/onnx/verify/random.ts";

describe("random inputs that tell something", () => {
  type Out = Map<string, { type: string; dims: number[]; data: Float64Array }>;
  const inputs = [{ name: "x", type: "float32", shape: [2, 4] }];
  const drawn = (run: (x: number[]) => number[], samples = 2) =>
    randomFeeds(
      {
        inputs,
        hints: new Map(),
        run: async ({ x }) => {
          const data = Float64Array.from(run(Array.from(x.data as Float32Array)));
          return new Map([["y", { type: "float64", dims: [data.length], data }]]) as Out as never;
        },
      },
      { samples, seed: 7, dims: {} },
    );
  const style = async (run: (x: number[]) => number[]) => (await drawn(run)).notes[0];
  test("an output moves by more than a millionth of its largest magnitude", async () => {
    expect(await style(() => [999_998, 1e6])).toContain("standard normal (seed 7)");
    expect(await style(() => [-1e6, -999_998])).toBe("random inputs, standard normal (seed 7)");
    for (const still of [
      [999_999, 1e6],
      [-1e6, -999_999],
      [0, 0],
      [-5, -5],
      [0, 1e-6],
      [1 - 9e-7, 1],
      [NaN, Infinity],
    ])
      // prettier-ignore
      expect([still, await style(() => still)]).toEqual([still, "random inputs, standard normal (seed 7): no output depends on them"]);
  });
  test.each<[string, (x: number[]) => boolean]>([
    ["uniform in [0, 1)", (x) => x.every((v) => v >= 0 && v < 1)],
    ["normal of deviation 0.1", (x) => x.some((v) => v < 0) && x.every((v) => Math.abs(v) < 0.5)],
    ["normal of deviation 10", (x) => x.some((v) => v < 0) && x.some((v) => Math.abs(v) > 5)],
    ["uniform in [0, 255)", (x) => x.every((v) => v >= 0 && v < 255) && x.some((v) => v > 20)],
  ])("%s where nothing moves on others: as many samples, the first that was tried among them", async (name, awake) => {
    const seen: number[][] = [];
    const { feeds, notes } = await drawn((x) => (awake(x) && seen.push(x) > 0 ? [1, 2] : [3, 3]), 3);
    expect(notes[0]).toBe(`random inputs, ${name} (seed 7)`);
    expect(feeds).toHaveLength(3);
    expect(Array.from(feeds[0].x.data as Float32Array)).toEqual(seen[0]);
    expect(new Set(feeds.map(({ x }) => String(x.data))).size).toBe(3);
  });
  test("an output of one number moves between samples", async () => {
    expect(await style((x) => [x[0]])).toBe("random inputs, standard normal (seed 7)");
    expect(await style(() => [4])).toContain("no output depends on them");
    expect(await style((x) => [x.every((v) => v >= 0 && v < 1) ? x[0] : 4])).toContain("uniform in [0, 1)");
    expect((await drawn(() => [4], 1)).notes[0]).toBe("random inputs, standard normal (seed 7)");
  });
});

describe("sizes", () => {
  const input = (name: string, shape: (number | string)[], type = "float32"): InputMetadata => ({ name, type, shape }) as InputMetadata;
  test.each<[(number | string)[], Record<string, number>, number[]]>([
    [[2, 3], {}, [2, 3]],
    [["b", "s"], {}, [1, 7]],
    [["n", "batch", "my_batch_size", "s"], {}, [1, 1, 1, 7]],
    [["b", "past_length"], {}, [1, 5]],
    [["b", "past + s"], {}, [1, 12]],
    [["past + 1", "s + 2"], {}, [6, 9]],
    [["a + b", "s"], {}, [14, 7]],
    [[-1, -1, -1], {}, [1, 7, 7]],
    [["b", "s", 4], { s: 9, b: 3 }, [3, 9, 4]],
    [["b", "s"], { "x:1": 4 }, [1, 4]],
    [["b", 6], { "x:1": 4 }, [1, 4]],
    [["b", 6], { "x:0": 2 }, [2, 6]],
    [["b", "past + s"], { "past + s": 20, s: 3 }, [1, 20]],
    [["b", "past + s"], { s: 3 }, [1, 8]],
    [["b", "constructor"], {}, [1, 7]],
    [[], {}, []],
  ])("%j with %j is %j", (shape, dims, want) => {
    expect(inputDims(input("x", shape), dims, 7, 5)).toEqual(want);
  });
  test("without a past there is none", () => expect(inputDims(input("x", ["b", "past", "past + s"]), {}, 7)).toEqual([1, 0, 7]));

  /** The dims of every run that is tried, by input; `answer` gives how many numbers come out, or throws. */
  const tried = async (inputs: InputMetadata[], answer: (feeds: Feeds) => number, samples = 1) => {
    const dims: number[][][] = [];
    const run = async (feeds: Feeds) => {
      dims.push(inputs.map(({ name }) => [...feeds[name].dims]));
      const count = answer(feeds);
      const data = Float32Array.from({ length: count }, (_, i) => i);
      return new Map([["y", { type: "float32", dims: [count], data }]]) as never;
    };
    const made = await randomFeeds({ inputs, hints: new Map(), run }, { samples, seed: 1, dims: {} }).then(
      ({ feeds, notes }) => ({ feeds, notes, error: undefined }),
      (error: unknown) => ({ feeds: [], notes: [], error }),
    );
    return { dims, ...made };
  };
  let runs = 0;
  const fails = (): number => {
    throw new Error(`run ${runs++}`);
  };
  const SIZES = [16, 64, 320, 224, 128, 512, 576, 256, 32, 8, 1];
  test("sequences: from 16, then again with a past; the first failure is said where none runs", async () => {
    runs = 0;
    const { dims, error } = await tried([input("x", ["b", "s"])], fails);
    expect(dims.map(([[, s]]) => s)).toEqual([...SIZES, ...SIZES]);
    expect((error as Error).message).toBe("run 0");
    const past = await tried([input("x", ["b", "s", "past"])], fails);
    expect(past.dims.map(([[, , p]]) => p)).toEqual([...SIZES.map(() => 0), ...SIZES.map(() => 8)]);
  });
  test("images, by the dimensions of the first input: from 320", async () => {
    const { dims } = await tried([input("x", ["b", 3, "h", 2])], fails);
    expect(dims.slice(0, 11).map(([[, , h]]) => h)).toEqual([320, 224, 256, 512, 64, 128, 32, 16, 8, 1, 320]);
    expect((await tried([input("x", ["b", "c", "l"])], fails)).dims[0]).toEqual([[1, 16, 16]]);
    expect((await tried([input("x", ["b", 1, 2, "h", 1])], fails)).dims[0]).toEqual([[1, 1, 2, 320, 1]]);
  });
  test("other inputs have the size of the first, or 1", async () => {
    const { dims } = await tried([input("x", ["b", "s"]), input("state", ["b", "n"])], fails);
    expect(dims.slice(0, 4)).toEqual([[[1, 16], [1, 16]], [[1, 16], [1, 1]], [[1, 64], [1, 64]], [[1, 64], [1, 1]]]); // prettier-ignore
    expect(dims).toHaveLength(44);
  });
  test("one try where nothing is open, and none after a crash", async () => {
    expect((await tried([input("x", [2, 3])], fails)).dims).toEqual([[[2, 3]]]);
    const crash = (): number => {
      throw new Error("it crashed", { cause: new CrashError("SIGSEGV", "") });
    };
    const { dims, error } = await tried([input("x", ["b", "s"])], crash);
    expect([dims.length, (error as Error).message]).toEqual([1, "it crashed"]);
  });
  test("the first size that runs and gives something; where all give nothing the first that runs", async () => {
    const at = (from: number, empty: (dims: readonly number[]) => boolean) => (feeds: Feeds) =>
      feeds.x.dims[1] < from ? fails() : empty(feeds.x.dims) ? 0 : 4;
    const first = await tried([input("x", ["b", "s"])], at(200, () => false)); // prettier-ignore
    expect(first.feeds[0].x.dims).toEqual([1, 320]);
    const cached = await tried([input("x", ["b", "s", "past"])], at(100, ([, , past]) => past === 0)); // prettier-ignore
    expect(cached.feeds[0].x.dims).toEqual([1, 320, 8]);
    const nothing = await tried([input("x", ["b", "s"])], at(200, () => true)); // prettier-ignore
    expect(nothing.feeds[0].x.dims).toEqual([1, 320]);
    expect(nothing.notes).toEqual([expect.stringContaining("no output depends on them")]);
  });

  describe("switches", () => {
    const flags = [input("use_cache", [1], "bool"), input("mask", [1], "bool"), input("x", ["b", "s", "past"]), input("fast", ["b"], "bool")]; // prettier-ignore
    const values = (feeds: readonly Feeds[], name: string) => feeds.map((feed) => (feed[name].data as Uint8Array)[0]);
    test("take both values over the samples, a cache that is on has a past, masks are masks", async () => {
      const { feeds, notes } = await tried(flags, () => 4, 5);
      expect(values(feeds, "use_cache")).toEqual([0, 1, 0, 1, 0]);
      expect(values(feeds, "fast")).toEqual([0, 0, 1, 1, 0]);
      expect(values(feeds, "mask")).toEqual([1, 1, 1, 1, 1]);
      expect(feeds.map(({ x }) => x.dims[2])).toEqual([0, 8, 0, 8, 0]);
      expect(notes.slice(1)).toEqual(["use_cache: both values", "fast: both values"]);
      expect((await tried(flags, () => 4, 1)).notes.slice(1)).toEqual(["use_cache: false only (more samples run both)", "fast: false only (more samples run both)"]); // prettier-ignore
    });
    test("that the model does not run with are left out, and said once", async () => {
      const on = ({ fast }: Feeds): number => ((fast.data as Uint8Array)[0] === 1 ? fails() : 4);
      runs = 0;
      const { feeds, notes, dims } = await tried(flags, on, 8);
      expect(values(feeds, "use_cache")).toEqual([0, 1, 0, 1]);
      expect(values(feeds, "fast")).toEqual([0, 0, 0, 0]);
      expect(notes.slice(1)).toEqual(["fast = true was not run: run 0", "use_cache, fast = true was not run: run 1", "use_cache: both values", "fast: false only"]); // prettier-ignore
      expect(dims.length).toBeLessThan(8);
      const crash = ({ fast }: Feeds): number => {
        if ((fast.data as Uint8Array)[0] === 0) return 4;
        throw new Error("it crashed", { cause: new CrashError("SIGSEGV", "") });
      };
      expect((await tried(flags, crash, 4)).error).toMatchObject({ message: "it crashed" });
    });
    test("masks are whole in the first sample and have holes in the others", async () => {
      const { feeds } = await tried([input("keep", [4, 50], "bool"), input("x", [2])], () => 4, 3);
      expect(feeds.map(({ keep }) => (keep.data as Uint8Array).includes(0))).toEqual([false, true, true]);
    });
    test("are all there is: no distribution to choose", async () => {
      expect((await tried([input("fast", [1], "bool")], () => 1, 2)).notes).toEqual(["random inputs (seed 1)", "fast: both values"]);
    });
  });
});
