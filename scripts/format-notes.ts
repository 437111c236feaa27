// Prose of the generated format pages: why a format exists and where it is used, and what to watch out for. Data for
// scripts/docs.ts only: nothing of it reaches the package.

export interface FormatNote {
  readonly why: string;
  readonly traps: readonly string[];
}

const notes: Record<string, FormatNote> = {};
const add = (names: string | readonly string[], why: string, ...traps: string[]): void => {
  for (const name of typeof names === "string" ? [names] : names) notes[name] = { why, traps };
};
const upTo = (n: number, name: (i: number) => string) => Array.from({ length: n }, (_, i) => name(i + 1));

// Integers
const twos =
  "Two's complement reaches one further below zero than above: symmetric quantizers leave the lowest code out (`int8_narrow`, range rule `narrow`).";
const castsRound = "A cast has no scale: 0.4 becomes 0. Quantize with a block format (`int4_b32`) to keep small numbers.";
const noNaN = "There is no NaN: encoding one is an error unless a policy is named.";
add(
  ["int4", "int8"],
  "The integer types of ONNX, GPTQ, AWQ and of integer dot product instructions; weights in 4 bits, weights and activations in 8.",
  twos,
  castsRound,
  noNaN,
);
add(
  "int2",
  "ONNX INT2 (opset 25): weights of two bits with a scale per block.",
  twos,
  "Only -1, 0 and 1 are symmetric: `ternary` is this format without -2.",
  noNaN,
);
add(
  ["int3", "int5", "int6", "int7"],
  "Widths between those of hardware, for weights packed as a dense bit stream (FlexQ uses 6 bits, GPTQ 3).",
  twos,
  castsRound,
  "Packed least significant bit first: codes straddle bytes. Bit-plane and GPTQ containers differ.",
  noNaN,
);
add(
  "int1",
  "One signed bit: -1 or 0. The smallest case of the integer family.",
  "The values are -1 and 0, not -1 and +1: that is `binary` or `bipolar1`.",
  noNaN,
);
add(
  ["uint4", "uint8"],
  "Unsigned codes of affine quantization: the zero point says which code means zero. ONNX UINT4 and UINT8, image and activation data.",
  "Without a zero point negative numbers saturate to 0.",
  castsRound,
  noNaN,
);
add(
  ["uint1", "uint2", "uint3", "uint5", "uint6", "uint7"],
  "Unsigned codes of any width, for affine weights and for the planes of bit-serial kernels.",
  "Without a zero point negative numbers saturate to 0.",
  noNaN,
);
add(
  "ternary",
  "Weights of BitNet b1.58, TriLM and the MatMul-free language model: -1, 0 and 1 times one scale per tensor. 1.585 bits of information in 2 stored bits (1.6 in base 3, `ggml_tq1_0`).",
  "Their scale is the mean magnitude, not the largest one; ggml's ternary blocks use the largest.",
  "Exactly half the scale becomes 0 (ties to even).",
  "Code 2 reads as -2 and is never written.",
);
add(
  "binary",
  "The sign of a number: XNOR networks and embeddings compared by Hamming distance.",
  "Zero counts as +1 here; `bipolar1` has the same values and ties 0 to the even code, -1.",
  noNaN,
);

// Bipolar
add(
  upTo(8, (n) => `bipolar${n}`),
  "Bits of -1 and +1 (APMM, AP-LLM, T-MAC, LUT tensor cores): products of bit planes are XNOR and popcount without a special sign plane, and the range is exactly symmetric.",
  "There is no zero: a cast of 0 gives -1 or +1. Integer weights keep their values only with the corrected scale and zero point (`bipolarFromAffine`).",
  "In XNOR dot products padding bits count: use the true length, or subtract them.",
  noNaN,
);

// Floats
add(
  "float32",
  "The reference type of activations and scales.",
  "Arithmetic of two float32 in doubles is rounded twice unless the operation is add, sub, mul, div or sqrt; `arithmetic(float32)` rounds fma and dot products once too.",
);
add(
  "tfloat32",
  "Tensor core input of NVIDIA Ampere and later: float32 range, 10 mantissa bits, in a 32-bit word.",
  "Hardware may truncate where this rounds; the low 13 bits are ignored when read.",
);
add(
  "float16",
  "Half precision: model weights, scales of ggml and GPTQ blocks.",
  "Ends at 65504; scales of large tensors overflow, scales of tiny ones become subnormal.",
  "65520 and above round to infinity.",
);
add(
  "bfloat16",
  "float32 cut to its upper half: the training format. Same range, 8 significant bits.",
  "A scale division in bfloat16 leaves integer ranges by rounding (x / s can exceed 127): clamp after rounding.",
);
add(
  "float8_e4m3fn",
  "The FP8 format for weights and activations (OCP, NVIDIA, ONNX FLOAT8E4M3FN), element of mxfp8_e4m3, block scale of nvfp4.",
  "Overflow becomes NaN unless you saturate: 464 is a tie that still gives 448, anything above is NaN.",
  'There is no infinity. ml_dtypes\' saturating cast keeps infinities as NaN, ONNX turns them into 448: `infinity: "keep"` or `"overflow"`.',
  "Not float8_e4m3, which has infinities and ends at 240; the alias e4m3 names both and is refused.",
);
add(
  "float8_e5m2",
  "The FP8 format for gradients: the range of float16 with two mantissa bits.",
  "61440 and above round to infinity unless you saturate.",
  "Canonical NaN is 0x7e; ONNX 1.16 writes 0x7f. Compare NaN as a class.",
);
add(
  ["float8_e4m3fnuz", "float8_e5m2fnuz"],
  "The FP8 formats of AMD MI300 and Graphcore: one zero, one NaN in its mirror place 0x80, bias one larger.",
  "-0 and negative underflow become +0.",
  "The same byte is half the value it would be in the OCP format.",
  'ONNX casts infinity to NaN even when saturating; here infinity saturates like any overflow unless `infinity: "keep"`.',
);
add("float8_e4m3b11fnuz", "E4M3 with bias 11 (Google TPU): small numbers, up to 30.", "A third E4M3: neither the OCP nor the AMD one.");
add(
  "float8_e4m3",
  "E4M3 with IEEE infinities and NaN, as ml_dtypes has it.",
  "Ends at 240. Files that say E4M3 usually mean float8_e4m3fn.",
);
add("float8_e3m4", "One exponent bit less, one mantissa bit more: data of small range.", "Ends at 15.5; needs a scale.");
add(
  "float8_e8m0fnu",
  "The shared scale of microscaling blocks: a bare power of two.",
  "No zero and no sign: zero is out of range (NaN by default, 2^-127 when saturating).",
  "Code 0 is 2^-127, a float32 subnormal: shifting it into a float32 exponent yields 0.",
  'Ties round up (ml_dtypes, ONNX "nearest"), not to even. Scale rules of blocks round down, up or otherwise, by name.',
);
add(
  "float7_e4m3fnu",
  "UE4M3, the block scale of NVFP4: E4M3 without its sign.",
  "Seven bits; in files it takes a byte whose top bit is 0, so its codes are those of float8_e4m3fn.",
  "ggml reads 0x7f as zero.",
);
add(
  "float4_e2m1fn",
  "FP4: element of mxfp4 and nvfp4, ONNX FLOAT4E2M1.",
  'Ties go to the even code: 2.5 becomes 2 and 5 becomes 4. microxcaling\'s default rounds them away from zero, ggml and Triton code toward zero: `rounding: "halfExpand"`, `"halfTrunc"`.',
  'There is no NaN: encoding one is an error by default; ONNX gives 6, ml_dtypes -0 (`nan: "max"`, `"negativeZero"`).',
  "Useless without a scale: most components of a unit vector round to 0.",
);
add(
  ["float6_e2m3fn", "float6_e3m2fn"],
  "FP6: elements of MXFP6, between FP4 and FP8 in size and accuracy.",
  "No infinity and no NaN; always saturates.",
  "Four codes take three bytes, least significant bit first.",
);
add(
  ["float3_e2m0", "float4_e3m0", "float5_e4m0", "float8_e7m0"],
  "Powers of two with a sign: a multiplication is a shift (LogNet, LLM-FP4's E3M0).",
  "Boundaries are arithmetic midpoints, 1.5 times a power of two. Rounding in the logarithm would put them at sqrt(2).",
  "The gap around a large value is as large as the value.",
);
add(
  ["float3_e1m1", "float4_e1m2", "float5_e1m3"],
  "One exponent bit and bias 0: a uniform grid with a sign bit, an integer in disguise. Tilus lists them.",
  "Sign and magnitude: there is a -0, and fewer values than in two's complement.",
);
add(
  ["float5_e2m2", "float5_e3m1", "float6_e4m1", "float7_e2m4", "float7_e3m3", "float7_e4m2"],
  "Sub-byte floats of Tilus for weights between 4 and 8 bits, each its own trade of range for precision.",
  "No infinity and no NaN, unlike the 8-bit formats.",
  noNaN,
);
add(
  "float7_e5m1",
  "The one sub-byte float of Tilus with IEEE specials: E5 keeps its top exponent for infinity and NaN.",
  "Ends at 49152; 57344 would be in the reserved exponent.",
);
for (let p = 1; p <= 7; p++) {
  const about = `IEEE P3109 (draft) binary8 of precision ${p}: one zero, NaN at 0x80`;
  add(
    `binary8p${p}se`,
    `${about}, infinities on top.`,
    "The bias is one larger than OCP's for the same fields.",
    "The draft still changes; names in circulation: binary8p" + p + ", K8P" + p + "se.",
  );
  add(
    `binary8p${p}sf`,
    `${about}, no infinities: the top code is a number.`,
    "The bias is one larger than OCP's for the same fields.",
    "Overflow saturates by default: the draft's finite domain has nowhere else to go.",
  );
}

// Posits
const positTraps = [
  "Rounding cuts the bit string: where exponent bits are cut off the boundary is not the arithmetic mean. Implementations that take the nearest value are wrong there.",
  "Nothing rounds to zero or NaR: 1e-300 becomes the smallest posit, 1e300 the largest.",
  "Infinity and NaN become NaR.",
];
add(
  "posit4_es1",
  "The 4-bit posit of XR-NPE and of hardware papers: 1/16 to 16 in 15 values.",
  "Between 4 and 16 the tie is 8, not 10.",
  ...positTraps,
);
add(
  ["posit8_es0", "posit16_es1"],
  "Posits of the 2018 draft (es = log2(n) - 3), as in SoftPosit and XR-NPE.",
  "The 2022 standard has es = 2 at every width: other values for the same word.",
  ...positTraps,
);
add("posit8_es1", "A common choice before the 2022 standard: 2^-12 to 2^12 in a byte.", ...positTraps);
add(
  ["posit8_es2", "posit16_es2", "posit32_es2"],
  "The posit of the 2022 standard (es = 2): most precise around 1, and dot products through the quire, exact until one final rounding.",
  "Files of before 2022 mean another es by the same n.",
  ...positTraps,
);

// Codebooks
const scaled = "A blockwise format: values are relative to the largest magnitude of a block.";
add(
  "nf4",
  "NormalFloat4 of QLoRA: quantiles of a normal distribution, so that normal weights use all codes equally; bitsandbytes and ONNX MatMulBnb4.",
  scaled,
  "A value on a threshold takes the lower code (strict >).",
  "bitsandbytes packs the first element into the high nibble; packed tensors here have it in the low one, exporters convert.",
);
add("nf3", "NF4's construction for 3 bits.", scaled, "bitsandbytes has no 3-bit table: other NF3 tables differ.");
add(
  "af4",
  "AbnormalFloat4: the code that is optimal for absmax blocks of 64.",
  scaled,
  "Codes run from +1 down to -1.",
  "Only meant for blocks of 64.",
);
add(
  "bnb_fp4",
  'The "FP4" of bitsandbytes.',
  "Not OCP E2M1: other values, and the order of codes is not that of values.",
  scaled,
  "Ties go toward zero (its CUDA kernels); its Python path sends negative ties down.",
);
add(
  "iq4_nl",
  "The 16 levels of ggml's IQ4_NL, denser around zero.",
  "There is no zero.",
  "The block stores a scale for these integers: see ggml_iq4_nl.",
);
add(
  "dynamic8",
  "bitsandbytes' dynamic map: seven decades with evenly spaced values, for optimizer states and for the second quantization of QLoRA's scales.",
  "Papers call it FP8; it is not.",
  "+1 is exact and -1 missing.",
);

// Blocks
add(
  "mxfp4",
  "OCP MX: E2M1 under a shared power of two per 32 elements (GPT-OSS, Blackwell, MI350).",
  "Rule `floor` lets magnitudes between 6 and 8 times the scale saturate; `rceil` does not, `even` has the least error of the power-of-two rules on normal data.",
  "FP-Quant files hold scales of another rule: see mxfp4_fourthirds.",
);
add(
  ["mxfp6_e2m3", "mxfp6_e3m2"],
  "OCP MX with 6-bit elements.",
  "Rule `floor` saturates the largest magnitudes: between 7.5 and 8 (E2M3), 28 and 32 (E3M2) times the scale.",
);
add(
  ["mxfp8_e4m3", "mxfp8_e5m2"],
  "OCP MX with 8-bit elements.",
  "Elements saturate: no element is infinite or NaN unless its whole block is NaN.",
  "Rule `floor` clips E4M3 elements between 448 and 512 times the scale; torchao's perplexities favour `rceil` slightly.",
);
add(
  "mxint8",
  "OCP MX with int8 elements of 6 fraction bits: the most accurate 8-bit block format on activations.",
  "The most negative code (-2) is never written and must still be read.",
  "Others quantize integers with scale 2^ceil(log2(amax / 127)): the same grid, one step coarser for some blocks (rule `rceil`).",
);
add(
  ["mxint6", "mxint4"],
  'Integer elements under a shared power of two, compared with MXFP6 and MXFP4 in "INT v.s. FP".',
  "Not part of OCP MX.",
  "Better than the float element only where the crest factor of a block is small (1.96 for 6 bits, 2.04 for 4).",
);
add(
  "mxfp4_fourthirds",
  "MXFP4 as MR-GPTQ, Quartet and FP-Quant write it: scale (4/3) 2^(floor(log2 amax) - 2), nothing saturates.",
  "The bytes look like OCP scales and mean three times as much times 1/3: reading them as mxfp4 is off by that factor.",
);
add(
  "nvfp4",
  "NVIDIA's FP4: a block scale in E4M3 per 16 elements and a float32 scale per tensor (Blackwell).",
  "compressed-tensors stores the reciprocal of the tensor scale; here it multiplies.",
  "Block scales that underflow: torchao stops at 2^-6, TransformerEngine lets them become 0, ModelOpt stops at 2^-9 (rules `torchao`, `te`, `modelopt`).",
  "Hadamard rotations cost it accuracy on average and help NVINT4: they lower the crest factor of blocks below the crossover of the two (2.39).",
);
add("nvint4", "NVFP4's two-level scales with int4 elements (narrow range).", "Wins over NVFP4 on rotated data (crest factor below 2.39).");
add(
  "nf4_b64",
  "QLoRA's weight format: NF4 in blocks of 64 with float32 absmax.",
  "Blocks restart at every row here; bitsandbytes flattens the tensor.",
  "An all-zero block has scale 1 and decodes to zero.",
);
add(
  "nf4_b64_dq",
  "NF4 with double quantization: the absmax values are quantized again, 4.127 bits per value.",
  "The mean of all absmax is subtracted first; the scale map is the dynamic map, not FP8.",
  "The scale of a block can come out a little smaller than its absmax: the extreme is then clipped.",
);
add(
  ["msfp12", "msfp16"],
  "Microsoft floating point: sign-magnitude fractions under a shared exponent per 16, as in Brainwave.",
  "Not the MX of shared microexponents, which came later under a similar name.",
);
add(
  "dfp16",
  "Dynamic fixed point: int16 with one exponent per tensor, for integer training and exact integer dot products.",
  "One outlier costs all other values their low bits.",
  "Sums of more than two products of full range overflow int32: `dotInt16` splits them.",
);
add(
  ["olive4", "olive8"],
  "OliVe: an outlier takes the place of its neighbour (the victim, read as 0) and gets a wider range without any index.",
  "Of two outliers in a pair only the larger survives (paper); the authors' code keeps the one in the even position.",
  "The victim's error is its whole magnitude.",
);

// ggml
const ggml = "Bytes as in GGUF; quantizers match the `_ref` functions of ggml byte for byte.";
add(
  "ggml_q4_0",
  `ggml's first 4-bit block. ${ggml}`,
  "The scale is the signed extreme divided by -8: it may be negative.",
  "Halves round up (truncation of x + 8.5), not to even.",
  "Element j lies in the low, j + 16 in the high nibble of byte j.",
);
add(
  ["ggml_q4_1", "ggml_q5_0", "ggml_q5_1"],
  `4- and 5-bit blocks of 32 with scale, or scale and minimum. ${ggml}`,
  "Scales are stored as float16, codes come from the float32 scale.",
  "Nibbles are split halves: j and j + 16 share a byte.",
);
add("ggml_q8_0", `8-bit blocks of 32 with a float16 scale: ggml's activation format. ${ggml}`, "Halves round away from zero (roundf).");
const kSearch =
  "Decoding is exact; encoding is a search of its own (least squares, by importance where one is given) with other bytes than the reference's.";
add("ggml_q4_k", "K-quant of 256 with 6-bit scales and minima: the usual 4-bit GGUF file.", kSearch);
add("ggml_q5_k", "K-quant of 256 with 6-bit scales and minima per 32, five bits a code.", kSearch);
add("ggml_q2_k", "K-quant of 256 with 4-bit scales and minima per 16, two bits a code.", kSearch);
add("ggml_q6_k", "K-quant of 256 with int8 scales per 16.", kSearch);
add("ggml_q3_k", "K-quant of 256 with 6-bit scales per 16, three bits a code.", kSearch);
add("ggml_iq4_xs", "The levels of iq4_nl in super-blocks of 256 with 6-bit scales per 32.", kSearch);
const gridSearch = "Decoding is exact; encoding is a search of its own, which leaves an importance matrix aside.";
add(["ggml_iq1_s", "ggml_iq1_m"], "Codebook of 2048 ternary vectors of eight, shifted by an eighth: the smallest GGUF files.", gridSearch);
add(["ggml_iq2_xxs", "ggml_iq2_xs", "ggml_iq2_s"], "Codebook of vectors of eight (magnitudes 8, 25, 43) with signs beside.", gridSearch);
add(["ggml_iq3_xxs", "ggml_iq3_s"], "Codebook of vectors of four (eight magnitudes) with signs beside.", gridSearch);
add("ggml_q1_0", "Signs in blocks of 128 with a float16.", "The scale is the mean magnitude; zero becomes plus the scale.");
add(
  "ggml_q2_0",
  "-1, 0, 1 or 2 in blocks of 64 with a float16.",
  "The scale is the largest magnitude: weights must already be ternary times one scale.",
);
add(
  ["ggml_q8_1", "ggml_q8_k"],
  "What llama.cpp makes of activations: 8 bits with sums of codes beside.",
  "Types of ggml, but not met in files.",
);
add("ggml_iq4_nl", `Non-linear 4-bit blocks of 32 on the levels of iq4_nl. ${ggml}`, "The table has no zero.");
add(
  ["ggml_tq1_0", "ggml_tq2_0"],
  "Ternary blocks of 256: five trits to a byte, or two bits each.",
  "The scale is the largest magnitude: weights must already be ternary times one scale.",
);
add(
  "ggml_mxfp4",
  `MXFP4 in GGUF (GPT-OSS). ${ggml}`,
  "Ties go toward zero (the first best of a search) and -0 is never written: bytes differ from OCP round to even.",
  "Nibbles are split halves.",
);
add(
  "ggml_nvfp4",
  `NVFP4 in GGUF without its tensor scale. ${ggml}`,
  "Its scale encoder rounds halves up and turns everything from 256 on into 448.",
);

/** The note of a format. @throws Error where there is none: a named format without documentation is not finished */
export function noteOf(name: string): FormatNote {
  if (!Object.hasOwn(notes, name)) throw new Error(`no documentation note for ${name}: add one to scripts/format-notes.ts`);
  return notes[name];
}

/** Names that have a note. */
// Tapered and logarithmic numbers
add(
  "hifloat8",
  "Huawei Ascend's 8-bit float: one format for the forward and the backward pass, with the precision of e4m3 around 1 and the range of e5m2.",
  "Ties round away from zero, not to even.",
  "0x80 is NaN, not -0; values from 40960 on become infinity.",
  "Below 2^-15 only powers of two are left.",
);
add(
  "float8_e5m3fnu",
  "Scales of small blocks: the sign bit of a scale is spent on one more exponent bit, so that NVFP4-like blocks need no second scale per tensor.",
  "Unsigned: a negative value is out of range.",
);
add(
  "lns8_f3",
  "Logarithmic numbers turn products into additions of codes; in 4 and 5 bits they were an early format for networks (LogNet).",
  "Values are irrational: a code's value is the nearest double.",
  "Rounding is of the logarithm (the boundary is the geometric mean), so the error of a value is not always the smallest.",
);

export const noted = (): string[] => Object.keys(notes);
