// onnxruntime-web on WebGPU in a page of headless Chromium, driven by playwright-core (an optional peer; the browser is
// an installed one). The page and the models come from a small server on 127.0.0.1 for as long as the runtime is open.
import type { IncomingMessage, Server, ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { LowbitError } from "../../../formats/core/errors.ts";
import { builtin } from "../../files/node.ts";
import { externalData, webBuilds } from "./children.ts";
import { pageSource } from "./host.ts";
import { hello, hostedSession, type Channel, type OpenReply } from "./hosted.ts";
import { CrashError, requirePackage } from "./process.ts";
import type { Runtime } from "./runtimes.ts";

/** The little of playwright-core that is used. */
interface Page {
  goto(url: string): Promise<unknown>;
  evaluate(run: (argument: readonly unknown[]) => unknown, argument: readonly unknown[]): Promise<unknown>;
  on(event: "crash", listener: () => void): void;
}
interface Browser {
  newPage(): Promise<Page>;
  newBrowserCDPSession(): Promise<{ send(method: string): Promise<unknown> }>;
  version(): string;
  on(event: "disconnected", listener: () => void): void;
  close(): Promise<void>;
}
interface Playwright {
  readonly chromium: { executablePath(): string; launch(options: object): Promise<Browser> };
}

const PLACES = [
  "/usr/bin/chromium",
  "/usr/bin/chromium-browser",
  "/usr/bin/google-chrome",
  "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
  "C:/Program Files/Google/Chrome/Application/chrome.exe",
];

async function playwright(): Promise<Playwright> {
  const file = requirePackage("playwright-core");
  const module = (await import(/* @vite-ignore */ builtin("node:url")!.pathToFileURL(file).href)) as Playwright & { default?: Playwright };
  return module.chromium === undefined ? module.default! : module;
}

/**
 * The browser: LOWBIT_CHROMIUM, or an installed Chromium or Chrome; undefined leaves it to playwright-core's own.
 * @throws LowbitError E_RUNTIME where playwright-core or a browser is missing
 */
export function findChromium(): string {
  const [fs, module] = [builtin("node:fs"), builtin("node:module")];
  const file = requirePackage("playwright-core");
  const asked = process.env.LOWBIT_CHROMIUM;
  if (asked !== undefined && asked !== "") {
    if (fs!.existsSync(asked)) return asked;
    throw new LowbitError("E_RUNTIME", `verify: expected a browser at LOWBIT_CHROMIUM, got no file ${asked}. Correct the variable.`);
  }
  const { chromium } = module!.createRequire(file)(file) as Playwright;
  const found = [chromium.executablePath(), ...PLACES].find((path) => fs!.existsSync(path));
  if (found === undefined)
    throw new LowbitError(
      "E_RUNTIME",
      "verify: expected Chromium or Chrome for WebGPU, got none. Install one (npx playwright-core install chromium), or set LOWBIT_CHROMIUM to its path.",
    );
  return found;
}

interface Site {
  readonly url: string;
  /** The address of a file, or of bytes, from now on. */
  publish(content: string | Uint8Array): string;
  close(): Promise<void>;
}

/** The page, the builds of onnxruntime-web and what is published; nothing else of the disk. */
export async function serve(build: string): Promise<Site> {
  const [http, fs, path] = [builtin("node:http")!, builtin("node:fs")!, builtin("node:path")!];
  const folder = webBuilds();
  const builds = new Set(fs.readdirSync(folder));
  const published: (string | Uint8Array)[] = [];
  const answer = (request: IncomingMessage, response: ServerResponse): void => {
    const [, kind, name = ""] = (request.url ?? "/").split("/");
    const send = (type: string, content: string | Uint8Array): void => void response.writeHead(200, { "content-type": type }).end(content);
    if (kind === "") return send("text/html", '<!doctype html><title>lowbit verify</title><script type="module" src="/page.js"></script>');
    if (kind === "page.js") return send("text/javascript", pageSource(build));
    if (kind === "favicon.ico") return void response.writeHead(204).end();
    const content = kind === "data" ? published[Number(name)] : kind === "ort" && builds.has(name) ? path.join(folder, name) : undefined;
    if (content === undefined) return void response.writeHead(404).end();
    if (typeof content !== "string") return send("application/octet-stream", content);
    const type = /\.m?js$/.test(content) ? "text/javascript" : content.endsWith(".wasm") ? "application/wasm" : "application/octet-stream";
    const stream = fs.createReadStream(content);
    stream.on("open", () => response.writeHead(200, { "content-type": type }));
    stream.on("error", () => response.destroy());
    stream.pipe(response);
  };
  const server: Server = http.createServer(answer);
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    publish: (content) => `/data/${published.push(content) - 1}`,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

async function launch(): Promise<Browser> {
  const executablePath = findChromium();
  try {
    const { chromium } = await playwright();
    // Signals are the program's own business; playwright-core ends the browser when the process exits.
    const quiet = { handleSIGINT: false, handleSIGTERM: false, handleSIGHUP: false };
    return await chromium.launch({ executablePath, headless: true, args: ["--enable-unsafe-webgpu"], ...quiet });
  } catch (cause) {
    const [first] = (cause as Error).message.split("\n");
    throw new LowbitError(
      "E_RUNTIME",
      `verify: expected the browser ${executablePath} to start, got ${first}. Try it by hand, or set LOWBIT_CHROMIUM.`,
      {
        cause,
      },
    );
  }
}

/** Requests as calls in the page; a page or browser that ends rejects them. */
function pageChannel(page: Page, browser: Browser, site: Site): Channel {
  let end: (error: CrashError) => void = () => {};
  const ended = new Promise<never>((_, reject) => (end = reject));
  ended.catch(() => {});
  page.on("crash", () => end(new CrashError("the page crashed", "")));
  browser.on("disconnected", () => end(new CrashError("the browser ended", "")));
  return {
    async request(op, ...args) {
      const call = page.evaluate(inPage, [op, args]) as Promise<{ value?: unknown; error?: string }>;
      const { value, error } = await Promise.race([call, ended]);
      if (error !== undefined) throw new Error(error);
      return value;
    },
    async stop() {
      await browser.close();
      await site.close();
    },
  };
}

/** Runs in the page, whose script has run when it is loaded. */
const inPage = (request: readonly unknown[]): unknown =>
  (globalThis as unknown as { call(request: readonly unknown[]): unknown }).call(request);

/** Peak memory of the processes that hold the page and the GPU's data; null where the system does not say. */
async function peakOf(browser: Browser): Promise<number | null> {
  const fs = builtin("node:fs")!;
  try {
    const session = await browser.newBrowserCDPSession();
    const { processInfo } = (await session.send("SystemInfo.getProcessInfo")) as { processInfo: { type: string; id: number }[] };
    const largest = (wanted: string): number =>
      Math.max(
        0,
        ...processInfo
          .filter(({ type }) => type === wanted)
          .map(({ id }) => 1024 * Number(/VmHWM:\s*(\d+) kB/.exec(fs.readFileSync(`/proc/${id}/status`, "utf8"))?.[1])),
      );
    const total = largest("renderer") + largest("GPU");
    return total > 0 ? total : null;
  } catch {
    return null;
  }
}

interface Hello {
  readonly version: string | null;
  readonly adapter: { readonly name: string; readonly software: boolean; readonly half: boolean } | null;
}

/**
 * A build of onnxruntime-web in a page.
 * @throws LowbitError E_RUNTIME where playwright-core, the browser, onnxruntime-web or a WebGPU adapter is missing
 */
export async function startBrowser(name: string, build: string): Promise<Runtime> {
  const browser = await launch();
  const site = await serve(build);
  let channel: Channel;
  try {
    const page = await browser.newPage();
    channel = pageChannel(page, browser, site);
    await page.goto(site.url);
  } catch (cause) {
    await browser.close();
    await site.close();
    throw cause;
  }
  const { version, adapter } = (await hello(
    channel,
    "onnxruntime-web in a page",
    "Install it again: npm install onnxruntime-web",
  )) as Hello;
  if (adapter === null) {
    await channel.stop();
    throw new LowbitError(
      "E_RUNTIME",
      `verify: expected a WebGPU adapter in Chromium ${browser.version()}, got none. Use a newer Chromium (its SwiftShader needs no GPU), or leave webgpu out.`,
    );
  }
  const software = adapter.software ? ", a software adapter" : "";
  return {
    name,
    version: version ?? "unknown",
    note: `Chromium ${browser.version()}, ${adapter.name}${software}${adapter.half ? "" : ", no float16"}`,
    half: adapter.half,
    async open(model) {
      const external = externalData(model).map(({ path, file }) => ({ path, url: site.publish(file) }));
      return hostedSession(channel, (await channel.request("open", site.publish(model), { logSeverityLevel: 4 }, external)) as OpenReply);
    },
    peakBytes: () => peakOf(browser),
    close: () => channel.stop(),
  };
}
