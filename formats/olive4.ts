// olive4: outlier-victim pairs of 4 bits in blocks of 128 with a float32 scale: 4.25 bits per value.
//   integers -7..7, outliers 12..96 times the scale; an outlier takes its neighbour's place
import { defineOlive } from "./define/olive.ts";

export const olive4 = /* @__PURE__ */ defineOlive({ name: "olive4", aliases: ["olive4_b128"], bits: 4, blockSize: 128 });
