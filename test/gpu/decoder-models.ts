// Small decoders whose attention is spelled out, as GPT-2 is exported: learned positions behind those of the past, one
// product for queries, keys and values, a causal mask that replaces.
import { encode, graph, model, node, T, value } from "../onnx/build.ts";
import { Written } from "../onnx/written.ts";
import { cacheValues } from "../runtime/spelled.ts";

export const GPT = { hidden: 48, heads: 3, kvHeads: 3, size: 16, layers: 2, vocabulary: 80, positions: 160 };

/** What its exporter, or a pass, made of it. */
export interface Form {
  /** Something between Softmax and values: attention is no pattern. */
  readonly apart?: boolean;
  /** Caches leave behind an Identity: no Concat gives them. */
  readonly copied?: boolean;
  /** An operator that has no kernel on a device. */
  readonly odd?: boolean;
  /** `use_cache_branch` decides whether past tokens are joined. */
  readonly branch?: boolean;
}

export function gptModel({ apart, copied, odd, branch }: Form = {}): Uint8Array {
  const { hidden, heads, size, layers, vocabulary, positions } = GPT;
  const b = new Written();
  const linear = (x: string, name: string, k: number, n: number): string => b.linear(x, name, k, n, 2);
  const norm = (x: string, name: string): string => b.norm(x, name, hidden, 5);
  for (const [i, name] of ["zero", "one", "two"].entries()) b.ints(name, [i], []);
  for (const [name, list] of Object.entries({ "head axis": [1], "row axis": [0], split: [0, 0, heads, size], join: [0, 0, hidden] }))
    b.ints(name, list);
  for (const [name, v] of Object.entries({ root: Math.sqrt(size), lowest: -3.4028234663852886e38, "near 1": 0.875 })) b.number(name, v);
  const length = (name: string, axis: string): string =>
    b.put("Gather", [b.put("Shape", [name], `${name}/shape`), axis], `${name}/length`, { axis: 0n });
  const past = length("past_key_values.0.key", "two");
  const total = b.put("Add", [past, length("input_ids", "one")], "total");
  const places = b.put("Range", [past, total, "one"], "places");
  const rows = b.put("Unsqueeze", [places, "head axis"], "rows");
  const seen = b.put(
    "LessOrEqual",
    [b.put("Unsqueeze", [b.put("Range", ["zero", total, "one"], "keys"), "row axis"], "columns"), rows],
    "seen",
  );
  const learned = b.put("Unsqueeze", [b.put("Gather", [b.weight("wpe", [positions, hidden]), places], "learned"), "row axis"], "learned1");
  let x = b.put("Add", [b.put("Gather", [b.weight("wte", [vocabulary, hidden]), "input_ids"], "tokens"), learned], "x0");
  const present = (fresh: string, name: string): string => {
    const join = (output: string): string => b.put("Concat", [`past_key_values.${name}`, fresh], output, { axis: 2n });
    const out = `present.${name}`;
    if (branch === true) {
      const with1 = node("Concat", [`past_key_values.${name}`, fresh], [`${name}/joined`], { axis: 2n });
      const without = node("Identity", [fresh], [`${name}/fresh`]);
      const of = (one: ReturnType<typeof node>) => graph({ node: [one], output: [value(one.output[0], T.FLOAT, ["b", heads, "t", size])] });
      return b.put("If", ["use_cache_branch"], out, { then_branch: of(with1), else_branch: of(without) });
    }
    return copied === true ? b.put("Identity", [join(`${name}/joined`)], out) : join(out);
  };
  for (let l = 0; l < layers; l++) {
    const p = `h.${l}`;
    const parts = [`${p}.q`, `${p}.k`, `${p}.v`];
    b.nodes.push(node("Split", [linear(norm(x, `${p}.ln1`), `${p}.qkv`, hidden, 3 * hidden)], parts, { axis: 2n, num_outputs: 3n }));
    const [q, k, v] = parts.map((part) =>
      b.put("Transpose", [b.put("Reshape", [part, "split"], `${part}/split`)], `${part}/heads`, { perm: { ints: [0, 2, 1, 3] } }),
    );
    const turned = b.put("Transpose", [present(k, `${l}.key`)], `${p}.kt`, { perm: { ints: [0, 1, 3, 2] } });
    const scores = b.put("Div", [b.put("MatMul", [q, turned], `${p}.qk`), "root"], `${p}.scores`);
    let weight = b.put("Softmax", [b.put("Where", [seen, scores, "lowest"], `${p}.masked`)], `${p}.p`, { axis: -1n });
    if (apart === true) weight = b.put("Mul", [weight, "near 1"], `${p}.less`);
    const context = b.put("MatMul", [weight, present(v, `${l}.value`)], `${p}.ctx`);
    const flat = b.put("Reshape", [b.put("Transpose", [context], `${p}.ctxt`, { perm: { ints: [0, 2, 1, 3] } }), "join"], `${p}.flat`);
    x = b.put("Add", [x, linear(flat, `${p}.o`, hidden, hidden)], `${p}.mid`);
    const up = linear(norm(x, `${p}.ln2`), `${p}.up`, hidden, 2 * hidden);
    const act = odd === true ? b.put("Sin", [up], `${p}.act`) : b.put("Mul", [up, b.put("Sigmoid", [up], `${p}.sig`)], `${p}.act`);
    x = b.put("Add", [x, linear(act, `${p}.down`, 2 * hidden, hidden)], `${p}.out`);
  }
  b.put("MatMul", [norm(x, "final"), b.weight("head", [hidden, vocabulary], 2)], "logits");
  const each = (prefix: string, tokens: string) => cacheValues(prefix, tokens, GPT);
  return encode(
    model(
      graph({
        input: [
          value("input_ids", T.INT64, ["batch", "tokens"]),
          ...(branch === true ? [value("use_cache_branch", T.BOOL, [1])] : []),
          ...each("past_key_values", "past"),
        ],
        output: [value("logits", T.FLOAT, ["batch", "tokens", vocabulary]), ...each("present", "total")],
        initializer: b.tensors,
        node: b.nodes,
      }),
      { opset: 18 },
    ),
  );
}
