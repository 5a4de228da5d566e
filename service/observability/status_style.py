"""The style sheet of the status page, for light and dark screens and for phones."""

STYLE = """
:root { --page: #f6f7f9; --panel: #fff; --text: #1c2128; --dim: #57606a; --edge: #d9dde3; --line: #0b5cad;
  --good: #1a7f37; --bad: #c62a1f; --warn: #8a5a00; }
@media (prefers-color-scheme: dark) { :root { --page: #0b0e13; --panel: #131821; --text: #e6edf3; --dim: #9aa7b5;
  --edge: #262d38; --line: #79b8ff; --good: #3fb950; --bad: #ff7b72; --warn: #e3b341; } }
* { box-sizing: border-box; margin: 0; }
body { font: 15px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; background: var(--page);
  color: var(--text); padding: 1.25rem clamp(.75rem, 3vw, 2rem); max-width: 1180px; margin: auto;
  font-variant-numeric: tabular-nums; }
header { display: flex; flex-wrap: wrap; align-items: center; gap: .4rem .9rem; margin-bottom: 1rem; }
h1 { font-size: 1.45rem; letter-spacing: -.01em; }
h2 { font-size: .95rem; margin-bottom: .7rem; }
h2 small, small, .dim, footer, dt { color: var(--dim); font-weight: 400; }
.host { margin-left: auto; }
.health { font-weight: 600; font-size: .85rem; padding: .15rem .65rem; border-radius: 1rem; border: 1px solid; }
.SERVING { color: var(--good); }
.NOT_SERVING { color: var(--bad); }
section { background: var(--panel); border: 1px solid var(--edge); border-radius: .7rem; padding: 1rem;
  margin-bottom: 1rem; min-width: 0; overflow-x: auto; }
.charts { display: grid; gap: 1rem 1.4rem; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); }
figure { min-width: 0; }
figcaption { color: var(--dim); font-size: .85rem; }
strong { font-size: 1.35rem; font-weight: 600; }
svg { display: block; width: 100%; height: 3rem; margin: .25rem 0; }
svg path { vector-effect: non-scaling-stroke; fill: none; }
svg .line { stroke: var(--line); stroke-width: 1.6; stroke-linejoin: round; }
svg .area { fill: var(--line); opacity: .13; }
svg .base { stroke: var(--edge); }
.columns { display: grid; gap: 0 1rem; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); }
dl div { display: grid; grid-template-columns: 6.5rem 1fr; gap: .6rem; padding: .16rem 0; }
dd { overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; }
td { padding: .3rem .9rem .3rem 0; vertical-align: top; border-top: 1px solid var(--edge); overflow-wrap: anywhere; }
tr:first-child td { border-top: 0; }
td:nth-child(-n + 2) { white-space: nowrap; width: 1%; }
td:first-child { color: var(--dim); }
i { font-style: normal; opacity: .8; }
td span { margin-right: .8rem; }
tr.error td:nth-child(2) { color: var(--bad); }
tr.warning td:nth-child(2) { color: var(--warn); }
td p { margin-bottom: .1rem; }
td span { color: var(--dim); font-size: .95em; }
footer { display: flex; flex-wrap: wrap; gap: 1rem; font-size: .88rem; }
footer span { margin-left: auto; }
a { color: var(--line); }
@media (max-width: 40rem) { tr { display: block; padding: .4rem 0; border-top: 1px solid var(--edge); }
  tr:first-child { border-top: 0; } td { display: block; border: 0; padding: .05rem 0; width: auto !important; }
  .host { margin-left: 0; } }
"""
