"""What the report's page is made of: its style sheet, and boxes, tables and figures that escape what they are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape

Cell = str | tuple[str, str]  # plain text, or text and a smaller line below it; escaped by `table`


POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(title: str, warning: str, content: str) -> str:
    """The whole page as text, to be written as UTF-8; the title is escaped here, warning and content are HTML."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="robots" content="noindex">'
        f"<title>{escape(title)} - edgemed report</title><style>{STYLE}</style></head><body>\n"
        f'<div class="banner"><p>{warning} Research software, not a medical device.</p></div>\n'
        f"<main><h1>{escape(title)}</h1>{content}\n</main></body></html>\n"
    )


def section(title: str, content: str) -> str:
    """A box of the page; the title is the program's own, the content is HTML."""
    return f"<section><h2>{title}</h2>{content}</section>"


def grid(parts: Sequence[str], width: int) -> str:
    """Parts side by side where each has `width` pixels, below each other elsewhere."""
    style = f"grid-template-columns:repeat(auto-fit,minmax(min(100%,{width}px),1fr))"
    return f'<div class="grid" style="{style}">{"".join(parts)}</div>'


def table(
    head: Sequence[str], rows: Sequence[Sequence[Cell]], style: str = "", over: Sequence[tuple[str, int]] = ()
) -> str:
    """A table that scrolls inside itself where the screen is narrow; every cell is escaped here.

    over: titles above the head, each with the number of columns that it spans.
    """
    above = "".join(f'<th colspan="{columns}">{escape(title)}</th>' for title, columns in over)
    titles = f'<tr class="over">{above}</tr>' if over else ""
    if any(head):
        titles += "<tr>" + "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head) + "</tr>"
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f'<div class="scroll"><table class="{style}"><thead>{titles}</thead><tbody>{body}</tbody></table></div>'


def _cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return f"<td>{escape(cell)}</td>"
    return f'<td>{escape(cell[0])}<span class="sub">{escape(cell[1])}</span></td>'


def number(value: float | None) -> str:
    """Three digits; a dash for what is undefined."""
    return "-" if value is None else f"{value:.3f}"


def signed(value: float | None) -> str:
    """A difference: three digits and its sign; a dash for what is undefined."""
    return "-" if value is None else f"{value:+.3f}"


def bounds(interval: Mapping[str, float | None], show: Callable[[float | None], str] = number) -> str:
    """The interval in brackets, or why there is none."""
    low, high = interval["low"], interval["high"]
    if low is None or high is None:
        return "undefined" if interval["value"] is None else "no interval"
    return f"({show(low)} to {show(high)})"


def charts(title: str, figures: Sequence[str]) -> str:
    """A title with its charts, two beside each other where there is room."""
    return f'<h3>{escape(title)}</h3><div class="curves">{"".join(figures)}</div>'


def figure(picture: str, caption: str) -> str:
    """A picture (a `data:` address) with its caption, which is escaped here."""
    text = escape(caption)
    return f'<figure><img src="{picture}" alt="{text}"><figcaption>{text}</figcaption></figure>'


STYLE = """
:root { color-scheme: light; --ink: #1c232b; --soft: #56616d; --line: #dfe3e8; --paper: #fff; --tint: #f5f7f9; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--tint); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
.banner { background: #fff3d6; border-bottom: 1px solid #e5c876; color: #4a3600; }
.banner p, main { max-width: 1120px; margin: 0 auto; padding: .6rem 1rem; }
main { padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.2rem; margin: 0 0 .75rem; }
h3 { font-size: 1rem; margin: 1.25rem 0 .5rem; }
h2 + h3, .grid h3 { margin-top: 0; }
th:first-child, td:first-child { overflow-wrap: break-word; }
h1, h3, p, li, figcaption, .text td { overflow-wrap: anywhere; }
p { margin: 0 0 .75rem; max-width: 80ch; }
.soft, .sub, .note, figcaption, .tile span { color: var(--soft); }
.note, figcaption, .scale, .tile span { font-size: .875rem; }
.note { margin: .6rem 0 0; } .interval { white-space: nowrap; }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 1.25rem;
  margin: 1rem 0 0; }
.tiles { display: grid; grid-template-columns: repeat(4, 1fr); gap: .75rem; margin: 0 0 1rem; }
.tile { background: var(--tint); border-radius: 8px; padding: .75rem 1rem; }
.tile b { display: block; font-size: 1.75rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.tile span { display: block; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .925rem; }
th, td { padding: .4rem .7rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top;
  white-space: nowrap; font-weight: 400; }
thead th { color: var(--soft); font-weight: 600; vertical-align: bottom; white-space: normal; }
thead .over th { text-align: center; border: 0; padding-bottom: 0; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--paper);
  white-space: normal; min-width: 5.5rem; max-width: 14rem; }
.text td, .text th { text-align: left; position: static; white-space: normal; max-width: none; }
.text td:nth-child(-n+2) { min-width: 8rem; }
.sub { display: block; font-size: .8rem; }
table.confusion { font-size: .875rem; }
.confusion th, .confusion td { padding: .3rem .4rem; }
.confusion td { text-align: center; border: 2px solid var(--paper); min-width: 3.9rem; }
.confusion thead th { text-align: center; } .confusion .sub { color: inherit; }
.grid, .curves, .examples { display: grid; gap: 1.25rem; }
.curves { grid-template-columns: repeat(2, minmax(0, 480px)); }
.examples { grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 1rem .75rem; margin: 1rem 0 0; max-width: 900px; }
.three { grid-template-columns: repeat(3, minmax(0, 1fr)); max-width: 675px; }
.grid > * { min-width: 0; } .note + .grid { margin: 1.25rem 0 0; }
figure { margin: 0; } figure img { display: block; width: 100%; height: auto; }
figcaption { margin: .3rem 0 0; }
.examples img { border-radius: 6px; image-rendering: pixelated; } .photos img { image-rendering: auto; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .4rem; } .pairs + .scroll { margin: 1rem 0 0; }
.pairs { grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr)); }
.small { grid-template-columns: repeat(auto-fit, minmax(min(100%, 230px), 300px)); gap: 1.25rem; display: grid; }
.scale { display: flex; gap: .3rem .6rem; align-items: center; color: var(--soft); flex-wrap: wrap; }
.scale i { width: 9rem; height: .8rem; border-radius: 4px; }
ul { padding-left: 1.2rem; margin: 0; } .limits { margin: .75rem 0 0; }
details { margin: .75rem 0 0; } summary { cursor: pointer; color: #0b5f94; margin: 0 0 .4rem; }
.conflict { color: #9a3412; }
@media (max-width: 640px) {
  body { font-size: 15px; } main { padding: 1rem .6rem 3rem; } section { padding: 1rem .85rem; }
  h1 { font-size: 1.4rem; } .tile { padding: .6rem .7rem; } .tile b { font-size: 1.4rem; }
  .tiles, .examples { grid-template-columns: repeat(2, minmax(0, 1fr)); } .curves { grid-template-columns: 100%; }
  .three { grid-template-columns: repeat(3, minmax(0, 1fr)); }
  th, td { padding: .35rem .2rem; } thead th { font-size: .75rem; }
  td .sub { white-space: normal; min-width: 3.3rem; font-size: .72rem; }
  th:first-child, td:first-child { min-width: 4.6rem; max-width: 6.5rem; }
  .text td:nth-child(-n+2) { min-width: 6.5rem; }
}
@media print { body { background: none; } section { break-inside: avoid; border: 0; padding: .5rem 0; } }
"""
