// The benchmark page shows what was measured, and runs the kernels here.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";

export async function checkBench({ site, open, accessibility }) {
  const page = await open();
  await page.goto(`${site.origin}/benchmarks.html`);
  const published = JSON.parse(readFileSync(new URL("../../docs/public/bench.json", import.meta.url), "utf8"));
  for (const { family, ratios } of published) {
    const rows = page.getByTestId(`bench-${family}`).locator("table").first().locator("tbody tr");
    // the figures are fetched: a count does not wait
    await rows.first().waitFor();
    const missing = Object.keys(ratios).filter((name) => ratios[name] === null);
    assert.equal(await rows.count(), Object.keys(ratios).length - missing.length);
    const said = await page.getByTestId(`bench-${family}`).innerText();
    for (const name of missing) assert.ok(said.includes(name), `${family}: ${name} was not measured, and the page says so`);
  }
  await page.getByTestId("run").click();
  await page.waitForFunction(
    () => document.querySelector(".status").textContent === "" && document.querySelectorAll("section:first-of-type tbody tr").length === 14,
  );
  assert.deepEqual(await accessibility(page), []);
  await page.close();
  return `${published.length} families, 14 figures measured in the page`;
}
