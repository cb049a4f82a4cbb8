"""What a glTF file claims, checked against its bytes before its geometry is read.

glTF is a graph in JSON beside blocks of numbers: nodes place meshes, meshes name accessors, accessors name views of
buffers. A few lines can name the same block, or place the same mesh, a million times over.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

MOST_PLACED = 2**26  # points and corners of faces in the whole scene, each as often as nodes place it
MOST_NODES = 8_000
DEEPEST = 64  # nodes under each other
REPEATED = 8  # times that views, or accessors, may together cover the file
SIZES = {5120: 1, 5121: 1, 5122: 2, 5123: 2, 5125: 4, 5126: 4}  # bytes by componentType
COMPONENTS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}
GLB_HEADER, CHUNK_HEADER = 12, 8


def check_gltf(content: bytes, *, binary: bool) -> None:
    """Refuses a .gltf, or a .glb where `binary`, that names other files or claims more than it holds.

    Raises:
        ValueError: in one line without the path.
    """
    try:
        tree = json.loads(_find_json(content) if binary else content)
        _check_buffers(tree)
        counts = _check_accessors(tree, len(content))
        _check_scene(tree, counts)
    except (KeyError, IndexError, TypeError, AttributeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"its description is no glTF 2.0 ({type(error).__name__}: {error})") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"its description is no JSON ({error})") from error


def _find_json(content: bytes) -> bytes:
    if len(content) < GLB_HEADER + CHUNK_HEADER or content[:4] != b"glTF":
        raise ValueError("does not begin as a .glb file")
    length, kind = struct.unpack_from("<I4s", content, GLB_HEADER)
    start = GLB_HEADER + CHUNK_HEADER
    if kind != b"JSON" or start + length > len(content):
        raise ValueError(f"claims a description of {length:,} bytes, but {len(content) - start:,} are there")
    return content[start : start + length]


def _check_buffers(tree: Mapping[str, Any]) -> None:
    for buffer in tree.get("buffers", []):
        uri = buffer.get("uri")
        if uri is not None and not str(uri).startswith("data:"):
            raise ValueError(
                f"its numbers lie in another file, {str(uri)[:80]!r}, which is not opened; save it as one .glb file"
            )


def _check_accessors(tree: Mapping[str, Any], held: int) -> list[int]:
    """The accessors' counts."""
    views, accessors = tree.get("bufferViews", []), tree.get("accessors", [])
    covered = sum(_natural(view["byteLength"]) for view in views)
    counts, claimed = [], 0
    for accessor in accessors:
        count = _natural(accessor["count"])
        size = count * SIZES[accessor["componentType"]] * COMPONENTS[accessor["type"]]
        if "bufferView" in accessor:
            place = _natural(accessor["bufferView"])
            if size > held or place >= len(views):
                raise ValueError(f"an accessor claims {size:,} bytes of view {place}, the file holds {held:,}")
        elif size > held:
            raise ValueError(f"an accessor without data claims {size:,} bytes, the file holds {held:,}")
        counts.append(count)
        claimed += size
    if max(covered, claimed) > REPEATED * held:
        raise ValueError(f"its views and accessors cover {max(covered, claimed):,} bytes, the file holds {held:,}")
    return counts


def _check_scene(tree: Mapping[str, Any], counts: Sequence[int]) -> None:
    """Nodes must be trees, as the standard says, and what they place in all must be of a size to compute with."""
    weights = [_weigh(mesh, counts) for mesh in tree.get("meshes", [])]
    nodes = tree.get("nodes", [])
    if len(nodes) > MOST_NODES or len(weights) > MOST_NODES:
        raise ValueError(f"has {len(nodes)} nodes and {len(weights)} meshes; at most {MOST_NODES} each are read")
    children = {_natural(child) for node in nodes for child in node.get("children", [])}
    if len(children) < sum(len(node.get("children", [])) for node in nodes):
        raise ValueError("a node of its scene has two parents")
    level, reached, placed = [n for n in range(len(nodes)) if n not in children], 0, sum(weights)
    for _ in range(DEEPEST):
        reached += len(level)
        placed += sum(weights[_natural(nodes[n]["mesh"])] for n in level if "mesh" in nodes[n])
        level = [child for n in level for child in nodes[n].get("children", [])]
    if reached != len(nodes) or level:
        raise ValueError(f"the nodes of its scene go round in a circle, or are more than {DEEPEST} deep")
    if placed > MOST_PLACED:
        raise ValueError(f"its scene places {placed:,} points and corners; at most {MOST_PLACED:,} are read")


def _weigh(mesh: Mapping[str, Any], counts: Sequence[int]) -> int:
    """Points and corners of faces."""
    named = [_natural(primitive["attributes"].get("POSITION", 0)) for primitive in mesh["primitives"]]
    named += [_natural(primitive["indices"]) for primitive in mesh["primitives"] if "indices" in primitive]
    return sum(counts[place] for place in named)


def _natural(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"its description has {str(value)[:40]!r} where a number of 0 or more belongs")
    return value
