// QuEST clipping: the scale of a block from its root mean square and the clip that is best for Gaussian data, without a
// search. Right after a rotation, which makes blocks nearly Gaussian; wrong for heavy tails. Source: Panferov et al.,
// arXiv 2502.05003; Quartet, 2505.14669.
import { LowbitError } from "../../formats/core/errors.ts";
import type { Format, PackedTensor } from "../../formats/core/types.ts";
import type { WeightQuantizer } from "../tensor/quantize/index.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { BlockGrid, columnFormat, weightMatrix } from "./grid.ts";
import { gaussianClip } from "./normal.ts";

/**
 * QuEST clipping as a quantizer, for block formats without zero points.
 * @throws LowbitError E_UNSUPPORTED at use for other formats
 * @example quantize(w, format("bipolar4_b128"), quest())
 */
export function quest(): WeightQuantizer {
  return {
    algorithm: "quest",
    quantizeWeight(weight: Tensor, format: Format): PackedTensor {
      const target = columnFormat(format, "quest");
      if (target.kind !== "block" || target.offset)
        throw new LowbitError("E_UNSUPPORTED", `quest: expected a block format without offsets, got ${format.name}.`);
      const w = weightMatrix(weight, "quest");
      const grid = new BlockGrid(target, w.rows, w.k);
      grid.fill(w.data);
      const clip = gaussianClip(target.element, target.rangeRule === "narrow");
      const n = grid.stored.length;
      const [squares, counts] = [new Float64Array(n), new Float64Array(n)];
      for (let r = 0; r < w.rows; r++)
        for (let j = 0; j < w.k; j++) {
          const c = grid.cellOf(r, j);
          squares[c] += w.data[r * w.k + j] ** 2;
          counts[c]++;
        }
      for (let c = 0; c < n; c++) {
        if (squares[c] === 0) continue;
        grid.setScale(c, Math.sqrt(squares[c] / counts[c]) * clip.scale);
      }
      return grid.pack(grid.quantizeAll(w.data), w.shape, { version: 1, algorithm: "quest", clip: clip.clip });
    },
  };
}
