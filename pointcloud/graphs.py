"""torch_geometric's data sets, or lists of its `Data`, as a set of clouds. torch_geometric itself is not imported.

A `Data` is a mesh (pos, face) or a cloud (pos) with a class (y, one number), or a cloud with a part a point (y, one
number a point) and a category.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pointcloud.clouds import CloudSet, draw_order, normalise, quantise
from pointcloud.files.meshes import check_shape
from pointcloud.releases.shapenetpart import CATEGORIES, CLASS_NAMES, turn_up
from shared_attn.runtime.seeding import mix_seed

# As torch_geometric numbers them: sorted.
_MODELNET10 = "bathtub bed chair desk dresser monitor night_stand sofa table toilet"
_MODELNET40 = (
    "airplane bathtub bed bench bookshelf bottle bowl car chair cone cup curtain desk door dresser flower_pot "
    "glass_box guitar keyboard lamp laptop mantel monitor night_stand person piano plant radio range_hood sink "
    "sofa stairs stool table tent toilet tv_stand vase wardrobe xbox"
)
MODELNET_NAMES = {"10": _MODELNET10, "40": _MODELNET40}
SHAPENET_PARTS = {category: parts for _, category, parts in CATEGORIES}


def clouds_from_graphs(
    graphs: Sequence[Any],
    *,
    class_names: Sequence[str] = (),
    parts: Mapping[str, Sequence[str]] | None = None,
    up: str = "",
    num_points: int = 2048,
    seed: int = 0,
) -> CloudSet:
    """Draws the points of every `Data`, turns them to z up and normalises them to the unit sphere.

    Meshes are sampled by area, clouds without repetition where they have `num_points`; features and normals are left
    out. What item i becomes follows from (seed, i): a random transform of the data set draws from seeds of its own,
    and the global generators are as before afterwards.

    Args:
        graphs: `torch_geometric.datasets.ModelNet` or `ShapeNet`, a part of one, or any sequence of `Data`.
        class_names: what the classes of y are called; known for ModelNet, else "class 0", "class 1" ...
        parts: category -> names of its parts, in the order of `category` and of the part ids; ShapeNet-Part's where it
            is not given.
        up: "z" or "y", which axis is up there; "": y for ShapeNet, else z.

    Raises:
        ValueError: naming the item and what it lacks.
    """
    if up not in ("", "y", "z"):
        raise ValueError(f"up {up!r}: expected y or z")
    if not hasattr(graphs, "__len__") or not hasattr(graphs, "__getitem__") or len(graphs) == 0:
        raise ValueError(f"data: expected a data set or a list of torch_geometric Data, got {str(graphs)[:80]}")
    base = _find_base(graphs)
    kind = type(base).__name__
    up = up or ("y" if kind == "ShapeNet" else "z")
    items = list(_read_items(graphs, num_points, seed, up))
    points = torch.from_numpy(np.stack([item[0] for item in items]))
    if items[0][2] is None:
        label = [item[1] for item in items]
        names = list(class_names) or _modelnet_names(base) or [f"class {number}" for number in range(max(label) + 1)]
        _check_range("y", label, len(names))
        name = f"modelnet{base.name}" if kind == "ModelNet" else "graphs"
        return CloudSet(points, torch.tensor(label), names, source=_source(name))
    table = SHAPENET_PARTS if parts is None else parts
    # What `category` counts; a ShapeNet of some categories numbers those.
    categories = list(base.categories if kind == "ShapeNet" else table)
    return _part_set(points, items, table, categories)


Item = tuple[np.ndarray, int, "np.ndarray | None"]


def _read_items(graphs: Sequence[Any], num_points: int, seed: int, up: str) -> Iterator[Item]:
    """Points (P, 3) int16, class or category, and part ids (P,) or None of every `Data`, all of one kind."""
    segmented = None
    for number in range(len(graphs)):
        item_seed = mix_seed(seed, "graph", number)
        with fixed_randomness(item_seed):
            data = graphs[number]
        where = f"data[{number}]"
        item = _read_item(where, data, num_points, item_seed, up)
        if segmented not in (None, item[2] is not None):
            raise ValueError(f"{where}: has {'part ids' if item[2] is not None else 'one class'}, the others have not")
        segmented = item[2] is not None
        yield item


def _read_item(where: str, data: Any, num_points: int, seed: int, up: str) -> Item:
    position, label = getattr(data, "pos", None), getattr(data, "y", None)
    if not isinstance(position, Tensor) or position.ndim != 2 or position.shape[1] != 3 or len(position) == 0:
        raise ValueError(f"{where}: expected pos of shape (points, 3), got {_shape(position)}")
    if not isinstance(label, Tensor) or label.is_floating_point() or label.numel() not in (1, len(position)):
        raise ValueError(
            f"{where}: expected y with one integer, or one for each of {len(position)} points, got {_shape(label)}"
        )
    points = position.detach().cpu().double().numpy()
    points = turn_up(points) if up == "y" else points
    face, category = getattr(data, "face", None), getattr(data, "category", None)
    shape = check_shape(Path(where), points, None if face is None else face.detach().cpu().t().numpy())
    if category is None and label.numel() == 1:
        return quantise(normalise(shape.sample(num_points, seed))), int(label), None
    if category is None or face is not None or label.numel() != len(position):
        raise ValueError(f"{where}: parts need pos without face, y for each point, and category; got {data}")
    order = draw_order(len(points), num_points, seed)
    own = label.detach().cpu().flatten().numpy()[order]
    return quantise(normalise(points[order])), int(torch.as_tensor(category).flatten()[0]), own


def _part_set(
    points: Tensor, items: Sequence[Item], table: Mapping[str, Sequence[str]], categories: list[str]
) -> CloudSet:
    """The set whose classes are the categories of `table`, each owning its parts in turn."""
    _check_range("category", [item[1] for item in items], len(categories))
    order = list(table)
    label = [order.index(categories[item[1]]) for item in items]
    counts = [len(table[category]) for category in order]
    starts = [sum(counts[:number]) for number in range(len(counts))]
    part_label = np.stack([item[2] for item in items if item[2] is not None])
    for number, category in enumerate(label):
        first, last = int(part_label[number].min()), int(part_label[number].max())
        if first < starts[category] or last >= starts[category] + counts[category]:
            raise ValueError(
                f"data[{number}]: part ids {first} to {last}, expected {starts[category]} to "
                f"{starts[category] + counts[category] - 1} for {order[category]}"
            )
    return CloudSet(
        points,
        torch.tensor(label),
        order,
        part_label=torch.from_numpy(part_label.astype(np.uint8)),
        part_names=[f"{category}/{part}" for category in order for part in table[category]],
        part_start=starts,
        part_count=counts,
        source=_source("shapenetpart" if order == CLASS_NAMES else "graphs"),
    )


@contextmanager
def fixed_randomness(seed: int) -> Iterator[None]:
    """Seeds the three global generators that transforms draw from, and gives them back as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _find_base(graphs: Any) -> Any:
    """The data set that a torch.utils.data.Subset is a part of."""
    while not hasattr(graphs, "raw_dir") and hasattr(graphs, "dataset"):
        graphs = graphs.dataset
    return graphs


def _modelnet_names(base: Any) -> list[str]:
    """ModelNet numbers the folders it was made from; where they are gone, they are taken for the published ones."""
    if type(base).__name__ != "ModelNet":
        return []
    folder = Path(base.raw_dir)
    there = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    return there or MODELNET_NAMES[str(base.name)].split()


def _check_range(name: str, numbers: list[int], count: int) -> None:
    for place, number in enumerate(numbers):
        if not 0 <= number < count:
            raise ValueError(f"data[{place}]: {name} is {number}, expected 0 to {count - 1}")


def _source(name: str) -> dict[str, Any]:
    return {"name": name, "split": "given in memory", "files": []}


def _shape(value: Any) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
