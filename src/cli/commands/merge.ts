// lowbit merge: shards that were made apart (quantize --shard, calibrate --shard) become one file.
import { mergeStatisticsFiles } from "../../onnx/calibrate/file.ts";
import { mergeShards } from "../../onnx/merge.ts";
import { progressLine } from "../progress.ts";
import { count, json, size } from "../report.ts";
import type { CommandSpec, ParsedArgs } from "../spec.ts";
import { EXIT } from "../spec.ts";

export const mergeCommand: CommandSpec = {
  name: "merge",
  summary:
    "Puts the shards of `lowbit quantize --shard` together, byte for byte what one run writes; or those of `lowbit calibrate --shard`.",
  positionals: ["MODEL", "[OUT]"],
  options: {
    calibrate: { value: "DATA", help: "calibration data, where passes or --static need them again (default: where the shards had them)" },
    force: { short: "f", help: "overwrite OUT if it exists" },
  },
  notes: `MODEL is the model that the shards were made of, OUT the output that they were made for: OUT.1-of-N.shard ... lie beside it. They stay. Statistics need no
model: lowbit merge OUT.
  lowbit quantize model.onnx -o model_q4.onnx --dtype q4 --shard 1/2
  lowbit quantize model.onnx -o model_q4.onnx --dtype q4 --shard 2/2
  lowbit merge model.onnx model_q4.onnx`,
  run: runMerge,
};

async function runMerge(args: ParsedArgs, context: Parameters<CommandSpec["run"]>[1]): Promise<number> {
  const [input, output] = args.positionals;
  const calibration = args.text("calibrate");
  if (output === undefined) {
    const merged = await mergeStatisticsFiles(input, { force: args.flag("force") });
    context.print(
      args.json
        ? json({ command: "merge", ...merged })
        : `${merged.inputs} inputs of layers from ${merged.shards} shards: ${merged.output}\n`,
    );
    return EXIT.ok;
  }
  const progress = progressLine();
  try {
    const report = await mergeShards(input, output, {
      force: args.flag("force"),
      signal: context.signal,
      onProgress: (p) => progress.update(p),
      ...(calibration === undefined ? {} : { calibration }),
    });
    progress.clear();
    if (args.json) context.print(json({ command: "merge", input, ...report }));
    else {
      const notes = report.notes.map((note) => `note: ${note}\n`).join("");
      context.print(
        `${report.quantized} of ${report.layers.length} layers (${report.dtype}), weights ${count(report.weightBytesBefore)} -> ${count(report.weightBytesAfter)} bytes\n` +
          `${notes}${report.outputs.join(", ")} (${size(report.fileBytesAfter)}) in ${report.seconds.toFixed(2)} s\n`,
      );
    }
    return EXIT.ok;
  } finally {
    progress.clear();
  }
}
