/* global URLSearchParams */
// Pictures of what the pages that compute look like in use, and of the report: `test:docs -- --pictures DIR`.
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { drop, npy } from "./tensors.mjs";

const root = fileURLToPath(new URL("../..", import.meta.url));
const values = (rows, k) => Array.from({ length: rows * k }, (_, i) => Math.sin(i * 12.9898) * 0.1 * (1 + (i % 7)));

/** A name, and what leads to the picture from a fresh page. */
export const STATES = {
  "explorer-mine": async (page, origin) => {
    const mine = '{"kind":"float","name":"mine","exponentBits":3,"mantissaBits":2,"bias":5,"specials":"finite"}';
    await page.goto(`${origin}/explorer.html#${new URLSearchParams({ f: mine, x: "0.3" })}`);
    await page.getByTestId("own-format").locator("summary").click();
    await page.getByText("Largest relative error by magnitude").click();
    await page.locator(".uplot canvas").waitFor();
    await page.getByTestId("codes").waitFor();
  },
  "explorer-float32": async (page, origin) => {
    await page.goto(`${origin}/explorer.html#f=float32&x=0.1`);
    await page.getByTestId("arithmetic").waitFor();
  },
  "explorer-error": async (page, origin) => {
    await page.goto(`${origin}/explorer.html#f=mxfp5`);
    await page.getByRole("alert").waitFor();
  },
  "explorer-block": async (page, origin) => {
    await page.goto(`${origin}/explorer.html#f=mxfp4`);
    await page.getByRole("button", { name: "32 with an outlier" }).click();
    await page.getByTestId("scales").waitFor();
  },
  "explorer-tensor": async (page, origin) => {
    await page.goto(`${origin}/explorer.html#p=open`);
    await page.getByTestId("tensor").waitFor();
    await drop(page, "weights.npy", npy(values(96, 256), [96, 256]));
    await page.getByTestId("report").waitFor();
    await page.getByText("Dot products with normal vectors").click();
  },
  "playground-opened": async (page, origin) => {
    await page.goto(`${origin}/playground.html`);
    await page.getByTestId("sample").click();
    await page.getByTestId("quantize").waitFor();
    await idle(page);
    await page.getByText("Layers and rules").click();
    await page.getByText("More options, and the recipe").click();
  },
  "playground-running": async (page, origin) => {
    await page.goto(`${origin}/playground.html`);
    await page.getByTestId("sample-ocr_recogniser.onnx").click();
    await page.getByTestId("quantize").waitFor();
    await idle(page);
    await page.getByTestId("quantize").click();
    await page.locator(".status progress").waitFor();
  },
  "playground-compared": async (page, origin) => {
    await page.goto(`${origin}/playground.html`);
    await page.getByTestId("sample").click();
    await page.getByTestId("quantize").waitFor();
    await idle(page);
    await page.getByTestId("quantize").click();
    await page.getByTestId("compare").waitFor();
    await idle(page);
    await page.getByTestId("compare").click();
    await page.getByTestId("verdict").waitFor();
  },
  "benchmarks-run": async (page, origin) => {
    await page.goto(`${origin}/benchmarks.html`);
    await page.getByTestId("run").click();
    await idle(page);
  },
  report: async (page) => {
    const folder = mkdtempSync(join(tmpdir(), "lowbit-report-"));
    try {
      const model = join(root, "test/fixtures/fashion-cnn/fashion_cnn.onnx");
      const args = ["quantize", model, "-o", join(folder, "model_q8.onnx"), "--dtype", "q8", "--report", join(folder, "report.html")];
      execFileSync(process.execPath, [join(root, "dist/esm/cli.js"), ...args], { stdio: "ignore" });
      await page.goto(pathToFileURL(join(folder, "report.html")).href);
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  },
};

const idle = (page) => page.waitForFunction(() => document.querySelector(".status").textContent.trim() === "");
