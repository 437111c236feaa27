// The HTML report: it stands alone, and no name that a model has can break out of its place.
import { mkdtempSync, readFileSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { quantizeModel, quantizeModelBytes, readModelBytes, reportHtml, worstHistograms, writeModel } from "../../src/onnx/index.ts";
import { bar, escape } from "../../src/onnx/report/markup.ts";
import { encode, matmulModel, raw, weights } from "./build.ts";

const hostile = `</code><script>alert("x")</script>&'\u0000`;
const proto = matmulModel(raw("w", [64, 8], weights(512)), 64, 8);
proto.graph!.node[0].name = hostile;
const bytes = encode(proto);

describe("the report", () => {
  it("escapes what comes from a model, loads nothing and runs nothing", async () => {
    const { report } = await quantizeModelBytes(bytes, { dtype: "q4" });
    const histograms = worstHistograms(readModelBytes(bytes), report.layers);
    const page = reportHtml({
      input: hostile,
      report: { ...report, notes: [hostile], outputs: [hostile] },
      recipe: { include: [hostile] },
      histograms,
    });
    expect(page).not.toMatch(/<script/i);
    expect(page).toContain("&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;&amp;&#39;\ufffd");
    expect(page).not.toMatch(/<(img|link|iframe|object)|@import|url\(|\ssrc=/i);
    expect(page).toContain("default-src 'none'");
    // Every element that is opened is closed again.
    for (const tag of ["table", "tr", "td", "th", "div", "ul", "li", "pre", "code", "svg", "p", "h2", "h3"])
      expect(page.match(new RegExp(`<${tag}[ >]`, "g"))?.length, tag).toBe(page.match(new RegExp(`</${tag}>`, "g"))?.length);
  });
  it("histograms count every weight once, between the format's code points", async () => {
    const { report } = await quantizeModelBytes(bytes, { dtype: "q4" });
    const [histogram] = worstHistograms(readModelBytes(bytes), report.layers);
    expect(histogram.points).toEqual(Array.from({ length: 16 }, (_, i) => i - 8));
    expect(histogram.weights).toBe(512);
    expect(histogram.counts.reduce((a, b) => a + b)).toBe(512);
    expect(histogram.from).toBeGreaterThanOrEqual(-9);
    expect(histogram.to).toBeLessThanOrEqual(9);
  });
  it("bars keep to their width, whatever the figure", () => {
    expect(bar(2, "b1")).toContain('width="100.0"');
    expect(bar(-1, "b1")).toContain('width="0.0"');
    expect(escape("<>&\"'")).toBe("&lt;&gt;&amp;&quot;&#39;");
  });
  it("is written over no file of the input, and not where the quantized model or its data will be", async () => {
    const folder = mkdtempSync(join(tmpdir(), "lowbit-report-"));
    try {
      const at = (name: string): string => join(folder, name);
      await writeModel(readModelBytes(encode(matmulModel(raw("w", [64, 8], weights(512)), 64, 8))), at("in.onnx"), { externalData: true });
      const before = ["in.onnx", "in.onnx_data"].map((name) => readFileSync(at(name)));
      for (const name of ["in.onnx", "in.onnx_data", "out.onnx", "out.onnx_data", "out.onnx_data_1"])
        await expect(
          quantizeModel(at("in.onnx"), at("out.onnx"), { dtype: "q4", report: at(name), force: true }),
          name,
        ).rejects.toMatchObject({ code: "E_EXISTS" });
      expect(readdirSync(folder).sort()).toEqual(["in.onnx", "in.onnx_data"]);
      expect(["in.onnx", "in.onnx_data"].map((name) => readFileSync(at(name)))).toEqual(before);
      await quantizeModel(at("in.onnx"), at("out.onnx"), { dtype: "q4", report: at("out.html") });
      expect(readFileSync(at("out.html"), "utf8")).toMatch(/^<!doctype html>/);
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  });
});
