// Words of float32 at and about the values and boundaries of a format, at all exponents, and at random.
import type { NumberFormat } from "../../formats/index.ts";

const f32 = new Float32Array(1);
const u32 = new Uint32Array(f32.buffer);

export function words(f: NumberFormat): Uint32Array {
  const list: number[] = [0, 0x80000000, 0x7f800000, 0xff800000, 0x7fc00000, 0xffc00001, 0x7f800001, 1, 0x80000001, 0x7f7fffff, 0xff7fffff];
  const { values, boundaries } = f.order!;
  const stride = Math.max(1, Math.floor(values.length / 2000));
  for (let i = 0; i < values.length; i += stride)
    for (const x of [values[i], boundaries[i] ?? 2 * values[i]]) {
      f32[0] = x;
      for (const step of [-2, -1, 0, 1, 2]) list.push((u32[0] + step) >>> 0);
    }
  for (let e = 0; e < 512; e++) for (const m of [0, 1, 0x3fffff, 0x400000, 0x400001, 0x7fffff]) list.push(((e << 23) | m) >>> 0);
  let seed = 12345;
  for (let i = 0; i < 3000; i++) list.push((seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0));
  return Uint32Array.from(list);
}
