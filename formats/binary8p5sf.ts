// binary8p5sf: IEEE P3109 (draft), precision 5, signed, finite: no infinity.
//   s eee mmmm   bias 4 = 2^2, max 15.5, NaN = 0x80, one zero
import { defineBinary8 } from "./define/p3109.ts";

export const binary8p5sf = /* @__PURE__ */ defineBinary8(5, "sf");
