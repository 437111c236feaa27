// Long products beside other work on the calling thread: rows of activations in bands, and between bands a turn of the
// event loop. All threads work as in a synchronous product; what other callers run in between, synchronous or not,
// meets no product half done. Products of one backend are answered in the order of their calls.
import { checkRun } from "../layer.ts";
import { TURN_MS, turn } from "../turn.ts";
import { passRows } from "./product.ts";

/** Bands are whole numbers of these: fewer rows, or tiles half filled, use the machine less well. */
const STEP_ROWS = 24;

/**
 * Multiply-adds of the first band, before speed is known: less than TURN_MS on one thread, twice that without relaxed
 * SIMD.
 */
const FIRST_PRODUCTS = 2 ** 29;

const wholeSteps = (rows: number): number => STEP_ROWS * Math.max(1, Math.floor(rows / STEP_ROWS));

const queues = new WeakMap<object, Promise<void>>();

/**
 * Runs `run` on bands of rows of x [m, k] of `turnMs`, unless the fewest rows take longer; `owner` is what products
 * wait for each other on. x may change after the call.
 * @throws what `run` throws, as a rejection
 */
export async function inTurns(
  owner: object,
  { n, k }: { readonly n: number; readonly k: number },
  run: (x: Float32Array, m: number, out: Float32Array) => Float32Array,
  x: Float32Array,
  m: number,
  out: Float32Array | undefined,
  turnMs = TURN_MS,
): Promise<Float32Array> {
  const y = checkRun(x, m, n, k, out);
  let rows = wholeSteps(FIRST_PRODUCTS / (n * k));
  const before = queues.get(owner);
  if (before === undefined && m <= rows) return run(x, m, y);
  let leave = (): void => undefined;
  const place = new Promise<void>((resolve) => (leave = resolve));
  queues.set(owner, place);
  try {
    const own = x.slice();
    if (before !== undefined) await before;
    for (let from = 0; ;) {
      const count = passRows(m - from, rows);
      const begin = performance.now();
      run(own.subarray(from * k, (from + count) * k), count, y.subarray(from * n, (from + count) * n));
      from += count;
      if (from === m) return y;
      rows = wholeSteps((count * turnMs) / Math.max(performance.now() - begin, 1e-3));
      await turn();
    }
  } finally {
    if (queues.get(owner) === place) queues.delete(owner);
    leave();
  }
}
