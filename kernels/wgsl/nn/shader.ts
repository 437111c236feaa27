// What the shaders of a model's operators share: parameters as one uniform of words, bindings, sums over a workgroup.
import { bindings } from "../product.ts";

/** Words of a uniform, in order: u32, or f32 where the name ends in "$" (which the shader's name for it lacks). */
export type Fields = readonly string[];

const bare = (field: string): string => field.replace("$", "");

/** The struct and binding 0. */
const declare = (fields: Fields): string =>
  `struct Params { ${fields.map((field) => `${bare(field)}: ${field.endsWith("$") ? "f32" : "u32"}`).join(", ")} }`;

/** Values of the fields as words. Negative numbers wrap: offsets are added modulo 2^32. */
export function paramWords(fields: Fields, values: Readonly<Record<string, number>>): Uint32Array {
  const words = new Uint32Array(fields.length);
  const floats = new Float32Array(words.buffer);
  fields.forEach((field, i) => {
    const value = values[bare(field)];
    if (value === undefined) throw new RangeError(`shader parameters: expected ${fields.map(bare).join(", ")}, got no ${bare(field)}.`);
    if (field.endsWith("$")) floats[i] = value;
    else words[i] = value;
  });
  return words;
}

export type Bound = readonly [name: string, type: string, space?: "read_write"];

/** Parameters at binding 0 and buffers after it. */
export const header = (fields: Fields, buffers: readonly Bound[]): string =>
  `${declare(fields)}\n${bindings([
    ["params", "Params", "uniform"],
    ...buffers.map(([name, type, space]) => [name, type, space === "read_write" ? "storage, read_write" : "storage, read"] as const),
  ])}\n`;

/** Invocations of a workgroup. */
export const SIZE = 64;

/** Workgroups for one invocation per item. */
export const itemGroups = (items: number): number => Math.ceil(items / SIZE);

/** Number of an invocation among all, for kernels of one item each; it ends those beyond `count`. */
export const eachItem = (count: string): string =>
  `let number = (block.x + block.y * blocks.x) * ${SIZE}u + id; if (number >= ${count}) { return; }`;

/**
 * `NAME(v, id)`: the same result in all invocations of a workgroup, over every one's v. All of them must call it. Two
 * levels of eight, because barriers cost more than additions.
 */
export const overGroup = (name: string, op: (a: string, b: string) => string): string => `var<workgroup> red_${name}: array<f32, ${SIZE}>;
fn ${name}(v: f32, id: u32) -> f32 {
  red_${name}[id] = v;
  workgroupBarrier();
  if (id < 8u) {
    var part = red_${name}[id];
    for (var i = id + 8u; i < ${SIZE}u; i += 8u) { part = ${op("part", `red_${name}[i]`)}; }
    red_${name}[id] = part;
  }
  workgroupBarrier();
  var whole = red_${name}[0];
  for (var i = 1u; i < 8u; i++) { whole = ${op("whole", `red_${name}[i]`)}; }
  workgroupBarrier();
  return whole;
}
`;

export const groupSum = overGroup("total", (a, b) => `${a} + ${b}`);
export const groupMax = overGroup("largest", (a, b) => `max(${a}, ${b})`);
