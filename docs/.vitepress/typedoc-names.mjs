// Entries by the names that users import.
import { Converter } from "typedoc";

const NAMES = new Map([
  ["src", "lowbit"],
  ["formats", "lowbit/formats"],
  ["formats/define", "lowbit/formats/define"],
  ["src/backends/webgpu/backend", "lowbit/webgpu"],
]);

export function load(app) {
  app.converter.on(Converter.EVENT_RESOLVE_END, (context) => {
    for (const entry of context.project.children ?? []) {
      const name = entry.name.replace(/\/index$/, "");
      entry.name = NAMES.get(name) ?? name.replace(/^src\//, "lowbit/");
    }
  });
}
