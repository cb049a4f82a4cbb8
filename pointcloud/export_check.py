"""An exported file held against the network it came from: the same farthest points and neighbours, the same logits.

B clouds, N points, M centres, K neighbours.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pointcloud.export import Exported, example_inputs
from pointcloud.geometry import farthest_points, group, k_nearest
from pointcloud.models import LoadedModel
from shared_attn.runtime.messages import one_line

TOLERANCE = 1e-3
"""Of a logit's difference, as a share of the logits' standard deviation."""
Run = Callable[[tuple[Tensor, ...]], tuple[Tensor, list[Tensor]]]


@dataclass(frozen=True)
class Agreement:
    """What was compared: clouds, indices (all equal), argmaxes, and how far apart the logits were in the worst place,
    as a share of their standard deviation."""

    runtime: str
    clouds: int
    indices: int
    answers: int
    equal_answers: int
    difference: float

    def __str__(self) -> str:
        indices = f"{self.indices:,} indices of points equal, " if self.indices else ""
        return (
            f"checked with {self.runtime} on {self.clouds} clouds: {indices}{self.equal_answers:,} of {self.answers:,} "
            f"answers equal, logits within {self.difference:.1e} of their standard deviation"
        )


@torch.no_grad()
def check_export(model: LoadedModel, exported: Exported) -> Agreement:
    """Runs the file's contents, on the CPU, beside the network: on random clouds of several sizes, and on clouds with
    equal, repeated, collinear and gridded points (where farthest and nearest points have ties).

    Raises:
        ValueError: an index differs, a logit by more than TOLERANCE, or an answer that is no tie. In one line.
    """
    runtime, run = _RUNTIMES[exported.format](exported.contents, model)
    clouds = indices = 0
    expected, found = [], []
    for inputs in trial_inputs(model, exported):
        try:
            logits, chosen = run(inputs)
        except Exception as error:  # a runtime's own, of no common kind
            shape, reason = tuple(inputs[0].shape), one_line(error, at_most=300)
            raise ValueError(f"the check with {runtime} failed: points {shape} cannot be run ({reason})") from error
        clouds += len(logits)
        for name, ours, theirs in zip(_index_names(model), _indices(model, inputs[0]), chosen, strict=True):
            if not torch.equal(ours.flatten(), theirs.flatten()):
                B, N, _ = inputs[0].shape
                raise ValueError(f"the check with {runtime} failed: {name} of {B} clouds of {N} points differ")
            indices += ours.numel()
        expected.append(model(*inputs).flatten(0, -2))
        found.append(logits.flatten(0, -2))
    ours, theirs = torch.cat(expected).double(), torch.cat(found).double()
    spread = ours.std().clamp_min(1e-30)
    difference = ((ours - theirs).abs().max() / spread).item()
    answer = theirs.argmax(-1)
    behind = ours.amax(-1) - ours.gather(-1, answer.unsqueeze(-1)).squeeze(-1)  # 0 where the answers are equal
    if not (difference < TOLERANCE and bool((behind < TOLERANCE * spread).all())):
        raise ValueError(
            f"the check with {runtime} failed: logits differ by {difference:.1e} of their standard deviation, expected "
            f"below {TOLERANCE:g}"
        )
    equal = int((ours.argmax(-1) == answer).sum())
    return Agreement(runtime, clouds, indices, len(answer), equal, difference)


def trial_inputs(model: LoadedModel, exported: Exported) -> Iterator[tuple[Tensor, ...]]:
    """Inputs of the sizes that the file takes, ending with degenerate clouds."""
    usual = exported.num_points or model.num_points
    centres = max(model.header["model"].get("num_centres") or [2])
    for seed, (batch_size, num_points) in enumerate(((1, usual), (3, usual + 1), (2, max(centres // 2, 1)), (2, 1))):
        yield example_inputs(model, exported.batch_size or batch_size, exported.num_points or num_points, seed)
        if exported.batch_size and exported.num_points:
            break
    batch_size = exported.batch_size or 4
    _, *category = example_inputs(model, batch_size, usual)
    clouds = degenerate_clouds(usual)
    for start in range(0, len(clouds), batch_size):
        yield clouds[(torch.arange(batch_size) + start) % len(clouds)], *category


def degenerate_clouds(num_points: int) -> Tensor:
    """(4, N, 3): one point N times, five points again and again, points of a line, and a grid."""
    place = torch.arange(num_points)
    five = torch.eye(3).repeat(2, 1)[:5] * torch.tensor([1.0, 1, 1, -1, -1]).unsqueeze(1)
    line = torch.linspace(-1, 1, num_points).unsqueeze(1).expand(-1, 3) / 3**0.5
    side = max(round(num_points ** (1 / 3)), 1)
    cells = torch.stack([place % side, place // side % side, place // side**2 % side], 1)
    grid = cells.float() / side - 0.5
    return torch.stack([torch.zeros(num_points, 3), five[place % 5], line, grid])


def _index_names(model: LoadedModel) -> list[str]:
    encoder: Any = model.network.encoder
    searches = len(encoder.neighbours) if encoder.num_centres else bool(encoder.neighbours)  # all points: one for all
    levels = [f"neighbours of level {level}" for level in range(1, searches + 1)]
    return ["farthest points", *levels] if _samples(model) else levels


def _samples(model: LoadedModel) -> bool:
    encoder: Any = model.network.encoder
    return bool(encoder.num_centres and len(encoder.neighbours))


def _indices(model: LoadedModel, points: Tensor) -> list[Tensor]:
    """Farthest points (B, M), where the network takes any, and each level's neighbours (B, M, at most K)."""
    encoder: Any = model.network.encoder
    B, N, _ = points.shape
    counts = encoder.num_centres or (N,) * bool(encoder.neighbours)
    order = farthest_points(points, counts[0]) if _samples(model) else torch.arange(N).expand(B, N)
    indices = [order] if _samples(model) else []
    for count in counts[: len(encoder.neighbours)]:
        centres = group(points, order[:, :count])
        indices.append(k_nearest(points, centres, min(encoder.num_neighbours, points.shape[1])))
        points, order = centres, torch.arange(count).expand(B, count)
    return indices


def _with_onnxruntime(contents: bytes, model: LoadedModel) -> tuple[str, Run]:
    import onnx
    import onnxruntime

    graph = onnx.load_from_string(contents)
    onnx.checker.check_model(graph, full_check=True)
    nearest = [node.output[1] for node in graph.graph.node if node.op_type == "TopK"]
    chosen = [node.output[3] for node in graph.graph.node if node.op_type == "Loop"][: int(_samples(model))]
    chosen += nearest[: len(_index_names(model)) - len(chosen)]  # an attention behind them may have its own
    graph.graph.output.extend(onnx.ValueInfoProto(name=name) for name in chosen)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session, inside = (
        onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        for data in (contents, graph.SerializeToString())
    )

    def run(inputs: tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor]]:
        feed = dict(zip(("points", "category"), (tensor.numpy() for tensor in inputs), strict=False))
        indices = inside.run(chosen, feed) if chosen else []
        return torch.from_numpy(session.run(["logits"], feed)[0]), [torch.from_numpy(index) for index in indices]

    return f"onnxruntime {onnxruntime.__version__}", run


class _Watched(torch.fx.Interpreter):
    """A program run node by node, its farthest points and neighbours kept."""

    def run(self, *args: Any, **kwargs: Any) -> Any:
        self.taken: list[Tensor] = []
        return super().run(*args, **kwargs)

    def run_node(self, n: torch.fx.Node) -> Any:
        result = super().run_node(n)
        if n.target is torch.ops.higher_order.while_loop:
            self.taken.append(result[3])
        elif n.target is torch.ops.aten.topk.default and result[0].dtype == torch.long:
            self.taken.append(result[0] & (2**32 - 1))  # see nearest_by_keys
        return result


def _with_torch(contents: bytes, model: LoadedModel) -> tuple[str, Run]:
    program: Any = torch.export.load(io.BytesIO(contents)).module()
    levels = len(_index_names(model))

    def run(inputs: tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor]]:
        watched = _Watched(program)
        watched.run(*inputs)
        return program(*inputs), watched.taken[:levels]

    return f"torch.export {torch.__version__}", run


_RUNTIMES: dict[str, Callable[[bytes, LoadedModel], tuple[str, Run]]] = {
    "onnx": _with_onnxruntime,
    "torch": _with_torch,
}
