// Integer convolutions and matrix products against their definition in plain integers, on random odd shapes: groups,
// depthwise, strides, dilations, pads, 1-D, taps beyond a chunk, both types of codes, zero points of both sides; sums
// as they are, as float32 and as codes; one thread and two; guards around what is written.
import { describe, it } from "vitest";
import { memories } from "./bench.ts";
import { checkAny, checkConv, checkProduct, FINISHES, NAMED, PRODUCTS, WHOLE_BLOCKS } from "./integer-cases.ts";

const all = memories();

describe.each([0, 1])("memory %i", (i) => {
  it.each(NAMED)("convolution: %s", (_, c) => {
    FINISHES.forEach((finish, f) => checkConv(all[i], { ...c, unsigned: f % 2 === 0, finish }));
  });

  it("convolutions of any shape", () => {
    for (let n = 0; n < 40; n++) checkAny(all[i]);
  });

  it.each([...PRODUCTS, ...WHOLE_BLOCKS])("product %i x %i x %i", (m, k, n) => checkProduct(all[i], m, k, n));
});
