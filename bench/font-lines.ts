// Lines of text in real fonts, for the benches of the recogniser: what calibration on the demo's stroke font never saw.
// Chromium draws them (the fonts of the machine: serif, sans-serif, monospace, each plain, bold and italic), in seeded
// sizes, positions and greys. Not here: scans, photographs, perspective.
import { existsSync } from "node:fs";
import { chromium } from "playwright-core";
import { seededRandom } from "../src/quantize/index.ts";
import type { Line } from "./ocr.ts";

const PLACES = [process.env.LOWBIT_CHROMIUM ?? "", "/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];
const HEIGHT = 48;

interface Drawing {
  readonly text: string;
  readonly font: string;
  readonly ink: number;
  readonly paper: number;
  readonly baseline: number;
}

interface Context {
  font: string;
  fillStyle: string;
  measureText(text: string): { readonly width: number };
  fillRect(x: number, y: number, width: number, height: number): void;
  fillText(text: string, x: number, y: number): void;
  getImageData(x: number, y: number, width: number, height: number): { readonly data: Uint8ClampedArray };
}

/** What of a page's globals is used there: the project is compiled without the DOM. */
interface Page {
  OffscreenCanvas: new (width: number, height: number) => { width: number; height: number; getContext(kind: "2d"): Context };
}

/** In the page: one canvas a line, its grey values as base64. */
function draw({ text, font, ink, paper, baseline }: Drawing): { width: number; grey: string } {
  const canvas = new (globalThis as unknown as Page).OffscreenCanvas(8, 48);
  let context = canvas.getContext("2d");
  context.font = font;
  canvas.width = Math.ceil(context.measureText(text).width) + 12;
  context = canvas.getContext("2d");
  context.fillStyle = `rgb(${paper},${paper},${paper})`;
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.font = font;
  context.fillStyle = `rgb(${ink},${ink},${ink})`;
  context.fillText(text, 6, baseline);
  const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
  let grey = "";
  for (let i = 0; i < data.length; i += 4) grey += String.fromCharCode(data[i]);
  return { width: canvas.width, grey: btoa(grey) };
}

/**
 * Every text in as many fonts as `each` says, drawn at random.
 * @throws Error without Chromium
 */
export async function fontLines(texts: readonly string[], each: number, seed: number): Promise<Line[]> {
  const executablePath = PLACES.find((path) => path !== "" && existsSync(path));
  if (executablePath === undefined)
    throw new Error("lines in real fonts: expected Chromium, found none. Install it or set LOWBIT_CHROMIUM.");
  const random = seededRandom(seed);
  const between = (from: number, to: number): number => from + (to - from) * random();
  const pick = <T>(list: readonly T[]): T => list[Math.floor(random() * list.length)];
  const browser = await chromium.launch({ executablePath, headless: true, args: ["--no-sandbox"] });
  try {
    const page = await browser.newPage();
    const lines: Line[] = [];
    for (const text of texts)
      for (let i = 0; i < each; i++) {
        const size = Math.round(between(24, 36));
        const style = pick(["", "bold ", "italic ", "italic bold "]);
        const { width, grey } = await page.evaluate(draw, {
          text,
          font: `${style}${size}px ${pick(["serif", "sans-serif", "monospace"])}`,
          ink: Math.round(between(0, 100)),
          paper: Math.round(between(190, 255)),
          baseline: Math.round(HEIGHT / 2 + size * between(0.28, 0.42)),
        });
        lines.push({ text, image: { width, height: HEIGHT, pixels: new Uint8Array(Buffer.from(grey, "base64")) } });
      }
    return lines;
  } finally {
    await browser.close();
  }
}
