// What the report's page says: figures by hand, in their units, and where each of them stands.
import { describe, expect, test } from "vitest";
import { format } from "../../formats/index.ts";
import { quantizeModelBytes, readModelBytes, reportHtml, worstHistograms, type ReportContent } from "../../src/onnx/index.ts";
import { histogramOf } from "../../src/onnx/report/histogram.ts";
import { histogramHtml, reportParts } from "../../src/onnx/report/html.ts";
import { bar, htmlTable } from "../../src/onnx/report/markup.ts";
import { encode, graph, model, node, raw, T, value } from "./build.ts";

/** The words of a page, a cell or element each. */
const words = (html: string): string[] =>
  html
    .replace(/<svg.*?<\/svg>/gs, "")
    .split(/<[^>]*>/)
    .map((text) => text.trim())
    .filter((text) => text !== "");
const layer = (name: string, more: object) => ({ name, opType: "MatMul", weight: `${name}.w`, shape: [64, 8], format: "int4_b32", bytesBefore: 2048, bytesAfter: 320, sqnrDb: 21.04, ...more }); // prettier-ignore
const content = (more: object = {}, report: object = {}): ReportContent =>
  ({
    input: "in.onnx",
    recipe: { version: 1, dtype: "q4" },
    report: {
      dtype: "q4",
      seconds: 1.234,
      outputs: ["out.onnx"],
      fileBytesBefore: 4_000_000,
      fileBytesAfter: 1_234_000,
      weightBytesBefore: 999,
      weightBytesAfter: 0,
      quantized: 2,
      leftAlone: 1,
      notes: [],
      traps: [],
      layers: [
        layer("a", {}),
        layer("b", { sqnrDb: Infinity, sharedWith: "a", bytesAfter: 0 }),
        layer("c", { format: null, sqnrDb: null, bytesBefore: 123_456, bytesAfter: 123_456, reason: "no operand is constant" }),
      ],
      ...report,
    },
    ...more,
  }) as unknown as ReportContent;

test("cards and layers: sizes, shares, decibels, reasons", () => {
  const found = words(reportParts(content()));
  expect(found.slice(0, 8)).toEqual([
    "1.23 MB",
    "file, 30.9 % of 4.00 MB",
    "2 of 3",
    "layers quantized",
    "0 B",
    "their weights, 0.0 % of before",
    "21.0 dB",
    "worst weight, SQNR",
  ]);
  const at = found.indexOf("a");
  expect(found.slice(found.indexOf("layer"), at)).toEqual([
    "layer",
    "operator",
    "shape",
    "format",
    "SQNR",
    "dB",
    "bytes (pale: before)",
    "after",
  ]);
  expect(
    found.slice(
      at,
      found.findIndex((text) => text.startsWith("SQNR of a weight")),
    ),
  ).toEqual([
    ...["a", "MatMul", "64x8", "int4_b32", "21.0", "320 B"],
    ...["b", "weight shared with a", "MatMul", "64x8", "int4_b32", "exact", "shared"],
    ...["c", "no operand is constant", "MatMul", "64x8", "123 kB"],
  ]);
  // nothing that is not there has a heading
  for (const absent of ["Outputs compared", "Runtimes", "Known faults", "Weights against"]) expect(found.join()).not.toContain(absent);
  expect(found.at(-1)).toBe("{\n  &quot;version&quot;: 1,\n  &quot;dtype&quot;: &quot;q4&quot;\n}");
});

test("bars: decibels on 0 to 60, bytes as shares of the largest layer", () => {
  const page = reportParts(content());
  const bars = [...page.matchAll(/<svg class="bar".*?<\/svg>/g)].map(([svg]) => [...svg.matchAll(/class="(b\d)" width="([\d.]+)"/g)].map(([, kind, width]) => `${kind} ${width}`)); // prettier-ignore
  expect(bars).toEqual([["b1 35.1"], ["b0 1.7", "b2 0.3"], ["b1 100.0"], ["b0 1.7", "b2 0.0"], ["b0 100.0", "b2 0.0"]]);
  expect(reportParts(content({}, { layers: [] }))).not.toContain("NaN");
  expect(bar(0.5, "b1", 0)).not.toContain("b0");
  expect(htmlTable([{ title: "a", right: true, wide: true }, { title: "<" }], [["1", "2"]])).toBe(
    '<table><thead><tr><th class="n w">a</th><th>&lt;</th></tr></thead><tbody>\n<tr><td class="n w">1</td><td>2</td></tr>\n</tbody></table>',
  );
});

test.each([
  [999, "999 B"],
  [1000, "1.00 kB"],
  [99_940, "99.9 kB"],
  [123_456_789, "123 MB"],
  [5e12, "5.00 TB"],
  [4.2e15, "4200 TB"],
])("%d bytes are %s", (bytes, text) => {
  expect(words(reportParts(content({}, { fileBytesAfter: bytes })))[0]).toBe(text);
});

describe("verification", () => {
  const output = (name: string, more: object) => ({ name, dims: [1, 5], sqnrDb: 31.26, cosine: 0.999, maxAbsError: 0.01234, ok: true, kind: "values", judgement: { text: "good" }, ...more }); // prettier-ignore
  const verify = (more: object) => ({ ok: false, outputs: [output("y", {}), output("z", { sqnrDb: -Infinity, cosine: NaN, ok: false, judgement: { text: "bad" } })], inputs: { x: [2, 3], m: ["n"] }, samples: 4, random: true, minSqnrDb: 20, notes: [], warnings: [], ...more }); // prettier-ignore

  test("outputs compared, with remarks where there are any", () => {
    const found = words(reportParts(content({ verify: verify({ notes: ["a note"], warnings: ["a fault"] }) })));
    expect(found.slice(8, 10)).toEqual(["-inf dB", "worst output, SQNR: failed"]);
    const at = found.indexOf("Outputs compared");
    expect(found.slice(at + 7, found.indexOf("Layers"))).toEqual([
      ...["y", "1x5", "31.3", "0.99900", "0.0123", "ok", "values, good"],
      ...["z", "1x5", "-inf", "differs", "values, bad"],
      "4 random inputs: x [2, 3]; m [n]; expected at least 20 dB.",
      "a note",
      "warning: a fault",
    ]);
    const plain = reportParts(content({ verify: verify({ random: false, ok: true, outputs: [output("y", { sqnrDb: Infinity })] }) }));
    expect(words(plain).slice(8, 10)).toEqual(["exact", "worst output, SQNR: ok"]);
    expect(plain).toContain("4 inputs: x");
    expect(plain).not.toContain("<ul>");
    expect(plain).toContain("at least 20 dB.</p>\n<h2>Layers</h2>");
  });

  test("runtimes: what ran, what did not, and where two part", () => {
    const cell = (more: object) => ({ model: "out.onnx", runtime: "node", ok: true, state: "ran", error: undefined, sqnrDb: 30.04, agreementDb: Infinity, ms: 3.14159, peakBytes: 2e6, parting: undefined, ...more }); // prettier-ignore
    const cells = [
      cell({}),
      cell({ ok: false, runtime: "web", ms: 12.3, peakBytes: null, parting: { node: "mm", opType: "MatMul" } }),
      cell({ ok: false, runtime: "gpu", state: "missing", error: "no adapter" }),
      cell({ ok: false, runtime: "other", parting: { node: null, reason: "no node alone" } }),
    ];
    const found = words(reportParts(content({ verify: verify({ matrix: { cells } }) })));
    const at = found.indexOf("Runtimes");
    expect(found.slice(at + 7, found.indexOf("Layers"))).toEqual([
      ...["out.onnx", "node", "ok", "30.0", "exact", "3.14 ms", "2.00 MB"],
      ...["out.onnx", "web", "parts at mm (MatMul)", "differs", "30.0", "exact", "12 ms"],
      ...["out.onnx", "gpu", "no adapter", "missing", "2.00 MB"],
      ...["out.onnx", "other", "no node alone", "differs", "30.0", "exact", "3.14 ms", "2.00 MB"],
    ]);
  });
});

test("notes, faults of runtimes and the head of the page", () => {
  const page = reportHtml(content({}, { notes: ["one note"], traps: [{ runtime: "web", versions: "< 1.2", effect: "wrong", text: "sums" }] })); // prettier-ignore
  const found = words(page);
  expect(found).toContain("one note");
  expect(found).toContain("web &lt; 1.2 (wrong): sums");
  expect(found).toContain("q4, quantized by lowbit in 1.23 s: out.onnx");
  expect(page).toContain("<title>in.onnx: lowbit report</title>");
});

describe("histograms", () => {
  test("every weight once, in the bin of its value in units of its block's scale", () => {
    const values = Float32Array.from({ length: 64 }, (_, i) => (i < 32 ? 1 : 100) * ((i % 32) - 16));
    const found = histogramOf("l", values, { rows: 2, k: 32 }, format("int8_b32"))!;
    expect([found.layer, found.format, found.weights, found.counts.length]).toEqual(["l", "int8_b32", 64, 96]);
    expect(found.points).toEqual(Array.from({ length: 255 + (found.points[0] === -128 ? 1 : 0) }, (_, i) => i + found.points[0]));
    // both rows have the same values in units of their scales
    expect(found.counts.every((n) => n % 2 === 0)).toBe(true);
    expect(found.counts.reduce((a, b) => a + b)).toBe(64);
    expect(histogramOf("l", values, { rows: 2, k: 32 }, format("int4"))).toBeNull();
  });

  test("of a large layer rows from its beginning to its end", () => {
    const [n, k] = [128, 32];
    // only the last row that a sample of 64 takes is not even
    const w = Float32Array.from({ length: n * k }, (_, i) => (Math.floor(i / k) === 126 ? (i % 32) - 15.5 : 1));
    const bytes = encode(model(graph({ input: [value("ids", T.INT64, [1])], output: [value("y", T.FLOAT, [1, k])], initializer: [raw("t", [n, k], w)], node: [node("Gather", ["t", "ids"], ["y"], {}, "e")] }))); // prettier-ignore
    const layers = [{ name: "e", format: "int4_b32", sqnrDb: 20 }] as never[];
    const [found] = worstHistograms(readModelBytes(bytes), layers);
    expect(found.weights).toBe(64 * 32);
    expect(found.counts.filter((count) => count > 0).length).toBeGreaterThan(16);
    expect(worstHistograms(readModelBytes(bytes), [{ ...(layers[0] as object), format: "mine" }] as never[])).toEqual([]);
  });

  test("the worst layers, without those that share, are exact or stayed", async () => {
    const bytes = encode(model(graph({ input: [value("x", T.FLOAT, [1, 32])], output: [value("y", T.FLOAT, [1, 8])], initializer: [raw("w", [32, 8], Float32Array.from({ length: 256 }, (_, i) => Math.sin(i)))], node: [node("MatMul", ["x", "w"], ["y"], {}, "mm")] }))); // prettier-ignore
    const { report } = await quantizeModelBytes(bytes, { dtype: "q4" });
    const [own] = report.layers;
    const opened = readModelBytes(bytes);
    const some = [
      { ...own, sqnrDb: 30 },
      { ...own, sqnrDb: 10 },
      { ...own, sqnrDb: 20 },
    ];
    expect(worstHistograms(opened, some, 2)).toHaveLength(2);
    for (const none of [{ sqnrDb: Infinity }, { sqnrDb: null }, { format: null }, { sharedWith: "x" }, { name: "other" }])
      expect(worstHistograms(opened, [{ ...own, ...none }])).toEqual([]);
  });

  test("drawn: a bar for a bin with weights, a tick for a code point, a band where they are many", () => {
    const drawn = (points: number[]) =>
      histogramHtml({ layer: "l", format: "f", points, from: -2, to: 6, counts: [4, 0, 2, 1], weights: 7000 });
    const few = drawn([-2, 0, 6]);
    expect(few).toContain('d="M0.0 90v-86.0h240.0V90zM480.0 90v-43.0h240.0V90zM720.0 90v-21.5h240.0V90z"');
    expect([...few.matchAll(/<line x1="([\d.]+)" x2="([\d.]+)" y1="92" y2="108"/g)].map(([, a, b]) => [a, b])).toEqual([
      ["0.0", "0.0"],
      ["240.0", "240.0"],
      ["960.0", "960.0"],
    ]);
    expect(few).toContain("7,000 weights in units of their scale; 3 code points from -2 to 6");
    const ticks = (n: number): number => drawn(Array.from({ length: n }, (_, i) => -2 + (8 * i) / n)).split("<line").length - 1;
    expect([ticks(128), ticks(129)]).toEqual([128, 1]);
    expect(drawn(Array.from({ length: 200 }, (_, i) => i / 100 - 1))).toContain('<line x1="120.0" x2="358.8" y1="100" y2="100"/>');
  });
});
