// binary8p2sf: IEEE P3109 (draft), precision 2, signed, finite: no infinity.
//   s eeeeee m   bias 32 = 2^5, max 3.22123e+09, NaN = 0x80, one zero
import { defineBinary8 } from "./define/p3109.ts";

export const binary8p2sf = /* @__PURE__ */ defineBinary8(2, "sf");
