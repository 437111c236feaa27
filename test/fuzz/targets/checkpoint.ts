// Folders of quantized checkpoints: config.json and safetensors, one file or shards, of every method.
import { dequantize } from "../../../src/index.ts";
import { importCheckpoint, safetensorsBytes, type SafeContent } from "../../../src/interop/index.ts";
import type { FuzzTarget } from "../fuzz.ts";
import { archive, damageFolder, filled, json, withFolder, type Folder } from "./folder.ts";

const WORDS = [
  ...["gptq", "awq", "compressed-tensors", "bitsandbytes", "torchao", "gptq_v2", "quant_method", "bits", "w_bit", "num_bits"],
  ...["float", "int", "Linear", "re:.*proj", "re:(a+)+$", "re:(", "re:(.*)*x", "m.proj", "weight", "m.proj.weight", "weight_packed"],
  ...["I8", "U8", "I32", "I64", "F16", "BF16", "F32", "F8_E4M3", "F8_E8M0", "nf4", "fp4", "../x.safetensors", "model.safetensors"],
  ...["Int4Tensor", "Int8Tensor", "Float8Tensor", "int4", "g_idx", "__metadata__", "weight_map"],
];

const [N, K] = [16, 64];
/** float16 codes near one, or bytes of any other type. */
const content = (dtype: string, shape: number[], bytes: number): SafeContent => {
  const count = shape.reduce((a, b) => a * b, 1);
  const data = filled(count * bytes, count + bytes);
  if (dtype === "F16") for (let i = 1; i < data.length; i += 2) data[i] = 0x30 + (data[i] & 7);
  return { dtype, shape, bytes: data };
};
const i32 = (...shape: number[]): SafeContent => content("I32", shape, 4);
const f16 = (...shape: number[]): SafeContent => content("F16", shape, 2);
const f32 = (values: readonly number[], shape = [values.length]): SafeContent => ({
  dtype: "F32",
  shape,
  bytes: new Uint8Array(Float32Array.from(values).buffer),
});
const utf8 = (value: unknown): SafeContent => ({ dtype: "U8", shape: [json(value).length], bytes: json(value) });
const NF4 = [
  -1, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334, -0.09105003625154495,
  0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
  0.7229568362236023, 1,
]; // prettier-ignore

const groups = (weights: Record<string, unknown>) => ({
  quant_method: "compressed-tensors",
  config_groups: { group_0: { targets: ["Linear", "re:.*proj"], weights } },
});
const torchao = (type: string, data: Record<string, unknown>): Record<string, string> => ({
  tensor_names: JSON.stringify(["m.proj.weight"]),
  "m.proj.weight": JSON.stringify({ _type: type, _data: data }),
});

type Case = readonly [
  quantization: Record<string, unknown>,
  tensors: Readonly<Record<string, SafeContent>>,
  metadata?: Record<string, string>,
];

const order: SafeContent = { dtype: "I32", shape: [K], bytes: new Uint8Array(Int32Array.from({ length: K }, (_, j) => j % 2).buffer) };

const CASES: readonly Case[] = [
  [
    { quant_method: "gptq", bits: 4, group_size: 32, checkpoint_format: "gptq" },
    { qweight: i32(K / 8, N), qzeros: i32(2, N / 8), scales: f16(2, N), g_idx: order },
  ],
  [{ quant_method: "gptq", bits: 3, checkpoint_format: "gptq_v2" }, { qweight: i32(6, 32), qzeros: i32(2, 3), scales: f16(2, 32) }],
  [{ quant_method: "awq", bits: 4 }, { qweight: i32(K, N / 8), qzeros: i32(2, N / 8), scales: f16(2, N) }],
  [
    groups({ num_bits: 4, type: "int", group_size: 32, symmetric: false }),
    {
      weight_packed: i32(N, K / 8),
      weight_scale: f16(N, 2),
      weight_zero_point: i32(N / 8, 2),
      weight_shape: { dtype: "I64", shape: [2], bytes: new Uint8Array(BigInt64Array.of(BigInt(N), BigInt(K)).buffer) },
    },
  ],
  [groups({ num_bits: 8, type: "float" }), { weight: content("F8_E4M3", [N, K], 1), weight_scale: f16(N, 1) }],
  [
    groups({ num_bits: 4, type: "float" }),
    { weight_packed: content("U8", [N, K / 2], 1), weight_scale: content("F8_E4M3", [N, K / 16], 1), weight_global_scale: f32([3]) },
  ],
  [groups({ num_bits: 4, type: "float" }), { weight_packed: content("U8", [N, K / 2], 1), weight_scale: content("U8", [N, K / 32], 1) }],
  [
    { quant_method: "bitsandbytes", load_in_4bit: true },
    {
      weight: content("U8", [(N * K) / 2, 1], 1),
      "weight.absmax": content("U8", [(N * K) / 64], 1),
      "weight.quant_map": f32(NF4),
      "weight.nested_absmax": f32([1]),
      "weight.nested_quant_map": f32(Array.from({ length: 256 }, (_, i) => i / 255)),
      "weight.quant_state.bitsandbytes__nf4": utf8({
        ...{ quant_type: "nf4", blocksize: 64, shape: [N, K], dtype: "float16" },
        ...{ nested_blocksize: 256, nested_offset: 0.1 },
      }),
    },
  ],
  [{ quant_method: "bitsandbytes", load_in_8bit: true }, { weight: content("I8", [N, K], 1), SCB: f32(Array.from({ length: N }, () => 2)) }],
  [
    { quant_method: "torchao" },
    { _weight_qdata: content("I8", [N, K / 2], 1), _weight_scale: f16(2, N), _weight_zero_point: f16(2, N) },
    torchao("Int4Tensor", { block_size: [1, 32], shape: [N, K] }),
  ],
  [
    { quant_method: "torchao" },
    { _weight_qdata: content("I8", [N, K], 1), _weight_scale: f16(N, 2), _weight_zero_point: content("I8", [N, 2], 1) },
    torchao("IntxUnpackedToInt8Tensor", { block_size: [1, 32], target_dtype: { _type: "torch.dtype", _data: "int8" } }),
  ],
  [
    { quant_method: "torchao" },
    { _weight_qdata: content("F8_E4M3", [N, K], 1), _weight_scale: f32(Array.from({ length: N }, () => 0.5), [N, 1]) },
    torchao("Float8Tensor", { block_size: [1, K] }),
  ],
]; // prettier-ignore

/** Every case as one file, and as an index of two shards. */
async function folders(): Promise<Folder[]> {
  const out: Folder[] = [];
  for (const [quantization, parts, metadata] of CASES) {
    const config = json({ model_type: "llama", quantization_config: quantization });
    const named = Object.entries(parts).map(([part, t]) => [`m.proj.${part}`, t] as const);
    const rest = { "m.norm.weight": f32([1, 2, 3]), "m.proj.bias": f32(Array.from({ length: N }, () => 1)) };
    const all = { ...Object.fromEntries(named), ...rest };
    out.push({ "config.json": config, "model.safetensors": await safetensorsBytes({ metadata, tensors: all }) });
    if (metadata !== undefined) continue;
    const shards = ["model-1.safetensors", "model-2.safetensors"];
    const weightMap = Object.fromEntries(Object.keys(all).map((name, i) => [name, shards[i % 2]]));
    const shard = (which: string) =>
      safetensorsBytes({ tensors: Object.fromEntries(Object.entries(all).filter(([name]) => weightMap[name] === which)) });
    const index = json({ metadata: { total_size: 1000 }, weight_map: weightMap });
    out.push({ "config.json": config, "model.safetensors.index.json": index, [shards[0]]: await shard(shards[0]), [shards[1]]: await shard(shards[1]) }); // prettier-ignore
  }
  return out;
}
const seeds = await folders();

export const checkpoint: FuzzTarget = {
  name: "checkpoint",
  runs: 300,
  make(rng) {
    const folder = seeds[rng.integer(seeds.length)];
    return rng.next() < 0.03 ? archive(folder) : damageFolder(rng, folder, WORDS);
  },
  run: (input) =>
    withFolder(input, async (folder) => {
      const found = await importCheckpoint(folder);
      try {
        for (const read of found.layers.values()) dequantize((await read()).packed);
        for (const t of found.tensors.values()) await t.elements();
      } finally {
        await found.close();
      }
      return undefined;
    }),
};
