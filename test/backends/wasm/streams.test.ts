// How many streams memory is read as: a measured choice that changes no number.
import { afterEach, expect, test, vi } from "vitest";
import { createArena, type Space } from "../../../kernels/wasm/engine/engine.ts";
import { measureStreams } from "../../../kernels/wasm/engine/streams.ts";
import { format } from "../../../formats/index.ts";
import { engineMemory } from "../../../src/backends/wasm/memory.ts";
import { prepareMatmul, quantize, tensor, wasm } from "../../../src/index.ts";
import { random } from "../../helpers/random.ts";

afterEach(() => void vi.restoreAllMocks());

/** A clock by which reading 2 streams takes `two`, 4 streams `four`. */
function clock(two: number, four: number): () => number {
  const ticks = [0, 2];
  for (let round = 0; round < 3; round++) ticks.push(0, two, 0, four);
  return () => ticks.shift() ?? 0;
}

const space = (megabytes: number): Space => {
  const arena = createArena(false);
  expect(arena.allocate(megabytes * 2 ** 20)).toBeGreaterThan(0);
  return { arena } as Space;
};

test("4 streams only where they gain a tenth", () => {
  const large = space(50);
  expect(measureStreams(large, false, clock(1, 0.8))).toBe(4);
  expect(measureStreams(large, false, clock(1, 0.95))).toBe(2);
  expect(measureStreams(large, false, clock(1, 3))).toBe(2);
  expect([2, 4]).toContain(measureStreams(large, false));
});

test("memory that caches may hold is not measured", () => {
  expect(measureStreams(space(40), false, clock(1, 0.1))).toBeNull();
});

test.each([1, 2])("products of one row are the same as 2 and as 4 streams, %i threads", async (threads) => {
  const numbers = random(5);
  const [n, k] = [16 * 37, 32 * 21];
  const w = quantize(
    tensor(
      Float32Array.from({ length: n * k }, () => numbers.next() - 0.5),
      [n, k],
    ),
    format("int4_b32"),
  );
  const x = Float32Array.from({ length: k }, () => numbers.next() - 0.5);
  const run = async (streams: 2 | 4): Promise<Float32Array[]> => {
    const backend = await wasm({ threads });
    try {
      const memory = engineMemory(backend);
      const layer = prepareMatmul(w, { backend, activations: "int8" });
      memory.allocate(50 * 2 ** 20);
      const tick = clock(1, streams === 4 ? 0.5 : 2);
      vi.spyOn(performance, "now").mockImplementation(tick);
      expect(memory.streams).toBe(streams);
      vi.restoreAllMocks();
      vi.restoreAllMocks();
      return [layer.run(x, 1), layer.run(Float32Array.of(...x, ...x), 2).slice(0, n)];
    } finally {
      backend.dispose();
    }
  };
  const [[two, tile], [four]] = [await run(2), await run(4)];
  // two rows are a tile, which has no turns
  expect(two).toEqual(tile);
  expect(four).toEqual(tile);
});
