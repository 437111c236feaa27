/* global TextEncoder, DataTransfer, File, Event */
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
  // a form of one's own, every policy, other formats, the curve
  await page.getByTestId("format").evaluate((input) => (input.closest("fieldset").querySelector("details").open = true));
  await page.getByTestId("form-make").click();
  assert.match(await page.getByTestId("format").inputValue(), /"exponentBits":3/);
  assert.equal(await page.getByTestId("policies").locator("tbody tr").count(), 14);
  await page.getByText("Largest relative error by magnitude").click();
  await page.locator(".uplot canvas").waitFor();
  await page.getByTestId("format").fill("mxfp4");
  await page.getByTestId("block").fill("1 -2 3");
  assert.equal(await page.locator("tbody tr").count(), 3);
  assert.match(await page.getByTestId("scales").innerText(), /scale: 0\.5/);
  assert.deepEqual(await accessibility(page), []);
  await page.getByTestId("format").fill("mxfp5");
  assert.match(await page.getByRole("alert").innerText(), /Nearest: /);
  await page.getByTestId("format").fill("nf4");
  const tensor = await ownTensor(page, accessibility);
  await page.close();
  return `first load ${kilobytes.toFixed(0)} kB, ready in ${ready.toFixed(0)} ms; ${tensor}`;
}

/** Values of a tensor that is as large as the issue of the site asks for: 100 MB. */
const LARGE = 25e6;

/** A tensor of a model, then a large one of the page's own making. */
async function ownTensor(page, accessibility) {
  await page.getByTestId("own-tensor").locator("summary").first().click();
  await page.getByTestId("tensor-sample").click();
  const facts = page.getByTestId("tensor-facts");
  await facts.waitFor();
  const values = await page.getByTestId("tensor-name").inputValue();
  assert.equal(values, "/12/Gemm", "the largest tensor is chosen");
  assert.match(await facts.innerText(), /401,408 values/);
  await page.getByTestId("report").waitFor();
  assert.deepEqual(await accessibility(page), []);
  await page.getByTestId("tensor-file").evaluate((input, count) => {
    const data = new Float32Array(count);
    for (let i = 0; i < count; i++) data[i] = Math.sin(i * 12.9898) * 0.1;
    const text = `{'descr': '<f4', 'fortran_order': False, 'shape': (${count / 1000}, 1000), }`.padEnd(117) + "\n";
    const head = new Uint8Array(128);
    head.set([0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, 1, 0, 118, 0]);
    head.set(new TextEncoder().encode(text), 10);
    const files = new DataTransfer();
    files.items.add(new File([head, data], "large.npy"));
    input.files = files.files;
    input.dispatchEvent(new Event("change"));
  }, LARGE);
  await page.waitForFunction(() => document.querySelector('[data-testid="tensor-facts"]')?.textContent.includes("25,000,000 values"));
  return `100 MB analysed in ${/([\d.]+) s\.\s*$/.exec(await facts.innerText())[1]} s`;
}
