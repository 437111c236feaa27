// binary8p4sf: IEEE P3109 (draft), precision 4, signed, finite: no infinity.
//   s eeee mmm   bias 8 = 2^3, max 240, NaN = 0x80, one zero
import { defineBinary8 } from "./define/p3109.ts";

export const binary8p4sf = /* @__PURE__ */ defineBinary8(4, "sf");
