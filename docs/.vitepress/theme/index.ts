import DefaultTheme from "vitepress/theme";
import { defineClientComponent, useData } from "vitepress";
import { defineComponent, h } from "vue";
import "./style.css";

/** The page computes in the browser only: what a link holds is not known before. */
const Explorer = defineClientComponent(() => import("../explorer/Explorer.vue"));

/** Pages that compute name their component in the front matter (`tool: explorer`): raw tags are off in Markdown. */
const Layout = defineComponent({
  setup() {
    const { frontmatter } = useData();
    return () =>
      h(DefaultTheme.Layout, null, {
        "doc-after": () => (frontmatter.value.tool === "explorer" ? h(Explorer) : null),
      });
  },
});

export default { extends: DefaultTheme, Layout };
