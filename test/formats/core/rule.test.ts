// Principle 2: the value table is the truth. For every scalar format of at most 16 bits the scalar encoder (by rule for
// integers, floats and posits) and the bulk encoder (made from the ordered table) agree at every value, every boundary
// and their neighbours, in every rounding mode.
import { expect, test } from "vitest";
import { allFormats, encodeArray, type NumberFormat, type Rounding } from "../../../formats/index.ts";
import { nextUp } from "../../../formats/core/round.ts";

const modes: Rounding[] = ["halfEven", "halfExpand", "halfTrunc", "halfCeil", "halfFloor", "trunc", "expand", "ceil", "floor"];
const formats = allFormats.filter((f): f is NumberFormat => f.kind !== "block" && f.kind !== "opaque" && f.order !== null);
const nextDown = (x: number) => -nextUp(-x);

test.each(formats.map((f) => [f.name, f] as const))("%s", (_, f) => {
  const { values, boundaries } = f.order!;
  const stride = f.bits > 10 ? 61 : 1;
  const xs: number[] = [0, -0, 5e-324, -5e-324, 1e-300, -1e-300, 1e300, -1e300, Infinity, -Infinity];
  for (let i = 0; i < values.length; i += stride) xs.push(values[i], nextUp(values[i]), nextDown(values[i]));
  for (let i = 0; i < boundaries.length; i += stride) xs.push(boundaries[i], nextUp(boundaries[i]), nextDown(boundaries[i]));
  const [top, below] = [values[values.length - 1], values[values.length - 2]];
  for (const t of [0.25, 0.5, 0.75, 1, 1.5, 2])
    for (const x of [top + (top - below) * t]) xs.push(x, nextUp(x), nextDown(x), -x, nextUp(-x), nextDown(-x));
  const wide = Float64Array.from(xs);
  const single = Float32Array.from(xs);
  for (const rounding of modes) {
    for (const overflow of new Set([f.defaults.overflow, "saturate" as const])) {
      const options = { rounding, overflow };
      const codes = encodeArray(f, wide, undefined, options);
      const narrow = encodeArray(f, single, undefined, options);
      for (let i = 0; i < xs.length; i++) {
        const want = f.encode(xs[i], options);
        if (codes[i] !== want) expect(`${rounding} ${overflow} ${xs[i]}: bulk ${codes[i]}`).toBe(`scalar ${want}`);
        const want32 = f.encode(single[i], options);
        if (narrow[i] !== want32) expect(`${rounding} ${overflow} float32 ${single[i]}: bulk ${narrow[i]}`).toBe(`scalar ${want32}`);
      }
    }
  }
});
