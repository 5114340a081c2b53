"""HTML pages that need no network, and tables for them."""

from collections.abc import Collection, Iterable, Sequence
from html import escape
from pathlib import Path

STYLESHEET = Path(__file__).with_name("report.css")  # copied into each page, which then needs no other file


def page(title: str, sections: Iterable[tuple[str, str]]) -> str:
    """`sections` are (heading, HTML); empty ones are left out."""
    body = "".join(f"<section><h2>{escape(name)}</h2>{text}</section>" for name, text in sections if text)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width,initial-scale=1"><title>{escape(title)}</title><style>\n{STYLESHEET.read_text()}</style></head>'
        f"<body><h1>{escape(title)}</h1>{body}</body></html>\n"
    )


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], numbers: Collection[int] = ()) -> str:
    """Cells are HTML; the columns `numbers` are aligned to the right."""

    def line(tag: str, cells: Sequence[str]) -> str:
        marked = (f"<{tag}{' class=n' if i in numbers else ''}>{cell}</{tag}>" for i, cell in enumerate(cells))
        return f"<tr>{''.join(marked)}</tr>"

    return f'<div class="wide"><table>{line("th", heads)}{"".join(line("td", row) for row in rows)}</table></div>'
