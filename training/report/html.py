"""A page that needs no network: its style, its frame, its tables."""

from collections.abc import Collection, Iterable, Sequence
from html import escape

_STYLE = """
:root{color-scheme:light dark;--line:#8884;--soft:#8881}
body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}
h1{line-height:1.2}h2{margin-top:2.5rem;border-bottom:1px solid var(--line)}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.9rem}
td,th{padding:.2rem .6rem;border-bottom:1px solid var(--line);text-align:left}td.n,th.n{text-align:right}
.wide{overflow-x:auto}.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr));gap:1rem}
figure{margin:0;background:var(--soft);border-radius:.5rem;padding:.75rem}figcaption{font-weight:600}
svg{width:100%;max-width:45rem;height:auto;font-size:11px}svg text{fill:currentColor}
.keys span{margin-right:1rem;font-size:.8rem;white-space:nowrap}
.keys i{display:inline-block;width:.8em;height:.8em;border-radius:50%;margin-right:.3em}
.pictures{display:flex;flex-wrap:wrap;gap:.75rem}.pictures figure{padding:.4rem;font-size:.75rem;max-width:9rem}
.pictures img{image-rendering:pixelated;width:4rem;height:4rem;object-fit:contain;margin-right:.25rem}
code{overflow-wrap:anywhere}
"""


def page(title: str, sections: Iterable[tuple[str, str]]) -> str:
    """Sections are (heading, HTML); empty ones are left out."""
    body = "".join(f"<section><h2>{escape(name)}</h2>{text}</section>" for name, text in sections if text)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width,initial-scale=1"><title>{escape(title)}</title><style>{_STYLE}</style></head>'
        f"<body><h1>{escape(title)}</h1>{body}</body></html>\n"
    )


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], numbers: Collection[int] = ()) -> str:
    """Cells are HTML; `numbers` are the columns that are set to the right."""

    def line(tag: str, cells: Sequence[str]) -> str:
        marked = (f"<{tag}{' class=n' if i in numbers else ''}>{cell}</{tag}>" for i, cell in enumerate(cells))
        return f"<tr>{''.join(marked)}</tr>"

    return f'<div class="wide"><table>{line("th", heads)}{"".join(line("td", row) for row in rows)}</table></div>'
