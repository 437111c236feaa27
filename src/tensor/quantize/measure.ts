// quantize, and how well it went: the sums of squares of the weights and of their errors, from which a signal-to-noise
// ratio follows. The fast loops add them up as they go; everything else is decoded again, panel by panel.
import type { Format, PackedTensor } from "../../../formats/core/types.ts";
import type { BulkCodec } from "../../backends/types.ts";
import { wasmSync } from "../../backends/wasm/backend.ts";
import { rowDecoder } from "../dequantize.ts";
import { matrixView, type MatrixView, type Tensor } from "../tensor.ts";
import { checkFormat, quantizeView, type QuantizeOptions, type WeightQuantizer } from "./index.ts";
import { forPanels, refuseNonFinite } from "./panels.ts";
import { checkOptions } from "./policy.ts";

/**
 * A packed tensor with the sums of squares of the weights, w^2, and of their errors, (w - w')^2, where w' is what it
 * decodes to.
 */
export interface Measured {
  readonly packed: PackedTensor;
  readonly signal: number;
  readonly noise: number;
}

/**
 * `quantize`, with signal and noise. Without `backend` in the options it converts with the WebAssembly codec of the
 * calling thread where the engine has one: same codes, no `await`.
 * @throws LowbitError E_VALUE for a weight that is not finite, by its index, whatever the format; else as `quantize`
 */
export function quantizeMeasured(weight: Tensor, format: Format, options: QuantizeOptions | WeightQuantizer = {}): Measured {
  checkFormat(format);
  checkOptions(options);
  const view = matrixView(weight);
  if ("quantizeWeight" in options) return measure(view, options.quantizeWeight(weight, format), codecHere());
  const backend = options.backend ?? backendHere();
  const { packed, signal, noise } = quantizeView(view, weight.shape.slice(), format, backend === null ? options : { ...options, backend });
  return signal === undefined || noise === undefined ? measure(view, packed, backend?.codec ?? null) : { packed, signal, noise };
}

/** `quantizeMeasured` of rows that lie in no array (`MatrixView.read`): each is read several times. */
export function quantizeRead(view: MatrixView, shape: readonly number[], format: Format, options: QuantizeOptions): Measured {
  const backend = options.backend ?? backendHere();
  const { packed } = quantizeView(view, shape.slice(), format, backend === null ? options : { ...options, backend });
  return measure(view, packed, backend?.codec ?? null);
}

/** Signal and noise of a packed tensor against the weights that it stands for. */
function measure(view: MatrixView, packed: PackedTensor, codec: BulkCodec | null): Measured {
  const decode = rowDecoder(packed, codec);
  let [signal, noise] = [0, 0];
  let out = new Float32Array(0);
  forPanels(view, (values, row, count) => {
    const n = count * view.k;
    if (out.length < n) out = new Float32Array(n);
    decode(row, count, out);
    let [s, e] = [0, 0];
    for (let i = 0; i < n; i++) {
      const value = values[i];
      const error = value - out[i];
      s += value * value;
      e += error * error;
    }
    if (!(s < Infinity)) refuseNonFinite(values, row, count, view.k);
    signal += s;
    noise += e;
  });
  return { packed, signal, noise };
}

let here: { readonly codec: BulkCodec } | null | undefined;

/** The one-thread WebAssembly backend, null where the engine has none. */
function backendHere(): { readonly codec: BulkCodec } | null {
  if (here === undefined)
    try {
      here = wasmSync();
    } catch {
      here = null; // no SIMD: the plain loops give the same codes
    }
  return here;
}
/** The codec of that backend: for callers who were given none. */
export const codecHere = (): BulkCodec | null => backendHere()?.codec ?? null;
