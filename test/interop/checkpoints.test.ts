// Quantized checkpoints, packed here by the rules of each format (comments beside), apart from the reader: codes and
// values come in exactly.
import { mkdtempSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { dequantize } from "../../src/index.ts";
import {
  checkpointOf,
  importCheckpoint,
  readSafetensors,
  safetensorsBytes,
  writeSafetensors,
  type ImportedLayer,
  type SafeContent,
} from "../../src/interop/index.ts";
import { half } from "../oracle/ggml.ts";
import { random } from "../helpers/random.ts";

const folder = mkdtempSync(join(tmpdir(), "lowbit-checkpoint-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const refuse = (code: string) => expect.objectContaining({ code });
const bytesOf = (a: ArrayBufferView) => new Uint8Array(a.buffer, a.byteOffset, a.byteLength);
const i32 = (data: Int32Array, shape: number[]): SafeContent => ({ dtype: "I32", shape, bytes: bytesOf(data) });
const zeros32 = (shape: number[]): SafeContent => i32(new Int32Array(shape.reduce((a, b) => a * b)), shape);
const rng = random(8);
const integers = (n: number, below: number) => Array.from({ length: n }, () => rng.integer(below));
/** float16 codes of positive numbers near one. */
const halves = (n: number) => Uint16Array.from({ length: n }, () => 0x3000 + rng.integer(0x800));

async function layer(quantization: Record<string, unknown>, tensors: Record<string, SafeContent>): Promise<ImportedLayer> {
  const named = Object.fromEntries(Object.entries(tensors).map(([part, t]) => [`m.0.proj.${part}`, t]));
  const checkpoint = checkpointOf({}, quantization, await readSafetensors(await safetensorsBytes({ tensors: named })));
  expect([...checkpoint.layers.keys()]).toEqual(["m.0.proj"]);
  return checkpoint.layers.get("m.0.proj")!();
}
// zeros of one sign
const values = (l: ImportedLayer) => [...dequantize(l.packed)].map((v) => v + 0);
const f32 = Math.fround;

/** Fields of `bits` bits side by side in a stream of bits, the lowest first, in 32-bit words. */
function stream(fields: number[], bits: number): number[] {
  const words = new Array<number>(Math.ceil((fields.length * bits) / 32)).fill(0);
  fields.forEach((v, i) => {
    for (let b = 0; b < bits; b++) if ((v >> b) & 1) words[(i * bits + b) >> 5] |= 1 << ((i * bits + b) & 31);
  });
  return words;
}

test.each(
  [2, 3, 4, 8].flatMap(
    (bits) =>
      [
        ["gptq", bits],
        ["gptq_v2", bits],
      ] as const,
  ),
)("GPTQ: %s, %d bits, with activation order", async (version, bits) => {
  const [n, k, span] = [32, 64, 16];
  const groups = k / span;
  const q = integers(n * k, 2 ** bits); // [n, k]
  const scales = halves(groups * n); // [groups, n]
  // v1 stores zero points less one, so that they lie in 1 .. 2^bits
  const zeros = integers(groups * n, bits === 8 ? 255 : 2 ** bits).map((z) => (version === "gptq" ? z + 1 : z));
  // qweight [k bits / 32, n]: each column is a stream of its k codes
  const columns = Array.from({ length: n }, (_, r) => stream(q.slice(r * k, (r + 1) * k), bits));
  const qweight = Int32Array.from({ length: (k * bits * n) / 32 }, (_, i) => columns[i % n][Math.floor(i / n)]);
  const qzeros = Int32Array.from(
    Array.from({ length: groups }, (_, g) =>
      stream(
        zeros.slice(g * n, (g + 1) * n).map((z) => (version === "gptq" ? z - 1 : z)),
        bits,
      ),
    ).flat(),
  );
  // g_idx: the group of each column; the first `span` columns of a shuffled order are group 0
  const shuffled = Array.from({ length: k }, (_, j) => (j * 29 + 7) % k);
  const gIdx = new Int32Array(k);
  shuffled.forEach((column, place) => (gIdx[column] = Math.floor(place / span)));
  const tensors = {
    qweight: i32(qweight, [(k * bits) / 32, n]),
    qzeros: i32(qzeros, [groups, (n * bits) / 32]),
    scales: { dtype: "F16", shape: [groups, n], bytes: bytesOf(scales) },
  };
  const config = { quant_method: "gptq", bits, group_size: span, checkpoint_format: version };
  const want = (r: number, j: number, g: number) => f32(half(scales[g * n + r]) * (q[r * k + j] - zeros[g * n + r]));
  const plain = await layer(config, tensors);
  expect(plain.columns).toBeUndefined();
  expect(values(plain)).toEqual(
    Array.from({ length: n * k }, (_, i) => want(Math.floor(i / k), i % k, Math.floor((i % k) / span))).map((v) => v + 0),
  );
  // an order that is none
  const inOrder = await layer(config, {
    ...tensors,
    g_idx: i32(
      Int32Array.from({ length: k }, (_, j) => Math.floor(j / span)),
      [k],
    ),
  });
  expect(inOrder.columns).toBeUndefined();
  expect(values(inOrder)).toEqual(values(plain));
  for (const wrong of [gIdx.map((g) => g + 1), gIdx.map((g) => g - 1), gIdx.map((g) => g & ~1), gIdx.subarray(1)])
    await expect(layer(config, { ...tensors, g_idx: i32(Int32Array.from(wrong), [wrong.length]) })).rejects.toThrow(refuse("E_CONTAINER"));
  const ordered = await layer(config, { ...tensors, g_idx: i32(gIdx, [k]) });
  const got = values(ordered);
  for (let r = 0; r < n; r++)
    for (let j = 0; j < k; j++) expect(got[r * k + j]).toBe(want(r, ordered.columns![j], gIdx[ordered.columns![j]]) + 0);
});

test("AWQ: nibble i of a word is column [0, 2, 4, 6, 1, 3, 5, 7][i]", async () => {
  const [n, k, groups] = [16, 32, 2];
  const q = integers(n * k, 16);
  const zeros = integers(groups * n, 16);
  const scales = halves(groups * n);
  const pack = (at: (column: number) => number) => [0, 2, 4, 6, 1, 3, 5, 7].reduce((word, column, i) => word | (at(column) << (4 * i)), 0);
  const qweight = Int32Array.from({ length: (k * n) / 8 }, (_, i) => pack((c) => q[(8 * (i % 2) + c) * k + Math.floor(i / 2)]));
  const qzeros = Int32Array.from({ length: (groups * n) / 8 }, (_, i) => pack((c) => zeros[Math.floor(i / 2) * n + 8 * (i % 2) + c]));
  const awq = { quant_method: "awq", bits: 4, group_size: 16 };
  const tensors = {
    qweight: i32(qweight, [k, n / 8]),
    qzeros: i32(qzeros, [groups, n / 8]),
    scales: { dtype: "F16", shape: [groups, n], bytes: bytesOf(scales) },
  };
  const imported = await layer(awq, tensors);
  const want = q.map((v, i) => {
    const [r, g] = [Math.floor(i / k), Math.floor((i % k) / 16)];
    return f32(half(scales[g * n + r]) * (v - zeros[g * n + r])) + 0;
  });
  expect(values(imported)).toEqual(want);
  // one tensor of another shape at a time
  const otherShapes: Record<string, SafeContent>[] = [
    { qzeros: zeros32([groups + 1, n / 8]) },
    { qzeros: zeros32([groups, n / 8 + 1]) },
    { qweight: zeros32([k, n / 8 + 1]) },
    { qweight: zeros32([k + 1, n / 8]) },
    { qweight: zeros32([k * (n / 8)]) },
    { scales: { dtype: "F16", shape: [groups, n + 8], bytes: new Uint8Array(2 * groups * (n + 8)) } },
  ];
  for (const other of otherShapes) await expect(layer(awq, { ...tensors, ...other })).rejects.toThrow(refuse("E_CONTAINER"));
  await expect(layer({ ...awq, bits: 8 }, tensors)).rejects.toThrow(refuse("E_UNSUPPORTED"));
});

const compressed = (weights: Record<string, unknown>) => ({
  quant_method: "compressed-tensors",
  config_groups: { group_0: { targets: ["Linear"], weights } },
});

test.each([
  [4, 16, false],
  [4, 16, true],
  [4, 64, false],
  [8, 16, true],
])("compressed-tensors: pack-quantized int%d, groups of %d, zero points %s", async (bits, span, asymmetric) => {
  const [n, k] = [8, 64];
  const [groups, per, flip] = [k / span, 32 / bits, 2 ** (bits - 1)];
  const q = integers(n * k, 2 ** bits).map((v) => v - flip);
  const zeros = integers(n * groups, 2 ** bits).map((v) => v - flip);
  const scales = Uint16Array.from({ length: n * groups }, () => 0x3f00 + rng.integer(0x80)); // bfloat16
  // signed codes plus 2^(bits - 1); along k in weight_packed, along rows in weight_zero_point
  const pack = (list: number[]) => list.reduce((word, v, i) => word | ((v + flip) << (bits * i)), 0);
  const packed = Int32Array.from({ length: (n * k) / per }, (_, i) => pack(q.slice(i * per, (i + 1) * per)));
  const zeroPacked = Int32Array.from({ length: (n / per) * groups }, (_, i) =>
    pack(Array.from({ length: per }, (_, j) => zeros[(Math.floor(i / groups) * per + j) * groups + (i % groups)])),
  );
  const imported = await layer(compressed({ num_bits: bits, type: "int", symmetric: !asymmetric }), {
    weight_packed: i32(packed, [n, k / per]),
    weight_scale: { dtype: "BF16", shape: [n, groups], bytes: bytesOf(scales) },
    weight_shape: { dtype: "I64", shape: [2], bytes: bytesOf(BigInt64Array.of(BigInt(n), BigInt(k))) },
    ...(asymmetric ? { weight_zero_point: i32(zeroPacked, [n / per, groups]) } : {}),
  });
  const scaleOf = (i: number) => new Float32Array(Uint32Array.of(scales[i] << 16).buffer)[0];
  expect(values(imported)).toEqual(
    q.map((v, i) => {
      const at = Math.floor(i / k) * groups + Math.floor((i % k) / span);
      return f32(scaleOf(at) * (v - (asymmetric ? zeros[at] : 0))) + 0;
    }),
  );
});

test("compressed-tensors: FP8 by row, NVFP4, MXFP4", async () => {
  const [n, k] = [4, 64];
  const E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6];
  const scales = Float32Array.from({ length: n }, () => rng.next());
  // float8_e4m3: codes 0x38 + 8 e are 2^e
  const fp8 = await layer(compressed({ num_bits: 8, type: "float" }), {
    weight: { dtype: "F8_E4M3", shape: [n, k], bytes: Uint8Array.from({ length: n * k }, (_, i) => 0x38 + 8 * (i % 4)) },
    weight_scale: { dtype: "F32", shape: [n, 1], bytes: bytesOf(scales) },
  });
  expect(values(fp8)).toEqual(Array.from({ length: n * k }, (_, i) => f32(scales[Math.floor(i / k)] * 2 ** (i % 4))));
  // one scale a tensor, a group, a tile of [2, 32]; and what is none of these
  const scaled = (shape: number[]) =>
    layer(compressed({ num_bits: 8, type: "float" }), {
      weight: { dtype: "F8_E4M3", shape: [n, k], bytes: new Uint8Array(n * k).fill(0x38) },
      weight_scale: { dtype: "F32", shape, bytes: bytesOf(Float32Array.from({ length: shape.reduce((a, b) => a * b) }, (_, i) => i + 1)) },
    });
  const at = (f: (r: number, j: number) => number) => Array.from({ length: n * k }, (_, i) => f(Math.floor(i / k), i % k));
  expect(values(await scaled([1]))).toEqual(at(() => 1));
  expect(values(await scaled([n, 4]))).toEqual(at((r, j) => r * 4 + Math.floor(j / 16) + 1));
  expect(values(await scaled([2, 2]))).toEqual(at((r, j) => Math.floor(r / 2) * 2 + Math.floor(j / 32) + 1));
  for (const shape of [[3, 2], [2, 3]]) await expect(scaled(shape)).rejects.toThrow(refuse("E_CONTAINER")); // prettier-ignore
  const q = integers(n * k, 16);
  const nibbles = Uint8Array.from({ length: (n * k) / 2 }, (_, i) => q[2 * i] | (q[2 * i + 1] << 4));
  const mx = await layer(compressed({ num_bits: 4, type: "float" }), {
    weight_packed: { dtype: "U8", shape: [n, k / 2], bytes: nibbles },
    weight_scale: { dtype: "U8", shape: [n, k / 32], bytes: Uint8Array.from({ length: (n * k) / 32 }, (_, i) => 120 + i) },
  });
  expect(values(mx).map((v) => v + 0)).toEqual(q.map((v, i) => E2M1[v] * 2 ** (120 + Math.floor(i / 32) - 127) + 0));
  // the global scale divides: 4 here, so that nothing is rounded
  const nv = await layer(compressed({ num_bits: 4, type: "float" }), {
    weight_packed: { dtype: "U8", shape: [n, k / 2], bytes: nibbles },
    weight_scale: { dtype: "F8_E4M3", shape: [n, k / 16], bytes: Uint8Array.from({ length: (n * k) / 16 }, (_, i) => 0x38 + 8 * (i % 4)) },
    weight_global_scale: { dtype: "F32", shape: [1], bytes: bytesOf(Float32Array.of(4)) },
  });
  expect(values(nv).map((v) => v + 0)).toEqual(q.map((v, i) => (E2M1[v] * 2 ** (Math.floor(i / 16) % 4)) / 4 + 0));
});

// the levels that bitsandbytes publishes, in float32
const NF4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]; // prettier-ignore

test("bitsandbytes: NF4 with double quantization, LLM.int8", async () => {
  const [n, k] = [4, 128];
  const q = integers(n * k, 16);
  const map = Float32Array.from({ length: 256 }, (_, i) => (i - 128) / 128);
  const codes = Uint8Array.from(integers((n * k) / 64, 256));
  const [nested, offset] = [0.75, 0.3];
  const state = {
    quant_type: "nf4",
    blocksize: 64,
    dtype: "bfloat16",
    shape: [n, k],
    nested_blocksize: 256,
    nested_dtype: "float32",
    nested_offset: offset,
  };
  const read = (changes: Record<string, unknown>, parts: Record<string, SafeContent> = {}) => {
    const text = new TextEncoder().encode(JSON.stringify({ ...state, ...changes }));
    const tensors: Record<string, SafeContent> = {
      // the high nibble first
      weight: {
        dtype: "U8",
        shape: [(n * k) / 2, 1],
        bytes: Uint8Array.from({ length: (n * k) / 2 }, (_, i) => (q[2 * i] << 4) | q[2 * i + 1]),
      },
      "weight.absmax": { dtype: "U8", shape: [codes.length], bytes: codes },
      "weight.quant_map": { dtype: "F32", shape: [16], bytes: bytesOf(Float32Array.from(NF4)) },
      "weight.nested_absmax": { dtype: "F32", shape: [1], bytes: bytesOf(Float32Array.of(nested)) },
      "weight.nested_quant_map": { dtype: "F32", shape: [256], bytes: bytesOf(map) },
      "weight.quant_state.bitsandbytes__nf4": { dtype: "U8", shape: [text.length], bytes: text },
    };
    return layer({ quant_method: "bitsandbytes", load_in_4bit: true }, { ...tensors, ...parts });
  };
  const imported = await read({});
  // one thing that is wrong at a time
  for (const wrong of [{ quant_type: "nf5" }, { quant_type: "anf4" }, { shape: n * k }, { shape: [n * k] }, { shape: [n, k, 1] }, { shape: [n, 0.5] }, { shape: [0, k] }, { shape: [2 * n, k] }, { quant_type: "fp4" }])
    await expect(read(wrong), JSON.stringify(wrong)).rejects.toThrow(refuse("E_CONTAINER")); // prettier-ignore
  for (const blocksize of [48, 0, -64, 64.5, "64"]) await expect(read({ blocksize })).rejects.toThrow(refuse("E_UNSUPPORTED"));
  const levels = (list: number[]) => ({ dtype: "F32", shape: [list.length], bytes: bytesOf(Float32Array.from(list)) });
  for (const list of [[...NF4, 1], NF4.slice(1), NF4.with(3, -0.4)])
    await expect(read({}, { "weight.quant_map": levels(list) })).rejects.toThrow(refuse("E_CONTAINER"));
  expect(values(imported)).toEqual(q.map((v, i) => f32(f32(NF4[v]) * f32(f32(map[codes[Math.floor(i / 64)]] * nested) + f32(offset))) + 0));
  const rows = Int8Array.from({ length: n * k }, () => rng.integer(255) - 127);
  const scb = Float32Array.from({ length: n }, () => 1 + rng.next());
  const eight = await layer(
    { quant_method: "bitsandbytes", load_in_8bit: true },
    { weight: { dtype: "I8", shape: [n, k], bytes: bytesOf(rows) }, SCB: { dtype: "F32", shape: [n], bytes: bytesOf(scb) } },
  );
  expect(values(eight)).toEqual([...rows].map((v, i) => f32(v * f32(scb[Math.floor(i / k)] / 127)) + 0));
});

describe("torchao", () => {
  const [n, k, span] = [8, 64, 32];
  const groups = k / span;
  async function read(type: string, data: Record<string, unknown>, parts: Record<string, SafeContent>): Promise<ImportedLayer> {
    const metadata = {
      tensor_names: JSON.stringify(["m.0.proj.weight", "m.norm.weight"]),
      "m.0.proj.weight": JSON.stringify({ _type: type, _data: data, _tensor_data_names: Object.keys(parts) }),
      "m.norm.weight": JSON.stringify({ _type: "Tensor" }),
    };
    const tensors = Object.fromEntries(Object.entries(parts).map(([part, t]) => [`m.0.proj._weight_${part}`, t]));
    const norm = { dtype: "F32", shape: [1], bytes: bytesOf(Float32Array.of(1)) };
    const file = await readSafetensors(await safetensorsBytes({ metadata, tensors: { ...tensors, "m.norm.weight": norm } }));
    const checkpoint = checkpointOf({}, { quant_method: "torchao" }, file);
    expect([...checkpoint.layers.keys()]).toEqual(["m.0.proj"]);
    expect([...checkpoint.tensors.keys()]).toEqual(["m.norm.weight"]);
    return checkpoint.layers.get("m.0.proj")!();
  }
  const bf16 = (code: number) => new Float32Array(Uint32Array.of(code << 16).buffer)[0];

  test("Int4Tensor: signed nibbles, the low one first, scale and minimum [groups, n]", async () => {
    const q = integers(n * k, 16).map((v) => v - 8);
    const [scale, zero] = [0x3d00, 0xbe00].map((base) => Uint16Array.from({ length: groups * n }, () => base + rng.integer(0x80)));
    const content = (data: Uint16Array): SafeContent => ({ dtype: "BF16", shape: [groups, n], bytes: bytesOf(data) });
    const qdata = Int8Array.from({ length: (n * k) / 2 }, (_, i) => (q[2 * i] & 15) | (q[2 * i + 1] << 4));
    const parts = { qdata: { dtype: "I8", shape: [n, k / 2], bytes: bytesOf(qdata) }, scale: content(scale), zero_point: content(zero) };
    const imported = await read("Int4Tensor", { block_size: [1, span], shape: [n, k] }, parts);
    const want = q.map((v, i) => {
      const at = Math.floor((i % k) / span) * n + Math.floor(i / k);
      return f32(v * bf16(scale[at]) + bf16(zero[at])) + 0;
    });
    expect(values(imported)).toEqual(want);
    await expect(read("Int4Tensor", { block_size: [1, 48] }, parts)).rejects.toThrow(refuse("E_CONTAINER"));
    await expect(read("Int4TilePackedTo4dTensor", { block_size: [1, span] }, parts)).rejects.toThrow(refuse("E_UNSUPPORTED"));
    await expect(read("Int4Tensor", { block_size: [1, span] }, { ...parts, act_pre_scale: content(scale) })).rejects.toThrow(
      refuse("E_UNSUPPORTED"),
    );
  });

  test.each([
    ["IntxUnpackedToInt8Tensor", 4, true],
    ["IntxUnpackedToInt8Tensor", 3, false],
    ["Int8Tensor", 8, false],
  ])("%s of %d bits, zero points %s", async (type, bits, asymmetric) => {
    const q = Int8Array.from({ length: n * k }, () => rng.integer(2 ** bits) - 2 ** (bits - 1));
    const blockSize = type === "Int8Tensor" ? [1, k] : [1, span];
    const count = (n * k) / blockSize[1];
    const [scale, zero] = [halves(count), Int8Array.from({ length: count }, () => (asymmetric ? rng.integer(9) - 4 : 0))];
    const imported = await read(
      type,
      { block_size: blockSize, target_dtype: { _type: "torch.dtype", _data: `int${bits}` } },
      {
        qdata: { dtype: "I8", shape: [n, k], bytes: bytesOf(q) },
        scale: { dtype: "F16", shape: [n, k / blockSize[1]], bytes: bytesOf(scale) },
        zero_point: { dtype: "I8", shape: [n, k / blockSize[1]], bytes: bytesOf(zero) },
      },
    );
    expect(values(imported)).toEqual(
      [...q].map((v, i) => f32(half(scale[Math.floor(i / blockSize[1])]) * (v - zero[Math.floor(i / blockSize[1])])) + 0),
    );
  });

  test("Float8Tensor by row", async () => {
    const scale = Float32Array.from({ length: n }, () => rng.next());
    const imported = await read(
      "Float8Tensor",
      { block_size: [1, k] },
      {
        qdata: { dtype: "F8_E4M3", shape: [n, k], bytes: Uint8Array.from({ length: n * k }, (_, i) => 0x38 + 8 * (i % 4)) },
        scale: { dtype: "F32", shape: [n, 1], bytes: bytesOf(scale) },
      },
    );
    expect(values(imported)).toEqual(Array.from({ length: n * k }, (_, i) => f32(scale[Math.floor(i / k)] * 2 ** (i % 4))));
  });

  test("damaged metadata", () => {
    const file = (metadata: Map<string, string>) => ({ metadata, tensors: new Map(), close: () => Promise.resolve() });
    for (const entries of [[["tensor_names", "{"]], [["tensor_names", '["a.weight"]']], [["tensor_names", '"x"']]] as [string, string][][])
      expect(() => checkpointOf({}, { quant_method: "torchao" }, file(new Map(entries)))).toThrow(refuse("E_CONTAINER"));
  });
});

test("patterns of targets: those of real files match, those that never end are refused", async () => {
  const i8 = { dtype: "I8", shape: [2, 4], bytes: new Uint8Array(8) };
  const scale = { dtype: "F16", shape: [2, 1], bytes: bytesOf(halves(2)) };
  const read = async (target: string, name: string) => {
    const file = await readSafetensors(await safetensorsBytes({ tensors: { [`${name}.weight`]: i8, [`${name}.weight_scale`]: scale } }));
    const config = {
      quant_method: "compressed-tensors",
      config_groups: { a: { targets: [target], weights: { num_bits: 8, type: "int" } } },
    };
    return checkpointOf({}, config, file).layers.get(name)!();
  };
  const name = "model.layers.10.mlp.up_proj";
  for (const target of [
    "re:.*proj",
    "re:model\\.layers\\.[0-9]+\\.(mlp|self_attn)\\.(up|down)_proj$",
    "re:(.*up)_proj",
    "re:.*(?:up|q).*",
    "re:(?:m)*odel.*",
    "re:.*.*.*.*",
  ])
    expect((await read(target, name)).packed.rows).toBe(2);
  for (const target of ["re:(a+)+$", "re:((a*))*b", "re:(a|a)*b", "re:(?:[ab]+x?){3,}", "re:.*.*.*.*.*c", "re:("])
    await expect(read(target, "a".repeat(60))).rejects.toThrow(refuse("E_CONTAINER"));
  await expect(read("re:.*c", "a".repeat(201))).rejects.toThrow(refuse("E_CONTAINER"));
});

test("the first group whose targets fit decides: a class, a whole name, its end, a pattern; else the first group", async () => {
  const i8 = { dtype: "I8", shape: [1, 1], bytes: Uint8Array.of(1) };
  const scale = { dtype: "F32", shape: [1, 1], bytes: bytesOf(Float32Array.of(1)) };
  const file = await readSafetensors(await safetensorsBytes({ tensors: { "m.0.up_proj.weight": i8, "m.0.up_proj.weight_scale": scale } }));
  const chosen = (targets: unknown) => {
    const weights = { num_bits: 8, type: "int" };
    // the first one's weights are none: an error names it where it was chosen
    const config_groups = { a: { targets: ["other"], weights: "first" }, b: { targets, weights } };
    const open = checkpointOf({}, { quant_method: "compressed-tensors", config_groups }, file).layers.get("m.0.up_proj")!;
    return open().then(
      () => "second",
      (error: Error) => (error.message.includes("first") ? "first" : error.message),
    );
  };
  for (const targets of [["Linear"], ["m.0.up_proj"], ["up_proj"], ["0.up_proj"], ["re:m.*proj"], ["x", "up_proj"], undefined])
    expect(await chosen(targets), String(targets)).toBe("second");
  for (const targets of [["proj"], ["m.0"], ["Embedding"], ["re:up_proj"], [5], []])
    expect(await chosen(targets), String(targets)).toBe("first");
});

test("a folder: config.json, layers beside plain tensors, and what is refused", async () => {
  const f = { dtype: "F32", shape: [2, 2], bytes: bytesOf(Float32Array.of(1, 2, 3, 4)) };
  const scales = { dtype: "F16", shape: [1, 8], bytes: bytesOf(halves(8)) };
  const tensors = {
    "a.qweight": i32(new Int32Array(8), [1, 8]),
    "a.qzeros": i32(new Int32Array(1), [1, 1]),
    "a.scales": scales,
    "a.bias": f,
    "norm.weight": f,
  };
  await writeSafetensors(join(folder, "model.safetensors"), { tensors });
  const write = (config: unknown) => writeFileSync(join(folder, "config.json"), JSON.stringify(config));
  write({ quantization_config: { quant_method: "gptq", bits: 4 } });
  const checkpoint = await importCheckpoint(folder);
  expect(checkpoint.method).toBe("gptq");
  expect([...checkpoint.tensors.keys()].sort()).toEqual(["a.bias", "norm.weight"]);
  expect((await checkpoint.layers.get("a")!()).packed.shape).toEqual([8, 8]);
  await checkpoint.close();
  // a file of another name, if it is the only one
  renameSync(join(folder, "model.safetensors"), join(folder, "weights.safetensors"));
  writeFileSync(join(folder, "a.txt"), "");
  expect([...(await importCheckpoint(folder)).layers.keys()]).toEqual(["a"]);
  renameSync(join(folder, "weights.safetensors"), join(folder, "model.safetensors"));
  write({ quantization_config: { quant_method: "gptq", bits: 8 } });
  await expect((await importCheckpoint(folder)).layers.get("a")!()).rejects.toThrow(refuse("E_CONTAINER"));
  write({ quantization_config: { quant_method: "gptq", bits: 5 } });
  await expect((await importCheckpoint(folder)).layers.get("a")!()).rejects.toThrow(refuse("E_UNSUPPORTED"));
  write({ quantization_config: { quant_method: "magic" } });
  await expect(importCheckpoint(folder)).rejects.toThrow(refuse("E_UNSUPPORTED"));
  await expect(importCheckpoint(join(folder, "none"))).rejects.toThrow(refuse("E_IO"));
});
