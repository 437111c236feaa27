// HTML and SVG as text. Whatever comes from a file (names of layers, notes, errors) goes through `escape`.

const ENTITIES: ReadonlyMap<string, string> = new Map([
  ["&", "&amp;"],
  ["<", "&lt;"],
  [">", "&gt;"],
  ['"', "&quot;"],
  ["'", "&#39;"],
]);

/**
 * Text for element content and quoted attributes; control characters, which HTML does not allow, are shown as U+FFFD.
 */
export const escape = (text: string): string =>
  text
    // eslint-disable-next-line no-control-regex
    .replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f]/g, "\ufffd")
    .replace(/[&<>"']/g, (c) => ENTITIES.get(c)!);

/**
 * A table; cells are HTML already. Columns with `right` are numbers; those with `wide` are left out on narrow screens.
 */
export interface Column {
  readonly title: string;
  readonly right?: boolean;
  readonly wide?: boolean;
}

export function htmlTable(columns: readonly Column[], rows: readonly (readonly string[])[]): string {
  const kind = (i: number): string => {
    const names = [...(columns[i].right ? ["n"] : []), ...(columns[i].wide ? ["w"] : [])];
    return names.length === 0 ? "" : ` class="${names.join(" ")}"`;
  };
  const line = (cells: readonly string[], tag: string): string =>
    `<tr>${cells.map((cell, i) => `<${tag}${kind(i)}>${cell}</${tag}>`).join("")}</tr>`;
  const head = line(
    columns.map(({ title }) => escape(title)),
    "th",
  );
  return `<table><thead>${head}</thead><tbody>\n${rows.map((row) => line(row, "td")).join("\n")}\n</tbody></table>`;
}

/** A bar from the left, `share` (0..1) of its width; `mark` is a second, paler one behind it. */
export function bar(share: number, kind: string, mark = 0): string {
  const width = (part: number): string => (Math.max(0, Math.min(1, part)) * 100).toFixed(1);
  const behind = mark > 0 ? `<rect class="b0" width="${width(mark)}" height="8"/>` : "";
  return `<svg class="bar" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">${behind}<rect class="${kind}" width="${width(share)}" height="8"/></svg>`;
}
