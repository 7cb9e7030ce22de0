"""One HTML page with figures, pictures and videos: opens from disk, asks nobody for anything.

Pictures live inside the page; videos lie beside it and are named relative to it.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jinja2 import Environment
from numpy.typing import NDArray

from faceswap import files, metrics


@dataclass(frozen=True)
class Text:
    """Paragraphs."""

    lines: Sequence[str]


@dataclass(frozen=True)
class Figures:
    """A table of measures, with what each means below it."""

    title: str
    rows: metrics.Rows
    explained: bool = True  # what each measure means stands below the table


@dataclass(frozen=True)
class Facts:
    """A table of two columns."""

    title: str
    rows: Mapping[str, str]


@dataclass(frozen=True)
class Pictures:
    """Pictures in rows of equal length, a title above each column; (H, W, 3) RGB, uint8 or float32 in [0, 1]."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[NDArray[Any]]]


@dataclass(frozen=True)
class Videos:
    """Videos beside the page that play together: caption -> file name."""

    title: str
    names: Mapping[str, str]


@dataclass(frozen=True)
class History:
    """Pictures over time behind one slider: caption -> (H, W, 3) uint8 RGB."""

    title: str
    pictures: Mapping[str, NDArray[np.uint8]]


Block = Text | Figures | Facts | Pictures | Videos | History

TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
 body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1180px; padding: 0 1rem; color: #1b1f24; }
 h1 { font-size: 1.6rem } h2 { font-size: 1.15rem; margin-top: 2rem }
 table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .5rem 0 } .wide { overflow-x: auto }
 th, td { padding: .25rem .45rem; font-size: 14px; text-align: right; border-bottom: 1px solid #d7dbe0; white-space: nowrap }
 th:first-child, td:first-child { text-align: left; padding-left: 0; position: sticky; left: 0; background: #fff } th { font-weight: 600; font-size: 12px; white-space: normal }
 figure { margin: 0 } figcaption, .caption { font-size: 13px; color: #57606a } img, video { width: 100%; height: auto; display: block }
 .grid { display: grid; gap: 6px } dl { font-size: 13px; color: #57606a } dt { font-weight: 600; float: left;
 margin-right: .5rem } dd { margin: 0 } button, input[type=range] { font: inherit; margin: .5rem 0 } input { width: 100% }
</style></head><body>
<h1>{{ title }}</h1>
{% for kind, block in blocks %}
{% if kind == "Text" %}{% for line in block.lines %}<p>{{ line }}</p>{% endfor %}
{% else %}<h2>{{ block.title }}</h2>{% endif %}
{% if kind == "Facts" %}<table>{% for name, value in block.rows.items() %}
 <tr><td>{{ name }}</td><td style="white-space: normal; text-align: left">{{ value }}</td></tr>{% endfor %}</table>{% endif %}
{% if kind == "Figures" %}<div class="wide"><table><tr><th></th>{% for name in block.rows | measures %}
 <th>{{ table[name].label }}{% if table[name].unit %} {{ table[name].unit }}{% endif %}</th>{% endfor %}</tr>
 {% for row, values in block.rows.items() %}<tr><td>{{ row }}</td>{% for name in block.rows | measures %}
 <td>{{ shown(values.get(name)) }}</td>{% endfor %}</tr>{% endfor %}</table></div>
 {% if block.explained %}<dl>{% for name in block.rows | measures %}<dt>{{ table[name].label }}</dt><dd>{{ table[name].meaning }}
 {% if table[name].best is not none %}(best: {{ "higher" if table[name].best == inf else
 "%g" | format(table[name].best) }}){% endif %}</dd>{% endfor %}</dl>{% endif %}{% endif %}
{% if kind == "Pictures" %}<div class="grid" style="grid-template-columns: repeat({{ block.columns | length }}, 1fr)">
 {% for column in block.columns %}<div class="caption">{{ column }}</div>{% endfor %}
 {% for row in block.rows %}{% for picture in row %}<img alt="" src="{{ picture | inline }}">{% endfor %}{% endfor %}
 </div>{% endif %}
{% if kind == "Videos" %}<div class="together"><div class="grid"
 style="grid-template-columns: repeat(auto-fit, minmax(190px, 1fr))">
 {% for caption, name in block.names.items() %}<figure><video src="{{ name | urlencode }}" muted loop playsinline
 preload="auto" controls></video><figcaption>{{ caption }}</figcaption></figure>{% endfor %}</div>
 <button type="button">play / pause all</button></div>{% endif %}
{% if kind == "History" %}<div class="history" style="max-width: 700px"><input type="range" min="0" max="{{ block.pictures | length - 1 }}"
 value="{{ block.pictures | length - 1 }}" aria-label="{{ block.title }}" autocomplete="off">
 {% for caption, picture in block.pictures.items() %}<figure{% if not loop.last %} hidden{% endif %}>
 <figcaption>{{ caption }}</figcaption><img alt="" src="{{ picture | inline }}"></figure>{% endfor %}</div>{% endif %}
{% endfor %}
<script>
 for (const box of document.querySelectorAll(".together")) {
  const videos = [...box.querySelectorAll("video")], lead = videos[0];
  box.querySelector("button").onclick = () => {
   const paused = lead.paused;
   for (const video of videos) { video.currentTime = lead.currentTime; paused ? video.play() : video.pause(); }
  };
  lead.ontimeupdate = () => { for (const video of videos)
   if (Math.abs(video.currentTime - lead.currentTime) > 0.15) video.currentTime = lead.currentTime; };
 }
 for (const box of document.querySelectorAll(".history")) {
  const figures = [...box.querySelectorAll("figure")];
  box.querySelector("input").oninput = event =>
   figures.forEach((figure, index) => { figure.hidden = index != event.target.value; });
 }
</script>
</body></html>
"""  # noqa: E501


def write(path: Path, title: str, blocks: Sequence[Block], *, overwrite: bool) -> None:
    """Write the page; `OutputExistsError` if it is there and `overwrite` is false."""
    environment = Environment(autoescape=True)
    environment.filters.update(inline=_inline, measures=metrics.columns)
    page = environment.from_string(TEMPLATE)
    kinds = [(type(block).__name__, block) for block in blocks]
    html = page.render(title=title, blocks=kinds, table=metrics.TABLE, shown=metrics.shown, inf=float("inf"))
    with files.whole_file(path, overwrite=overwrite) as partial:
        partial.write_text(html, encoding="utf-8")


def _inline(picture: NDArray[Any]) -> str:
    """A picture as the address that holds it."""
    if picture.dtype != np.uint8:
        picture = np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)
    coded = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1]
    return "data:image/png;base64," + base64.b64encode(coded.tobytes()).decode()
