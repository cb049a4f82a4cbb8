"""A trained network as one file for other programs: raw points in, logits out; farthest points, neighbours and all.

    .onnx    standard operators alone, the farthest points one Loop: any ONNX runtime, without this package or PyTorch
    .pt2     torch.export's program in PyTorch's own operators: `torch.export.load`, without this package

Inputs are `points` (B, N, 3) float32, centred and in the unit sphere, with the axis up that the description names, and
`category` (B,) int64 where a segmenter was trained with categories; the output is `logits`, (B, classes) or
(B, N, parts). B and N are free unless they were fixed; N = 1 is legal, and so is N below the number of centres or of
neighbours. Nothing in the graph checks its inputs: coordinates must be finite, and a category that does not exist is
like none.

B clouds, N points.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from pointcloud.evaluation import takes_category
from pointcloud.kernels.points_exported import argsort_by_topk, farthest_in_a_loop, nearest_by_keys, nearest_by_topk
from pointcloud.models import LoadedModel
from shared_attn.runtime.extras import command
from shared_attn.runtime.messages import first_line

Format = Literal["onnx", "torch"]
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "torch": ".pt2"}
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
DESCRIPTION = "description.json"
"""Name of the extra file, inside a .pt2 file, that an ONNX file has as metadata."""
MOST_CLOUDS, MOST_POINTS = 2**20, 2**20  # bounds that PyTorch wants of free sizes

_FARTHEST: dict[Any, Callable[..., Any]] = {torch.ops.pointcloud.farthest_points.default: farthest_in_a_loop}
FOR_TORCH: dict[Any, Callable[..., Any]] = {**_FARTHEST, torch.ops.pointcloud.k_nearest.default: nearest_by_keys}
"""What stands in a .pt2 file for the package's operators; FOR_ONNX: and for one that PyTorch's exporter lacks."""
FOR_ONNX: dict[Any, Callable[..., Any]] = {
    **_FARTHEST,
    torch.ops.pointcloud.k_nearest.default: nearest_by_topk,
    torch.ops.aten.argsort.stable: argsort_by_topk,
}


@dataclass(frozen=True)
class Exported:
    """A file's contents, and what of its inputs is fixed (0: free)."""

    format: Format
    contents: bytes
    batch_size: int
    num_points: int
    with_category: bool

    @property
    def inputs(self) -> str:
        """For example "points (batch, num_points, 3), category (batch,)"."""
        batch = self.batch_size or "batch"
        category = f", category ({batch},) int64" if self.with_category else ""
        return f"points ({batch}, {self.num_points or 'num_points'}, 3) float32{category}"


def choose_format(path: Path, wanted: Format | None = None, *, check: bool = True) -> Format:
    """The format that a file's suffix names, or the one that is wanted.

    Raises:
        ValueError: neither names one, they contradict each other, the path is a folder, or packages are missing.
    """
    if path.is_dir():
        raise ValueError(f"--out {path}: a folder; expected a file's name")
    named = {suffix: name for name, suffix in SUFFIXES.items()}.get(path.suffix.lower())
    chosen = wanted or named
    if chosen is None:
        raise ValueError(f"--out {path}: expected a name that ends in {' or '.join(SUFFIXES.values())}, or --format")
    if named not in (None, chosen):
        raise ValueError(f"--format {chosen}: --out {path} is named as {named}; expected {SUFFIXES[chosen]}")
    if chosen == "onnx":
        needed = PACKAGES if check else PACKAGES[:2]
        missing = [name for name in needed if importlib.util.find_spec(name) is None]
        if missing:
            raise ValueError(f"--out {path}: ONNX needs {' and '.join(missing)}: {command('export')}")
    return chosen


def export_model(model: LoadedModel, form: Format, *, batch_size: int = 0, num_points: int = 0) -> Exported:
    """The network as the contents of a file.

    Args:
        form: "onnx" or "torch".
        batch_size, num_points: fixed sizes of the inputs; 0: any.

    Raises:
        ValueError: an attention variant whose graph holds for one number of points only, or one that ONNX cannot say.
    """
    program = export_program(model, batch_size=batch_size, num_points=num_points)
    make = _onnx_contents if form == "onnx" else _torch_contents
    return Exported(form, make(model, program), batch_size, num_points, takes_category(model.network))


def export_program(model: LoadedModel, *, batch_size: int = 0, num_points: int = 0) -> ExportedProgram:
    """torch.export's program of the network, farthest points and neighbours still the package's own operators."""
    if min(batch_size, num_points) < 0:
        raise ValueError(f"batch_size {batch_size}, num_points {num_points}: expected numbers of at least 0 (0: any)")
    example = example_inputs(model, batch_size or 2, num_points or max(model.num_points, 2))
    free: dict[int, Any] = {} if batch_size else {0: Dim("batch", min=1, max=MOST_CLOUDS)}
    of_points = free if num_points else {**free, 1: Dim("num_points", min=1, max=MOST_POINTS)}
    try:
        with torch.no_grad(), _quiet():
            return torch.export.export(
                model.network, example, dynamic_shapes=(of_points, free)[: len(example)], strict=False
            )
    except (RuntimeError, ValueError, torch._dynamo.exc.UserError) as error:
        if num_points and batch_size:
            raise ValueError(f"{model.path}: torch.export refuses this network ({first_line(_root(error))})") from error
        attention = model.header["model"].get("attention", "offset")
        fixed = "--num-points" if not num_points else "--batch-size"
        raise ValueError(
            f"{model.path}: to PyTorch {torch.__version__} the graph of attention {attention!r} "
            f"holds for one size only: fix it with {fixed}"
        ) from error


def example_inputs(model: LoadedModel, batch_size: int, num_points: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Seeded clouds in the unit sphere and, where the network takes them, categories in turn."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(batch_size, num_points, 3, generator=generator)
    points = points - points.mean(1, keepdim=True)
    points = points / points.norm(dim=2).amax(1).clamp_min(1e-9).view(-1, 1, 1)
    if not takes_category(model.network):
        return (points,)
    return points, torch.arange(batch_size) % model.header["model"]["num_categories"]


def describe(model: LoadedModel) -> dict[str, Any]:
    """What the file says about itself: the weights' header, the axis that is up, and what the inputs are."""
    up = model.header.get("data", {}).get("up", "z")
    given = f"points (batch, num_points, 3) float32: centred on their mean, the farthest at distance 1, {up} up"
    if takes_category(model.network):
        given += "; category (batch,) int64: a place in class_names"
    return {**model.header, "up": up, "inputs": given}


def _torch_contents(model: LoadedModel, program: ExportedProgram) -> bytes:
    buffer = io.BytesIO()
    program = in_plain_operators(program, FOR_TORCH)
    torch.export.save(program, buffer, extra_files={DESCRIPTION: json.dumps(describe(model), sort_keys=True)})
    return buffer.getvalue()


def _onnx_contents(model: LoadedModel, program: ExportedProgram) -> bytes:
    names = ("points", "category")[: 1 + takes_category(model.network)]
    try:
        with _quiet():
            program = in_plain_operators(program, FOR_ONNX)
            made = torch.onnx.export(program, dynamo=True, verbose=False, input_names=names, output_names=["logits"])
    except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
        attention = model.header["model"].get("attention", "offset")
        raise ValueError(
            f"{model.path}: PyTorch {torch.__version__} cannot write attention {attention!r} as ONNX "
            f"({first_line(_root(error))})"
        ) from error
    assert made is not None
    for node in made.model.graph.all_nodes():
        node.metadata_props.clear()  # where in which source file it was made
        for value in node.outputs:
            value.shape = None if value not in made.model.graph.outputs else value.shape  # a runtime infers them itself
    _name_sizes(made.model.graph.inputs, made.model.graph.outputs)
    made.model.metadata_props.update({key: json.dumps(value) for key, value in describe(model).items()})
    return made.model_proto.SerializeToString()


def _name_sizes(inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
    """Free sizes are called batch and num_points, as the user reads them, in place of the tracer's letters."""
    names = {str(size): name for size, name in zip(inputs[0].shape, ("batch", "num_points", "3"), strict=True)}
    for value in (*inputs, *outputs):
        for place, size in enumerate(value.shape):
            if not isinstance(size, int):
                value.shape[place] = names[str(size)]


def in_plain_operators(program: ExportedProgram, table: Mapping[Any, Callable[..., Any]]) -> ExportedProgram:
    """The program with FOR_TORCH's or FOR_ONNX's operators in place of the package's own."""
    torch._dynamo.reset()  # it traces the loop, and one of other sizes before would have it make sizes inputs
    with _quiet():
        plain = program.run_decompositions(dict(table))
    for part in plain.graph_module.modules():  # the loop's body is a part of its own
        for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # where in which source file it was made
    return plain


def _root(error: BaseException) -> BaseException:
    """What the error came of, under those that the exporter has wrapped it in."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' remarks on their own workings."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
