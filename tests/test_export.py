"""Every variant compiles as one graph, exports, and runs in ONNX Runtime, with any number of tokens where it can."""

from __future__ import annotations

import io
import warnings

import pytest
import torch
from machine import exporting
from torch import Tensor, nn

from shared_attn import Attention, create_attention, list_attentions

DIM, N = 16, 12
EVERY = pytest.mark.parametrize("name", list_attentions())
pytestmark = pytest.mark.filterwarnings("ignore")

# Variants whose graph holds for whole cells only, (tokens in a cell, fewest cells): padding would be another graph.
CELLS = {
    "sagan": (2, 3),  # pooled by 2; a single key would be another graph
    "quadtree_a": (64, 9),  # 4 tokens a cell over 3 levels; up to 8 coarsest cells all keys are chosen
    "quadtree_b": (64, 9),
}


class OnSequence(nn.Module):
    """An attention on tokens whose layout is their order."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.attention(x, grid=(x.shape[1],))
        return y


class OnGrid(OnSequence):
    """An attention on tokens of one fixed grid."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.attention(x, grid=(4, 3))
        return y


def _exported(name: str, layout: type[OnSequence]) -> tuple[nn.Module, torch.export.ExportedProgram, Tensor]:
    """The module, its program, and tokens to run both on: on a sequence more than it was traced with."""
    module = layout(create_attention(name, DIM)).eval()
    dynamic = layout is OnSequence
    size, fewest = CELLS.get(name, (1, 4)) if dynamic else (1, 4)
    cells = torch.export.Dim("cells", min=fewest, max=65_536 // size)
    with torch.no_grad(), exporting():
        x = torch.randn(2, size * N, DIM)
        shapes = {"x": {1: size * cells}} if dynamic else None
        program = torch.export.export(module, (x,), dynamic_shapes=shapes, strict=False)
    return module, program, torch.randn(2, size * 20 if dynamic else N, DIM)


@EVERY
@pytest.mark.parametrize("training", [False, True])
def test_compiles_without_a_graph_break(name: str, training: bool) -> None:
    torch._dynamo.reset()
    attention, x = create_attention(name, DIM).train(training), torch.randn(2, N, DIM)
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    grads = []
    for function in (attention, compiled):
        x = x.detach().requires_grad_()
        torch.manual_seed(0)
        y = function(x, grid=(4, 3))
        grads.append((y.detach(), *torch.autograd.grad(y.sin().sum(), x)))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@EVERY
@pytest.mark.parametrize("layout", [OnSequence, OnGrid])
def test_exports(name: str, layout: type[OnSequence]) -> None:
    module, program, x = _exported(name, layout)
    torch.testing.assert_close(program.module()(x), module(x), rtol=1e-5, atol=1e-6)


@EVERY
@pytest.mark.parametrize("layout", [OnSequence, OnGrid])
def test_onnx_runtime_agrees(name: str, layout: type[OnSequence]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    module, program, x = _exported(name, layout)
    with warnings.catch_warnings(), exporting():
        warnings.simplefilter("ignore")
        exported = torch.onnx.export(program, dynamo=True, verbose=False)
    assert exported is not None
    buffer = io.BytesIO()
    exported.save(buffer)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(buffer.getvalue(), options, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), module(x).detach(), rtol=1e-4, atol=1e-5)
