// The style of the report: light and dark, from 390 px on, nothing from outside the file. Its components alone are for
// pages that show a report in one of their own (the playground of the site), with colours of theirs.

/** Cards, tables, bars and histograms; colours are --bg, --fg, --dim, --line, --card, --a, --b, --ok, --bad, --pale. */
export const COMPONENTS = `
*{box-sizing:border-box}
h1{font-size:22px;margin:0 0 4px;overflow-wrap:anywhere}h2{font-size:17px;margin:36px 0 10px}h3{font-size:14px;margin:0 0 4px;overflow-wrap:anywhere}
p{margin:6px 0}.dim{color:var(--dim)}.ok{color:var(--ok)}.bad{color:var(--bad)}a{color:var(--a)}code,pre{font:13px/1.45 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:10px;margin:18px 0}
.card{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px 12px}.card b{display:block;font-size:20px;font-variant-numeric:tabular-nums}.card>span{color:var(--dim);font-size:13px}
table{border-collapse:collapse;width:100%;font-size:13.5px}th{text-align:left;color:var(--dim);font-weight:500;white-space:nowrap}
th,td{padding:4px 12px 4px 0;border-bottom:1px solid var(--line);vertical-align:middle}td{overflow-wrap:anywhere}td:first-child{min-width:84px}.name{min-width:104px}.ok,.bad{white-space:nowrap;overflow-wrap:normal}
.n{text-align:right;white-space:nowrap;overflow-wrap:normal;font-variant-numeric:tabular-nums}
.bar{display:block;width:100%;min-width:56px;height:8px;border-radius:2px;background:var(--card)}.b1{fill:var(--a)}.b2{fill:var(--b)}.b0{fill:var(--pale)}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(310px,1fr));gap:14px}.hist svg{display:block;width:100%;height:110px}.hist .bars{fill:var(--a)}.hist line{stroke:var(--b);stroke-width:1;vector-effect:non-scaling-stroke}
pre{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:12px;overflow:auto;margin:8px 0}ul{padding-left:20px;margin:6px 0}li{overflow-wrap:anywhere}
.scroll{overflow-x:auto}footer{margin-top:40px;color:var(--dim);font-size:13px}
@media(max-width:640px){.w{display:none}th,td{padding-right:8px}.card b{font-size:17px}}
`.trim();

export const STYLE = `
:root{color-scheme:light dark;--bg:#fff;--fg:#1c2128;--dim:#59636e;--line:#d8dee4;--card:#f6f8fa;--a:#2f6feb;--b:#9a6700;--ok:#1a7f37;--bad:#cf222e;--pale:#b6c4d6}
@media(prefers-color-scheme:dark){:root{--bg:#12161b;--fg:#e6edf3;--dim:#9aa4af;--line:#2d343c;--card:#1a2027;--a:#6ca4ff;--b:#e0b04c;--ok:#4cc267;--bad:#ff7b72;--pale:#3d4a5c}}
body{margin:0 auto;max-width:1120px;padding:24px 16px 48px;background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
@media(max-width:640px){body{padding-top:16px}}
${COMPONENTS}
`.trim();
