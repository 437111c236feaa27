// The number explorer computes, keeps its state in the link and reads it back.
import assert from "node:assert/strict";

/** Kilobytes under gzip of a first visit, as the issue of the site has it. */
const FIRST_LOAD = 150;

export async function checkExplorer({ site, open, accessibility }) {
  site.forget();
  const page = await open();
  const from = performance.now();
  await page.goto(`${site.origin}/explorer.html`);
  const lines = page.getByTestId("lines");
  await lines.waitFor();
  const ready = performance.now() - from;
  await page.waitForLoadState("networkidle");
  const kilobytes = site.kilobytes();
  assert.ok(kilobytes <= FIRST_LOAD, `first load: expected at most ${FIRST_LOAD} kB, got ${kilobytes.toFixed(0)}`);
  assert.match(await lines.innerText(), /0\.3 -> 0\.3125 {3}code 0x32 {3}posit8_es2/);
  await page.getByRole("button", { name: "bit 0 of mantissa" }).click();
  assert.equal(await page.getByTestId("value").inputValue(), "0.34375");
  await page.getByTestId("format").fill('{"kind":"float","name":"mine","exponentBits":3,"mantissaBits":2,"bias":5,"specials":"finite"}');
  assert.match(await lines.innerText(), /mine/);
  const [link, shown] = [page.url(), await lines.innerText()];
  const other = await open();
  await other.goto(link);
  assert.equal(await other.getByTestId("lines").innerText(), shown, "a link brings the state back");
  await other.close();
  assert.deepEqual(await accessibility(page), []);
  await page.getByTestId("format").fill("mxfp4");
  await page.getByTestId("block").fill("1 -2 3");
  assert.equal(await page.locator("tbody tr").count(), 3);
  assert.deepEqual(await accessibility(page), []);
  await page.getByTestId("format").fill("mxfp5");
  assert.match(await page.getByRole("alert").innerText(), /Nearest: /);
  await page.close();
  return `first load ${kilobytes.toFixed(0)} kB, ready in ${ready.toFixed(0)} ms`;
}
