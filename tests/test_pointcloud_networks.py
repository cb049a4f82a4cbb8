"""The point networks: published numbers, the split form, invariances."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pointcloud.classifier import PointClassifier
from pointcloud.published import create_published_twin
from pointcloud.reference import load_reference
from pointcloud.segmenter import PartSegmenter
from shared_attn import list_attentions
from shared_attn.complexity import count_multiply_adds, count_parameters

TINY: dict[str, Any] = {
    "embed_channels": (8, 8),
    "neighbour_channels": (12, 16),
    "num_centres": (16, 8),
    "num_neighbours": 4,
    "num_layers": 2,
    "fuse_channels": 24,
    "head_channels": (16, 12),
}
TINY_PARTS: dict[str, Any] = {
    "embed_channels": (8, 16),
    "num_layers": 2,
    "fuse_channels": 24,
    "head_channels": (16, 12),
}


def randomise(module: nn.Module) -> None:
    """Weights and running statistics away from their start, scales of both signs among them."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm1d):
                assert norm.running_mean is not None and norm.running_var is not None
                norm.weight.copy_(torch.randn_like(norm.weight))
                norm.running_mean.normal_(std=0.3)
                norm.running_var.uniform_(0.5, 2)


def run_with_gradients(module: nn.Module, *inputs: Tensor) -> dict[str, Tensor]:
    points = inputs[0].clone().requires_grad_()
    output = module(points, *inputs[1:])
    weight = torch.randn(output.shape, dtype=output.dtype, generator=torch.Generator().manual_seed(5))
    module.zero_grad()
    (output * weight).sum().backward()
    assert points.grad is not None
    found = {"output": output.detach(), "input": points.grad}
    found |= {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    return found | {name: buffer.double() for name, buffer in module.named_buffers()}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("attention", ["offset", "external"])
def test_whole_classifier_equals_its_published_twin(attention: str, training: bool) -> None:
    model = PointClassifier(5, attention=attention, dropout=0.0, **TINY).double()
    randomise(model)
    twin = create_published_twin(model)
    points = torch.randn(4, 32, 3, dtype=torch.float64)
    results = [run_with_gradients(m.train(training), points) for m in (model, twin)]
    for name in results[0]:
        scale = float(results[1][name].abs().max().clamp_min(1))
        torch.testing.assert_close(results[0][name], results[1][name], rtol=0, atol=1e-10 * scale, msg=name)


def test_parameters_are_the_published_ones() -> None:
    assert count_parameters(PointClassifier(40)) == 2_876_136
    assert round(count_parameters(PointClassifier(40, attention="external")) / 1e6, 3) == 2.679
    assert round(count_parameters(PointClassifier(40, attention="external", form="offset_query")) / 1e6, 3) == 2.942
    assert round(count_parameters(PartSegmenter(50, 16)) / 1e6, 3) == 2.446
    assert round(count_parameters(PartSegmenter(50, 16, attention="external")) / 1e6, 2) == 2.43
    spct = PointClassifier(40, embed_channels=(128, 128), neighbour_channels=(), num_centres=(), stem_layers=0)
    assert round(count_parameters(spct) / 1e6, 2) == 1.36


@pytest.mark.slow
def test_multiply_adds_are_the_published_ones_less_what_the_split_saves() -> None:
    with torch.no_grad():
        points = torch.rand(1, 1024, 3)
        split = PointClassifier(40).eval()
        # 2.238 G, of which the original spends 16.8 M on a second, equal query map and 2 M on distances by products.
        assert count_multiply_adds(create_published_twin(split), points) / 1e6 == pytest.approx(2238 - 18.8, abs=1)
        saved = count_multiply_adds(create_published_twin(split), points) - count_multiply_adds(split, points)
        assert saved / 1e6 == pytest.approx(805 - 38, rel=0.03)
        parts = PartSegmenter(50, 16, attention="external").eval()
        found = count_multiply_adds(parts, torch.rand(1, 2048, 3), torch.tensor([0])) / 1e9
        assert found == pytest.approx(4.96 - 2.2, abs=0.06)


def test_golden_classifier(golden: Any) -> None:
    meta, state, inputs, output = golden("pct_pct_pytorch_a")
    known = {name: meta[name] for name in ("num_classes", "points")}
    with torch.no_grad():
        model = load_reference("pct_pytorch.classifier", state, **known)
        torch.testing.assert_close(
            model(inputs["x"]), output, rtol=0, atol=2e-4 if torch.get_num_threads() == 1 else 1e-4
        )
        fast = load_reference("pct_pytorch.classifier", state, published_order=False, **known)
        assert type(fast) is PointClassifier
        # The original itself moves by 1.4e-4 with the number of threads; float64 settles which is right.
        torch.testing.assert_close(fast(inputs["x"]), output, rtol=0, atol=4e-4)
        exact, twin = fast.double(), model.double()
        torch.testing.assert_close(exact(inputs["x"].double()), twin(inputs["x"].double()), rtol=0, atol=1e-10)
        torch.testing.assert_close(exact(inputs["x"].double()).float(), output, rtol=0, atol=2e-4)


def test_reference_refuses_what_does_not_fit(golden: Any) -> None:
    _, state, _, _ = golden("pct_pct_pytorch_a")
    with pytest.raises(ValueError, match="unknown source"):
        load_reference("pct.other", state)
    with pytest.raises(ValueError, match="unexpected weight conv9"):
        load_reference("pct_pytorch.classifier", {**state, "conv9.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="size mismatch"):
        load_reference("pct_pytorch.classifier", state, num_classes=10)


@pytest.mark.parametrize("attention", list_attentions())
def test_every_attention_makes_a_classifier_that_does_not_see_the_order_of_points(attention: str) -> None:
    """The first point stays, because farthest-point sampling starts there."""
    model = PointClassifier(5, attention=attention, **TINY).double()
    randomise(model)
    model.eval()
    points = torch.randn(2, 40, 3, dtype=torch.float64)
    order = torch.cat([torch.zeros(1, dtype=torch.long), torch.randperm(39) + 1])
    torch.testing.assert_close(model(points), model(points[:, order]), rtol=1e-9, atol=1e-9)
    assert (model(points) - model(torch.randn_like(points))).abs().max() > 1e-6


@pytest.mark.parametrize("attention", ["external", "offset", "sagan"])
def test_segmenter_follows_the_order_of_points(attention: str) -> None:
    model = PartSegmenter(6, 3, attention=attention, **TINY_PARTS).double()
    randomise(model)
    model.eval()
    points, category = torch.randn(2, 20, 3, dtype=torch.float64), torch.tensor([2, 0])
    order = torch.randperm(20)
    torch.testing.assert_close(
        model(points, category)[:, order], model(points[:, order], category), rtol=1e-9, atol=1e-9
    )


def test_segmenter_multiplies_the_global_part_once_but_computes_the_concatenation() -> None:
    model = PartSegmenter(6, 3, attention="external", **TINY_PARTS).double()
    randomise(model)
    model.eval()
    points, category = torch.randn(2, 20, 3, dtype=torch.float64), torch.tensor([2, 0])
    tokens = model.encoder(points)
    one_hot = torch.eye(3, dtype=torch.float64)[category]
    assert model.category is not None
    overall = torch.cat([tokens.amax(1), tokens.mean(1), model.category(one_hot)], -1).unsqueeze(1).expand(-1, 20, -1)
    expected = model.logits(model.second(model.first(torch.cat([tokens, overall], -1))))
    torch.testing.assert_close(model(points, category), expected, rtol=1e-10, atol=1e-10)


def test_category_changes_the_answer_and_is_asked_for_exactly_when_wanted() -> None:
    model = PartSegmenter(6, 3, **TINY_PARTS).eval()
    points = torch.randn(1, 20, 3)
    assert (model(points, torch.tensor([0])) - model(points, torch.tensor([1]))).abs().max() > 1e-5
    with pytest.raises(TypeError, match="categories"):
        model(points)
    with pytest.raises(TypeError, match="categories"):
        PartSegmenter(6, **TINY_PARTS)(points, torch.tensor([0]))


def test_segmenter_with_neighbour_embedding_keeps_every_point() -> None:
    tiny = {**TINY_PARTS, "neighbour_channels": (12, 16), "num_neighbours": 4}
    model = PartSegmenter(6, 3, neighbour_embedding="sg", **tiny).eval()
    assert model(torch.randn(2, 20, 3), torch.tensor([0, 1])).shape == (2, 20, 6)


@pytest.mark.parametrize("N", [1, 3, 15])
def test_clouds_with_fewer_points_than_centres_and_neighbours(N: int) -> None:
    model = PointClassifier(5, attention="external", **TINY)
    assert model.train()(torch.randn(2, N, 3)).isfinite().all()
    assert model.eval()(torch.zeros(2, N, 3)).isfinite().all()


def test_switches_change_the_network() -> None:
    plain = count_parameters(PointClassifier(5, **TINY))
    assert count_parameters(PointClassifier(5, position_embedding=True, **TINY)) == plain + 4 * 16
    assert count_parameters(PointClassifier(5, pooling="max_mean", **TINY)) == plain + 24 * 16
    assert count_parameters(PointClassifier(5, stem_layers=1, **TINY)) == plain - 16 * 16 - 32
    assert count_parameters(PointClassifier(5, **{**TINY, "num_layers": 1})) < plain
    for form in ("offset", "plain"):
        assert PointClassifier(5, form=form, attention="external", **TINY).encoder.attention[0].form == form


@pytest.mark.parametrize("model", [PointClassifier(5, attention="external", **TINY), PartSegmenter(6, 3, **TINY_PARTS)])
def test_every_parameter_gets_a_gradient(model: nn.Module) -> None:
    inputs = (torch.randn(4, 32, 3), torch.tensor([0, 1, 2, 0]))[: 2 if isinstance(model, PartSegmenter) else 1]
    model.train()(*inputs).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize(
    "keywords, said",
    [
        ({"num_centres": (8,)}, "num_centres"),
        ({"num_centres": (8, 16)}, "num_centres"),
        ({"num_layers": 0}, "num_layers"),
        ({"pooling": "mean"}, "pooling"),
        ({"attention": "outer"}, "outer"),
    ],
)
def test_wrong_keywords_are_refused(keywords: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PointClassifier(5, **{**TINY, **keywords})
