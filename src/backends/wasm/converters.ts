// What bulk conversion on the WebAssembly backend is made of: kernels of one format with their tables in engine memory,
// kernels for bits and blocks, and the size of the pieces in which arrays pass through it.
import { decodeExpr, encodeExpr, type Expr } from "../../../formats/core/expr.ts";
import type { Codes } from "../../../formats/core/pack.ts";
import type { EncodeOptions, NumberFormat } from "../../../formats/core/types.ts";
import { bits as bitsFamily } from "../../../kernels/wasm/convert/bits.ts";
import { blocks as blocksFamily } from "../../../kernels/wasm/convert/blocks.ts";
import { codec } from "../../../kernels/wasm/convert/codec.ts";
import type { Space, WasmFunction } from "../../../kernels/wasm/engine/engine.ts";
import { planExpr } from "../../../kernels/wasm/convert/expr.ts";
import { kernel } from "../../../kernels/wasm/engine/family.ts";
import type { Runtime } from "../../../kernels/wasm/engine/runtime.ts";
import { disposed } from "../layer.ts";

/** Values that pass through engine memory at a time: 64 KB as float32. */
export const PIECE = 16384;
export const roundUp = (n: number, step: number): number => Math.ceil(n / step) * step;

/** A kernel of one format and direction, with its tables in memory. */
export interface Converter {
  readonly space: Space;
  readonly run: WasmFunction;
  readonly tables: number;
}

/** What the conversion of panels shares with that of arrays. */
export interface CodecTools {
  /** @throws LowbitError E_DISPOSED */
  check(): void;
  encoder(format: NumberFormat, options: EncodeOptions): Converter | null;
  decoder(format: NumberFormat): Converter | null;
  bits(space: Space, bits: number): Record<string, WasmFunction>;
  blocks(space: Space): Record<string, WasmFunction>;
  /** A space for work that needs no tables. */
  space(): Space;
}

/** Codes in engine memory. */
export const words = (space: Space, bits: number, at: number, count: number): Codes =>
  bits <= 8 ? new Uint8Array(space.buffer, at, count) : new Uint16Array(space.buffer, at, count);

/** Nothing is built or allocated before the first use. */
export function createTools(runtime: Runtime): CodecTools {
  const { shared } = runtime;
  const decoders = new WeakMap<NumberFormat, Converter | null>();
  const encoders = new WeakMap<NumberFormat, Map<string, Converter | null>>();

  function converter(direction: "decode" | "encode", format: NumberFormat, expr: Expr | null): Converter | null {
    if (expr === null) return null;
    const plan = planExpr(expr, direction === "decode");
    const spec = { direction, codeBits: format.bits <= 8 ? (8 as const) : (16 as const), relaxed: runtime.features.relaxed, shared };
    const { space, address } = runtime.allocate(plan.tables.byteLength);
    new Uint32Array(space.buffer, address, plan.tables.length).set(plan.tables);
    const built = kernel(codec, { ...spec, plan });
    return { space, run: space.exports(built)[direction], tables: address };
  }

  function decoder(format: NumberFormat): Converter | null {
    let found = decoders.get(format);
    if (found === undefined) decoders.set(format, (found = converter("decode", format, decodeExpr(format))));
    return found;
  }

  function encoder(format: NumberFormat, options: EncodeOptions): Converter | null {
    let byOptions = encoders.get(format);
    if (byOptions === undefined) encoders.set(format, (byOptions = new Map()));
    const key = `${options.rounding ?? ""},${options.overflow ?? ""},${options.infinity ?? ""},${options.nan ?? ""}`;
    let found = byOptions.get(key);
    if (found === undefined) byOptions.set(key, (found = converter("encode", format, encodeExpr(format, options))));
    return found;
  }

  const bitsKernel = (space: Space, bits: number): Record<string, WasmFunction> => space.exports(kernel(bitsFamily, { bits, shared }));
  const blocksKernel = (space: Space): Record<string, WasmFunction> => space.exports(kernel(blocksFamily, { shared }));
  const anySpace = (): Space => {
    if (runtime.spaces.length > 0) return runtime.spaces[0];
    const { space, address } = runtime.allocate(64);
    space.arena.free(address);
    return space;
  };
  const check = (): void => {
    if (!runtime.live) throw disposed();
  };
  return {
    check,
    encoder: (format, options) => (check(), encoder(format, options)),
    decoder: (format) => (check(), decoder(format)),
    bits: bitsKernel,
    blocks: blocksKernel,
    space: () => (check(), anySpace()),
  };
}
