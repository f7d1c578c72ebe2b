"""Two small pictures as inline SVG: privacy spent, and cohort sizes, by round. Pure; colours come from the page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final

WIDTH: Final = 640
HEIGHT: Final = 220
LEFT: Final = 56
RIGHT: Final = 14
TOP: Final = 22
BOTTOM: Final = 46
MOST_POINTS: Final = 400

Point = tuple[float, float]


class _Frame:
    """From values to places on the paper."""

    def __init__(self, points: Sequence[Point], top: float) -> None:
        self.first, self.last = points[0][0], max(points[-1][0], points[0][0] + 1)
        self.top = top * 1.08 or 1.0

    def x(self, value: float) -> float:
        return LEFT + (value - self.first) / (self.last - self.first) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - value / self.top * (HEIGHT - TOP - BOTTOM)


def thinned(points: Sequence[Point]) -> list[Point]:
    """At most MOST_POINTS of them, the last among them."""
    every = -(-len(points) // MOST_POINTS)
    return [point for n, point in enumerate(points) if (len(points) - 1 - n) % max(1, every) == 0]


def spent(points: Sequence[Point], budget: float | None, words: tuple[str, str, str]) -> str:
    """Steps of epsilon over rounds and, dashed, the budget. `words`: round, epsilon, budget. "" without points."""
    if not points:
        return ""
    shown = thinned(points)
    frame = _Frame([(shown[0][0] - 1, 0.0), *shown], max(shown[-1][1], budget or 0.0))
    path = f"M{frame.x(frame.first):.1f} {frame.y(0):.1f}"
    for at, value in shown:
        path += f" H{frame.x(at):.1f} V{frame.y(value):.1f}"
    body = f'<path class="line" d="{path}"/>'
    if budget is not None:
        y = frame.y(budget)
        body += f'<path class="limit" d="M{LEFT} {y:.1f} H{WIDTH - RIGHT}"/>'
        body += f'<text x="{WIDTH - RIGHT}" y="{y - 5:.1f}" text-anchor="end">{escape(words[2])} {budget:g}</text>'
    return _paper(frame, shown, body, words[0], words[1])


def sizes(points: Sequence[Point], least: int, words: tuple[str, str, str]) -> str:
    """A dot for every opened sum's size and, dashed, the fewest allowed. `words`: round, devices, fewest allowed."""
    if not points:
        return ""
    shown = thinned(points)
    frame = _Frame([(shown[0][0] - 1, 0.0), *shown, (shown[-1][0] + 1, 0.0)], max([v for _, v in shown] + [least]))
    y = frame.y(least)
    body = f'<path class="limit" d="M{LEFT} {y:.1f} H{WIDTH - RIGHT}"/>'
    body += f'<text x="{WIDTH - RIGHT}" y="{y + 15:.1f}" text-anchor="end">{escape(words[2])} {least}</text>'
    body += "".join(f'<circle class="dot" cx="{frame.x(at):.1f}" cy="{frame.y(v):.1f}" r="3.2"/>' for at, v in shown)
    return _paper(frame, shown, body, words[0], words[1])


def _paper(frame: _Frame, shown: Sequence[Point], body: str, across: str, up: str) -> str:
    floor = HEIGHT - BOTTOM
    axes = f'<path class="axis" d="M{LEFT} {TOP} V{floor} H{WIDTH - RIGHT}"/>'
    ticks = ""
    for value in _steps(frame.top):
        y = frame.y(value)
        ticks += f'<path class="grid" d="M{LEFT} {y:.1f} H{WIDTH - RIGHT}"/>'
        ticks += f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'
    for at in sorted({shown[0][0], shown[len(shown) // 2][0], shown[-1][0]}):
        ticks += f'<text x="{frame.x(at):.1f}" y="{floor + 18}" text-anchor="middle">{at:g}</text>'
    middle = (LEFT + WIDTH - RIGHT) / 2
    ticks += f'<text x="{middle}" y="{HEIGHT - 5}" text-anchor="middle">{escape(across)}</text>'
    label = escape(f"{up}, {across}", quote=True)
    ticks += f'<text x="4" y="{TOP - 2}" class="up">{escape(up)}</text>'
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{ticks}{axes}{body}</svg>'


def _steps(top: float) -> list[float]:
    """Two to five round numbers up to `top`."""
    step = 10.0**-12
    while top / step > 5:
        for factor in (2.0, 2.5, 2.0):
            step *= factor
            if top / step <= 5:
                break
    return [step * n for n in range(1, int(top / step) + 1)]
