"""Reports as web pages that hold all they show: nothing is fetched, and nothing runs."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from torch import Tensor

from .files import atomic_write
from .images import to_pil
from .metrics import Interval

_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width"><title>{title}</title>
<style>
body{{font:15px/1.5 system-ui,sans-serif;max-width:76rem;margin:2rem auto;
padding:0 1rem;color:#222}}
table{{border-collapse:collapse;margin:1rem 0}}td,th{{padding:.3rem .7rem;text-align:right}}
th{{border-bottom:1px solid #999;vertical-align:bottom}}
td:first-child,th:first-child{{text-align:left}}
small{{color:#666}}img{{display:block;max-width:100%;margin:.2rem 0 .8rem}}pre{{overflow:auto}}
dt{{font-weight:600}}
{style}</style></head><body>
"""


def write_html(file: Path, title: str, parts: Iterable[str], style: str = "") -> None:
    """Write a page of parts in HTML; raises StorageError. style: further CSS, a rule a line."""
    text = _HEAD.format(title=escape(title), style=style) + "\n".join(parts) + "\n</body></html>\n"
    atomic_write(file, lambda path: path.write_text(text, "utf-8"))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of plain texts."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><tr>{top}</tr>{body}</table>"


def interval(found: Interval | None, sign: str = "") -> str:
    """A mean with its interval as a text, empty for None."""
    if found is None:
        return ""
    digits = 0 if abs(found.mean) >= 100 else 2
    mean, low, high = (f"{value:{sign}.{digits}f}" for value in found)
    return mean if low == high else f"{mean} ({low} to {high})"


def jpeg(image: Tensor) -> bytes:
    """A picture (3,H,W) in 0..1 as a JPEG."""
    buffer = io.BytesIO()
    to_pil(image).save(buffer, format="JPEG", quality=88)
    return buffer.getvalue()


def picture(data: bytes, title: str) -> str:
    """A JPEG, inside the page; title: what is said where it is not seen."""
    text = base64.b64encode(data).decode("ascii")
    return f'<img alt="{escape(title)}" src="data:image/jpeg;base64,{text}">'
