// Block formats whose scales are fitted to a tensor: 8-bit codes on a logarithmic grid between the smallest and the
// largest block scale ("MXFP4-dagger" of MR-GPTQ, arXiv 2509.23202, appendix H, with E2M1 in blocks of 32). Same bits
// as MX, finer scales. The fitted grid is a codebook, so the format of a packed tensor says all there is to know and
// every kernel reads it.
import { LowbitError } from "../../../formats/core/errors.ts";
import { spanGrid } from "../../../formats/core/span.ts";
import type { BlockFormat, NumberFormat } from "../../../formats/core/types.ts";
import { defineBlock } from "../../../formats/define/block.ts";
import { defineCodebook } from "../../../formats/define/codebook.ts";
import { forRuns } from "./panels.ts";
import { matrixView, type Tensor } from "../tensor.ts";

/** A block format whose scales are steps of a logarithm, fitted to data: `fitLogScales`. */
export interface LogScaleOptions {
  readonly name?: string;
  readonly element: NumberFormat;
  /** Elements along k per scale; default 32. */
  readonly span?: number;
}

/**
 * A block format with scales 2^(alpha q + beta), q = 0..255, fitted to one or several tensors (those of one layer may
 * share a grid).
 * @throws LowbitError E_VALUE where no block has a finite scale above zero
 * @example const fmt = fitLogScales(w, { element: float4_e2m1fn }); quantize(w, fmt)
 */
export function fitLogScales(tensors: Tensor | readonly Tensor[], options: LogScaleOptions): BlockFormat {
  const { element, span = 32 } = options;
  let low = Infinity;
  let high = 0;
  for (const t of Array.isArray(tensors) ? (tensors as readonly Tensor[]) : [tensors as Tensor]) {
    const m = matrixView(t);
    forRuns(m, spanGrid(span, m.rows, m.k), (values, start, end) => {
      let amax = 0;
      for (let i = start; i < end; i++) amax = Math.max(amax, Math.abs(values[i]));
      if (amax > 0) low = Math.min(low, amax);
      high = Math.max(high, amax);
    });
  }
  if (!(low <= high && high < Infinity))
    throw new LowbitError(
      "E_VALUE",
      `fitLogScales: expected finite values that are not all zero, got amax from ${low} to ${high}. Clean the tensor.`,
    );
  const top = element.scaleTo ?? Math.max(element.limits.max, -element.limits.min);
  const beta = Math.log2(low / top);
  // Blocks of one size still need a grid: one that ends half an octave higher.
  const alpha = Math.max(Math.log2(high / low), 0.5) / 255;
  const values = Array.from({ length: 256 }, (_, q) => Math.fround(2 ** (alpha * q + beta)));
  // The ends are met exactly, so that neither saturates by a rounding of the logarithms.
  values[0] = Math.fround(low / top);
  if (values[255] < Math.fround(high / top)) values[255] = Math.fround(high / top);
  return defineBlock({
    name: options.name ?? `${element.name}_b${span}_log8`,
    element,
    scales: [{ format: defineCodebook({ name: "log8", values, spec: "fitted logarithmic scale" }), span }],
    spec: "MR-GPTQ (arXiv 2509.23202), appendix H",
  });
}
