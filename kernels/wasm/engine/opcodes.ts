// WebAssembly opcodes as data: name (as in the text format) -> bytes, and for memory accesses the natural alignment
// (log2). Core 2.0 with fixed-width SIMD (prefix 0xfd), relaxed SIMD (0xfd 0x100..) and threads (0xfe). Only what
// kernels use is listed.

/**
 * prefix 0: a one-byte opcode; otherwise prefix byte, then the opcode as LEB128. `align`: the instruction takes a
 * memory argument.
 */
export interface Opcode {
  readonly prefix: 0 | 0xfc | 0xfd | 0xfe;
  readonly code: number;
  readonly align?: number;
  /** A lane index follows. */
  readonly lane?: boolean;
  /** Zero bytes that name the memories of a bulk instruction. */
  readonly memories?: number;
}

const scalar: Record<string, number> = {
  "i32.eqz": 0x45, "i32.eq": 0x46, "i32.ne": 0x47, "i32.lt_s": 0x48, "i32.lt_u": 0x49, "i32.gt_s": 0x4a, "i32.gt_u": 0x4b,
  "i32.le_s": 0x4c, "i32.le_u": 0x4d, "i32.ge_s": 0x4e, "i32.ge_u": 0x4f,
  "f32.eq": 0x5b, "f32.ne": 0x5c, "f32.lt": 0x5d, "f32.gt": 0x5e, "f32.le": 0x5f, "f32.ge": 0x60,
  "i32.clz": 0x67, "i32.ctz": 0x68, "i32.popcnt": 0x69, "i32.add": 0x6a, "i32.sub": 0x6b, "i32.mul": 0x6c, "i32.div_u": 0x6e,
  "i32.rem_u": 0x70, "i32.and": 0x71, "i32.or": 0x72, "i32.xor": 0x73, "i32.shl": 0x74, "i32.shr_s": 0x75, "i32.shr_u": 0x76,
  "i64.lt_u": 0x54, "i64.gt_u": 0x56, "i64.popcnt": 0x7b, "i64.add": 0x7c, "i64.or": 0x84, "i64.xor": 0x85, "i64.shl": 0x86, "i64.shr_u": 0x88, "i64.extend_i32_u": 0xad,
  "f32.abs": 0x8b, "f32.neg": 0x8c, "f32.sqrt": 0x91, "f32.add": 0x92, "f32.sub": 0x93, "f32.mul": 0x94, "f32.div": 0x95, "f32.min": 0x96, "f32.max": 0x97,
  "i32.wrap_i64": 0xa7, "i32.trunc_f32_s": 0xa8, "f32.convert_i32_s": 0xb2, "f32.convert_i32_u": 0xb3, "f32.demote_f64": 0xb6, "f64.promote_f32": 0xbb,
  "i32.reinterpret_f32": 0xbc, "f32.reinterpret_i32": 0xbe,
  "f64.convert_i32_s": 0xb7, "f64.add": 0xa0, "f64.mul": 0xa2, "f64.div": 0xa3, "select": 0x1b, "drop": 0x1a, "return": 0x0f, "unreachable": 0x00,
}; // prettier-ignore

/** name: [opcode, log2 alignment] */
const scalarMemory: Record<string, readonly [number, number]> = {
  "i32.load": [0x28, 2], "i64.load": [0x29, 3], "f32.load": [0x2a, 2], "f64.load": [0x2b, 3],
  "i32.load8_s": [0x2c, 0], "i32.load8_u": [0x2d, 0], "i32.load16_s": [0x2e, 1], "i32.load16_u": [0x2f, 1],
  "i32.store": [0x36, 2], "i64.store": [0x37, 3], "f32.store": [0x38, 2], "f64.store": [0x39, 3], "i32.store8": [0x3a, 0], "i32.store16": [0x3b, 1],
}; // prettier-ignore

const simdMemory: Record<string, readonly [number, number]> = {
  "v128.load": [0x00, 4], "v128.load8x8_s": [0x01, 3], "v128.load8x8_u": [0x02, 3], "v128.load16x4_s": [0x03, 3], "v128.load16x4_u": [0x04, 3],
  "v128.load32x2_s": [0x05, 3], "v128.load32x2_u": [0x06, 3], "v128.load8_splat": [0x07, 0], "v128.load16_splat": [0x08, 1],
  "v128.load32_splat": [0x09, 2], "v128.load64_splat": [0x0a, 3], "v128.store": [0x0b, 4],
  "v128.load32_zero": [0x5c, 2], "v128.load64_zero": [0x5d, 3],
}; // prettier-ignore

const simdLaneMemory: Record<string, readonly [number, number]> = {
  "v128.load8_lane": [0x54, 0], "v128.load16_lane": [0x55, 1], "v128.load32_lane": [0x56, 2], "v128.load64_lane": [0x57, 3],
  "v128.store8_lane": [0x58, 0], "v128.store16_lane": [0x59, 1], "v128.store32_lane": [0x5a, 2], "v128.store64_lane": [0x5b, 3],
}; // prettier-ignore

const simdLane: Record<string, number> = {
  "i8x16.extract_lane_s": 0x15, "i8x16.extract_lane_u": 0x16, "i8x16.replace_lane": 0x17, "i16x8.extract_lane_s": 0x18,
  "i16x8.extract_lane_u": 0x19, "i16x8.replace_lane": 0x1a, "i32x4.extract_lane": 0x1b, "i32x4.replace_lane": 0x1c,
  "i64x2.extract_lane": 0x1d, "f32x4.extract_lane": 0x1f, "f32x4.replace_lane": 0x20, "f64x2.extract_lane": 0x21, "f64x2.replace_lane": 0x22,
}; // prettier-ignore

const simd: Record<string, number> = {
  "i8x16.swizzle": 0x0e, "i8x16.splat": 0x0f, "i16x8.splat": 0x10, "i32x4.splat": 0x11, "i64x2.splat": 0x12, "f32x4.splat": 0x13, "f64x2.splat": 0x14,
  "i8x16.eq": 0x23, "i8x16.gt_s": 0x27, "i8x16.gt_u": 0x28, "i8x16.ge_u": 0x2c,
  "i16x8.eq": 0x2d, "i16x8.gt_s": 0x31, "i32x4.eq": 0x37, "i32x4.ne": 0x38, "i32x4.lt_s": 0x39, "i32x4.lt_u": 0x3a, "i32x4.gt_s": 0x3b,
  "i32x4.gt_u": 0x3c, "i32x4.ge_s": 0x3f,
  "f32x4.eq": 0x41, "f32x4.ne": 0x42, "f32x4.lt": 0x43, "f32x4.gt": 0x44, "f32x4.le": 0x45, "f32x4.ge": 0x46, "f64x2.eq": 0x47,
  "f64x2.ne": 0x48, "f64x2.lt": 0x49, "f64x2.gt": 0x4a, "f64x2.le": 0x4b, "f64x2.ge": 0x4c,
  "v128.not": 0x4d, "v128.and": 0x4e, "v128.andnot": 0x4f, "v128.or": 0x50, "v128.xor": 0x51, "v128.bitselect": 0x52, "v128.any_true": 0x53,
  "f32x4.demote_f64x2_zero": 0x5e, "f64x2.promote_low_f32x4": 0x5f,
  "i8x16.abs": 0x60, "i8x16.neg": 0x61, "i8x16.popcnt": 0x62, "i8x16.bitmask": 0x64, "i8x16.narrow_i16x8_s": 0x65, "i8x16.narrow_i16x8_u": 0x66,
  "f32x4.ceil": 0x67, "f32x4.floor": 0x68, "f32x4.trunc": 0x69, "f32x4.nearest": 0x6a,
  "i8x16.shl": 0x6b, "i8x16.shr_s": 0x6c, "i8x16.shr_u": 0x6d, "i8x16.add": 0x6e, "i8x16.sub": 0x71, "i8x16.min_u": 0x77, "i8x16.max_u": 0x79,
  "i16x8.extadd_pairwise_i8x16_s": 0x7c, "i16x8.extadd_pairwise_i8x16_u": 0x7d, "i32x4.extadd_pairwise_i16x8_s": 0x7e, "i32x4.extadd_pairwise_i16x8_u": 0x7f,
  "i16x8.narrow_i32x4_s": 0x85, "i16x8.narrow_i32x4_u": 0x86, "i16x8.extend_low_i8x16_s": 0x87, "i16x8.extend_high_i8x16_s": 0x88,
  "i16x8.extend_low_i8x16_u": 0x89, "i16x8.extend_high_i8x16_u": 0x8a, "i16x8.shl": 0x8b, "i16x8.shr_s": 0x8c, "i16x8.shr_u": 0x8d,
  "i16x8.add": 0x8e, "i16x8.sub": 0x91, "i16x8.mul": 0x95,
  "i32x4.bitmask": 0xa4, "i32x4.abs": 0xa0, "i32x4.neg": 0xa1, "i32x4.extend_low_i16x8_s": 0xa7, "i32x4.extend_high_i16x8_s": 0xa8, "i32x4.extend_low_i16x8_u": 0xa9,
  "i32x4.extend_high_i16x8_u": 0xaa, "i32x4.shl": 0xab, "i32x4.shr_s": 0xac, "i32x4.shr_u": 0xad, "i32x4.add": 0xae, "i32x4.sub": 0xb1, "i32x4.mul": 0xb5,
  "i32x4.min_s": 0xb6, "i32x4.min_u": 0xb7, "i32x4.max_s": 0xb8, "i32x4.max_u": 0xb9, "i32x4.dot_i16x8_s": 0xba,
  "i64x2.shl": 0xcb, "i64x2.shr_u": 0xcd, "i64x2.add": 0xce, "i64x2.sub": 0xd1, "i64x2.gt_s": 0xd9,
  "i64x2.extmul_low_i32x4_s": 0xdc, "i64x2.extmul_high_i32x4_s": 0xdd,
  "f32x4.abs": 0xe0, "f32x4.neg": 0xe1, "f32x4.sqrt": 0xe3, "f32x4.add": 0xe4, "f32x4.sub": 0xe5, "f32x4.mul": 0xe6, "f32x4.div": 0xe7,
  "f32x4.min": 0xe8, "f32x4.max": 0xe9, "f32x4.pmin": 0xea, "f32x4.pmax": 0xeb,
  "f64x2.abs": 0xec, "f64x2.neg": 0xed, "f64x2.pmin": 0xf6, "f64x2.pmax": 0xf7, "f64x2.add": 0xf0, "f64x2.sub": 0xf1, "f64x2.mul": 0xf2, "f64x2.div": 0xf3, "f64x2.convert_low_i32x4_s": 0xfe,
  "i32x4.trunc_sat_f32x4_s": 0xf8, "i32x4.trunc_sat_f32x4_u": 0xf9, "f32x4.convert_i32x4_s": 0xfa, "f32x4.convert_i32x4_u": 0xfb,
  // relaxed SIMD
  "i8x16.relaxed_swizzle": 0x100, "i32x4.relaxed_trunc_f32x4_s": 0x101, "f32x4.relaxed_madd": 0x105, "f32x4.relaxed_nmadd": 0x106,
  "i8x16.relaxed_laneselect": 0x109, "i32x4.relaxed_laneselect": 0x10b, "f32x4.relaxed_min": 0x10d, "f32x4.relaxed_max": 0x10e,
  "i16x8.relaxed_dot_i8x16_i7x16_s": 0x112, "i32x4.relaxed_dot_i8x16_i7x16_add_s": 0x113,
}; // prettier-ignore

const atomic: Record<string, readonly [number, number]> = {
  "memory.atomic.notify": [0x00, 2], "memory.atomic.wait32": [0x01, 2],
  "i32.atomic.load": [0x10, 2], "i32.atomic.store": [0x17, 2], "i32.atomic.rmw.add": [0x1e, 2], "i32.atomic.rmw.cmpxchg": [0x48, 2],
}; // prettier-ignore

/** name: [opcode, memories] */
const bulk: Record<string, readonly [number, number]> = { "memory.copy": [10, 2], "memory.fill": [11, 1] };

const table: Record<string, Opcode> = {};
for (const [name, code] of Object.entries(scalar)) table[name] = { prefix: 0, code };
for (const [name, [code, align]] of Object.entries(scalarMemory)) table[name] = { prefix: 0, code, align };
for (const [name, [code, align]] of Object.entries(simdMemory)) table[name] = { prefix: 0xfd, code, align };
for (const [name, [code, align]] of Object.entries(simdLaneMemory)) table[name] = { prefix: 0xfd, code, align, lane: true };
for (const [name, code] of Object.entries(simdLane)) table[name] = { prefix: 0xfd, code, lane: true };
for (const [name, code] of Object.entries(simd)) table[name] = { prefix: 0xfd, code };
for (const [name, [code, align]] of Object.entries(atomic)) table[name] = { prefix: 0xfe, code, align };
for (const [name, [code, memories]] of Object.entries(bulk)) table[name] = { prefix: 0xfc, code, memories };

/** Every instruction the assembler knows, by its name in the WebAssembly text format. */
export const opcodes: Readonly<Record<string, Opcode>> = Object.freeze(table);
