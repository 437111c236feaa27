// npm run test:docs [-- --pictures DIR] [-- --only NAME]: the built site (npm run docs) in headless Chromium: every
// page under a strict policy without an error or a request elsewhere, axe, links, and what the pages that compute do.
// --pictures writes what pages look like, light and dark, 390 and 1440 pixels wide.
import assert from "node:assert/strict";
import { existsSync, mkdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import {
  PATIENCE,
  accessibility,
  browserPath,
  builtBase,
  dist,
  openBrowser,
  serveSite,
  sitePages,
  watchedPage,
} from "../test/site/serve.mjs";
import { checkExplorer } from "../test/site/explorer.mjs";
import { checkBench } from "../test/site/bench.mjs";
import { checkPlayground } from "../test/site/playground.mjs";
import { STATES } from "../test/site/states.mjs";
import { checkStranger } from "../test/site/stranger.mjs";

const { values } = parseArgs({ options: { pictures: { type: "string" }, only: { type: "string" } } });
if (!existsSync(dist)) {
  console.error("test:docs: expected the built site, found none. Run `npm run docs` first.");
  process.exit(1);
}
const executable = browserPath();
if (executable === undefined) {
  console.error("test:docs: expected Chromium, found none. Install it (Debian: apt-get install chromium) or set CHROMIUM_PATH.");
  process.exit(1);
}

const site = await serveSite();
const browser = await openBrowser(executable);
const faults = [];
const context = await browser.newContext({ viewport: { width: 1440, height: 900 } });
const open = () => watchedPage(context, site.origin, faults);
const checks = { pages: checkPages, explorer: checkExplorer, playground: checkPlayground, bench: checkBench, stranger: checkStranger };
try {
  if (values.pictures !== undefined) await pictures(values.pictures);
  else
    for (const [name, check] of Object.entries(checks)) {
      if (values.only !== undefined && values.only !== name) continue;
      const from = performance.now();
      const said = await check({ site, open, browser, context, faults, accessibility });
      console.log(`test:docs: ${name}: ${said} (${((performance.now() - from) / 1000).toFixed(1)} s)`);
      for (const fault of faults.slice(0, 40)) console.error(fault.slice(0, 400));
      assert.equal(faults.length, 0, `${faults.length} faults`);
    }
} finally {
  await browser.close();
  site.close();
}

/** Every page has a title and links that lead somewhere; in the browser, no error and axe. */
async function checkPages() {
  const names = sitePages();
  const found = links(names);
  faults.push(...found.faults);
  // pages of one kind look alike: a few of each folder
  const folder = (name) => name.split("/").slice(0, -1).join("/");
  const shown = names.filter((name) => folder(name) === "" || names.filter((other) => folder(other) === folder(name)).indexOf(name) < 2);
  const page = await open();
  for (const name of shown) {
    await page.goto(`${site.origin}/${name}`, { waitUntil: "load" });
    await page.waitForFunction(() => document.querySelector("#app")?.__vue_app__ !== undefined);
    if (!name.startsWith("api/")) faults.push(...(await accessibility(page)));
  }
  await page.close();
  return `${names.length} pages under ${builtBase()}, ${found.links} links; ${shown.length} pages in the browser, with axe`;
}

function links(names) {
  const base = builtBase();
  const html = new Map(names.map((name) => [`/${name}`, readFileSync(join(dist, name), "utf8")]));
  const ids = new Map([...html].map(([path, text]) => [path, new Set([...text.matchAll(/ id="([^"]+)"/g)].map((m) => unescape(m[1])))]));
  const wrong = [];
  let count = 0;
  for (const [path, text] of html) {
    if (!/<h1[ >]/.test(text)) wrong.push(`${path}: expected a title, got no h1`);
    if (text.includes("<p>&lt;!--")) wrong.push(`${path}: shows a comment`);
    if (/<script(?![^>]* src=)[^>]*>\s*\S/.test(text)) wrong.push(`${path}: has an inline script`);
    for (const [, href] of text.matchAll(/<a [^>]*?href="([^"]+)"/g)) {
      const url = new URL(unescape(href), `http://site${base}${path.slice(1)}`);
      if (url.host !== "site") continue;
      count++;
      if (!url.pathname.startsWith(base)) wrong.push(`${path}: leads to ${url.pathname}, which is not under ${base}`);
      const to = url.pathname.slice(base.length - 1).replace(/\/$/, "/index.html");
      const anchor = decodeURIComponent(url.hash.slice(1));
      if (!html.has(to) && !existsSync(join(dist, decodeURIComponent(to)))) wrong.push(`${path}: leads to ${to}, which is not there`);
      else if (anchor !== "" && html.has(to) && !/\/(explorer|playground)\.html$/.test(to) && !ids.get(to).has(anchor))
        wrong.push(`${path}: leads to ${to}#${anchor}, which has no such heading`);
    }
  }
  return { links: count, faults: [...new Set(wrong)] };
}

function unescape(text) {
  return text.replaceAll("&amp;", "&").replaceAll("&quot;", '"').replaceAll("&lt;", "<").replaceAll("&gt;", ">").replaceAll("&#39;", "'");
}

async function pictures(folder) {
  mkdirSync(folder, { recursive: true });
  const first = sitePages().filter((name) => !name.includes("/"));
  const names = values.only === undefined ? [...first, "404.html", ...Object.keys(STATES)] : values.only.split(",");
  for (const colorScheme of ["light", "dark"])
    for (const width of [390, 1440]) {
      const shown = await browser.newContext({ viewport: { width, height: 900 }, colorScheme });
      for (const name of names) {
        const page = await shown.newPage();
        page.setDefaultTimeout(PATIENCE);
        await (STATES[name]?.(page, site.origin) ?? page.goto(`${site.origin}/${name}`, { waitUntil: "networkidle" }));
        const wide = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
        await page.evaluate(() => globalThis.scrollTo(0, 0));
        if (wide > 0) console.log(`${name} at ${width}: ${wide} pixels too wide`);
        await page.screenshot({
          path: join(folder, `${name.replaceAll("/", "_").replace(/\.html.*/, "")}-${width}-${colorScheme}.png`),
          fullPage: true,
        });
        await page.close();
      }
      await shown.close();
    }
}
