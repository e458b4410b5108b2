"""Plots as inline SVG by pygal: no script, no style of their own, the same bytes for the same numbers."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import pygal
from pygal.style import Style

Points = list[tuple[float, float | None]]
SVG = "{http://www.w3.org/2000/svg}"
FONT = Style(label_font_size=12, major_label_font_size=12, title_font_size=12)  # a phone shows it at 10 px
UNWANTED = ("tooltip-overlay", "text-overlay")  # for pygal's script


def _bare(root: ElementTree.Element) -> None:
    """Take out what a page with styles of its own does not need."""
    for parent in list(root.iter()):
        for child in list(parent):
            style = parent.tag == f"{SVG}defs" and child.tag in (f"{SVG}style", f"{SVG}script")
            if style or any(name in (child.get("class") or "") for name in UNWANTED) or child.tag == f"{SVG}desc":
                parent.remove(child)


def _svg(chart: Any, name: str, label: str) -> str:
    chart.uuid = name  # pygal would take a random one
    text = re.sub(r"<!--.*?-->", "", chart.render(is_unicode=True), flags=re.DOTALL)  # one has the day
    ElementTree.register_namespace("", SVG.strip("{}"))
    root = ElementTree.fromstring(text.partition("?>")[2])
    _bare(root)
    for element in root.iter():
        if "id" in element.attrib:  # of its script; the ids of several plots would be the same
            del element.attrib["id"]
    root.set("role", "img")
    root.set("aria-label", label)
    return ElementTree.tostring(root, encoding="unicode")


def _chart(x: str, y: str, **more: Any) -> Any:
    return pygal.XY(
        css=(), js=(), no_prefix=True, show_dots=False, show_legend=False, show_x_guides=False, x_title=x, y_title=y,
        width=420, height=240, margin=6, max_scale=5, style=FONT, **more,
    )  # fmt: skip


def rates(name: str, label: str, series: dict[str, Any], zero: float) -> str:
    """Answered and failed requests a second; ``zero`` (unix time) is where the axis begins to count."""
    chart = _chart("seconds", "requests a second", include_x_axis=True)
    for kind in ("answered", "failed"):
        chart.add(kind, _points(series, zero, [count / series["step"] for count in series[kind]]))
    return _svg(chart, name, label)


def latencies(name: str, label: str, series: dict[str, Any], zero: float) -> str:
    """p50 and the longest of the good answers, by when they were asked."""
    chart = _chart("seconds", "seconds for an answer", include_x_axis=True)
    for kind, text in (("p50", "half of them"), ("longest", "the longest")):
        chart.add(text, _points(series, zero, series[kind]))
    return _svg(chart, name, label)


def stages(name: str, label: str, steps: list[dict[str, Any]]) -> str:
    """Bars in the order of time: name, from and seconds of each."""
    chart = _chart("seconds since it began", "", show_y_guides=False, range=(0, len(steps) + 1))
    chart.y_labels = [{"label": str(n), "value": len(steps) + 1 - n} for n in range(1, len(steps) + 1)]
    for number, step in enumerate(steps, 1):
        level = len(steps) + 1 - number
        chart.add(step["name"], [(step["from"], level), (step["from"] + max(step["seconds"], 0.1), level)])
    return _svg(chart, name, label).replace('class="pygal-chart"', 'class="pygal-chart stages"', 1)


def _points(series: dict[str, Any], zero: float, values: list[float | None]) -> Points:
    """In the middle of each step."""
    first = series["begin"] - zero + series["step"] / 2
    return [(round(first + index * series["step"], 1), value) for index, value in enumerate(values)]
