// binary8p5se: IEEE P3109 (draft), precision 5, signed, extended: infinity = 0x7f, -infinity = 0xff.
//   s eee mmmm   bias 4 = 2^2, max 15, NaN = 0x80, one zero
import { defineBinary8 } from "./define/p3109.ts";

export const binary8p5se = /* @__PURE__ */ defineBinary8(5, "se");
