/* global addEventListener, DataTransfer, Event, File, location, MutationObserver, requestAnimationFrame, setTimeout, TextEncoder, URLSearchParams */
// The number explorer: how soon it answers, the library's numbers, every state in its link, blocks drawn, own tensors.
import assert from "node:assert/strict";
import { tsImport } from "tsx/esm/api";
import { watchedPage } from "./serve.mjs";
import { drop, gguf, npy, onnx, safetensors } from "./tensors.mjs";

/** Kilobytes under gzip of a first visit, as the issue of the site has it. */
const FIRST_LOAD = 150;
const VISITS = 5;
const PAIRS = 200;

export async function checkExplorer({ site, open, browser, faults, accessibility }) {
  const load = await firstVisits(site, browser, faults);
  const page = await open();
  await page.goto(`${site.origin}/explorer.html`);
  const lines = page.getByTestId("lines");
  await lines.waitFor();
  assert.match(await lines.innerText(), /0\.3 -> 0\.3125 {3}code 0x32 {3}posit8_es2/);
  assert.match(await page.getByTestId("facts").innerText(), /0\.3125\s[^]*0x1\.4p-2[^]*0\.03125 below, 0\.03125 above/);
  await page.getByRole("button", { name: "bit 0 of mantissa" }).click();
  assert.equal(await page.getByTestId("value").inputValue(), "0.34375");
  await page.getByTestId("format").fill('{"kind":"float","name":"mine","exponentBits":3,"mantissaBits":2,"bias":5,"specials":"finite"}');
  assert.match(await lines.innerText(), /mine/);
  assert.deepEqual(await accessibility(page), []);
  // a form of one's own, every policy, other formats, the curve
  await page.getByTestId("own-format").locator("summary").click();
  assert.equal(await page.getByTestId("form-bias").inputValue(), "5", "the form has the format in force");
  await page.getByTestId("form-specials").selectOption("ieee");
  await page.getByTestId("form-make").click();
  assert.match(await page.getByTestId("format").inputValue(), /"bias":5,"specials":"ieee"/);
  await page.getByTestId("form-specials").selectOption("finite");
  await page.getByTestId("form-make").click();
  assert.match(await page.getByTestId("format").inputValue(), /"exponentBits":3/);
  assert.equal(await page.getByTestId("policies").locator("td:first-child").count(), 10 + 5 + 2 + 5);
  await page.getByTestId("other").fill("2.5");
  assert.match(await page.getByTestId("arithmetic").innerText(), /a \/ b\s+0x\w+\s+[\d.]+\s+[\d.]+\.\.\./);
  await page.getByText("Largest relative error by magnitude").click();
  await page.locator(".uplot canvas").waitFor();
  for (const [name, file] of [
    ["CSV", "mine.csv"],
    ["JSON", "mine.json"],
    ["C header", "mine.h"],
    ["$readmemh", "mine.mem"],
  ]) {
    // prettier-ignore
    const [saved] = await Promise.all([page.waitForEvent("download"), page.getByRole("button", { name, exact: true }).click()]);
    assert.equal(saved.suggestedFilename(), file);
  }
  await keys(page);
  await block(page, accessibility);
  await page.getByTestId("format").fill("mxfp5");
  assert.match(await page.getByRole("alert").innerText(), /Nearest: /);
  const pairs = await samePairs(page, site);
  const states = await links(page, open, site);
  const tensor = await ownTensor(page, site, accessibility);
  await page.close();
  return `${load}; ${pairs} values as Node has them; ${states} states by link; ${tensor}`;
}

/** The page of a new visitor, timed from the call that opens it until a turned bit has changed the value. */
async function firstVisits(site, browser, faults) {
  const times = [];
  let kilobytes = 0;
  for (let i = 0; i < VISITS; i++) {
    const context = await browser.newContext({ viewport: { width: 1440, height: 900 } });
    const page = await watchedPage(context, site.origin, faults);
    await page.addInitScript(() => {
      // what the visitor sees first is used at once: a click on a bit, and the value that it makes
      const seen = new MutationObserver(() => {
        const bit = document.querySelector("button.bit:last-of-type");
        const value = document.querySelector('[data-testid="value"]');
        if (bit === null || value === null) return;
        seen.disconnect();
        const before = value.value;
        bit.click();
        const wait = () => (value.value === before ? setTimeout(wait) : requestAnimationFrame(() => (globalThis.answered = Date.now())));
        wait();
      });
      seen.observe(document, { childList: true, subtree: true });
    });
    site.forget();
    const from = Date.now();
    await page.goto(`${site.origin}/explorer.html`, { waitUntil: "commit" });
    await page.waitForFunction(() => globalThis.answered !== undefined);
    times.push((await page.evaluate(() => globalThis.answered)) - from);
    await page.waitForLoadState("networkidle");
    kilobytes = Math.max(kilobytes, site.kilobytes());
    await context.close();
  }
  assert.ok(kilobytes <= FIRST_LOAD, `first load: expected at most ${FIRST_LOAD} kB, got ${kilobytes.toFixed(0)}`);
  times.sort((a, b) => a - b);
  return `first load ${kilobytes.toFixed(0)} kB, a turned bit answered after ${times[0]} ms (best of ${VISITS} visits, median ${times[VISITS >> 1]})`;
}

/** Bits are reached and turned without a pointer. */
async function keys(page) {
  const value = page.getByTestId("value");
  await page.getByTestId("format").fill("float8_e4m3fn");
  await value.fill("1");
  await page.getByTestId("overflow").focus();
  await page.keyboard.press("Tab");
  await page.keyboard.press("Space");
  assert.equal(await value.inputValue(), "-1", "the first bit is the next stop of the tabulator");
}

async function block(page, accessibility) {
  await page.getByTestId("format").fill("mxfp4");
  await page.getByTestId("block").fill("1 -2 3");
  assert.equal(await page.getByRole("region", { name: "values of the block" }).locator("tbody tr").count(), 3);
  assert.match(await page.getByTestId("scales").innerText(), /scale: 0\.5/);
  // drawn: from the top of the first value to the bottom of the last
  const picture = page.getByTestId("draw");
  await picture.scrollIntoViewIfNeeded();
  const box = await picture.boundingBox();
  await page.mouse.move(box.x + box.width / 6, box.y + 3);
  await page.mouse.down();
  await page.mouse.move(box.x + box.width / 2, box.y + box.height / 2);
  await page.mouse.move(box.x + (5 * box.width) / 6, box.y + box.height - 3);
  await page.mouse.up();
  const drawn = (await page.getByTestId("block").inputValue()).split(" ").map(Number);
  assert.equal(drawn.length, 3);
  assert.ok(drawn[0] > 2 && Math.abs(drawn[1]) < 0.6 && drawn[2] < -2, `drawn from 3 to -3, got ${drawn}`);
  await page.getByRole("slider", { name: "value 1" }).focus();
  await page.keyboard.press("ArrowRight");
  assert.notEqual((await page.getByTestId("block").inputValue()).split(" ")[1], String(drawn[1]), "arrows move a value");
  await page.getByRole("button", { name: "32 with an outlier" }).click();
  await picture.scrollIntoViewIfNeeded();
  const wide = await picture.boundingBox();
  // a fast hand: what it passes over lies on the way
  await page.mouse.move(wide.x + wide.width * (0.5 / 32), wide.y + wide.height / 2);
  await page.mouse.down();
  await page.mouse.move(wide.x + wide.width * (30.5 / 32), wide.y + 5);
  await page.mouse.up();
  const ramp = (await page.getByTestId("block").inputValue()).split(" ").map(Number);
  assert.equal(ramp.length, 32);
  assert.ok(
    ramp.slice(1, 31).every((v, i) => v > ramp[i]),
    `a ramp, got ${ramp}`,
  );
  assert.deepEqual(await accessibility(page), []);
}

/** Random formats and values by the link, against what Node computes from the same sources. */
async function samePairs(page, site) {
  const { allFormats, explainValue } = await tsImport("../../formats/index.ts", import.meta.url);
  const scalars = allFormats.filter(({ kind }) => kind !== "block" && kind !== "opaque");
  const pairs = Array.from({ length: PAIRS }, () => {
    const format = scalars[Math.floor(Math.random() * scalars.length)];
    return { format, x: (Math.random() - 0.5) * 2 ** Math.floor(Math.random() * 24 - 8) };
  });
  await page.goto(`${site.origin}/explorer.html`);
  await page.getByTestId("lines").waitFor();
  const shown = await page.evaluate(async (all) => {
    const texts = [];
    for (const [format, x] of all) {
      const changed = new Promise((resolve) => addEventListener("hashchange", resolve, { once: true }));
      location.hash = new URLSearchParams({ f: format, x }).toString();
      await changed;
      await new Promise((resolve) => setTimeout(resolve));
      texts.push(document.querySelector('[data-testid="lines"], [role="alert"]')?.textContent ?? "");
    }
    return texts;
  }, pairs.map(({ format, x }) => [format.name, String(x)])); // prettier-ignore
  pairs.forEach(({ format, x }, i) => {
    let expected;
    try {
      expected = explainValue(format, x).lines.join("\n");
    } catch (error) {
      expected = error.message;
    }
    assert.equal(shown[i], expected, `${format.name} of ${x}`);
  });
  return PAIRS;
}

/** Inputs of the page, and what it says; a link brings all of it back. */
const seen = (page) =>
  page.evaluate(() => ({
    inputs: [...document.querySelectorAll("[data-testid=explorer] :is(input, select, textarea)")]
      .filter(({ type, dataset, name }) => type !== "file" && type !== "range" && !name && dataset.testid !== "form-kind")
      .map(({ value }) => value),
    text: document.querySelector('[data-testid="lines"], [data-testid="scales"], [role="alert"]')?.textContent,
  }));

async function links(page, open, site) {
  const states = [
    { format: "float8_e5m2", value: "-0x1.8p3", rounding: "floor", overflow: "saturate", other: "2^-3", beside: "posit16_es2, int4" },
    { format: '{"kind":"posit","name":"p6","bits":6,"es":1}', value: "NaN" },
    { format: "nvfp4", block: "1 2 -3.5 0.25" },
    { format: "ggml_q4_k", block: "7 -7" },
    { format: "float8_e4m3fn", value: "half typed" },
  ];
  for (const state of states) {
    await page.goto(`${site.origin}/explorer.html`);
    for (const [field, text] of Object.entries(state)) {
      const input = page.getByTestId(field);
      if (field === "rounding" || field === "overflow") await input.selectOption(text);
      else await input.fill(text);
    }
    await page.getByTestId("own-tensor").waitFor();
    if (state.format === "nvfp4") await page.getByTestId("scales").waitFor();
    const other = await open();
    await other.goto(page.url());
    await other.getByTestId("own-tensor").waitFor();
    const expected = JSON.stringify(await seen(page));
    await other
      .waitForFunction(() => document.querySelector('[data-testid="lines"], [data-testid="block"], [role="alert"]') !== null)
      .then(() => other.waitForLoadState("networkidle"));
    assert.equal(JSON.stringify(await seen(other)), expected, page.url());
    await other.close();
  }
  return states.length;
}

/** Values of a tensor that is as large as the issue of the site asks for: 100 MB. */
const LARGE = 25e6;

/** A tensor of a model and its link, one dropped in each kind of file, then a large one of the page's own making. */
async function ownTensor(page, { origin }, accessibility) {
  await page.goto("about:blank");
  await page.goto(`${origin}/explorer.html#p=sample&t=%2F14%2FGemm&tb=6&tf=int4_b32+nf4_b64`);
  const facts = page.getByTestId("tensor-facts");
  await facts.waitFor();
  assert.equal(await page.getByTestId("tensor-name").inputValue(), "/14/Gemm", "the tensor of the link");
  const table = page.getByRole("region", { name: "formats by SQNR" });
  assert.deepEqual((await table.locator("code").allInnerTexts()).sort(), ["int4_b32", "nf4_b64"]);
  await page.goto("about:blank");
  await page.goto(`${origin}/explorer.html#f=nf4`);
  await page.getByTestId("own-tensor").locator("summary").first().click();
  await page.getByTestId("tensor-sample").click();
  await facts.waitFor();
  assert.equal(await page.getByTestId("tensor-name").inputValue(), "/12/Gemm", "the largest tensor is chosen");
  assert.match(await facts.innerText(), /401,408 values/);
  await page.getByTestId("report").waitFor();
  assert.match(page.url(), /p=sample/);
  assert.deepEqual(await accessibility(page), []);
  const values = Array.from({ length: 24 * 64 }, (_, i) => Math.sin(i * 12.9898) * 0.1 + (i === 700 ? 2 : 0));
  for (const [kind, write, name] of [
    ["safetensors", safetensors, "model.weight"],
    ["gguf", gguf, "blk.0.weight"],
    ["npy", npy, "w.npy"],
    ["onnx", onnx, "product"],
  ]) {
    // prettier-ignore
    await drop(page, `w.${kind}`, write(values, [24, 64]));
    await page.waitForFunction((wanted) => document.querySelector('[data-testid="tensor-name"]')?.value === wanted, name);
    await facts.waitFor();
    const found = await facts.innerText();
    assert.match(found, /^1,536 values from -0\.\d+ to 1\.9\d+|^1,536 values from -0\.\d+ to 2\.0\d+/, `${kind}: ${found}`);
    assert.ok((await table.locator("tbody tr").count()) > 5, `${kind}: formats are ranked`);
  }
  const large = await largeTensor(page, facts);
  return `.safetensors, .gguf, .npy and .onnx dropped; ${large}`;
}

async function largeTensor(page, facts) {
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
