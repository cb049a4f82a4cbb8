"""A training step through torch.compile: one graph, the same numbers."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pointcloud.classifier import PointClassifier
from pointcloud.segmenter import PartSegmenter
from shared_attn.runtime import compilation
from shared_attn.runtime.compilation import compile_network

TINY: dict[str, Any] = {
    "embed_channels": (8, 8),
    "neighbour_channels": (12, 16),
    "num_neighbours": 4,
    "num_layers": 2,
    "fuse_channels": 24,
    "head_channels": (16, 12),
    "dropout": 0.0,
}


def networks() -> dict[str, tuple[nn.Module, tuple[Tensor, ...]]]:
    points = torch.randn(4, 32, 3)
    centres = {"num_centres": (16, 8), **TINY}
    return {
        "pct": (PointClassifier(5, attention="offset", **centres), (points,)),
        "eat": (PointClassifier(5, attention="external", **centres), (points,)),
        "eat parts": (
            PartSegmenter(6, 3, neighbour_embedding="sg", attention="external", **TINY),
            (points, torch.tensor([0, 2, 1, 1])),
        ),
    }


def step(network: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    network.zero_grad()
    output = network(*inputs)
    output.square().mean().backward()
    found = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    return found | {"output": output.detach()} | {name: buffer.clone() for name, buffer in network.named_buffers()}


@pytest.mark.parametrize("name", ["pct", "eat", "eat parts"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_training_step_is_one_graph_of_the_same_numbers(name: str, precision: str) -> None:
    network, inputs = networks()[name]
    state = {key: value.clone() for key, value in network.state_dict().items()}
    graphs = []

    def count(graph: torch.fx.GraphModule, example: list[Tensor]) -> Any:
        graphs.append(graph)
        from torch._dynamo.backends.debugging import aot_eager

        return aot_eager(graph, example)

    torch._dynamo.reset()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        expected = step(network, inputs)
        network.load_state_dict(state)
        network.compile(fullgraph=True, dynamic=False, backend=count)
        found = [step(network, inputs) for _ in range(2)][0]
    assert len(graphs) == 1, "two steps, one graph"
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        if value.is_floating_point():
            error = (found[key].float() - value.float()).norm() / value.float().norm().clamp_min(1e-3)
            assert error < (1e-3 if precision == "fp32" else 0.1), (key, error)


def test_without_a_compiler_the_option_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation.shutil, "which", lambda _: None)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ValueError, match="--compile: needs a C\\+\\+ compiler"):
        compile_network(nn.Linear(2, 2), torch.device("cpu"))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_for_this_machine_it_computes_the_same() -> None:
    network, inputs = networks()["eat"]
    state = {key: value.clone() for key, value in network.state_dict().items()}
    expected = step(network, inputs)
    network.load_state_dict(state)
    torch._dynamo.reset()
    compile_network(network, torch.device("cpu"))
    found = step(network, inputs)
    assert list(network.state_dict()) == list(state)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-4)
