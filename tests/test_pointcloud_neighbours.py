"""The neighbour embedding's fast forms against the plain composition in float64: values, gradients, statistics."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pointcloud import pair_maximum as module
from pointcloud.averaging import estimate_norms
from pointcloud.geometry import farthest_points, group, k_nearest
from pointcloud.neighbours import NeighbourEmbedding, PairNorm, update_running
from pointcloud.pair_maximum import pair_maximum
from pointcloud.published import create_published_twin
from shared_attn import products
from shared_attn.products import LinearMap, product

B, N, M, K, C, D = 3, 20, 9, 6, 5, 7


def embedding(dtype: torch.dtype = torch.float64) -> NeighbourEmbedding:
    """Norm weights of both signs, running statistics away from their start."""
    made = NeighbourEmbedding(C, D).to(dtype)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
        for norm in (made.first_norm, made.second_norm):
            assert norm.running_mean is not None and norm.running_var is not None
            norm.weight.copy_(torch.randn_like(norm.weight))
            norm.running_mean.normal_(std=0.3)
            norm.running_var.uniform_(0.5, 2)
    return made


def clouds(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Features, centres, neighbours."""
    points = torch.randn(B, N, 3)
    centres = farthest_points(points, M)
    return torch.randn(B, N, C, dtype=dtype), centres, k_nearest(points, group(points, centres), K)


def run_with_gradients(network: nn.Module, features: Tensor, *indices: Tensor) -> dict[str, Tensor]:
    features = features.clone().requires_grad_()
    output = network(features, *indices)
    weight = torch.randn(output.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    network.zero_grad()
    (output * weight).sum().backward()
    assert features.grad is not None
    found = {"output": output.detach(), "input": features.grad}
    found |= {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    return found | {name: buffer.double() for name, buffer in network.named_buffers()}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("numbers", [2**17, 60], ids=["whole clouds", "chunks of one centre"])
def test_split_embedding_equals_the_published_one(
    monkeypatch: pytest.MonkeyPatch, training: bool, numbers: int
) -> None:
    """Float64, with gradients and running statistics, to 1e-10."""
    monkeypatch.setattr(module, "CHUNK", numbers)
    split, inputs = embedding(), clouds()
    twin = create_published_twin(split)
    results = [run_with_gradients(m.train(training), *inputs) for m in (split, twin)]
    assert results[0].keys() == results[1].keys()
    for name in results[0]:
        torch.testing.assert_close(results[0][name], results[1][name], rtol=1e-10, atol=1e-10, msg=name)


def test_bfloat16_rounds_products_alone() -> None:
    """Under autocast outputs and gradients are near those of float64, and statistics are sums of float32."""
    exact, inputs = embedding(), clouds()
    rounded = embedding(torch.float32)
    rounded.load_state_dict(exact.state_dict())
    expected = run_with_gradients(exact, *inputs)
    with torch.autocast("cpu", torch.bfloat16):
        found = run_with_gradients(rounded, inputs[0].float(), *inputs[1:])
    for name, value in expected.items():
        error = (found[name].double() - value).norm() / value.norm().clamp_min(1e-9)
        assert error < (0.08 if name == "input" or "weight" in name or "bias" in name else 0.02), (name, error)


def plain_maximum(near: Tensor, centre: Tensor, neighbours: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    z = (group(near, neighbours) + centre.unsqueeze(2)).relu() @ weight.mT
    return z.amax(2), z.mean((0, 1, 2)), z.var((0, 1, 2), correction=0)


def operands(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    near, centre, weight = (torch.randn(shape, dtype=dtype) for shape in ((B, N, C), (B, M, C), (D, C)))
    return near.requires_grad_(), centre.requires_grad_(), clouds()[2], weight.requires_grad_()


@pytest.mark.parametrize("numbers", [2**17, 60])
def test_pair_maximum_passes_gradcheck(monkeypatch: pytest.MonkeyPatch, numbers: int) -> None:
    monkeypatch.setattr(module, "CHUNK", numbers)
    assert torch.autograd.gradcheck(pair_maximum, operands())
    assert torch.autograd.gradcheck(PairNorm(C).double().pair_affine, operands()[:3])


def whole(*given: Any) -> tuple[Tensor, Tensor, Tensor]:
    """What runs where there is a GPU, on a CPU."""
    return _Whole.apply(*given)


class _Whole(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        largest, mean, variance, *kept = module._maximum(*given, given[0].dtype)
        ctx.save_for_backward(*given, mean, *kept)
        return largest, mean, variance

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_mean: Tensor, grad_variance: Tensor) -> tuple[Tensor | None, ...]:
        near, centre, neighbours, weight, mean, *kept = ctx.saved_tensors
        slope = grad_variance * (2 / neighbours.numel())
        level = grad_mean / neighbours.numel() - slope * mean
        given = (near, centre, neighbours, weight)
        grads = module._maximum_backward(grad, level, slope, *given, near.dtype, *kept)
        return grads[0], grads[1], None, grads[2]


@pytest.mark.parametrize("function", [pair_maximum, whole])
def test_pair_maximum_equals_its_definition(function: Any) -> None:
    given = operands()
    results = []
    for maximum in (function, plain_maximum):
        largest, mean, variance = maximum(*given)
        loss = (largest * torch.arange(D)).sum() + (mean.sin() + variance.cos()).sum()
        results.append([largest, mean, variance, *torch.autograd.grad(loss, [given[0], given[1], given[3]])])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


def test_equal_neighbours_share_the_gradient_of_their_maximum() -> None:
    near = torch.ones(1, 4, 2, dtype=torch.float64, requires_grad=True)
    centre, weight = torch.zeros(1, 1, 2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    pair_maximum(near, centre, torch.tensor([[[0, 1, 2]]]), weight)[0].sum().backward()
    assert near.grad is not None
    torch.testing.assert_close(near.grad[0, :, 0], torch.tensor([1 / 3, 1 / 3, 1 / 3, 0], dtype=torch.float64))


def test_pair_maximum_of_a_cloud_does_not_depend_on_the_batch() -> None:
    near, centre, neighbours, weight = operands(torch.float32)
    together = pair_maximum(near, centre, neighbours, weight)[0]
    alone = [pair_maximum(near[b : b + 1], centre[b : b + 1], neighbours[b : b + 1], weight)[0] for b in range(B)]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pair_maximum_is_an_operator_that_compiles_to_one_graph(dtype: torch.dtype) -> None:
    given = tuple(t.detach() for t in operands(torch.float32))
    torch.library.opcheck(module.chunked_maximum, (*given, dtype))
    grads = (torch.randn(B, M, D), torch.randn(D), torch.randn(D))
    kept = torch.randn(B, M, K, D).to(dtype)
    torch.library.opcheck(module.chunked_maximum_backward, (*grads, *given, dtype, kept))
    network, inputs = embedding(torch.float32), clouds(torch.float32)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    results = [run_with_gradients(m, *inputs) for m in (network, compiled)]
    for ours, theirs in zip(results[0].values(), results[1].values(), strict=True):
        if ours.dtype == torch.float32:
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_pair_norm_equals_batch_norm_of_the_formed_pairs() -> None:
    norm, plain = PairNorm(C).double(), nn.BatchNorm1d(C).double()
    near, centre, neighbours, _ = operands()
    near, centre = near + 100, centre - 100
    for _ in range(2):
        formed = group(near, neighbours) + centre.unsqueeze(2)
        scale, shift = norm.pair_affine(near, centre, neighbours)
        expected = plain(formed.flatten(0, 2)).view_as(formed)
        torch.testing.assert_close(scale * formed + shift, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(norm.running_mean, plain.running_mean)
    torch.testing.assert_close(norm.running_var, plain.running_var)
    assert norm.num_batches_tracked == plain.num_batches_tracked


@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_are_updated_as_batch_norm_does(momentum: float | None) -> None:
    ours, plain = (nn.BatchNorm1d(C, momentum=momentum).double() for _ in range(2))
    for _ in range(3):
        x = torch.randn(11, C, dtype=torch.float64)
        plain(x)
        update_running(ours, x.mean(0), x.var(0, correction=0), len(x))
    for found, expected in zip(ours.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(found, expected)


def test_estimating_norms_reaches_both_norms_of_an_embedding_in_eval_mode() -> None:
    split, inputs = embedding().eval(), clouds()
    twin = create_published_twin(split)
    for network in (split, twin):
        estimate_norms(network, [inputs, clouds()] if network is split else [inputs])
    estimate_norms(split, [inputs])
    for found, expected in zip(split.buffers(), twin.buffers(), strict=True):
        if found.is_floating_point():
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("layout", ["rows", "columns", "half rows", "expanded"])
def test_products_are_matrix_products_for_every_layout(monkeypatch: pytest.MonkeyPatch, layout: str) -> None:
    monkeypatch.setattr(products, "LEAST_WORK", 0)
    x, rows = torch.randn(40, 12), torch.randn(30, 12)
    made = {
        "rows": (x, rows),
        "columns": (x.t().contiguous().t(), rows.t().contiguous().t()),
        "half rows": (torch.cat([x, x], 1)[:, :12], torch.cat([rows, rows], 1)[:, 12:]),
        "expanded": (x[:1].expand(40, -1), rows),
    }[layout]
    expected = made[0].double() @ made[1].double().t()
    torch.testing.assert_close(product(*made).double(), expected, rtol=0, atol=1e-5)


def test_linear_map_is_nn_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "LEAST_WORK", 0)
    ours, plain = LinearMap(6, 4), nn.Linear(6, 4)
    plain.load_state_dict(ours.state_dict())
    results = []
    for network in (ours, plain):
        x = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
        y = network(x)
        first = torch.autograd.grad(y.square().sum(), [x, *network.parameters()], create_graph=True)
        second = torch.autograd.grad(first[0].square().sum(), [x, network.weight])
        once = torch.autograd.grad(network(x).sin().sum(), [x, *network.parameters()])
        results.append([y, *first, *second, *once])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(torch.randn(2, 6)).dtype == torch.bfloat16
