// The site: the Markdown of docs/ as it stands, and the pages that compute (the number explorer), which import the
// library's own sources.
// DOCS_BASE is the path that the site is served under, "/" where it has a host of its own.
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { defineConfig, type MarkdownRenderer } from "vitepress";

const docs = dirname(dirname(fileURLToPath(import.meta.url)));
const base = process.env.DOCS_BASE ?? "/";
/** Where the sources can be read, ".../blob/main/": links out of docs/ lead there. None yet: such links are plain text. */
const REPOSITORY = process.env.DOCS_REPOSITORY ?? "";

const guides = [
  { text: "ONNX models", link: "/onnx" },
  { text: "Command line", link: "/cli" },
  { text: "Runtime", link: "/runtime" },
  { text: "Quantizers", link: "/quantizers" },
  { text: "Integer-only inference", link: "/integer" },
  { text: "Checkpoints", link: "/checkpoints" },
  { text: "Lossless weights", link: "/lossless" },
  { text: "Quantized convolutions", link: "/convolution" },
  { text: "TensorFlow.js", link: "/tfjs" },
  { text: "GGUF", link: "/gguf" },
  { text: "Vector search", link: "/search" },
  { text: "WebGPU", link: "/webgpu" },
];
const reference = [
  { text: "Formats", link: "/generated/formats" },
  { text: "Numerics", link: "/numerics" },
  { text: "Errors", link: "/errors" },
  { text: "Performance", link: "/performance" },
  { text: "Published systems", link: "/systems" },
  { text: "Benchmarks", link: "/benchmarks" },
  { text: "Models from npm", link: "/zoo" },
  { text: "API", link: "/api/" },
];
const tools = [
  { text: "Playground", link: "/playground" },
  { text: "Number explorer", link: "/explorer" },
];
const inside = [
  { text: "Architecture", link: "/architecture" },
  { text: "Adding a format", link: "/adding-a-format" },
  { text: "Adding a kernel", link: "/adding-a-kernel" },
];

const UNLISTED = [
  { under: "generated/formats/", text: "Formats", link: "/generated/formats" },
  { under: "api/lowbit", text: "API", link: "/api/" },
];

/**
 * Links out of docs/ (README, examples, sources) are for readers of the repository: they lead there where its address
 * is
 * known, and else are text. The table of formats names their files: here it leads to their pages.
 */
function links(md: MarkdownRenderer): void {
  const outer = new Set<number>();
  const { link_open: open, link_close: close } = md.renderer.rules;
  const plain: NonNullable<typeof open> = (tokens, i, options, _env, self) => self.renderToken(tokens, i, options);
  md.renderer.rules.link_open = (tokens, i, options, env: { relativePath?: string }, self) => {
    const token = tokens[i];
    const href = token.attrGet("href") ?? "";
    const format = /^\.\.\/\.\.\/formats\/(\w+)\.ts$/.exec(href);
    if (format !== null && (env.relativePath ?? "").startsWith("generated/")) token.attrSet("href", `formats/${format[1]}.md`);
    else if (/#property-/.test(href))
      return text(tokens, i); // rows of TypeDoc's tables have no anchors
    else if (!/^([a-z]+:|#|\/)/.test(href)) {
      const path = join(dirname(env.relativePath ?? ""), href.replace(/#.*/, ""));
      if (path.startsWith("..") || (!path.endsWith(".md") && existsSync(join(docs, path)) && /\.\w+$/.test(path))) {
        if (REPOSITORY === "") return text(tokens, i);
        token.attrSet("href", REPOSITORY + join("docs", path));
      }
    }
    return (open ?? plain)(tokens, i, options, env, self);
  };
  md.renderer.rules.link_close = (tokens, i, options, env, self) => {
    if (outer.delete(tokens[i].level)) return "</span>";
    return (close ?? plain)(tokens, i, options, env, self);
  };
  /** What the link says, without a link. */
  function text(tokens: readonly { level: number }[], i: number): string {
    outer.add(tokens[i].level);
    return "<span>";
  }
}

/** Inline scripts of VitePress as files, so that the site works under a policy without 'unsafe-inline'. */
const scripts = new Map<string, string>();
const INLINE = /<script id="([\w-]+)">([^]*?)<\/script>/g;

export default defineConfig({
  title: "lowbit",
  description: "Low-precision number formats and quantization for Node and browsers",
  base,
  cleanUrls: false,
  // no icon, so that no browser asks for one
  head: [["link", { rel: "icon", href: "data:," }]],
  metaChunk: true,
  // a visit loads what it shows, not what it links to
  router: { prefetchLinks: false },
  srcExclude: ["public/**"],
  // The pages are also read as plain Markdown: what looks like a tag in them (posit<8,2>) is text.
  markdown: {
    html: false,
    // colours of code that reach WCAG AA
    theme: { light: "github-light-high-contrast", dark: "github-dark-high-contrast" },
    languageAlias: { mjs: "js", console: "shellsession" },
    config(md) {
      links(md);
      // tags are text here (html: false), the note at the head of a generated page too: it is for readers of the file
      md.core.ruler.before("normalize", "generated", (state) => {
        state.src = state.src.replace(/^(---\n[^]*?\n---\n)?\s*<!--[^]*?-->\n/, "$1");
      });
      // cells of text, which a phone shows wide enough to read
      md.core.ruler.push("long", ({ tokens }) => {
        tokens.forEach((token, i) => {
          if (token.type === "td_open" && tokens[i + 1].content.length > 48) token.attrJoin("class", "long");
        });
      });
      // what scrolls is reached by keys: fenced code is already
      const plain = md.renderer.rules.code_block;
      if (plain) md.renderer.rules.code_block = (...of) => plain(...of).replace("<pre", '<pre tabindex="0"');
    },
  },
  transformPageData({ relativePath, frontmatter }) {
    // tables of many columns, or of columns of code
    if (["generated/formats.md", "systems.md", "zoo.md"].includes(relativePath))
      return { frontmatter: { ...frontmatter, aside: false, pageClass: "wide" } };
    // pages that the sidebar does not list come from one that it does
    const from = UNLISTED.find(({ under }) => relativePath.startsWith(under));
    return from && { frontmatter: { ...frontmatter, prev: { text: from.text, link: from.link }, next: false } };
  },
  transformHtml: (html, _, { pageData, siteConfig }) =>
    html
      .replace(INLINE, (_, id: string, code: string) => {
        scripts.set(id, code);
        return `<script id="${id}" src="${base}assets/${id}.js"></script>`;
      })
      .replace("</head>", `${preloads(siteConfig.outDir, String(pageData.frontmatter.tool ?? ""))}</head>`),
  buildEnd({ outDir }) {
    mkdirSync(join(outDir, "assets"), { recursive: true });
    for (const [id, code] of scripts) writeFileSync(join(outDir, "assets", `${id}.js`), code);
  },
  themeConfig: {
    nav: [
      { text: "Guides", items: guides },
      { text: "Reference", items: reference },
      { text: "Playground", link: "/playground" },
      { text: "Number explorer", link: "/explorer" },
    ],
    sidebar: [
      { text: "Guides", items: guides },
      { text: "Reference", items: reference },
      { text: "Inside", items: inside },
      { text: "Tools", items: tools },
    ],
    search: { provider: "local", options: { _render: searchable } },
    outline: [2, 3],
    notFound: { linkLabel: "Take me home" },
  },
  vite: {
    server: { fs: { allow: ["../.."] } },
    worker: { format: "es" },
    build: { target: "es2022", assetsInlineLimit: 0, chunkSizeWarningLimit: 2000 },
  },
});

/** The code of a page that computes, named in its head: it comes with the page, not after the scripts that ask for it. */
function preloads(outDir: string, tool: string): string {
  if (tool === "") return "";
  const folder = join(outDir, "assets/chunks");
  const start = readdirSync(folder).find((name) => name.toLowerCase().startsWith(`${tool}.`) && name.endsWith(".js"));
  if (start === undefined) throw new Error(`${tool}: expected a chunk of that name in ${folder}, got none.`);
  const found = new Set([start]);
  for (const name of found)
    for (const [, next] of readFileSync(join(folder, name), "utf8").matchAll(/(?:from|import)\s*"\.\/([^"]+\.js)"/g)) found.add(next);
  return [...found].map((name) => `<link rel="modulepreload" href="${base}assets/chunks/${name}">`).join("");
}

/** Pages of single formats and the reference are found by their titles; their tables of codes are no text. */
function searchable(source: string, env: { relativePath?: string; frontmatter?: { search?: boolean } }, md: MarkdownRenderer): string {
  const html = md.render(source, env);
  if (env.frontmatter?.search === false) return "";
  const path = env.relativePath ?? "";
  if (!path.startsWith("generated/formats/") && !path.startsWith("api/")) return html;
  return [...html.matchAll(/<h[123][^]*?<\/h[123]>/g)].map(([heading]) => heading).join("\n");
}
