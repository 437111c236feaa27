// A progress line on stderr, drawn only where stderr is a terminal, at most ten times a second, and wiped before
// anything else is printed.
import type { QuantizeProgress } from "../onnx/options.ts";

export interface ProgressLine {
  update(progress: QuantizeProgress): void;
  note(text: string): void;
  clear(): void;
}

const BAR = 24;

export function progressLine(stream: NodeJS.WriteStream = process.stderr): ProgressLine {
  let last = 0;
  let drawn = false;
  const draw = (text: string): void => {
    stream.write(`\r\x1b[2K${text.slice(0, Math.max(20, (stream.columns || 80) - 1))}`);
    drawn = true;
  };
  const silent = !stream.isTTY;
  return {
    update({ done, total, layer }) {
      const now = performance.now();
      if (silent || (now - last < 100 && done < total)) return;
      last = now;
      const share = total === 0 ? 1 : done / total;
      const full = Math.round(share * BAR);
      draw(`[${"#".repeat(full)}${".".repeat(BAR - full)}] ${Math.floor(100 * share)}% ${layer === "" ? "writing" : layer}`);
    },
    note(text) {
      if (!silent) draw(text);
    },
    clear() {
      if (drawn) stream.write("\r\x1b[2K");
      drawn = false;
    },
  };
}
