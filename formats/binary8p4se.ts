// binary8p4se: IEEE P3109 (draft), precision 4, signed, extended: infinity = 0x7f, -infinity = 0xff.
//   s eeee mmm   bias 8 = 2^3, max 224, NaN = 0x80, one zero
import { defineBinary8 } from "./define/p3109.ts";

export const binary8p4se = /* @__PURE__ */ defineBinary8(4, "se");
