// Strided views against their definition: the numbers that a view reads, in its own order, are those that the operator
// gives, and a view is refused only where no strides say it.
import { describe, expect, test } from "vitest";
import {
  contiguous,
  count,
  isContiguous,
  reshaped,
  resolveShape,
  squeezed,
  transposed,
  unsqueezed,
  type Layout,
} from "../../src/onnx/graph/views.ts";
import { random, type Random } from "../helpers/random.ts";

/** Every index of a shape, the last one fastest. */
function indices(shape: readonly number[]): number[][] {
  return shape.reduce<number[][]>((all, size) => all.flatMap((index) => Array.from({ length: size }, (_, i) => [...index, i])), [[]]);
}
const address = ({ strides, offset }: Layout, index: readonly number[]): number => index.reduce((at, i, d) => at + i * strides[d], offset);
/** Places of a view's numbers in its reading order. */
const read = (view: Layout): number[] => indices(view.shape).map((index) => address(view, index));

/** Is there a stride for each dimension that reads these places in this shape? */
function hasStrides(places: readonly number[], shape: readonly number[]): boolean {
  if (places.length === 0) return true;
  const all = indices(shape);
  const at = new Map(all.map((index, i) => [index.join(), places[i]]));
  const strides = shape.map((size, d) => (size > 1 ? at.get(shape.map((_, i) => (i === d ? 1 : 0)).join())! - places[0] : 0));
  return all.every((index, i) => address({ shape, strides, offset: places[0] }, index) === places[i]);
}

const pick = <V>(rng: Random, from: readonly V[]): V => from[rng.integer(from.length)];
function permutation(rng: Random, n: number): number[] {
  const out = Array.from({ length: n }, (_, i) => i);
  for (let i = n - 1; i > 0; i--) {
    const j = rng.integer(i + 1);
    [out[i], out[j]] = [out[j], out[i]];
  }
  return out;
}
/** Another shape of as many elements, with ones here and there. */
function shapeOf(rng: Random, total: number): number[] {
  const out: number[] = [];
  for (let rest = total; rest > 1;) {
    const size = pick(
      rng,
      [2, 3, 4, 6, 12, rest].filter((n) => rest % n === 0),
    );
    out.push(size);
    rest /= size;
  }
  for (let n = rng.integer(3); n > 0; n--) out.splice(rng.integer(out.length + 1), 0, 1);
  return out;
}
/** A view that transposes and cuts: not every number is read. */
function anyView(rng: Random): Layout {
  const whole = contiguous(Array.from({ length: 1 + rng.integer(4) }, () => pick(rng, [1, 1, 2, 3, 4])));
  const view = transposed(whole, permutation(rng, whole.shape.length))!;
  if (rng.next() < 0.5) return view;
  const axis = rng.integer(view.shape.length);
  const from = rng.integer(view.shape[axis]);
  const shape = view.shape.map((size, i) => (i === axis ? size - from : size));
  return { shape, strides: view.strides, offset: from * view.strides[axis] };
}

describe("views at random", () => {
  const views = (f: (view: Layout, rng: Random) => void): void => {
    const rng = random(3);
    for (let i = 0; i < 400; i++) f(anyView(rng), rng);
  };

  test("a contiguous view reads one number after the other", () => {
    expect(read(contiguous([2, 3, 2]))).toEqual([...Array(12).keys()]);
    expect(contiguous([4, 3, 2])).toEqual({ shape: [4, 3, 2], strides: [6, 2, 1], offset: 0 });
    let [yes, no] = [0, 0];
    views((view) => {
      const places = read(view);
      const want = places.every((place, i) => place === places[0] + i);
      expect([view, isContiguous(view)]).toEqual([view, want]);
      if (want) yes++;
      else no++;
    });
    expect(Math.min(yes, no)).toBeGreaterThan(80);
    expect(isContiguous({ shape: [2, 0], strides: [7, 9], offset: 3 })).toBe(true);
  });

  test("transposed: element [i, j, ...] moves to its place", () => {
    views((view, rng) => {
      const perm = permutation(rng, view.shape.length);
      const out = transposed(view, perm)!;
      expect(out.shape).toEqual(perm.map((p) => view.shape[p]));
      for (const index of indices(view.shape))
        expect(
          address(
            out,
            perm.map((p) => index[p]),
          ),
        ).toBe(address(view, index));
      expect(transposed(view)).toEqual(transposed(view, view.shape.map((_, i) => i).reverse()));
    });
  });

  test("reshaped: the same numbers in the same order, wherever strides can say it", () => {
    let [made, refused] = [0, 0];
    views((view, rng) => {
      const shape = shapeOf(rng, count(view.shape));
      const out = reshaped(view, shape);
      expect([view, shape, out !== null]).toEqual([view, shape, hasStrides(read(view), shape)]);
      if (out === null) return void refused++;
      made++;
      expect([view, out.shape, read(out)]).toEqual([view, shape, read(view)]);
    });
    expect(made).toBeGreaterThan(150);
    expect(refused).toBeGreaterThan(30);
  });

  test("squeezed and unsqueezed: sizes of 1 go and come, numbers stay", () => {
    views((view, rng) => {
      const rank = view.shape.length;
      const places = permutation(rng, rank + 2).slice(0, 2);
      const axes = places.map((axis) => (rng.next() < 0.5 ? axis : axis - rank - 2));
      const out = unsqueezed(view, axes)!;
      expect(out.shape.length).toBe(rank + 2);
      for (const axis of places) expect(out.shape[axis]).toBe(1);
      expect(read(out)).toEqual(read(view));
      expect(squeezed(out, axes)).toEqual(view);
      const bare = squeezed(out, undefined)!;
      expect(bare.shape).toEqual(view.shape.filter((size) => size !== 1));
      expect(read(bare)).toEqual(read(view));
      const wide = view.shape.findIndex((size) => size !== 1);
      if (wide >= 0) expect(squeezed(view, [wide])).toBeNull();
    });
  });
});

describe("what does not fit is no view", () => {
  const view = contiguous([2, 3, 4]);
  test("orders that are no permutation", () => {
    for (const perm of [[0, 1], [0, 1, 1], [0, 1, 3], [0, 1, -1], [0, 1, 1.5], [0, 1, 2, 3]]) expect(transposed(view, perm)).toBeNull(); // prettier-ignore
  });

  test("axes beyond the rank, or twice", () => {
    for (const axes of [[4], [-5], [0, 0], [0, -5], [5, 0]]) expect([axes, unsqueezed(view, axes)]).toEqual([axes, null]);
    expect(squeezed(view, [3])).toBeNull();
    expect(squeezed(view, [-4])).toBeNull();
  });

  test("Reshape's sizes: 0 takes one over, -1 is what is left", () => {
    const cases: [wanted: number[], allowZero: boolean, shape: number[] | null][] = [
      [[4, 6], false, [4, 6]],
      [[0, -1], false, [2, 12]],
      [[-1, 0, 2], false, [4, 3, 2]],
      [[0, 0, 0], false, [2, 3, 4]],
      [[0, 0, 0, -1], false, [2, 3, 4, 1]],
      [[2, 3, 4, 0], false, null],
      [[-1, 5], false, null],
      [[-1, -1], false, null],
      [[-2, -12], false, null],
      [[25], false, null],
      [[23], false, null],
      [[0, 24], true, null],
      [[0, -1], true, null],
    ];
    for (const [wanted, allowZero, shape] of cases) expect([wanted, resolveShape([2, 3, 4], wanted, allowZero)]).toEqual([wanted, shape]);
    expect(resolveShape([0, 3], [0, 7], true)).toEqual([0, 7]);
    expect(resolveShape([0, 3], [-1, 3], false)).toEqual([0, 3]);
    expect(resolveShape([0, 3], [0, -1], false)).toEqual([0, 0]);
    expect(resolveShape([], [1, 1], false)).toEqual([1, 1]);
  });
});
