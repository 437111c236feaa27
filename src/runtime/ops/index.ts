// Every operator of the runtime, by its name with domain ("MatMul", "com.microsoft.MatMulNBits").
import { images } from "./conv.ts";
import { elementwise } from "./elementwise.ts";
import type { Operator } from "./operator.ts";
import { products } from "./product.ts";
import { quantized } from "./quantized.ts";
import { reduce } from "./reduce.ts";
import { shape } from "./shape.ts";

export const operators: ReadonlyMap<string, Operator> = new Map(
  [elementwise, shape, reduce, products, quantized, images].flatMap((family) => Object.entries(family)),
);
