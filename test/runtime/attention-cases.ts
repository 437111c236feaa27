// Attention and rotary embedding: heads in groups, caches of either convention, masks, windows, caps, sinks.
import { raw, T, type AttributeValue } from "../onnx/build.ts";
import { f32, i64, ids, numbers, type Case, type Make } from "./make.ts";

const HEAD = 16;
const i32 = (dims: number[], values: number[]) => ({ type: "int32", dims, data: Int32Array.from(values) });
const tables = (rotated: number, rows = 24) =>
  ["cos", "sin"].map((name, i) => raw(name, [rows, rotated / 2], numbers(i + 5, (rows * rotated) / 2, -1, 1)));

interface Grouped {
  /** Tokens before these. */
  readonly past?: number;
  /** Rows of the cache that is fed; default `past`. */
  readonly room?: number;
  readonly packed?: boolean;
  readonly rotary?: boolean;
  readonly positions?: boolean;
  readonly bias?: boolean;
  readonly sink?: boolean;
  readonly attributes?: Record<string, AttributeValue>;
}

/** `a` sequences, `b` tokens of a prompt or one token after some, 2 kv heads of `c` query heads each. */
const grouped =
  ({ past = 0, room = past, packed, rotary, positions, bias, sink, attributes = {} }: Grouped): Make =>
  (s, a, b, c) => {
    const tokens = past === 0 ? b + 1 : 1;
    const [batch, kv, heads] = [a, 2, 2 * c];
    const total = past + tokens;
    const feeds: Record<string, Case["feeds"][string]> = packed
      ? { q: f32(s, [batch, tokens, (heads + 2 * kv) * HEAD]) }
      : {
          q: f32(s, [batch, tokens, heads * HEAD]),
          k: f32(s + 1, [batch, tokens, kv * HEAD]),
          v: f32(s + 2, [batch, tokens, kv * HEAD]),
        };
    feeds.pk = f32(s + 3, [batch, kv, room, HEAD]);
    feeds.pv = f32(s + 4, [batch, kv, room, HEAD]);
    feeds.len = i32([batch], new Array(batch).fill(total - 1));
    const initializer = [raw("total", [], Int32Array.of(total), T.INT32), ...(rotary ? tables(HEAD) : [])];
    // onnxruntime reads the first position of a prompt only
    if (positions)
      feeds.pos = i64(
        [batch, tokens],
        new Array(batch * tokens).fill(0).map((_, i) => 2 + (i % tokens)),
      );
    if (bias) feeds.bias = f32(s + 5, [1, heads, tokens, total]);
    if (sink) initializer.push(raw("sink", [heads], numbers(s + 6, heads)));
    const on = (is: boolean | undefined, name: string) => (is ? name : "");
    const order = ["q", on(!packed, "k"), on(!packed, "v"), "pk", "pv", "len", "total", on(rotary, "cos"), on(rotary, "sin")];
    order.push(on(positions, "pos"), on(bias, "bias"), on(sink, "sink"));
    while (order.at(-1) === "") order.pop();
    return {
      feeds,
      initializer,
      order,
      outputs: ["y", "k2", "v2"],
      // rows of a cache beyond the tokens are undefined
      ...(room > past ? { results: ["y"] } : {}),
      attributes: { num_heads: BigInt(heads), kv_num_heads: BigInt(kv), do_rotary: rotary ? 1n : 0n, ...attributes },
    };
  };

const multi =
  (extra: (s: number, batch: number, heads: number, tokens: number) => Partial<Case> & { names?: string[] }, cross = false): Make =>
  (s, a, b, c) => {
    const [heads, tokens] = [c, b];
    const d = heads * HEAD;
    const more = extra(s, a, heads, tokens);
    return {
      feeds: {
        q: f32(s, [a, tokens, d]),
        k: f32(s + 1, cross ? [a, heads, 3, HEAD] : [a, tokens, d]),
        v: f32(s + 2, cross ? [a, heads, 3, HEAD] : [a, tokens, d]),
        ...more.feeds,
      },
      initializer: more.initializer ?? [],
      order: ["q", "k", "v", ...(more.names ?? [])],
      outputs: more.outputs ?? ["y"],
      attributes: { num_heads: BigInt(heads), ...more.attributes },
    };
  };

const turn =
  (dims: (a: number, b: number, c: number) => number[], attributes: Record<string, AttributeValue>, offset = false): Make =>
  (s, a, b, c) => ({
    feeds: { x: f32(s, dims(a, b, c)), p: offset ? { type: "int64", dims: [1], data: BigInt64Array.of(3n) } : ids(s, [a, b], 20) },
    initializer: tables(HEAD),
    order: ["x", "p", "cos", "sin"],
    attributes,
  });

export const attentionCases: Record<string, Make[]> = {
  "com.microsoft.GroupQueryAttention": [
    grouped({}),
    grouped({ past: 5 }),
    grouped({ past: 5, room: 9 }),
    grouped({ packed: true, rotary: true }),
    grouped({ past: 3, packed: true, rotary: true, attributes: { rotary_interleaved: 1n } }),
    grouped({ rotary: true, positions: true }),
    grouped({ bias: true, attributes: { scale: 0.7, softcap: 3 } }),
    grouped({ past: 6, attributes: { local_window_size: 3n } }),
    grouped({ attributes: { local_window_size: 2n } }),
    grouped({ past: 4, attributes: { smooth_softmax: 1n } }),
    grouped({ sink: true }),
  ],
  "com.microsoft.MultiHeadAttention": [
    multi(() => ({})),
    multi((s, _, heads) => ({ names: ["b"], initializer: [raw("b", [3 * heads * HEAD], numbers(s, 3 * heads * HEAD))] })),
    multi((_s, a, _h, tokens) => ({ feeds: { m: i32([a, tokens], new Array(a * tokens).fill(1)) }, names: ["", "m"] })),
    multi((_s, a, _h, tokens) => ({ feeds: { m: i32([a], new Array(a).fill(Math.ceil(tokens / 2))) }, names: ["", "m"] })),
    multi((s, a, heads, tokens) => ({
      feeds: {
        bias: f32(s, [1, heads, tokens, tokens + 3]),
        pk: f32(s + 1, [a, heads, 3, HEAD]),
        pv: f32(s + 2, [a, heads, 3, HEAD]),
      },
      names: ["", "", "bias", "pk", "pv"],
      outputs: ["y", "k2", "v2"],
    })),
    multi(() => ({ attributes: { unidirectional: 1n, scale: 0.3 } })),
    multi(() => ({}), true),
  ],
  "com.microsoft.RotaryEmbedding": [
    turn((a, b, c) => [a, b, c * HEAD], { num_heads: 0n }),
    turn((a, b, c) => [a, c, b, HEAD], { interleaved: 1n }),
    turn((a, b, c) => [a, c, b, HEAD], {}, true),
    (s, a, b, c) => ({
      ...turn((x, y, z) => [x, y, z * 2 * HEAD], { rotary_embedding_dim: BigInt(HEAD), num_heads: BigInt(c) })(s, a, b, c),
    }),
  ],
  RotaryEmbedding: [
    (s, a, b, c) => ({
      ...turn((x, y, z) => [x, z, y, HEAD], {})(s, a, b, c),
      order: ["x", "cos", "sin", "p"],
      opset: 23,
    }),
    (s, a, b, c) => ({
      feeds: { x: f32(s, [a, b, c * HEAD]), cos: f32(s + 1, [a, b, HEAD / 2]), sin: f32(s + 2, [a, b, HEAD / 2]) },
      attributes: { num_heads: BigInt(c), interleaved: 1n },
      opset: 23,
    }),
  ],
};
