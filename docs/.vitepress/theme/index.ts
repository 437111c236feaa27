// Without the theme's fonts: 200 kB that the system's own spare.
import DefaultTheme from "vitepress/theme-without-fonts";
import { defineClientComponent, useData } from "vitepress";
import { defineComponent, h } from "vue";
import "./style.css";

/** These pages compute in the browser only: what a link holds is not known before. */
const TOOLS = new Map([
  ["explorer", defineClientComponent(() => import("../explorer/Explorer.vue"))],
  ["bench", defineClientComponent(() => import("../bench/Bench.vue"))],
  ["playground", defineClientComponent(() => import("../playground/Playground.vue"))],
]);

/** Pages that compute name their component in the front matter (`tool: explorer`): raw tags are off in Markdown. */
const Layout = defineComponent({
  setup() {
    const { frontmatter } = useData();
    return () =>
      h(DefaultTheme.Layout, null, {
        "doc-after": () => {
          const tool = TOOLS.get(String(frontmatter.value.tool));
          return tool === undefined ? null : h(tool);
        },
      });
  },
});

export default { extends: DefaultTheme, Layout };
