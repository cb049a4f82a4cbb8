"""Every hand-written gradient against finite differences in float64, and that none is forgotten.

What defines a gradient of its own, an autograd function or an operator of the dispatcher, is collected from the
packages and must stand in a table below, with its check.
"""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from gan.spectral_norm import _Divide
from pointcloud.geometry import farthest_points, k_nearest
from pointcloud.neighbours import _PairStatistics
from pointcloud.pair_maximum import pair_maximum
from shared_attn.covariance import _TokensAndGram
from shared_attn.functional import external_attention
from shared_attn.kernels.external import external_attention as operator
from shared_attn.products import _BatchedProduct, _Product

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("shared_attn", "gan", "pointcloud")


def double(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def check_divide() -> None:
    u, v = torch.randn(4, dtype=torch.float64), torch.randn(6, dtype=torch.float64)

    def divide(weight: Tensor) -> Tensor:
        return _Divide.apply(weight, u, v, torch.dot(u, torch.mv(weight.detach().flatten(1), v)))

    check_twice(divide, double(4, 3, 2))


def check_tokens_and_gram() -> None:
    check_twice(_TokensAndGram.apply, double(2, 5, 3))


def check_product() -> None:
    check_twice(_Product.apply, double(5, 3), double(4, 3))


def check_batched_product() -> None:
    check_twice(_BatchedProduct.apply, double(2, 5, 3), double(2, 3, 4))


def check_external_attention() -> None:
    mask = torch.tensor([[True, True, False, True], [True, False, False, True]])
    for real, eps in ((None, 1e-9), (mask, 0.1)):

        def attend(
            x: Tensor, keys: Tensor, values: Tensor, bias: Tensor, real: Tensor | None = real, eps: float = eps
        ) -> Tensor:
            return external_attention(x, keys, values, None, bias, mask=real, eps=eps)

        check_twice(attend, double(2, 4, 3), double(5, 3), double(3, 5), double(3))


def check_external_attention_operator() -> None:
    mask = torch.tensor([[True, True, False, True], [True, False, False, True]])
    for residual, relu, real in ((False, False, None), (True, True, mask), (True, False, mask), (False, True, None)):

        def attend(
            x: Tensor,
            keys: Tensor,
            values: Tensor,
            bias: Tensor,
            gate: Tensor,
            options: tuple[Any, ...] = (real, 1e-9, residual, relu, torch.float64),
        ) -> Tensor:
            return operator(x, keys, values, None, bias, gate, *options)[0]

        check_twice(attend, double(2, 4, 3), double(5, 3), double(3, 5), double(3), double(1))


def neighbours() -> Tensor:
    return torch.randint(6, (2, 3, 4))  # B, M, K of N = 6 points


def check_pair_statistics() -> None:
    near, centre, index = double(2, 6, 3), double(2, 3, 3), neighbours()
    assert gradcheck(lambda near, centre: _PairStatistics.apply(near, centre, index), (near, centre))
    check_refuses_twice(lambda near: _PairStatistics.apply(near, centre, index)[1], near)


def check_pair_maximum() -> None:
    near, centre, index, weight = double(2, 6, 3), double(2, 3, 3), neighbours(), double(5, 3)
    assert gradcheck(lambda near, centre, weight: pair_maximum(near, centre, index, weight), (near, centre, weight))
    check_refuses_twice(lambda near: pair_maximum(near, centre, index, weight)[0], near)


def check_indices() -> None:
    """What answers with indices has no gradient, and asks for none."""
    points = torch.randn(1, 8, 3, requires_grad=True)
    for found in (farthest_points(points, 4), k_nearest(points, points[:, :2], 3)):
        assert found.dtype == torch.long and not found.requires_grad


TWO_PROCESSES = """
import sys, torch, torch.distributed as dist
from torch.autograd import gradcheck, gradgradcheck
from shared_attn.runtime.processes import sum_over_processes
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
# Both processes move the same entry at once, so a sum changes by twice as much, and so must its gradient.
x = torch.full((3,), 0.5, dtype=torch.float64, requires_grad=True)
def function(x): return sum_over_processes(x).sin()
assert gradcheck(function, (x,))
assert gradgradcheck(function, (x,))
print("equal")
"""


def check_sum(folder: Path) -> None:
    started = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_PROCESSES, str(rank), str(folder / "meeting")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for rank in range(2)
    ]
    for process in started:
        out, err = process.communicate(timeout=300)
        assert out.strip() == "equal", err


def check_twice(function: Callable[..., Any], *inputs: Tensor) -> None:
    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)


def check_refuses_twice(function: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """A gradient that cannot be differentiated again says so; it is not taken for a constant."""
    (slope,) = torch.autograd.grad(function(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


FUNCTIONS: dict[str, Callable[..., None]] = {
    "gan.spectral_norm._Divide": check_divide,
    "pointcloud.neighbours._PairStatistics": check_pair_statistics,
    "pointcloud.pair_maximum._PairMaximum": check_pair_maximum,
    "shared_attn.covariance._TokensAndGram": check_tokens_and_gram,
    "shared_attn.functional._ExternalAttention": check_external_attention,
    "shared_attn.products._BatchedProduct": check_batched_product,
    "shared_attn.products._Product": check_product,
    "shared_attn.runtime.processes._Sum": check_sum,
}
# The operators that compute gradients stand beside those whose gradients they are: checking these runs them.
OPERATORS: dict[str, Callable[..., None]] = {
    "pointcloud::farthest_points": check_indices,
    "pointcloud::k_nearest": check_indices,
    "pointcloud::pair_maximum": check_pair_maximum,
    "pointcloud::pair_maximum_backward": check_pair_maximum,
    "shared_attn::external_attention": check_external_attention_operator,
    "shared_attn::external_attention_backward": check_external_attention_operator,
}


@pytest.mark.parametrize("name", [*FUNCTIONS, *dict.fromkeys(OPERATORS[name].__name__ for name in OPERATORS)])
def test_gradients_are_those_of_finite_differences(name: str, tmp_path: Path) -> None:
    if name == "check_pair_maximum":
        pytest.skip("checked as the function that calls it")
    checks = {**FUNCTIONS, **{check.__name__: check for check in OPERATORS.values()}}
    check = checks[name]
    check(*([tmp_path] if check is check_sum else []))


def import_all() -> None:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            if not name.endswith("_triton") and not name.endswith("_launch"):
                importlib.import_module(name)


def find_functions(packages: tuple[str, ...]) -> set[str]:
    """The autograd functions that these packages define."""
    found, waiting = set(), [torch.autograd.Function]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        # Operators' own, which torch makes, belong to torch; their backwards are named Backward.
        if kind.__module__.split(".")[0] in packages and not issubclass(
            kind, torch.autograd.function.BackwardCFunction
        ):
            found.add(f"{kind.__module__}.{kind.__qualname__}")
    return found


def find_operators(packages: tuple[str, ...]) -> set[str]:
    """The operators registered in these packages' namespaces."""
    names = (name.partition(".")[0] for name in torch._C._dispatch_get_all_op_names())
    return {name for name in names if name.split("::")[0] in packages}


def test_every_function_and_operator_stands_in_the_table() -> None:
    import_all()
    assert find_functions(PACKAGES) == set(FUNCTIONS), "add the new one to FUNCTIONS with its gradcheck"
    assert find_operators(PACKAGES) == set(OPERATORS), "add the new one to OPERATORS with its gradcheck"


def test_functions_in_a_branch_or_a_function_and_other_namespaces_are_seen() -> None:
    """Not only what an import defines: the source is read too."""
    functions, namespaces = set(), set()
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef) and any("autograd.Function" in ast.unparse(b) for b in node.bases):
                    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
                    functions.add(f"{module}.{node.name}")
                if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                    called = ast.unparse(node.func)
                    if called.endswith((".custom_op", ".triton_op", "library.Library")):
                        namespaces.add(str(node.args[0].value).partition("::")[0])
    assert functions == set(FUNCTIONS)
    assert namespaces <= {*PACKAGES}


def test_a_new_function_is_found() -> None:
    kind = type("Fresh", (torch.autograd.Function,), {"__module__": "gan.fresh"})
    assert find_functions(PACKAGES) - set(FUNCTIONS) == {"gan.fresh.Fresh"}
    kind.__module__ = __name__  # or the sweep above would find it
