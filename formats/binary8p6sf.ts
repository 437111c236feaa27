// binary8p6sf: IEEE P3109 (draft), precision 6, signed, finite: no infinity.
//   s ee mmmmm   bias 2 = 2^1, max 3.9375, NaN = 0x80, one zero
import { defineBinary8 } from "./define/p3109.ts";

export const binary8p6sf = /* @__PURE__ */ defineBinary8(6, "sf");
