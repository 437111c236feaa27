// Statistics of layers' inputs from plain runs with every activation as an output: for tests of what calibration is
// given to.
import { layerStatistics, type LayerStatistics } from "../../src/quantize/index.ts";
import { addOutputs, modelLayers, readModelBytes, writeModelBytes, type PassCalibration } from "../../src/onnx/index.ts";
import { openRun } from "../../src/onnx/run.ts";
import type { Feeds } from "../../src/onnx/verify/feeds.ts";

export const calibrationOn =
  (feeds: readonly Feeds[]): PassCalibration =>
  async (model, names, { hessian }) => {
    const copy = readModelBytes(writeModelBytes(model));
    const layers = modelLayers(copy).filter(({ name }) => names.includes(name));
    addOutputs(
      copy,
      layers.map(({ activation }) => activation),
    );
    const session = await openRun(copy);
    const found = new Map<string, LayerStatistics>();
    const collectors = new Map(layers.map((layer) => [layer, layerStatistics(layer.k, { hessian })]));
    for (const feed of feeds) {
      const values = await session.run(feed);
      for (const [layer, collector] of collectors) collector.add(Float32Array.from(values.get(layer.activation)!.data));
    }
    await session.release();
    for (const [layer, collector] of collectors) found.set(layer.name, collector.finish());
    return found;
  };
