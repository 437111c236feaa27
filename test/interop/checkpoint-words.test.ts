// Quantized checkpoints with one thing wrong at a time, and what is said about it, word for word; torchao's tiles.
import { describe, expect, test } from "vitest";
import { dequantize } from "../../src/index.ts";
import { checkpointOf, readSafetensors, safetensorsBytes, type Checkpoint, type ImportedLayer, type SafeContent } from "../../src/interop/index.ts"; // prettier-ignore
import { random } from "../helpers/random.ts";

const rng = random(12);
const count = (shape: readonly number[]): number => shape.reduce((a, b) => a * b, 1);
const BYTES: Record<string, number> = { I32: 4, F32: 4, F16: 2, BF16: 2, I64: 8, U8: 1, I8: 1, F8_E4M3: 1, F8_E5M2: 1, F64: 8, I16: 2, BOOL: 1, F8_E8M0: 1 }; // prettier-ignore
const bytesOf = (a: ArrayBufferView) => new Uint8Array(a.buffer, a.byteOffset, a.byteLength);
/** A tensor of zeros, or of given bytes. */
const t = (dtype: string, shape: number[], data?: ArrayBufferView): SafeContent => ({ dtype, shape, bytes: data === undefined ? new Uint8Array(count(shape) * BYTES[dtype]) : bytesOf(data) }); // prettier-ignore
type Tensors = Record<string, SafeContent>;

async function open(
  config: Record<string, unknown> | undefined,
  tensors: Tensors,
  metadata: Record<string, string> = {},
): Promise<Checkpoint> {
  return checkpointOf({}, config, await readSafetensors(await safetensorsBytes({ metadata, tensors })));
}
async function layer(config: Record<string, unknown>, tensors: Tensors, metadata: Record<string, string> = {}): Promise<ImportedLayer> {
  const named = Object.fromEntries(Object.entries(tensors).map(([part, content]) => [`a.b.${part}`, content]));
  return (await open(config, named, metadata)).layers.get("a.b")!();
}
const said = (code: string, message: string) => expect.objectContaining({ code, message });
const container = (expected: string, got: string, name = "a.b") =>
  said("E_CONTAINER", `${name}: expected ${expected}, got ${got}. Is config.json that of these weights?`);
const without = (tensors: Tensors, part: string): Tensors => Object.fromEntries(Object.entries(tensors).filter(([name]) => name !== part));
const values = (l: ImportedLayer) => [...dequantize(l.packed)].map((v) => v + 0);

describe("gptq", () => {
  const config = { quant_method: "gptq", bits: 4 };
  const sound: Tensors = { qweight: t("I32", [4, 8]), qzeros: t("I32", [2, 1]), scales: t("F16", [2, 8]) };
  const fit = (w = "4,8", z = "2,1", s = "2,8") => container("4-bit qweight, qzeros and scales that fit each other", `qweight [${w}], qzeros [${z}], scales [${s}]`); // prettier-ignore
  const refused = (change: Tensors, error: unknown, more: object = {}) => expect(layer({ ...config, ...more }, { ...sound, ...change })).rejects.toThrow(error as Error); // prettier-ignore

  test("parts that are missing, of other types, shapes or sizes", async () => {
    const made = await layer(config, sound);
    expect([made.packed.shape, made.packed.format.name, made.packed.recipe.algorithm]).toEqual([[8, 32], "uint4_b16_float16_zp", "gptq-checkpoint"]); // prettier-ignore
    for (const part of ["qzeros", "scales"]) await expect(layer(config, without(sound, part))).rejects.toThrow(container(part, ["qweight", "qzeros", "scales"].filter((p) => p !== part).join(", "))); // prettier-ignore
    await refused({ qweight: t("I32", [4, 16]) }, fit("4,16"));
    await refused({ qzeros: t("I32", [3, 1]) }, fit(undefined, "3,1"));
    await refused({ qzeros: t("I32", [2, 2]) }, fit(undefined, "2,2"));
    await refused({ scales: t("F16", [2, 9]) }, fit(undefined, undefined, "2,9"));
    await refused({ scales: t("F16", [3, 8]), qzeros: t("I32", [3, 1]) }, fit(undefined, "3,1", "3,8"));
    await refused({ qweight: t("I32", [32]) }, container("a matrix", "[32]", "a.b.qweight"));
    await refused({ scales: t("F16", [16]) }, container("a matrix", "[16]", "a.b.scales"));
    await refused({ qweight: t("F32", [4, 8]) }, container("I32", "F32", "a.b.qweight"));
    await refused({ qzeros: t("F32", [2, 1]) }, container("I32", "F32", "a.b.qzeros"));
    for (const dtype of ["I32", "I16", "I8", "F64", "F8_E5M2"]) await refused({ scales: t(dtype, [2, 8]) }, container("scales in F16, BF16 or F32", dtype, "a.b.scales")); // prettier-ignore
    for (const dtype of ["F16", "BF16", "F32"]) expect((await layer(config, { ...sound, scales: t(dtype, [2, 8]) })).packed.scales!.length).toBe(16 * BYTES[dtype]); // prettier-ignore
  });

  test("bits, and zero points that no byte holds", async () => {
    for (const bits of [0, 1, 5, 6, 7, 16, "x", null]) await refused({}, said("E_UNSUPPORTED", `quantization_config.bits: expected 2, 3, 4 or 8, got ${JSON.stringify(bits)}.`), { bits }); // prettier-ignore
    const eight: Tensors = { qweight: t("I32", [8, 8]), qzeros: t("I32", [2, 2]), scales: t("F16", [2, 8]) };
    expect(new Set((await layer({ ...config, bits: 8 }, eight)).packed.offsets!)).toEqual(new Set([1]));
    const high = { ...eight, qzeros: t("I32", [2, 2], Int32Array.of(0, 0, 0, 0xff << 8)) };
    await expect(layer({ ...config, bits: 8 }, high)).rejects.toThrow(container("zero points up to 255", "256"));
    expect((await layer({ ...config, bits: 8, checkpoint_format: "gptq_v2" }, high)).packed.offsets!.some((z) => z === 255)).toBe(true);
    // the largest of four bits, stored less one, needs a byte: and only then
    const wide = await layer(config, { ...sound, qzeros: t("I32", [2, 1], Int32Array.of(0, 15)) });
    expect(wide.packed.format.name).toBe("uint4_b16_float16_uint8zp");
    expect([...wide.packed.offsets!]).toEqual([1, 16, ...new Array(14).fill(1)]);
  });

  test("orders of columns", async () => {
    const order = (list: number[]) => layer(config, { ...sound, g_idx: t("I32", [list.length], Int32Array.from(list)) });
    const alternating = Array.from({ length: 32 }, (_, j) => j % 2);
    expect([...(await order(alternating)).columns!]).toEqual([...alternating.keys()].sort((a, b) => (a % 2) - (b % 2) || a - b));
    const groups = (got: string) => container("groups of 16 columns", got, "a.b.g_idx");
    await expect(order(alternating.map((g, j) => (j === 0 ? 1 : g)))).rejects.toThrow(groups("groups of other sizes"));
    for (const list of [alternating.slice(1), [...alternating, 0], alternating.map((g) => g + 1), alternating.map((g) => g - 1)]) await expect(order(list)).rejects.toThrow(container("32 groups below 2", String(list.length), "a.b.g_idx")); // prettier-ignore
    await refused({ g_idx: t("F32", [32]) }, container("I32", "F32", "a.b.g_idx"));
  });
});

describe("awq", () => {
  const config = { quant_method: "awq", bits: 4 };
  const sound: Tensors = { qweight: t("I32", [16, 1]), qzeros: t("I32", [2, 1]), scales: t("F16", [2, 8]) };
  test("parts that are missing, of other shapes or widths", async () => {
    expect((await layer(config, sound)).packed.recipe.algorithm).toBe("awq-checkpoint");
    expect((await layer({ quant_method: "AWQ", w_bit: 4 }, sound)).packed.shape).toEqual([8, 16]);
    const fit = (w: number[], z: number[], s: number[]) => container("qweight, qzeros and scales that fit each other", `qweight [${w}], qzeros [${z}], scales [${s}]`); // prettier-ignore
    for (const [w, z, s] of [[[16, 2], [2, 1], [2, 8]], [[16, 1], [3, 1], [2, 8]], [[16, 1], [2, 2], [2, 8]], [[16, 1], [2, 1], [2, 9]], [[15, 1], [2, 1], [2, 8]]]) await expect(layer(config, { qweight: t("I32", w), qzeros: t("I32", z), scales: t("F16", s) })).rejects.toThrow(fit(w, z, s)); // prettier-ignore
    for (const bits of [2, 3, 8]) await expect(layer({ ...config, bits }, sound)).rejects.toThrow(said("E_UNSUPPORTED", `a.b: expected AWQ of 4 bits, got ${bits}. Other widths have no published layout.`)); // prettier-ignore
    for (const part of ["qzeros", "scales"]) await expect(layer(config, without(sound, part))).rejects.toThrow(container(part, Object.keys(without(sound, part)).sort().join(", "))); // prettier-ignore
  });
});

describe("compressed-tensors", () => {
  const config = (weights: unknown, more: object = {}) => ({ quant_method: "compressed-tensors", config_groups: { group_0: { targets: ["Linear"], weights, ...more } } }); // prettier-ignore
  const four = config({ num_bits: 4, type: "int" });
  const shape = (n: number, k: number) => t("I64", [2], BigInt64Array.of(BigInt(n), BigInt(k)));
  const sound: Tensors = { weight_packed: t("I32", [8, 2]), weight_scale: t("F16", [8, 1]), weight_shape: shape(8, 16) };
  test("packed integers: shapes, groups and zero points", async () => {
    const made = await layer(four, sound);
    expect([made.packed.shape, made.packed.format.name, made.packed.recipe.algorithm]).toEqual([[8, 16], "int4_row_float16", "compressed-tensors"]); // prettier-ignore
    expect(values(made)).toEqual(new Array(128).fill(0));
    // rows that end inside a word
    for (const k of [9, 15, 16]) expect((await layer(four, { ...sound, weight_shape: shape(8, k) })).packed.k).toBe(k);
    const refused = (n: number, k: number, more: Tensors = {}) => expect(layer(four, { ...sound, weight_shape: shape(n, k), ...more })).rejects.toThrow(container("4-bit weights [8, 2 words] of the shape in weight_shape, without weight_g_idx", `[${n}, ${k}]`)); // prettier-ignore
    for (const [n, k] of [[7, 16], [9, 16], [8, 8], [8, 17], [8, 0], [8, -1]]) await refused(n, k); // prettier-ignore
    await refused(8, 16, { weight_g_idx: t("I32", [16]) });
    await expect(layer(config({ num_bits: 9, type: "int" }), { ...sound, weight_packed: t("I32", [8, 6]) })).rejects.toThrow(
      /9-bit weights/,
    );
    for (const part of ["weight_scale", "weight_shape"]) {
      const rest = without({ ...sound, weight_zero_point: t("I32", [1, 1]) }, part);
      const error = container(part, Object.keys(rest).sort().join(", "));
      await expect(layer(four, rest).catch((e: Error) => Promise.reject(Object.assign(e, { message: e.message.replace(/got (.*)\. Is/, (_, list: string) => `got ${list.split(", ").sort().join(", ")}. Is`) })))).rejects.toThrow(error); // prettier-ignore
    }
    await expect(layer(four, { ...sound, weight_zero_point: t("I32", [2, 1]) })).rejects.toThrow(container("1 rows", "2", "a.b.weight_zero_point")); // prettier-ignore
    // three bits: ten to a word, two bits unused
    const three = config({ num_bits: 3, type: "int" });
    const word = Array.from({ length: 10 }, (_, i) => (i % 8) << (3 * i)).reduce((a, b) => a | b, 0);
    const read = await layer(three, { weight_packed: t("I32", [1, 1], Int32Array.of(word)), weight_scale: t("F32", [1, 1], Float32Array.of(1)), weight_shape: shape(1, 10) }); // prettier-ignore
    expect(values(read)).toEqual([-4, -3, -2, -1, 0, 1, 2, 3, -4, -3]);
  });

  test("weights of 8 bits, floats of 4: types and scales", async () => {
    const eight = config({ num_bits: 8, type: "float" });
    const plain: Tensors = { weight: t("F8_E4M3", [4, 32]), weight_scale: t("F32", [4, 1]) };
    expect((await layer(eight, plain)).packed.format.name).toBe("float8_e4m3fn_row");
    expect((await layer(eight, { ...plain, weight: t("I8", [4, 32]) })).packed.format.name).toBe("int8_row");
    for (const dtype of ["F16", "I32", "BOOL"]) await expect(layer(eight, { ...plain, weight: t(dtype, [4, 32]) })).rejects.toThrow(container("weights of 8 bits (F8_E4M3, I8)", dtype)); // prettier-ignore
    await expect(layer(eight, { ...plain, weight: t("I8", [128]) })).rejects.toThrow(container("a matrix", "[128]", "a.b.weight"));
    await expect(layer(eight, without(plain, "weight"))).rejects.toThrow(container("weight", "weight_scale"));
    for (const [scale, name] of [[[4], "float8_e4m3fn_row"], [[4, 2], "float8_e4m3fn_b16"], [[4, 5], "float8_e4m3fn_b7"], [[1, 1], "float8_e4m3fn_tensor"], [[], "float8_e4m3fn_tensor"], [[2, 4], undefined]] as const) {
      const { format } = (await layer(eight, { ...plain, weight_scale: t("F32", [...scale]) })).packed;
      if (name === undefined) expect(format.kind === "block" && format.scales[0].span).toEqual([2, 8]);
      else expect(format.name).toBe(name);
    } // prettier-ignore
    for (const scale of [[3, 1], [2, 3], [3]]) await expect(layer(eight, { ...plain, weight_scale: t("F32", scale) })).rejects.toThrow(container("a scale for the tensor, each row, group or tile", `[${scale.join(", ")}]`)); // prettier-ignore
    const nv: Tensors = { weight_packed: t("U8", [2, 16]), weight_scale: t("F8_E4M3", [2, 2]), weight_global_scale: t("F32", [1], Float32Array.of(2)) }; // prettier-ignore
    const floats = config({ num_bits: 4, type: "float" });
    expect((await layer(floats, nv)).packed.format.name).toBe("nvfp4");
    const named = (global: number, dtype: string) => container("a global scale above zero and scales in F8_E4M3", `${global}, ${dtype}`);
    for (const global of [0, -1, NaN]) await expect(layer(floats, { ...nv, weight_global_scale: t("F32", [1], Float32Array.of(global)) })).rejects.toThrow(named(global, "F8_E4M3")); // prettier-ignore
    await expect(layer(floats, { ...nv, weight_scale: t("F16", [2, 2]) })).rejects.toThrow(named(2, "F16"));
    await expect(layer(floats, { ...nv, weight_scale: t("F8_E4M3", [2, 1]) })).rejects.toThrow(said("E_SHAPE", "compressed-tensors scales: expected 4 bytes for nvfp4 [2, 32], got 2. Is group_size that of the file?")); // prettier-ignore
    expect((await layer(floats, { weight_packed: t("U8", [2, 16]), weight_scale: t("U8", [2, 1]) })).packed.format.name).toBe("mxfp4");
    await expect(layer(floats, { weight_packed: t("U8", [2, 16]), weight_scale: t("U8", [2, 2]) })).rejects.toThrow(said("E_SHAPE", "compressed-tensors scales: expected 2 bytes for mxfp4 [2, 32], got 4. Is group_size that of the file?")); // prettier-ignore
  });

  test("groups of the configuration", async () => {
    const eight: Tensors = { weight: t("I8", [1, 1]), weight_scale: t("F32", [1, 1]) };
    const weights = (got: string) => said("E_CONTAINER", `quantization_config.config_groups: expected weights { num_bits, type } for a.b, got ${got}.`); // prettier-ignore
    for (const given of [5, null, [], "int", { num_bits: 4 }, { type: "int" }, { num_bits: "4", type: "int" }, { num_bits: 4.5, type: "int" }, { num_bits: 4, type: 5 }]) await expect(layer(config(given), eight)).rejects.toThrow(weights(JSON.stringify({ targets: ["Linear"], weights: given }).slice(0, 120))); // prettier-ignore
    for (const groups of [undefined, [], {}, 5, { a: 5 }]) await expect(layer({ quant_method: "compressed-tensors", config_groups: groups }, eight)).rejects.toThrow(weights("undefined")); // prettier-ignore
    expect((await layer({ quant_method: "compressed-tensors", config_groups: { a: 5, b: { weights: { num_bits: 8, type: "int" } } } }, eight)).packed.rows).toBe(1); // prettier-ignore
    const targets = (text: string) => layer(config({ num_bits: 8, type: "int" }, { targets: [`re:${text}`] }), eight);
    const pattern = (expected: string, got: string) => said("E_CONTAINER", `quantization_config targets: expected ${expected}, got ${JSON.stringify(got.slice(0, 80))}.`); // prettier-ignore
    await expect(targets("(")).rejects.toThrow(pattern("a regular expression", "("));
    for (const text of ["(a*)*", "(a|b)+", "((a)*b)*", "(a{2})*", "a*b*c*d*e*", "a+b+c+d{2}e*", "(x(a|b))*", `(a*)*${"x".repeat(100)}`]) await expect(targets(text), text).rejects.toThrow(pattern("a pattern of at most 4 repetitions, none inside another", text)); // prettier-ignore
    for (const text of ["a*b*c*d*", "(a)*", "[(*+|)]+", "\\(a\\*\\)*", "(a|b)", "(a*)", "((a)|b)", "a.b", "(a*)x*", "(ab)*(cd)*"]) await expect(targets(text), text).resolves.toBeDefined(); // prettier-ignore
    const long = "n".repeat(201);
    for (const letters of [200, 201]) {
      const name = long.slice(0, letters);
      const file = await open(config({ num_bits: 8, type: "int" }, { targets: ["re:n"] }), { [`${name}.weight`]: t("I8", [1, 1]), [`${name}.weight_scale`]: t("F32", [1, 1]) }); // prettier-ignore
      const read = file.layers.get(name)!();
      if (letters === 200) await expect(read).resolves.toBeDefined();
      else await expect(read).rejects.toThrow(pattern("names of at most 200 letters for a pattern", name));
    }
  });
});

describe("bitsandbytes", () => {
  const FP4 = [0, 1 / 192, 2 / 3, 1, 1 / 3, 1 / 2, 1 / 6, 1 / 4];
  const levels = [...FP4, ...FP4.map((v) => -v)];
  const state = { quant_type: "fp4", blocksize: 4, shape: [2, 8] };
  const parts = (given: unknown = state): Tensors => {
    const text = new TextEncoder().encode(typeof given === "string" ? given : JSON.stringify(given));
    const codes = Uint8Array.from({ length: 8 }, (_, i) => ((2 * i) << 4) | (2 * i + 1));
    return {
      weight: t("U8", [8, 1], codes),
      "weight.absmax": t("F32", [4], Float32Array.of(1, 2, 3, 4)),
      "weight.quant_map": t("F32", [16], Float32Array.from(levels)),
      "weight.quant_state.bitsandbytes__fp4": t("U8", [text.length], text),
    };
  };
  const config = { quant_method: "bitsandbytes" };
  const named = "a.b.weight.quant_state.bitsandbytes__fp4";

  test("FP4: the high nibble first, an absmax for each block", async () => {
    const read = await layer(config, parts());
    expect(values(read)).toEqual(levels.map((v, i) => Math.fround(Math.fround(v) * (1 + (i >> 2))) + 0));
    expect(read.packed.recipe.algorithm).toBe("bitsandbytes");
  });

  test("states, maps and sizes", async () => {
    const refused = (given: Tensors, error: unknown) => expect(layer(config, given)).rejects.toThrow(error as Error);
    for (const text of ["{", "5", "null", '"fp4"']) await refused(parts(text), container("an object as JSON", JSON.stringify(text), named));
    for (const wrong of [{ quant_type: "fp8" }, { quant_type: "xfp4" }, { shape: [16] }, { shape: [2, -8] }, { shape: [2, 8.5] }, { shape: "2x8" }]) await refused(parts({ ...state, ...wrong }), container("quant_type nf4 or fp4 and a matrix", JSON.stringify({ ...state, ...wrong }).slice(0, 80), named)); // prettier-ignore
    for (const blocksize of [0, -4, 3, 16, 4.5, undefined]) await refused(parts({ ...state, blocksize }), said("E_UNSUPPORTED", `a.b: expected rows of whole blocks, got rows of 8 in blocks of ${blocksize}, which run across rows. Dequantize it with bitsandbytes first.`)); // prettier-ignore
    const sizes = container("8 bytes of fp4 with its published levels", "8 bytes");
    const map = (list: number[]) => ({ ...parts(), "weight.quant_map": t("F32", [list.length], Float32Array.from(list)) });
    await refused(map(levels.slice(1)), sizes);
    await refused(map([...levels, 0]), sizes);
    await refused(map(levels.map((v, i) => (i === 15 ? v + 1e-6 : v))), sizes);
    await refused({ ...parts(), weight: t("U8", [7, 1]) }, container("8 bytes of fp4 with its published levels", "7 bytes"));
    await refused(without(parts(), "weight.quant_state.bitsandbytes__fp4"), container("weight.quant_state.bitsandbytes__nf4 or __fp4", "weight.absmax, weight.quant_map, weight")); // prettier-ignore
    for (const part of ["weight", "weight.quant_map"]) await expect(layer(config, without(parts(), part))).rejects.toThrow(new RegExp(`^a\\.b: expected ${part}, got weight`)); // prettier-ignore
  });

  test("absmax that is quantized itself: runs of 256 if not said, each with an absmax of its own", async () => {
    const map = Float32Array.from({ length: 256 }, (_, i) => i / 256);
    const nested = (size: number | undefined, absmax: number[], more: Tensors = {}) =>
      layer(config, {
        ...parts({ ...state, ...(size === undefined ? {} : { nested_blocksize: size, nested_offset: 0.5 }) }),
        "weight.absmax": t("U8", [4], Uint8Array.of(0, 64, 128, 255)),
        "weight.nested_quant_map": t("F32", [256], map),
        "weight.nested_absmax": t("F32", [absmax.length], Float32Array.from(absmax)),
        ...more,
      });
    const want = (absmax: number[], size: number, offset: number) => levels.map((v, i) => Math.fround(Math.fround(v) * (map[[0, 64, 128, 255][i >> 2]] * absmax[Math.floor((i >> 2) / size)] + offset)) + 0); // prettier-ignore
    expect(values(await nested(undefined, [2]))).toEqual(want([2], 256, 0));
    expect(values(await nested(2, [2, 4]))).toEqual(want([2, 4], 2, 0.5));
    expect(values(await nested(3, [2, 4]))).toEqual(want([2, 4], 3, 0.5));
    const wrong = (n: number) => container("a nested map of 256 and an absmax for each run", String(n));
    await expect(nested(2, [2])).rejects.toThrow(wrong(1));
    await expect(nested(4, [2, 4])).rejects.toThrow(wrong(2));
    await expect(nested(2, [2, 4], { "weight.nested_quant_map": t("F32", [255]) })).rejects.toThrow(wrong(2));
  });

  test("LLM.int8: its types", async () => {
    await expect(layer(config, { weight: t("F16", [2, 2]), SCB: t("F32", [2]) })).rejects.toThrow(container("I8 weights", "F16"));
    await expect(layer(config, { weight: t("I8", [4]), SCB: t("F32", [2]) })).rejects.toThrow(container("a matrix", "[4]", "a.b.weight"));
    await expect(layer(config, { weight: t("I8", [2, 2]), SCB: t("F32", [3]) })).rejects.toThrow(said("E_SHAPE", "bitsandbytes scales: expected 8 bytes for int8_row [2, 2], got 12. Is group_size that of the file?")); // prettier-ignore
    expect((await layer(config, { weight: t("I8", [2, 2]), SCB: t("F32", [2]) })).packed.recipe.algorithm).toBe("bitsandbytes");
  });
});

describe("torchao", () => {
  const [n, k] = [4, 8];
  const read = (type: string, data: unknown, parts: Tensors): Promise<ImportedLayer> =>
    layer({ quant_method: "torchao" }, Object.fromEntries(Object.entries(parts).map(([part, c]) => [`_weight_${part}`, c])), {
      tensor_names: '["a.b.weight"]',
      "a.b.weight": JSON.stringify({ _type: type, _data: data }),
    });
  const damaged = (name: string, expected: string, got: string) => said("E_CONTAINER", `${name}: expected ${expected}, got ${got}. Is the file whole?`); // prettier-ignore
  const scale = (list: number[]) => t("F32", [list.length], Float32Array.from(list));
  const q = Int8Array.from({ length: n * k }, () => rng.integer(15) - 7);
  const blocks = (size: readonly [number, number]) => (n / size[0]) * (k / size[1]);
  const at = (i: number, [r, c]: readonly [number, number]) => Math.floor(Math.floor(i / k) / r) * (k / c) + Math.floor((i % k) / c);

  test.each([[1, 8], [1, 4], [2, 4], [4, 8], [4, 2], [2, 8]] as [number, number][])("a scale for every block of [%d, %d]", async (...size) => {
    const scales = Array.from({ length: blocks(size) }, (_, i) => 1 + i / 4);
    const want = [...q].map((v, i) => v * scales[at(i, size)] + 0);
    const parts = { qdata: t("I8", [n, k], q), scale: scale(scales) };
    expect(values(await read("Int8Tensor", { block_size: size }, parts))).toEqual(want);
    // zero points that are all none
    const zeros = t("I8", [scales.length]);
    expect(values(await read("Int8Tensor", { block_size: size }, { ...parts, zero_point: zeros }))).toEqual(want);
    const floats = t("F8_E5M2", [n, k], Uint8Array.from(q, (v) => 0x3c + (v & 3) * 4));
    expect(values(await read("Float8Tensor", { block_size: size }, { qdata: floats, scale: scale(scales) }))).toEqual([...q].map((v, i) => 2 ** (v & 3) * scales[at(i, size)])); // prettier-ignore
    for (const wrong of [scales.slice(1), [...scales, 1]])
      for (const [type, data] of [["Int8Tensor", parts.qdata], ["Float8Tensor", floats]] as const) await expect(read(type, { block_size: size }, { qdata: data, scale: scale(wrong) })).rejects.toThrow(damaged("a.b._weight_scale", `${scales.length} values`, String(wrong.length))); // prettier-ignore
    const odd = t("I8", [scales.length], Int8Array.from({ length: scales.length }, (_, i) => (i === scales.length - 1 ? 3 : 0)));
    const own = read("Int8Tensor", { block_size: size }, { ...parts, zero_point: odd });
    if (size[0] === 1) expect(values(await own)).toEqual([...q].map((v, i) => (v - (at(i, size) === scales.length - 1 ? 3 : 0)) * scales[at(i, size)] + 0)); // prettier-ignore
    else await expect(own).rejects.toThrow(said("E_UNSUPPORTED", `a.b: expected zero points by row or group, got blocks of [${size.join(", ")}].`));
  }); // prettier-ignore

  test("integers: widths, ranges and zero points", async () => {
    const parts = (codes = q): Tensors => ({ qdata: t("I8", [n, k], codes), scale: scale([1, 1, 1, 1]) });
    const of = (target: string | undefined, codes = q, more: Tensors = {}) =>
      read("IntxUnpackedToInt8Tensor", { block_size: [1, k], ...(target === undefined ? {} : { target_dtype: { _data: target } }) }, { ...parts(codes), ...more }); // prettier-ignore
    expect((await of("int4")).packed.format.name).toBe("int4_row");
    expect((await of(undefined)).packed.format.name).toBe("int8_row");
    for (const wrong of ["int9", "int0", "uint4", "xint4", "int44"]) await expect(of(wrong)).rejects.toThrow(damaged("a.b", "a target_dtype from int1 to int8", wrong)); // prettier-ignore
    const out = q.slice();
    out[5] = 8;
    await expect(of("int4", out)).rejects.toThrow(damaged("a.b._weight_qdata", "values of int4", "8"));
    out[5] = -8;
    expect(values(await of("int4", out))[5]).toBe(-8);
    const zero = (list: number[], dtype = "F32") => of("int4", q, { zero_point: dtype === "F32" ? scale(list) : t("I8", [list.length], Int8Array.from(list)) }); // prettier-ignore
    for (const edge of [-128, 127]) expect(values(await zero([0, 0, edge, 0]))[2 * k]).toBe(q[2 * k] - edge);
    expect((await zero([0, 1, 0, 0])).packed.format.name).toBe("int4_row_float32_int8zp");
    const range = (got: string) => damaged("a.b._weight_zero_point", "4 integers from -128 to 127", got);
    await expect(zero([0, 0, -129, 0])).rejects.toThrow(range("4"));
    await expect(zero([0, 0, 128, 0])).rejects.toThrow(range("4"));
    await expect(zero([0, 0, 0.5, 0])).rejects.toThrow(range("0.5"));
    await expect(zero([0, 0, 0])).rejects.toThrow(range("3"));
    await expect(of("int4", q, { scale: t("F64", [4]) })).rejects.toThrow(damaged("a.b._weight_scale", "F32, F16 or BF16", "F64"));
    await expect(of("int4", q, { qdata: t("U8", [n, k]) })).rejects.toThrow(damaged("a.b._weight_qdata", "I8", "U8"));
    await expect(of("int4", q, { qdata: t("I8", [n * k]) })).rejects.toThrow(damaged("a.b._weight_qdata", "a matrix", `[${n * k}]`));
  });

  test("four bits by groups, floats by blocks: what does not fit", async () => {
    const size = (given: unknown) => `[${(given as number[]).join(", ")}]`;
    const four: Tensors = { qdata: t("I8", [n, k / 2]), scale: t("BF16", [2, n]), zero_point: t("BF16", [2, n]) };
    expect((await read("Int4Tensor", { block_size: [1, 4] }, four)).packed.shape).toEqual([n, k]);
    for (const given of [[1, 3], [2, 4], [4], [1, 4, 1]]) await expect(read("Int4Tensor", { block_size: given }, four)).rejects.toThrow(damaged("a.b", `groups that divide ${k}`, size(given))); // prettier-ignore
    for (const given of [undefined, 5, [1, 0], [1, 0.5], ["1", 4]]) await expect(read("Int4Tensor", { block_size: given }, four)).rejects.toThrow(damaged("a.b", `groups that divide ${k}`, "[]")); // prettier-ignore
    for (const part of ["scale", "zero_point"]) {
      await expect(read("Int4Tensor", { block_size: [1, 4] }, { ...four, [part]: t("BF16", [3, n]) })).rejects.toThrow(damaged(`a.b._weight_${part}`, "8 values", "12")); // prettier-ignore
      await expect(read("Int4Tensor", { block_size: [1, 4] }, without(four, part))).rejects.toThrow(new RegExp(`^a\\.b: expected _weight_${part}, got _weight_`)); // prettier-ignore
      // each of its own type
      const mixed = await read("Int4Tensor", { block_size: [1, 4] }, { ...four, [part]: t("F32", [2, n], Float32Array.from({ length: 8 }, (_, i) => i)) }); // prettier-ignore
      expect((part === "scale" ? mixed.packed.scales : mixed.packed.offsets)!.length).toBe(32);
    }
    const float: Tensors = { qdata: t("F8_E4M3", [n, k]), scale: scale([1, 1, 1, 1]) };
    for (const given of [[3, 8], [1, 3], [4], [1, 8, 1]]) await expect(read("Float8Tensor", { block_size: given }, float)).rejects.toThrow(damaged("a.b", `a block_size that divides [${n}, ${k}]`, size(given))); // prettier-ignore
    await expect(read("Float8Tensor", { block_size: [1, 8] }, { ...float, qdata: t("I8", [n, k]) })).rejects.toThrow(damaged("a.b._weight_qdata", "F8_E4M3 or F8_E5M2", "I8")); // prettier-ignore
    await expect(read("Float8Tensor", { block_size: [1, 8] }, { ...float, act_pre_scale: scale([1]) })).rejects.toThrow(/^a\.b: expected weights for inputs as they are, got act_pre_scale/); // prettier-ignore
    await expect(read("Int4PlainInt32Tensor", {}, float)).rejects.toThrow(said("E_UNSUPPORTED", "a.b: expected Int4Tensor, IntxUnpackedToInt8Tensor, Int8Tensor or Float8Tensor, got Int4PlainInt32Tensor, a layout for one device. Save it with the plain layout.")); // prettier-ignore
  });

  test("metadata: names, entries, and what is no weight", async () => {
    const file = (metadata: Record<string, string>) => open({ quant_method: "torchao" }, { "norm.weight": t("F32", [1]) }, metadata);
    const refused = (metadata: Record<string, string>, message: string) =>
      expect(file(metadata)).rejects.toThrow(said("E_CONTAINER", message));
    await refused({ tensor_names: "{" }, 'tensor_names: expected JSON of torchao, got "{".');
    await refused({ tensor_names: "{}" }, "tensor_names: expected a list, got object.");
    await refused({ tensor_names: "[5]" }, "5: expected { _type, _data } in the metadata, got none.");
    await refused({ tensor_names: '["a.weight"]' }, "a.weight: expected { _type, _data } in the metadata, got none.");
    await refused({ tensor_names: '["a.weight"]', "a.weight": "[" }, 'a.weight: expected JSON of torchao, got "[".');
    for (const entry of ["null", "[]", "5", "{}", '{"_type":5}']) await refused({ tensor_names: '["a.weight"]', "a.weight": entry }, "a.weight: expected { _type, _data } in the metadata, got none."); // prettier-ignore
    const sound = JSON.stringify({ _type: "Int8Tensor", _data: {} });
    const made = await file({ tensor_names: '["a.weight","a.bias","b.weight"]', "a.weight": sound, "a.bias": sound, "b.weight": '{"_type":"Tensor"}' }); // prettier-ignore
    expect([...made.layers.keys()]).toEqual(["a"]);
    expect([...(await file({})).layers.keys()]).toEqual([]);
  });
});

test("the method by what a configuration says; other ones and none", async () => {
  const tensors = { "a.weight": t("F32", [1]), "a.bias": t("F32", [1]) };
  const method = async (config: Record<string, unknown> | undefined) => (await open(config, tensors)).method;
  expect(await method(undefined)).toBe("none");
  for (const [config, name] of [[{ w_bit: 4 }, "awq"], [{ zero_point: true }, "awq"], [{ bits: 4 }, "gptq"], [{ config_groups: {} }, "compressed-tensors"], [{ quant_method: "GPTQ" }, "gptq"], [{ quant_method: "bitsandbytes", bits: 4 }, "bitsandbytes"], [{ bits: 4, w_bit: 4 }, "awq"]] as const)
    expect(await method(config), JSON.stringify(config)).toBe(name); // prettier-ignore
  for (const [config, name] of [[{}, "unknown"], [{ quant_method: "None" }, "none"], [{ quant_method: "fp8" }, "fp8"], [{ quant_method: "__proto__" }, "__proto__"]] as const) {
    if (name === "none") expect(await method(config)).toBe("none");
    else await expect(method(config)).rejects.toThrow(said("E_UNSUPPORTED", `quantization_config.quant_method: expected gptq, awq, compressed-tensors, bitsandbytes, torchao, got ${JSON.stringify(name)}.`)); // prettier-ignore
  } // prettier-ignore
});
