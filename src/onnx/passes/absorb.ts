// Scales of channels that products read, taken out of what is before them: the division by s goes into a norm's gain,
// the rows of a linear layer, or through ReLU, products by elements and attention to one of these. What SmoothQuant and
// AWQ share.
import { divideRows, scaleColumns } from "../../quantize/equalize.ts";
import { writeConstant } from "../edit.ts";
import { readFloats } from "../file/values.ts";
import { isDefaultDomain, resolveConstant, type Scope } from "../graph/graph.ts";
import { readBias, readMatrix, writeBias, writeWeight, type ModelLayer } from "../primitives.ts";
import { attentionValue, readOnce } from "./attention.ts";
import { destinations, isProduct, scalarOf, vectorSize, type Norm, type VectorInput } from "./norms.ts";
import type { PassContext } from "./types.ts";

/** Operators that a positive factor per channel passes; Reshape, where a layer with as many outputs is before it. */
const ALONG: ReadonlySet<string> = new Set(["Relu", "LeakyRelu", "Identity", "Cast", "Dropout", "Reshape"]);

/** Something that can give its outputs divided by a factor per channel. */
export interface Absorber {
  readonly what: string;
  divide(factors: Float64Array): void;
}

/** Products that read one value, all the value's readers, and what can take the factors. */
export interface ScaleGroup {
  readonly scope: Scope;
  readonly value: string;
  readonly products: readonly ModelLayer[];
  readonly absorber: Absorber;
}

function divideVector(context: PassContext, scope: Scope, vector: VectorInput, s: Float64Array): void {
  const { tensor } = resolveConstant(scope, vector.node.input[vector.input])!;
  writeConstant(
    context.model,
    scope,
    vector.node,
    vector.input,
    readFloats(context.model, tensor).map((v, j) => v / s[j]),
  );
}

/** A layer gives its outputs divided; a bias in an Add behind a MatMul with them. */
function divideLayer(context: PassContext, layer: ModelLayer, s: Float64Array): void {
  const { model } = context;
  const { rows, k } = layer;
  const divided = divideRows({ weight: readMatrix(model, layer), rows, k, bias: readBias(model, layer) }, s);
  writeWeight(model, layer, divided.weight);
  if (divided.bias !== null) writeBias(model, layer, divided.bias);
}

const normAbsorber = (context: PassContext, norm: Norm): Absorber => ({
  what: `norm ${norm.output}`,
  divide(s) {
    divideVector(context, norm.scope, norm.gain!, s);
    if (norm.bias !== null) divideVector(context, norm.scope, norm.bias, s);
  },
});

/** What can divide `value`, whose readers are all known; null where nothing can. */
function findAbsorber(context: PassContext, scope: Scope, value: string, size: number, norms: readonly Norm[]): Absorber | null {
  interface Step {
    readonly at: string;
    /** Additions on the way, which are divided too. */
    readonly vectors: readonly VectorInput[];
  }
  const pending: Step[] = [{ at: value, vectors: [] }];
  for (let step = pending.pop(), tries = 0; step !== undefined && tries < 32; step = pending.pop(), tries++) {
    const { at, vectors } = step;
    const along = (found: Absorber): Absorber => ({
      what: found.what,
      divide(s) {
        found.divide(s);
        for (const vector of vectors) divideVector(context, scope, vector, s);
      },
    });
    const node = scope.producers.get(at);
    if (node === undefined || (at !== value && !readOnce(context, scope, at))) continue;
    const norm = norms.find((n) => n.scope === scope && n.output === at && n.gain !== null && n.size === size);
    if (norm !== undefined) return along(normAbsorber(context, norm));
    const layer = context.layerOf.get(node);
    if (isProduct(layer) && layer.rows === size) return along({ what: layer.name, divide: (s) => divideLayer(context, layer, s) });
    if (!isDefaultDomain(node)) continue;
    if (ALONG.has(node.opType)) {
      pending.push({ at: node.input[0], vectors });
    } else if (node.opType === "Add") {
      const vector = [0, 1].find((i) => vectorSize(scope, node.input[i]) === size);
      if (vector === undefined) continue;
      const other = node.input[1 - vector];
      const maker = context.layerOf.get(scope.producers.get(other));
      // The bias of a MatMul: readBias finds it there.
      const own = isProduct(maker) && maker.rows === size && maker.opType === "MatMul" && readOnce(context, scope, other);
      pending.push({ at: other, vectors: own ? vectors : [...vectors, { node, input: vector }] });
    } else if (node.opType === "Mul") {
      const vector = [0, 1].find((i) => vectorSize(scope, node.input[i]) === size);
      if (vector !== undefined)
        return along({ what: `Mul ${at}`, divide: (s) => divideVector(context, scope, { node, input: vector }, s) });
      const scalar = [0, 1].find((i) => scalarOf(context, scope, node.input[i]) !== undefined);
      if (scalar !== undefined) pending.push({ at: node.input[1 - scalar], vectors });
      // One factor of the two is divided; the second operand first, which is the linear one of gated units.
      else if (node.input[0] !== node.input[1]) pending.push({ at: node.input[0], vectors }, { at: node.input[1], vectors });
    }
  }
  return null;
}

/** Groups of products with what can take their factors, and how many products have none. */
export function scaleGroups(context: PassContext, norms: readonly Norm[]): { groups: ScaleGroup[]; without: ModelLayer[] } {
  const groups: ScaleGroup[] = [];
  const covered = new Set<ModelLayer>();
  const without: ModelLayer[] = [];
  for (const layer of context.layers) {
    if (!isProduct(layer) || covered.has(layer)) continue;
    const group = groupOf(context, layer, norms);
    if (group === null) without.push(layer);
    else {
      groups.push(group);
      for (const product of group.products) covered.add(product);
    }
  }
  return { groups, without };
}

function groupOf(context: PassContext, layer: ModelLayer, norms: readonly Norm[]): ScaleGroup | null {
  const { scope, k } = layer;
  let value = layer.activation;
  // Back over the Reshape or Cast before a product: the values there have the same channels, but more readers.
  for (let steps = 0; steps < 3; steps++) {
    const { products, others } = destinations(context, scope, value, k);
    if (others.length > 0 || !products.includes(layer)) return null;
    const attention = products.length === 1 ? attentionValue(context, layer) : null;
    const absorber =
      attention === null
        ? findAbsorber(context, scope, value, k, norms)
        : { what: attention.layer.name, divide: (s: Float64Array) => divideLayer(context, attention.layer, s) };
    if (absorber !== null) return { scope, value, products, absorber };
    const node = scope.producers.get(value);
    if (node === undefined || !isDefaultDomain(node) || !["Reshape", "Cast", "Identity", "Flatten"].includes(node.opType)) return null;
    value = node.input[0];
  }
  return null;
}

/** Moves the factors: out of the inputs, into the columns of the products. */
export function moveFactors(context: PassContext, group: ScaleGroup, s: Float64Array): void {
  const { model } = context;
  for (const layer of group.products) {
    const { rows, k } = layer;
    writeWeight(model, layer, scaleColumns({ weight: readMatrix(model, layer), rows, k }, s).weight);
  }
  group.absorber.divide(s);
}

/** Notes what was and was not done. */
export function noteGroups(context: PassContext, groups: readonly ScaleGroup[], without: readonly ModelLayer[], what: string): void {
  const products = groups.reduce((n, group) => n + group.products.length, 0);
  if (groups.length > 0) context.note(`${what} of ${products} products in ${groups.length} groups folded into what is before them`);
  else context.note("no products were found whose scales something before them can take; nothing changed");
  if (without.length > 0 && groups.length > 0)
    context.note(
      `${without.length} products stay, nothing before them can take scales: ${without
        .map(({ name }) => name)
        .slice(0, 4)
        .join(", ")}${without.length > 4 ? " ..." : ""}`,
    );
}
