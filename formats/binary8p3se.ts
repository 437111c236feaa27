// binary8p3se: IEEE P3109 (draft), precision 3, signed, extended: infinity = 0x7f, -infinity = 0xff.
//   s eeeee mm   bias 16 = 2^4, max 49152, NaN = 0x80, one zero
import { defineBinary8 } from "./define/p3109.ts";

export const binary8p3se = /* @__PURE__ */ defineBinary8(3, "se");
