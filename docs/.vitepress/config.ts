// The site: the Markdown of docs/ as it stands, and the pages that compute (the number explorer), which import the library's own sources.
// DOCS_BASE is the path that the site is served under, "/" where it has a host of its own.
import { defineConfig } from "vitepress";

const guides = [
  { text: "ONNX models", link: "/onnx" },
  { text: "Command line", link: "/cli" },
  { text: "Runtime", link: "/runtime" },
  { text: "Quantizers", link: "/quantizers" },
  { text: "Checkpoints", link: "/checkpoints" },
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
  { text: "Models from npm", link: "/zoo" },
];
const inside = [
  { text: "Architecture", link: "/architecture" },
  { text: "Adding a format", link: "/adding-a-format" },
  { text: "Adding a kernel", link: "/adding-a-kernel" },
];

export default defineConfig({
  title: "lowbit",
  description: "Low-precision number formats and quantization for Node and browsers",
  base: process.env.DOCS_BASE ?? "/",
  cleanUrls: false,
  // no icon, so that no browser asks for one
  head: [["link", { rel: "icon", href: "data:," }]],
  // The pages are also read as plain Markdown: what looks like a tag in them (posit<8,2>) is text.
  markdown: { html: false },
  // Links out of docs/ (README, examples, sources) are for readers of the repository.
  ignoreDeadLinks: [/^\.\.?\/\.\./, /README/, /CHANGELOG/, /\.(ts|mjs|json|html|sh)$/, /^\.\.\//],
  themeConfig: {
    nav: [
      { text: "Guides", items: guides },
      { text: "Reference", items: reference },
      { text: "Number explorer", link: "/explorer" },
    ],
    sidebar: [
      { text: "Guides", items: guides },
      { text: "Reference", items: reference },
      { text: "Inside", items: inside },
      { text: "Tools", items: [{ text: "Number explorer", link: "/explorer" }] },
    ],
    search: { provider: "local" },
    outline: [2, 3],
  },
  vite: { server: { fs: { allow: ["../.."] } } },
});
