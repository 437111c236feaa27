// bias-correction: takes the mean shift of quantization out of a layer's outputs, b - (Q - W) E[x] (Nagel et al., arXiv
// 1906.04721, 4.2). The one pass that changes the float model, on purpose: run it last, with the format that the
// weights will have.
import { format as formatNamed } from "../../../formats/registry.ts";
import { correctBias } from "../../quantize/equalize.ts";
import { dequantizeOriginal } from "../../quantize/mrgptq.ts";
import { quantize } from "../../tensor/quantize/index.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { readBias, readMatrix, readWeight, takesBias, writeBias, type ModelLayer } from "../primitives.ts";
import type { Pass, PassSettings } from "./types.ts";

/** Values [rows * k] that the weight of a layer will have. */
export type QuantizedValues = (layer: ModelLayer, weight: Tensor) => ArrayLike<number> | null;

function settingsOf({ format, values, add = false }: PassSettings): { values: QuantizedValues; add: boolean } {
  if (typeof add !== "boolean") throw new TypeError(`pass bias-correction, add: expected true or false, got ${JSON.stringify(add)}.`);
  if (typeof values === "function") return { values: values as QuantizedValues, add };
  if (typeof format !== "string")
    throw new TypeError(`pass bias-correction, format: expected the name of the weights' format, got ${JSON.stringify(format)}.`);
  const chosen = formatNamed(format);
  return { values: (_, weight) => dequantizeOriginal(quantize(weight, chosen)), add };
}

export const biasCorrectionPass: Pass = {
  name: "bias-correction",
  options: ["format", "values", "add"],
  changesOutputs: true,
  check: (settings) => void settingsOf(settings),
  async run(context, given) {
    const { values, add } = settingsOf(given);
    const { model } = context;
    const wanted = context.layers.filter(
      (layer) => takesBias(layer) && layer.groups === 1 && layer.opType !== "ConvTranspose" && (add || readBias(model, layer) !== null),
    );
    if (wanted.length === 0) {
      context.note("no layers with a bias were found (add: true gives them one); nothing changed");
      return 0;
    }
    const statistics = await context.statistics(
      wanted.map(({ name }) => name),
      { hessian: false },
    );
    let corrected = 0;
    for (const layer of wanted) {
      const own = statistics.get(layer.name);
      const quantized = own?.k === layer.k ? values(layer, readWeight(model, layer)) : null;
      if (own === undefined || quantized === null) continue;
      const { rows, k } = layer;
      writeBias(model, layer, correctBias({ weight: readMatrix(model, layer), rows, k, bias: readBias(model, layer) }, quantized, own));
      corrected++;
    }
    context.note(`${corrected} of ${wanted.length} biases corrected for the shift of quantization`);
    return corrected;
  },
};
