// Every operator of the runtime, by its name with domain ("MatMul", "com.microsoft.MatMulNBits").
import { activations } from "./activations.ts";
import { attention } from "./attention.ts";
import { codes } from "./codes.ts";
import { images } from "./conv.ts";
import { elementwise } from "./elementwise.ts";
import { sums } from "./einsum.ts";
import { experts } from "./experts.ts";
import { imageLayers } from "./images.ts";
import { integerOnly } from "./integer-only.ts";
import type { Operator } from "./operator.ts";
import { products } from "./product.ts";
import { quantized } from "./quantized.ts";
import { recurrence } from "./recurrent.ts";
import { reduce } from "./reduce.ts";
import { resizers } from "./resize.ts";
import { select } from "./select.ts";
import { shape } from "./shape.ts";

export const operators: ReadonlyMap<string, Operator> = new Map(
  [
    elementwise,
    activations,
    shape,
    select,
    reduce,
    products,
    sums,
    codes,
    quantized,
    experts,
    images,
    imageLayers,
    resizers,
    recurrence,
    attention,
    integerOnly,
  ].flatMap((family) => Object.entries(family)),
);
