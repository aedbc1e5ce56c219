"""Small inline SVG pictures for the report: curves, the graph of steps, when each step ran.

Drawn by hand so that they follow the page's colours, light or dark, and weigh a few kilobytes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[float, float]

MOST_POINTS = 240  # of a curve; more are averaged
LOG_RATIO = 30  # from this largest/smallest on, the value axis is logarithmic


def curves(series: Mapping[str, Sequence[Point]], *, width: int = 420, height: int = 190) -> str:
    """Curves over steps, each (step, value), with a legend of their last values."""
    shown = {name: _averaged(points) for name, points in series.items() if points}
    shown = {name: points for name, points in shown.items() if points}
    if not shown:
        return ""
    left, bottom, top, right = 52, 24, 8, 8
    xs = [x for points in shown.values() for x, _ in points]
    ys = [y for points in shown.values() for _, y in points]
    is_log = min(ys) > 0 and max(ys) / min(ys) > LOG_RATIO
    scaled = math.log10 if is_log else float
    low, high = scaled(min(ys)), scaled(max(ys))
    span_x, span_y = (max(xs) - min(xs)) or 1, (high - low) or 1

    def place(point: Point) -> str:
        x = left + (point[0] - min(xs)) / span_x * (width - left - right)
        y = top + (high - scaled(point[1])) / span_y * (height - top - bottom)
        return f"{x:.1f},{y:.1f}"

    parts = [_axes(min(xs), max(xs), (min(ys), max(ys)), (width, height, left, bottom, top, right))]
    for i, points in enumerate(shown.values()):
        parts.append(f'<polyline class="s{i % 6}" points="{" ".join(map(place, points))}"/>')
    legend = "".join(
        f'<li class="s{i % 6}">{escape(name)} <b>{short(points[-1][1])}</b></li>'
        for i, (name, points) in enumerate(shown.items())
    )
    kind = "curves log" if is_log else "curves"
    return (
        f'<svg class="{kind}" viewBox="0 0 {width} {height}">{"".join(parts)}</svg>'
        f'<ul class="legend">{legend}</ul>'
    )


@dataclass(frozen=True, kw_only=True)
class Node:
    """One step, to be drawn."""

    name: str
    title: str
    needs: tuple[str, ...]
    lines: tuple[str, ...]  # below the title, at most 3: time, cost
    kind: str  # class of its box: data, passed, failed, plain


def graph(nodes: Sequence[Node]) -> str:
    """The steps as boxes, each in a column after all it needs; implied edges are left out."""
    wide, tall, gap_x, gap_y = 142, 67, 28, 14
    needs = {node.name: set(node.needs) for node in nodes}
    columns = _columns(nodes)
    rows = {name: i for column in columns for i, name in enumerate(column)}
    depth = {name: i for i, column in enumerate(columns) for name in column}
    tallest = max(len(column) for column in columns)

    def corner(name: str) -> tuple[float, float]:
        return 4 + depth[name] * (wide + gap_x), 4 + rows[name] * (tall + gap_y)

    parts = []
    for node in nodes:
        for need in _direct(node.name, needs):
            (x1, y1), (x2, y2) = corner(need), corner(node.name)
            x1, y1, y2 = x1 + wide, y1 + tall / 2, y2 + tall / 2
            bend = max(gap_x / 2, (x2 - x1) / 2)
            path = f"M{x1:.0f} {y1:.0f} C{x1 + bend:.0f} {y1:.0f} {x2 - bend:.0f} {y2:.0f}"
            parts.append(f'<path class="edge" d="{path} {x2:.0f} {y2:.0f}"/>')
    for node in nodes:
        parts.append(_box(node, corner(node.name), (wide, tall)))
    width = 8 + len(columns) * (wide + gap_x) - gap_x
    height = 8 + tallest * (tall + gap_y) - gap_y
    return f'<svg class="graph" viewBox="0 0 {width} {height}">{"".join(parts)}</svg>'


def timeline(bars: Sequence[tuple[str, float, float]], *, width: int = 900) -> str:
    """When each step ran: (title, start in seconds, length in seconds) as bars."""
    if not bars:
        return ""
    row, left = 22, 170
    total = max(start + length for _, start, length in bars) or 1
    parts = []
    for i, (title, start, length) in enumerate(bars):
        x = left + start / total * (width - left - 70)
        w = max(1.5, length / total * (width - left - 70))
        y = i * row
        parts.append(f'<text class="right" x="{left - 8}" y="{y + 15}">{escape(title)}</text>')
        parts.append(f'<rect x="{x:.1f}" y="{y + 4}" width="{w:.1f}" height="14" rx="3"/>')
        parts.append(f'<text class="quiet" x="{x + w + 5:.1f}" y="{y + 15}">{length:.0f} s</text>')
    height = row * len(bars)
    return f'<svg class="timeline" viewBox="0 0 {width} {height}">{"".join(parts)}</svg>'


def short(value: float) -> str:
    """A number in a few characters."""
    if value == 0 or 0.001 <= abs(value) < 10000:
        return f"{value:.4g}"
    return f"{value:.1e}"


def _axes(
    first: float, last: float, values: Point, frame: tuple[int, int, int, int, int, int]
) -> str:
    width, height, left, bottom, top, right = frame
    floor = height - bottom
    return (
        f'<path class="axis" d="M{left} {top}V{floor}H{width - right}"/>'
        f'<text class="right" x="{left - 6}" y="{top + 8}">{short(values[1])}</text>'
        f'<text class="right" x="{left - 6}" y="{floor}">{short(values[0])}</text>'
        f'<text x="{left}" y="{height - 6}">{short(first)}</text>'
        f'<text class="right" x="{width - right}" y="{height - 6}">step {last:.0f}</text>'
    )


def _averaged(points: Sequence[Point]) -> list[Point]:
    """Finite points, neighbours averaged so that a curve stays light and readable."""
    finite = [(x, y) for x, y in points if math.isfinite(y)]
    size = math.ceil(len(finite) / MOST_POINTS) if finite else 1
    groups = [finite[i : i + size] for i in range(0, len(finite), size)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def _columns(nodes: Sequence[Node]) -> list[list[str]]:
    depth: dict[str, int] = {}
    for node in nodes:  # each after all it needs
        depth[node.name] = 1 + max((depth[need] for need in node.needs), default=-1)
    columns: list[list[str]] = [[] for _ in range(max(depth.values()) + 1)]
    for name, column in depth.items():
        columns[column].append(name)
    nearest = {node.name: len(columns) for node in nodes}
    for node in nodes:
        for need in node.needs:
            nearest[need] = min(nearest[need], depth[node.name])
    # what is needed far to the right goes below, so that its edges pass under other boxes
    return [sorted(column, key=nearest.__getitem__) for column in columns]


def _direct(name: str, needs: Mapping[str, set[str]]) -> list[str]:
    """What `name` needs, without what another of its needs needs already."""

    def all_of(other: str) -> set[str]:
        return needs[other].union(*(all_of(n) for n in needs[other]))

    return sorted(n for n in needs[name] if not any(n in all_of(m) for m in needs[name]))


def _box(node: Node, corner: tuple[float, float], size: tuple[int, int]) -> str:
    (x, y), (wide, tall) = corner, size
    lines = "".join(
        f'<text class="quiet" x="{x + 10:.0f}" y="{y + 33 + 13 * i:.0f}">{escape(line)}</text>'
        for i, line in enumerate(node.lines)
    )
    return (
        f'<g class="node {node.kind}"><rect x="{x:.0f}" y="{y:.0f}" width="{wide}" height="{tall}"'
        f' rx="7"/><text class="title" x="{x + 10:.0f}" y="{y + 19:.0f}">{escape(node.title)}'
        f"</text>{lines}</g>"
    )
