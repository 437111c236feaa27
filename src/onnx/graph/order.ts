// The order of nodes: ONNX demands that a value is made before it is used; onnxruntime takes any order, and so does
// this package: it sorts.
import { LowbitError } from "../../../formats/core/errors.ts";
import type { NodeProto } from "../file/gen/onnx_pb.ts";
import type { Scope } from "./scopes.ts";
import { definingScope, inScope, nodeName, readsOf } from "./scopes.ts";

/**
 * Puts the nodes of every graph into an order in which values are made before they are used (stable: nodes keep their
 * order where they can). @returns true where something had to move @throws LowbitError E_ONNX on a cycle, or a value
 * that nothing makes
 */
export function sortNodes(scopes: readonly Scope[]): boolean {
  const reads = readsOf(scopes);
  let sorted = false;
  for (const scope of scopes) {
    const nodes = scope.graph.node;
    const position = new Map<NodeProto, number>(nodes.map((node, i) => [node, i]));
    const missing = nodes.map(() => 0);
    const users: number[][] = nodes.map(() => []);
    let inOrder = true;
    nodes.forEach((node, i) => {
      for (const name of reads(node)) {
        const producer = scope.producers.get(name);
        if (producer === undefined) {
          if (definingScope(scope, name) !== null) continue;
          throw new LowbitError(
            "E_ONNX",
            `node ${nodeName(node)}${inScope(scope)}: expected a value ${JSON.stringify(name)}, got no node, initializer or input that makes it. The model is damaged.`,
          );
        }
        const from = position.get(producer)!;
        users[from].push(i);
        missing[i]++;
        if (from >= i) inOrder = false;
      }
    });
    if (inOrder) continue;
    const order = stableOrder(missing, users);
    if (order.length < nodes.length) {
      const stuck = nodes.find((_, i) => missing[i] > 0)!;
      throw new LowbitError(
        "E_ONNX",
        `node ${nodeName(stuck)}${inScope(scope)}: expected an acyclic graph, got a cycle through it. The model is damaged.`,
      );
    }
    scope.graph.node = order.map((i) => nodes[i]);
    sorted = true;
  }
  return sorted;
}

/**
 * Kahn's algorithm with a binary heap: always the earliest node that is ready. Counts in `missing` go to zero for
 * ordered nodes.
 */
function stableOrder(missing: number[], users: readonly (readonly number[])[]): number[] {
  const heap: number[] = [];
  const push = (value: number): void => {
    let i = heap.push(value) - 1;
    while (i > 0 && heap[(i - 1) >> 1] > value) {
      heap[i] = heap[(i - 1) >> 1];
      i = (i - 1) >> 1;
    }
    heap[i] = value;
  };
  const pop = (): number => {
    const top = heap[0];
    const last = heap.pop()!;
    let i = 0;
    for (let child = 1; child < heap.length; child = 2 * i + 1) {
      if (heap[child + 1] < heap[child]) child++; // undefined behind the end is not less
      if (heap[child] >= last) break;
      heap[i] = heap[child];
      i = child;
    }
    if (heap.length > 0) heap[i] = last;
    return top;
  };
  missing.forEach((count, i) => count === 0 && push(i));
  const order: number[] = [];
  while (heap.length > 0) {
    const i = pop();
    order.push(i);
    for (const user of users[i]) if (--missing[user] === 0) push(user);
  }
  return order;
}
