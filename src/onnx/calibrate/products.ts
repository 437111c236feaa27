// Sums of outer products of activations, sum a b^T, by onnxruntime: its float32 product is some ten times as fast as
// float64 in WebAssembly, and calibration spends most of its time there. Sums are float32 over panels of tokens and
// float64 between them; the inputs are float32 anyway, and dampings are far above what that leaves (about 1e-7).
import { create, toBinary } from "@bufbuild/protobuf";
import { ModelProtoSchema, TensorProto_DataType as T, ValueInfoProtoSchema, type ValueInfoProto } from "../file/gen/onnx_pb.ts";
import { intAttribute, makeNode } from "../graph/graph.ts";
import { openSession, type Session } from "../session.ts";

/** Tokens that are summed in float32. */
const PANEL = 1024;
/** Multiplications below which a run of its own (some 0.1 ms) is not worth it. */
const SMALL = 1 << 21;

/** Products of two sets of tokens, [tokens * k] each: sum a b^T, [k * k]; null where the caller does as well. */
export interface Products {
  of(a: Float32Array, b: Float32Array, k: number): Promise<Float64Array<ArrayBuffer> | null>;
  close(): Promise<void>;
}

const matrix = (name: string): ValueInfoProto =>
  create(ValueInfoProtoSchema, {
    name,
    type: { value: { case: "tensorType", value: { elemType: T.FLOAT, shape: { dim: [{}, {}] } } } },
  });

/** c = a^T b. */
function gramModel(): Uint8Array {
  const node = makeNode("Gemm", ["a", "b"], ["c"], { name: "gram", attributes: [intAttribute("transA", 1)] });
  return toBinary(
    ModelProtoSchema,
    create(ModelProtoSchema, {
      irVersion: 7n,
      opsetImport: [{ domain: "", version: 13n }],
      graph: { name: "gram", node: [node], input: [matrix("a"), matrix("b")], output: [matrix("c")] },
    }),
  );
}

/** Products by a session that is opened when it is first needed. */
export function openProducts(): Products {
  let session: Session | undefined;
  return {
    async of(a, b, k) {
      const tokens = a.length / k;
      if (tokens * k * k < SMALL) return null;
      session ??= await openSession(gramModel(), {
        label: "calibration",
        remedy: "Give less data at a time.",
        threads: 1, // the model runs beside it, and threads that wait for work spin
      });
      const sum = new Float64Array(k * k);
      for (let t = 0; t < tokens; t += PANEL) {
        const panel = (x: Float32Array) => {
          const data = x.subarray(t * k, Math.min(tokens, t + PANEL) * k);
          return { type: "float32", data, dims: [data.length / k, k] };
        };
        const { c } = await session.run({ a: panel(a), b: panel(b) });
        const part = c.data as Float32Array;
        for (let i = 0; i < sum.length; i++) sum[i] += part[i];
      }
      return sum;
    },
    close: async () => session?.release(),
  };
}
