"""The page that holds a report: one file, which loads nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

from pipelocal.report.markup import Html, joined, tag
from pipelocal.system.files import write_atomically
from pipelocal.telemetry.timeline_view import COLOURS

STYLE = """
:root{color-scheme:light dark;--bg:#fff;--fg:#1c2128;--soft:#5a6472;--rule:#dde1e7;--card:#f5f7f9;
--warn:#fff4dc;--edge:#c98a00;--body:#3b6ea5;--head:#d08a2c;--line:38%;--wait:#d4d8de;--wait2:#aab1bb}
@media(prefers-color-scheme:dark){:root{--bg:#14171c;--fg:#e6e9ee;--soft:#9aa5b4;--rule:#333a45;
--card:#1d2229;--warn:#2e2713;--edge:#d9a52e;--body:#6c9fd6;--head:#e0a050;--line:66%;--wait:#3a424e;
--wait2:#566070}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--fg);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"DejaVu Sans",sans-serif;-webkit-text-size-adjust:100%}
main,header,nav,footer{max-width:1240px;margin:0 auto;padding:0 16px}
header{padding-top:20px}
h1{font-size:1.5rem;line-height:1.25;margin:0;overflow-wrap:anywhere}
h2{font-size:1.2rem;margin:2.2rem 0 .6rem;padding-top:.6rem;border-top:1px solid var(--rule)}
p{margin:.4rem 0;max-width:75ch;overflow-wrap:anywhere}
.soft,footer{color:var(--soft)}
footer{padding:2rem 16px;font-size:.85rem}
nav ul,.legend,.warnings{list-style:none;margin:0;padding:0}
nav ul{display:flex;flex-wrap:wrap;gap:.2rem 1rem;padding:.7rem 0}
a{color:var(--body)}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(148px,1fr));gap:10px;margin:1rem 0}
.cards div{background:var(--card);border-radius:8px;padding:8px 12px}
.cards dt{color:var(--soft);font-size:.85rem}
.cards dd{margin:0;font-size:1.2rem;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
.warnings li{background:var(--warn);border-left:4px solid var(--edge);border-radius:4px;padding:8px 12px;
margin:8px 0;overflow-wrap:anywhere}
code{font-family:ui-monospace,"DejaVu Sans Mono",monospace;font-size:.92em;white-space:nowrap}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,350px),1fr));gap:14px 20px}
figure{margin:0;min-width:0}
figcaption{font-weight:600;font-size:.95rem}
svg{display:block;width:100%;height:auto;overflow:visible}
svg.long{min-width:760px}
svg text{font-size:12px;fill:var(--soft)}
.grid{stroke:var(--rule);fill:none}
.curve{--c:hsl(var(--h) 65% var(--line))}
.curve.plain{--c:var(--fg)}
.curve text{fill:var(--c);font-weight:600}
.line{fill:none;stroke:var(--c);stroke-width:1.8;stroke-linejoin:round}
.line.dashed{stroke-dasharray:6 4}
.dot{fill:var(--c)}
.legend{display:flex;flex-wrap:wrap;gap:.1rem 1.1rem;margin:.4rem 0 .8rem;font-size:.9rem}
.legend li{overflow-wrap:anywhere}
.mark{display:inline-block;width:1.3em;height:.7em;margin-right:.45em;background:var(--c);border-radius:2px}
.mark.dashed{background:repeating-linear-gradient(90deg,var(--c) 0 5px,transparent 5px 8px)}
.wide{overflow-x:auto;margin:.6rem 0}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
caption{text-align:left;min-width:min(60ch,80vw);color:var(--soft);padding:.2rem 0}
th,td{padding:.3rem .8rem .3rem 0;text-align:right;border-bottom:1px solid var(--rule);vertical-align:top;
white-space:nowrap}
th.text,td.text{text-align:left;white-space:normal;max-width:46ch;overflow-wrap:break-word}
thead th,thead th.text{white-space:nowrap;border-bottom-width:2px;color:var(--soft);font-weight:600}
tbody th{font-weight:600}
tr.other th,mark{color:var(--fg);background:var(--warn)}
summary{cursor:pointer;padding:.3rem 0}
.b-body{fill:var(--body);background:var(--body)}
.b-head{fill:var(--head);background:var(--head)}
""".strip()

ACTIONS = "\n".join(f".a-{name}{{fill:{c};background:{c}}}" for name, c in COLOURS.items())
LATER = """
.a-receive{fill:var(--wait);background:var(--wait)}
.a-send{fill:var(--wait2);background:var(--wait2)}
.a-transfer{fill:#d0584c;background:#d0584c}
@media print{:root{--bg:#fff;--fg:#000;--soft:#444;--rule:#bbb;--card:#fff;--warn:#fff;--line:35%;
--wait:#d4d8de;--wait2:#aab1bb;--body:#3b6ea5;--head:#b06f14;color-scheme:light}
body{font-size:10pt}nav{display:none}h2{break-after:avoid}figure,tr,.warnings li{break-inside:avoid}
.wide{overflow:visible}svg.long{min-width:0}.cards div{border:1px solid #bbb}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
""".strip()

SCRIPT = (
    'addEventListener("beforeprint",()=>document.querySelectorAll("details")'
    ".forEach(each=>each.open=true))"
)
"""What is folded away is printed too. The page needs no script otherwise."""


def page(title: str, said: str, sections: Sequence[tuple[str, str, Html]], footer: str) -> str:
    """Return a page.

    Args:
        title: its name.
        said: what stands below it.
        sections: name for links, heading (empty for none) and content of each.
        footer: the last line.
    """
    # Were a name ever to escape from its text, it could still load and run nothing.
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Html("\n".join((STYLE, ACTIONS, LATER)))),
        tag("script", Html(SCRIPT)),
    )
    links = [
        tag("li", tag("a", heading, href=f"#{name}")) for name, heading, _ in sections if heading
    ]
    bodies = [
        tag("section", *([tag("h2", heading)] if heading else []), content, id=name)
        for name, heading, content in sections
    ]
    body = tag(
        "body",
        tag("header", tag("h1", title), tag("p", said, class_="soft")),
        tag("nav", tag("ul", *links), aria_label="Sections"),
        tag("main", joined(bodies)),
        tag("footer", footer),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def write_page(path: Path, text: str) -> None:
    """Write a page.

    Raises:
        UserError: the file cannot be written.
    """
    write_atomically(path, text.encode("utf-8", "replace"))
