"""Interactive pages of segmented shapes that open without a network: one small viewer (viewer.html, WebGL 2) and data.

A page has 8 bytes a point, or about 20 a face, as base64, and a program of 11 KB; plotly's has 4.5 MB.
N points, F faces.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shared_attn.runtime.files import atomic_write

TEMPLATE = Path(__file__).with_name("viewer.html")
STEPS = 65535  # along the longest side of a shape: finer than a screen


@dataclass(frozen=True)
class View:
    """A shape to show: points (N, 3), z up; parts (N,), or (F,) of a mesh's faces (F, 3); a title."""

    points: np.ndarray
    parts: np.ndarray
    title: str
    faces: np.ndarray | None = None


def save_views_html(views: Sequence[View], names: Sequence[str], colours: np.ndarray, path: Path) -> None:
    """Writes one page of all views; below each a legend of its parts, which switches them on and off.

    Args:
        names: of the parts; "class/part" is shown as "part".
        colours: (len(names), 3) uint8.
    """
    data = json.dumps([_describe(view, names, colours) for view in views]).replace("<", "\\u003c")
    with atomic_write(path, "w") as file:
        file.write(TEMPLATE.read_text(encoding="utf-8").replace("/*DATA*/", data))


def read_views(page: str) -> list[dict[str, Any]]:
    """What a page of `save_views_html` shows, decoded: title, legend, points, parts and for a mesh faces."""
    start = page.index(">", page.index('<script type="application/json"')) + 1
    views = []
    for scene in json.loads(page[start : page.index("</script>", start)]):
        places = _decode(scene["places"], "<u2").reshape(-1, 3)
        parts = np.array([part["number"] for part in scene["legend"]])[_decode(scene["parts"], "<u2")]
        view = {"title": scene["title"], "legend": scene["legend"], "parts": parts}
        view["points"] = places / STEPS * scene["side"] + scene["low"]
        view["faces"] = _decode(scene["corners"], "<u4").reshape(-1, 3) if "corners" in scene else None
        views.append(view)
    return views


def _describe(view: View, names: Sequence[str], colours: np.ndarray) -> dict[str, Any]:
    low = view.points.min(0)
    extent = np.ptp(view.points, axis=0)
    side = float(extent.max()) or 1.0
    present, parts = np.unique(view.parts, return_inverse=True)
    shares = np.bincount(parts, weights=_weights(view), minlength=len(present))
    legend = [
        {
            "number": int(number),
            "name": names[number].rpartition("/")[2],
            "colour": colours[number].tolist(),
            "share": f"{share / shares.sum():.0%}",
        }
        for number, share in zip(present, shares, strict=True)
    ]
    scene = {
        "title": view.title,
        "legend": legend,
        "low": low.tolist(),
        "side": side,
        "extent": (extent / side).tolist(),
        "places": _encode(np.round((view.points - low) / side * STEPS), "<u2"),
        "parts": _encode(parts, "<u2"),
    }
    return scene if view.faces is None else {**scene, "corners": _encode(view.faces, "<u4")}


def _weights(view: View) -> np.ndarray | None:
    """What each face counts for in its part's share: its area. Points count alike."""
    if view.faces is None:
        return None
    a, b, c = (view.points[view.faces[:, corner]] for corner in range(3))
    return np.linalg.norm(np.cross(b - a, c - a), axis=1)


def _encode(array: np.ndarray, kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(array).astype(kind).tobytes()).decode()


def _decode(text: str, kind: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype=kind)
