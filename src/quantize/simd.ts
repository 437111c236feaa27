// The hot product of the quantizers, by the fastest means at hand.
import { tnProductPlain, type TnProduct } from "./linalg.ts";

export const fastProduct: TnProduct = tnProductPlain;
