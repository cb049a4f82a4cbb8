"""What the memory slots of a point network's external attention attend to: users' files coloured by a slot's weight.

N points, M tokens, T samplings, S memory slots (shown), H heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pointcloud.clouds import normalise
from pointcloud.encoder import PointEncoder
from pointcloud.files.meshes import Shape, read_shape
from pointcloud.models import CLASSIFIER, LoadedModel
from pointcloud.pictures import frame_cloud
from shared_attn.attention_maps import Slot, choose_slots, record_attention_maps, select_layer, select_slots
from shared_attn.runtime.figures import draw_percent_scale, new_figure, save_figure
from shared_attn.runtime.files import atomic_write
from shared_attn.runtime.messages import one_line

SAMPLINGS = 4  # samplings of a shape whose tokens lie side by side in its picture
SHOWN_POINTS = 20_000  # of a large scan, in pictures and pages; the .ply files hold all
ROWS = 8  # clouds in one PNG
CELL = 2.4  # inches of a cloud's side
LONGEST = 26  # characters that fit beside a cloud
BRIGHTEST = 0.99  # this quantile of a slot's weights, over all files, has the last colour
EYE = {"x": 1.2, "y": -2.1, "z": 0.9}  # of a page's reader, who sees a cloud as in the PNG
COLOURS = ("#c9ced6", "#f5a03c", "#c0182b", "#4a0512")  # evenly spaced; no weight is a grey that shows on white


@dataclass(frozen=True)
class CloudAttention:
    """A shape's points (N, 3), its tokens' places (T M, 3), and the maps (T, M, S) or (T, M, H, S) of its samplings."""

    points: np.ndarray
    places: np.ndarray
    values: Tensor
    label: str
    """the class that a classifier takes it for; "" of other networks"""


@dataclass(frozen=True)
class DrawnAttention:
    """What was drawn: the slots, the PNGs, the PLYs and the page of each file, and a line about each unreadable one."""

    slots: list[Slot]
    pictures: list[Path]
    files: dict[Path, list[Path]]
    mistakes: list[str]


def draw_cloud_attention(
    model: LoadedModel,
    files: Sequence[Path],
    folder: Path,
    *,
    num_slots: int = 5,
    slots: Sequence[int] = (),
    heads: Sequence[int] = (),
    layer: int | None = None,
    up: Literal["z", "y"] = "z",
    seed: int = 0,
) -> DrawnAttention:
    """Colours meshes and clouds by the weight of memory slots.

    Writes FOLDER/attention.png (a row a file, a column a slot; attention-1.png, ... where there are more than 8 files),
    and of each file NAME.html (an interactive page that needs no network, with a menu of the slots) and
    NAME-slotK.ply. A column's colours mean the same in all files.

    Args:
        num_slots, slots, heads: see `shared_attn.attention_maps.choose_slots`; slots are chosen over all files.
        layer: the attention layer, from 1; the last by default.
        up: which of the files' axes is up.
        seed: of each file's first sampling; the next ones follow.

    Raises:
        ValueError: a value out of range, or a network without external attention; before any file is read. Files that
            cannot be read are told in the result.
    """
    if seed < 0:
        raise ValueError(f"--seed {seed}: expected at least 0")
    corners = np.array([[x, y, z] for x in (0.0, 1) for y in (0.0, 1) for z in (0.0, 1)])
    probe = attend_shape(model, Shape(corners, None), layer=layer, samplings=1)
    choose_slots(probe.values, num_slots, slots=slots, heads=heads)
    attended: dict[Path, CloudAttention] = {}
    mistakes = []
    for file in dict.fromkeys(files):
        try:
            attended[file] = attend_shape(model, read_shape(file, up), layer=layer, seed=seed)
        except (ValueError, OSError) as error:
            mistakes.append(one_line(error))
    if not attended:
        return DrawnAttention([], [], {}, mistakes)
    values = torch.cat([cloud.values for cloud in attended.values()])
    shown = choose_slots(values, num_slots, slots=slots, heads=heads)
    pictures, written = _draw(attended, shown, folder)
    return DrawnAttention(shown, pictures, written, mistakes)


def _draw(
    attended: dict[Path, CloudAttention], shown: list[Slot], folder: Path
) -> tuple[list[Path], dict[Path, list[Path]]]:
    """Writes what `draw_cloud_attention` promises; the paths of the PNGs, and of each file's page and PLYs."""
    clouds, names = list(attended.values()), _name_files(list(attended))
    titles = [f"{n}\nseen as {c.label}" if c.label else n for n, c in zip(names, clouds, strict=True)]
    weights = [spread_weights(cloud, shown) for cloud in clouds]
    tokens = torch.cat([select_slots(cloud.values, shown).flatten(0, 1) for cloud in clouds]).numpy()
    tops = np.maximum(np.quantile(tokens, BRIGHTEST, axis=0), 1e-12)  # of tokens, so that all files count alike
    pictures, written = [], {}
    for first in range(0, len(clouds), ROWS):
        rows = slice(first, first + ROWS)
        number = f"-{first // ROWS + 1}" if len(clouds) > ROWS else ""
        pictures.append(folder / f"attention{number}.png")
        points = [cloud.points for cloud in clouds[rows]]
        save_attention_png(points, weights[rows], tops, shown, pictures[-1], titles=titles[rows])
    for file, name, title, cloud, weight in zip(attended, names, titles, clouds, weights, strict=True):
        written[file] = [folder / f"{name}.html"]
        save_attention_html(cloud.points, weight, tops, shown, written[file][0], title=title.replace("\n", ", "))
        for column, slot in enumerate(shown):
            written[file].append(folder / f"{name}-{str(slot).replace(' ', '')}.ply")
            save_attention_ply(cloud.points, weight[:, column] / tops[column], written[file][-1])
    return pictures, written


def attend_shape(
    model: LoadedModel, shape: Shape, *, layer: int | None = None, seed: int = 0, samplings: int = SAMPLINGS
) -> CloudAttention:
    """The attention of several seeded samplings of a shape. The points are a cloud's own, or a mesh's samples.

    Raises:
        ValueError: no such layer, or a network without external attention.
    """
    samples = np.stack([shape.sample(model.num_points, seed + number) for number in range(samplings)])  # (T, N, 3)
    clouds = torch.from_numpy(np.stack([normalise(sample) for sample in samples])).float()
    encoder = model.network.get_submodule("encoder")
    assert isinstance(encoder, PointEncoder)
    label = ""
    with torch.no_grad(), record_attention_maps(encoder) as maps:
        if model.header["kind"] == CLASSIFIER:
            label = model.class_names[int(model(clouds).softmax(-1).mean(0).argmax())]
        else:
            encoder(clouds)  # a segmenter's category enters after it
    tokens = encoder.token_indices(clouds).numpy()[..., None]  # (T, M, 1)
    places = np.take_along_axis(samples, tokens, axis=1).reshape(-1, 3)
    points = shape.points if shape.faces is None else samples.reshape(-1, 3)
    return CloudAttention(points, places, select_layer(maps, layer).values, label)


def spread_weights(cloud: CloudAttention, slots: Sequence[Slot]) -> np.ndarray:
    """(N, S): each point has the weights of the token nearest to it."""
    from scipy.spatial import cKDTree

    weights = select_slots(cloud.values, slots).flatten(0, 1).numpy()  # (T M, S)
    return weights[cKDTree(cloud.places).query(cloud.points)[1]]


def save_attention_png(
    clouds: Sequence[np.ndarray],
    weights: Sequence[np.ndarray],
    tops: np.ndarray,
    names: Sequence[object],
    path: Path,
    *,
    titles: Sequence[str],
) -> None:
    """Clouds (N, 3) in rows, coloured by their weights (N, S) in columns, as PNG.

    Args:
        tops: (S,) the weight that has the last colour.
        names: of the columns.
        titles: of the rows.
    """
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("weight", COLOURS)
    left, top, bottom = 0.6, 0.35, 0.5
    width, height = left + len(names) * CELL + 0.1, top + len(clouds) * CELL + bottom
    figure, _ = new_figure(width, height, axes=False)

    def place(column: int, y: float, tall: float, inset: float = 0.0) -> tuple[float, float, float, float]:
        return (left + column * CELL + inset) / width, y / height, (CELL - 2 * inset) / width, tall / height

    for row, (cloud, weight) in enumerate(zip(clouds, weights, strict=True)):
        y = bottom + (len(clouds) - 1 - row) * CELL
        title = "\n".join(_shorten(line) for line in titles[row].splitlines())
        figure.text(0.3 / width, (y + CELL / 2) / height, title, rotation=90, ha="center", va="center")
        kept = _thin(len(cloud))
        for column in range(len(names)):
            axes = figure.add_axes(place(column, y, CELL), projection="3d")
            axes.scatter(
                *cloud[kept].T, c=weight[kept, column], cmap=colours, vmin=0, vmax=tops[column],
                s=5, linewidths=0, depthshade=False,
            )  # fmt: skip
            frame_cloud(axes, cloud[kept])
    for column, name in enumerate(names):
        x = (left + (column + 0.5) * CELL) / width
        figure.text(x, 1 - 0.2 / height, str(name), ha="center", va="center", fontsize=11)
        draw_percent_scale(figure, place(column, bottom - 0.15, 0.08, inset=0.3), tops[column], colours)
    figure.text((left + 0.2) / width, (bottom - 0.11) / height, "weight", ha="right", va="center", fontsize=9)
    save_figure(figure, path)


def save_attention_html(
    points: np.ndarray, weights: np.ndarray, tops: np.ndarray, names: Sequence[object], path: Path, *, title: str
) -> None:
    """One cloud (N, 3), coloured by one column of its weights (N, S) at a time, as a page with a menu of them."""
    from plotly import graph_objects

    kept = _thin(len(points))
    x, y, z = points[kept].round(5).astype(np.float32).T
    scale = [[place / (len(COLOURS) - 1), colour] for place, colour in enumerate(COLOURS)]
    figure = graph_objects.Figure()
    buttons = []
    for column, name in enumerate(names):
        percent = (100 * weights[kept, column]).round(3).astype(np.float32)
        marker: dict[str, Any] = {"size": 3, "color": percent, "colorscale": scale, "cmin": 0}
        marker |= {"cmax": float(100 * tops[column]), "colorbar": {"title": "weight, %", "thickness": 15, "len": 0.6}}
        figure.add_trace(
            graph_objects.Scatter3d(
                x=x, y=y, z=z, mode="markers", name=str(name), visible=column == 0, marker=marker, showlegend=False,
                hovertemplate="%{marker.color:.2f} %<extra></extra>",
            )
        )  # fmt: skip
        visible = [other == column for other in range(len(names))]
        buttons.append({"label": str(name), "method": "restyle", "args": [{"visible": visible}]})
    hidden = {"visible": False}
    figure.update_scenes(aspectmode="data", xaxis=hidden, yaxis=hidden, zaxis=hidden, camera_eye=EYE)
    figure.update_layout(
        title=title, height=720, margin={"l": 0, "r": 0, "t": 60, "b": 0},
        updatemenus=[{"buttons": buttons, "x": 0.02, "xanchor": "left", "y": 0.98, "yanchor": "top"}],
    )  # fmt: skip
    with atomic_write(path, "w") as file:
        file.write(figure.to_html(include_plotlyjs="inline", full_html=True))


def save_attention_ply(points: np.ndarray, heat: np.ndarray, path: Path) -> None:
    """A cloud (N, 3) coloured by its heat (N,) in [0, 1], as PLY."""
    import trimesh

    table = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in COLOURS])
    stops = np.linspace(0, 1, len(COLOURS))
    colours = np.stack([np.interp(heat, stops, channel) for channel in table.T], axis=1).round().astype(np.uint8)
    with atomic_write(path) as file:
        file.write(trimesh.PointCloud(points, colors=colours).export(file_type="ply"))


def _thin(count: int) -> np.ndarray:
    """Which of `count` points are drawn: all, or a seeded choice of SHOWN_POINTS."""
    if count <= SHOWN_POINTS:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, SHOWN_POINTS, replace=False))


def _shorten(line: str) -> str:
    """So that it fits beside a cloud."""
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}\N{HORIZONTAL ELLIPSIS}"


def _name_files(files: Sequence[Path]) -> list[str]:
    """Each file's stem, with a number where several have the same."""
    names: list[str] = []
    for file in files:
        name, number = file.stem, 1
        while name in names:
            number += 1
            name = f"{file.stem}-{number}"
        names.append(name)
    return names
