// binary8p2se: IEEE P3109 (draft), precision 2, signed, extended: infinity = 0x7f, -infinity = 0xff.
//   s eeeeee m   bias 32 = 2^5, max 2.14748e+09, NaN = 0x80, one zero
import { defineBinary8 } from "./define/p3109.ts";

export const binary8p2se = /* @__PURE__ */ defineBinary8(2, "se");
