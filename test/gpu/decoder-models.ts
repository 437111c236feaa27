// Small decoders whose attention is spelled out, as GPT-2 is exported: learned positions behind those of the past, one
// product for queries, keys and values, a causal mask that replaces.
import { encode, graph, model, node, raw, T, value, weights, type AttributeValue } from "../onnx/build.ts";

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
  const initializer: ReturnType<typeof raw>[] = [];
  const nodes: ReturnType<typeof node>[] = [];
  let seed = 1;
  const f32 = (name: string, dims: number[], gain = 1): string => {
    initializer.push(raw(name, dims, weights(dims.reduce((a, b) => a * b, 1), seed++).map((v) => gain * v))); // prettier-ignore
    return name;
  };
  const one = (name: string, v: number): string => {
    initializer.push(raw(name, [], Float32Array.of(v)));
    return name;
  };
  const i64 = (name: string, list: number[], dims = [list.length]): string => {
    initializer.push(raw(name, dims, BigInt64Array.from(list, BigInt), T.INT64));
    return name;
  };
  const put = (opType: string, input: string[], output: string, attributes: Record<string, AttributeValue> = {}): string => {
    nodes.push(node(opType, input, [output], attributes, output));
    return output;
  };
  const linear = (x: string, name: string, k: number, n: number): string =>
    put("Add", [put("MatMul", [x, f32(`${name}.w`, [k, n], 2)], `${name}/product`), f32(`${name}.b`, [n])], name);
  const norm = (x: string, name: string): string =>
    put("LayerNormalization", [x, f32(`${name}.w`, [hidden], 5), f32(`${name}.b`, [hidden])], name, { axis: -1n });

  for (const [i, name] of ["zero", "one", "two"].entries()) i64(name, [i], []);
  for (const [name, list] of Object.entries({ "head axis": [1], "row axis": [0], split: [0, 0, heads, size], join: [0, 0, hidden] }))
    i64(name, list);
  for (const [name, v] of Object.entries({ root: Math.sqrt(size), lowest: -3.4028234663852886e38, "near 1": 0.875 })) one(name, v);
  const length = (name: string, axis: string): string =>
    put("Gather", [put("Shape", [name], `${name}/shape`), axis], `${name}/length`, { axis: 0n });
  const past = length("past_key_values.0.key", "two");
  const total = put("Add", [past, length("input_ids", "one")], "total");
  const places = put("Range", [past, total, "one"], "places");
  const rows = put("Unsqueeze", [places, "head axis"], "rows");
  const seen = put("LessOrEqual", [put("Unsqueeze", [put("Range", ["zero", total, "one"], "keys"), "row axis"], "columns"), rows], "seen");
  const learned = put("Unsqueeze", [put("Gather", [f32("wpe", [positions, hidden]), places], "learned"), "row axis"], "learned1");
  let x = put("Add", [put("Gather", [f32("wte", [vocabulary, hidden]), "input_ids"], "tokens"), learned], "x0");
  const present = (fresh: string, name: string): string => {
    const join = (output: string): string => put("Concat", [`past_key_values.${name}`, fresh], output, { axis: 2n });
    const out = `present.${name}`;
    if (branch === true) {
      const with1 = node("Concat", [`past_key_values.${name}`, fresh], [`${name}/joined`], { axis: 2n });
      const without = node("Identity", [fresh], [`${name}/fresh`]);
      const of = (one: ReturnType<typeof node>) => graph({ node: [one], output: [value(one.output[0], T.FLOAT, ["b", heads, "t", size])] });
      return put("If", ["use_cache_branch"], out, { then_branch: of(with1), else_branch: of(without) });
    }
    return copied === true ? put("Identity", [join(`${name}/joined`)], out) : join(out);
  };
  for (let l = 0; l < layers; l++) {
    const p = `h.${l}`;
    const parts = [`${p}.q`, `${p}.k`, `${p}.v`];
    nodes.push(node("Split", [linear(norm(x, `${p}.ln1`), `${p}.qkv`, hidden, 3 * hidden)], parts, { axis: 2n, num_outputs: 3n }));
    const [q, k, v] = parts.map((part) =>
      put("Transpose", [put("Reshape", [part, "split"], `${part}/split`)], `${part}/heads`, { perm: { ints: [0, 2, 1, 3] } }),
    );
    const turned = put("Transpose", [present(k, `${l}.key`)], `${p}.kt`, { perm: { ints: [0, 1, 3, 2] } });
    const scores = put("Div", [put("MatMul", [q, turned], `${p}.qk`), "root"], `${p}.scores`);
    let weight = put("Softmax", [put("Where", [seen, scores, "lowest"], `${p}.masked`)], `${p}.p`, { axis: -1n });
    if (apart === true) weight = put("Mul", [weight, "near 1"], `${p}.less`);
    const context = put("MatMul", [weight, present(v, `${l}.value`)], `${p}.ctx`);
    const flat = put("Reshape", [put("Transpose", [context], `${p}.ctxt`, { perm: { ints: [0, 2, 1, 3] } }), "join"], `${p}.flat`);
    x = put("Add", [x, linear(flat, `${p}.o`, hidden, hidden)], `${p}.mid`);
    const up = linear(norm(x, `${p}.ln2`), `${p}.up`, hidden, 2 * hidden);
    const act = odd === true ? put("Sin", [up], `${p}.act`) : put("Mul", [up, put("Sigmoid", [up], `${p}.sig`)], `${p}.act`);
    x = put("Add", [x, linear(act, `${p}.down`, 2 * hidden, hidden)], `${p}.out`);
  }
  put("MatMul", [norm(x, "final"), f32("head", [hidden, vocabulary], 2)], "logits");
  const each = (prefix: string, length1: string) =>
    Array.from({ length: 2 * layers }, (_, i) =>
      value(`${prefix}.${i >> 1}.${i & 1 ? "value" : "key"}`, T.FLOAT, ["batch", heads, length1, size]),
    );
  return encode(
    model(
      graph({
        input: [
          value("input_ids", T.INT64, ["batch", "tokens"]),
          ...(branch === true ? [value("use_cache_branch", T.BOOL, [1])] : []),
          ...each("past_key_values", "past"),
        ],
        output: [value("logits", T.FLOAT, ["batch", "tokens", vocabulary]), ...each("present", "total")],
        initializer,
        node: nodes,
      }),
      { opset: 18 },
    ),
  );
}
