// Strided views: how a shape is laid over numbers in a row. Element [i, j, ...] is number offset + i * strides[0] + j *
// strides[1] + ...

export interface Layout {
  readonly shape: readonly number[];
  readonly strides: readonly number[];
  readonly offset: number;
}

export const count = (shape: readonly number[]): number => shape.reduce((a, b) => a * b, 1);

/** Row-major, from the first number. */
export function contiguous(shape: readonly number[]): Layout {
  const strides = new Array<number>(shape.length);
  for (let i = shape.length - 1, stride = 1; i >= 0; i--) {
    strides[i] = stride;
    stride *= shape[i];
  }
  return { shape, strides, offset: 0 };
}

/** Is the view row-major without gaps? (Where it begins does not matter, nor do the strides of sizes 0 and 1.) */
export function isContiguous({ shape, strides }: Layout): boolean {
  if (shape.includes(0)) return true;
  for (let i = shape.length - 1, stride = 1; i >= 0; i--) {
    if (shape[i] > 1 && strides[i] !== stride) return false;
    stride *= shape[i];
  }
  return true;
}

/** Dimensions in another order; reversed without `perm`. Null where `perm` is no permutation. */
export function transposed(view: Layout, perm?: readonly number[]): Layout | null {
  const rank = view.shape.length;
  const order = perm ?? view.shape.map((_, i) => rank - 1 - i);
  if (order.length !== rank || new Set(order).size !== rank || order.some((i) => !Number.isInteger(i) || i < 0 || i >= rank)) return null;
  return { shape: order.map((i) => view.shape[i]), strides: order.map((i) => view.strides[i]), offset: view.offset };
}

/**
 * What Reshape's second input means: 0 takes a size over (unless `allowZero`), -1 is worked out. Null where the numbers
 * do not fit.
 */
export function resolveShape(shape: readonly number[], wanted: readonly number[], allowZero: boolean): number[] | null {
  const out = wanted.map((size, i) => (size === 0 && !allowZero ? (shape[i] ?? -2) : size));
  const free = out.indexOf(-1);
  const total = count(shape);
  if (free >= 0) {
    const rest = out.reduce((product, size, i) => (i === free ? product : product * size), 1);
    out[free] = rest > 0 ? total / rest : 0;
  }
  return out.every((size) => Number.isSafeInteger(size) && size >= 0) && count(out) === total ? out : null;
}

/** Flatten: [product of the sizes before `axis`, product of the others]. */
export function flattened(shape: readonly number[], axis: number): number[] | null {
  const at = axis < 0 ? axis + shape.length : axis;
  return at >= 0 && at <= shape.length ? [count(shape.slice(0, at)), count(shape.slice(at))] : null;
}

/** Without the dimensions `axes` (of size 1), or without all of size 1. */
export function squeezed(view: Layout, axes: readonly number[] | undefined): Layout | null {
  const rank = view.shape.length;
  const gone = new Set(axes?.map((axis) => (axis < 0 ? axis + rank : axis)) ?? view.shape.flatMap((size, i) => (size === 1 ? [i] : [])));
  for (const axis of gone) if (view.shape[axis] !== 1) return null;
  const keep = view.shape.map((_, i) => i).filter((i) => !gone.has(i));
  return { shape: keep.map((i) => view.shape[i]), strides: keep.map((i) => view.strides[i]), offset: view.offset };
}

/** With new dimensions of size 1, which have the places `axes` in the result. */
export function unsqueezed(view: Layout, axes: readonly number[]): Layout | null {
  const rank = view.shape.length + axes.length;
  const added = new Set(axes.map((axis) => (axis < 0 ? axis + rank : axis)));
  if (added.size !== axes.length || [...added].some((axis) => axis < 0 || axis >= rank)) return null;
  const shape: number[] = [];
  const strides: number[] = [];
  for (let i = 0, from = 0; i < rank; i++) {
    if (added.has(i)) {
      shape.push(1);
      strides.push(1);
    } else {
      shape.push(view.shape[from]);
      strides.push(view.strides[from++]);
    }
  }
  return { shape, strides, offset: view.offset };
}

/**
 * The same numbers in the same reading order under another shape of as many elements, without moving one; null where no
 * strides do it. Sizes of 1 apart, a group of old dimensions whose strides follow on from each other is split into a
 * group of new ones.
 */
export function reshaped(view: Layout, shape: readonly number[]): Layout | null {
  if (isContiguous(view)) return { ...contiguous(shape), offset: view.offset };
  const old = view.shape.map((size, i) => ({ size, stride: view.strides[i] })).filter(({ size }) => size !== 1);
  const strides = new Array<number>(shape.length).fill(1);
  let from = 0;
  let to = 0;
  while (from < old.length) {
    let oldCount = old[from].size;
    let last = from;
    while (to < shape.length && shape[to] === 1) to++;
    let newCount = shape[to];
    let lastNew = to;
    while (oldCount !== newCount) {
      if (oldCount < newCount) oldCount *= old[++last].size;
      else newCount *= shape[++lastNew];
    }
    for (let i = from; i < last; i++) if (old[i].stride !== old[i + 1].stride * old[i + 1].size) return null;
    for (let i = lastNew, stride = old[last].stride; i >= to; i--) {
      strides[i] = stride;
      stride *= shape[i];
    }
    from = last + 1;
    to = lastNew + 1;
  }
  return { shape, strides, offset: view.offset };
}
