// Every operator of the runtime, by its name with domain ("MatMul", "com.microsoft.MatMulNBits").
import { attention } from "./attention.ts";
import { codes } from "./codes.ts";
import { images } from "./conv.ts";
import { elementwise } from "./elementwise.ts";
import type { Operator } from "./operator.ts";
import { products } from "./product.ts";
import { quantized } from "./quantized.ts";
import { reduce } from "./reduce.ts";
import { shape } from "./shape.ts";

export const operators: ReadonlyMap<string, Operator> = new Map(
  [elementwise, shape, reduce, products, codes, quantized, images, attention].flatMap((family) => Object.entries(family)),
);
