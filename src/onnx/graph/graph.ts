// The graph of a model, for everything that reads or rewrites it: scopes and names, constants, order, new nodes, what
// is no longer used.
export * from "./constant-types.ts";
export * from "./constant-values.ts";
export * from "./constants.ts";
export * from "./infer.ts";
export * from "./nodes.ts";
export * from "./order.ts";
export * from "./quantized.ts";
export * from "./schemas.ts";
export * from "./scopes.ts";
export * from "./unused.ts";
