"""The contact sheet: one page that holds its pictures, in which labels can be typed and saved as the list."""

import base64
import hashlib
import json
from collections.abc import Sequence
from html import escape
from itertools import groupby
from pathlib import Path

from app.bundle import InputSpec, preprocess
from app.bundle.decode import read_dimensions
from app.bundle.encode import png_of
from training.label.choose import Choice, Chosen
from training.label.pool import Pool
from training.progress import track
from training.recipe import Input

_HERE = Path(__file__).parent
_LONGEST = 176  # pixels of a picture's longer side
_SEVERAL = "Write | between the labels of a picture, | alone where it has none, and leave the ? of what you cannot tell"


def page(pool: Pool, choice: Choice, rows: Sequence[tuple[str, str]], kinds: Sequence[str], title: str) -> str:
    """`rows` are those of the list: (path, label)."""
    first = 0 if choice.way == "check" else len(rows) - len(choice.chosen)
    items = zip(track(choice.chosen, "pictures", len(choice.chosen)), range(first, len(rows)), strict=False)
    sections = [
        f"<h2>{escape(heading)}</h2><ol>{''.join(_item(pool, each, row, rows[row][1]) for each, row in found)}</ol>"
        for heading, found in groupby(items, lambda item: item[0].heading)
    ]
    stored = {"id": hashlib.sha256(repr(rows).encode()).hexdigest()[:16], "kinds": list(kinds), "rows": list(rows)}
    why = choice.why[0].upper() + choice.why[1:]
    data = json.dumps(stored).replace("<", "\\u003c")  # no path ends the element
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width,initial-scale=1"><title>{escape(title)}</title>'
        f"<style>\n{(_HERE / 'sheet.css').read_text()}</style></head><body>"
        f'<header><h1>{escape(title)}</h1><p id="state" role="status"></p>'
        '<button id="save" type="button">Save labels.csv</button></header>'
        f"<main><p>{escape(why)}. "
        "<kbd>Enter</kbd> goes to the next picture, <kbd>Tab</kbd> to a guess, where there is one. "
        f"{_SEVERAL if pool.several else 'Leave empty what you cannot tell'}. Save the file over the labels.csv beside "
        "this page, and run the command again.</p>"
        f'{"".join(sections)}</main><datalist id="names"></datalist>'
        f'<script type="application/json" id="list">{data}</script>'
        f"<script>\n{(_HERE / 'sheet.js').read_text()}</script></body></html>\n"
    )


def _item(pool: Pool, chosen: Chosen, row: int, label: str) -> str:
    name = escape(pool.names[chosen.row])
    guess = (
        f'<button type="button" value="{escape(chosen.guess)}">{escape(chosen.guess)}</button>' if chosen.guess else ""
    )
    return (
        f'<li><div class="picture"><img alt="{name}" src="{_picture(pool.paths[chosen.row])}"></div>'
        f'<input list="names" data-row="{row}" value="{escape(label)}" aria-label="label of {name}" autocomplete="off" '
        f'spellcheck="false">{guess}<small>{escape(chosen.why)}<br>{name}</small></li>'
    )


def _picture(path: Path) -> str:
    """A data URL of the upright picture, in its own aspect."""
    height, width = read_dimensions(path)[:2]
    scale = min(1.0, _LONGEST / max(height, width))
    sides = {"height": max(1, round(height * scale)), "width": max(1, round(width * scale))}
    pixels = preprocess(path.read_bytes(), _spec(**sides))
    return f"data:image/png;base64,{base64.b64encode(png_of(pixels)).decode()}"


def _spec(height: int, width: int) -> InputSpec:
    return Input(height=height, width=width, channels=3, resize="stretch").spec()
