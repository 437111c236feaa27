// binary8p7sf: IEEE P3109 (draft), precision 7, signed, finite: no infinity.
//   s e mmmmmm   bias 1 = 2^0, max 1.98438, NaN = 0x80, one zero
import { defineBinary8 } from "./define/p3109.ts";

export const binary8p7sf = /* @__PURE__ */ defineBinary8(7, "sf");
