"""Linear, performer, double and ham attention against loops over tokens that follow the papers, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared_attn import create_attention
from shared_attn.attention import Attention
from shared_attn.complexity import attention_cost
from shared_attn.double import DoubleAttention
from shared_attn.ham import HamAttention
from shared_attn.linear import LinearAttention
from shared_attn.performer import PerformerAttention, orthogonal_features

DIM, HEADS, TOKENS = 12, 3, 10
FOLDS = ["always", "never", "auto"]


def _tokens(tokens: int = TOKENS, batch: int = 2) -> Tensor:
    return torch.randn(batch, tokens, DIM, dtype=torch.float64)


def _kernel_attention(
    attention: LinearAttention | PerformerAttention, x: Tensor, weights: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Tensor:
    """One query at a time: `weights` gives those of its (M, D) keys; a sum of values, then the output map."""
    D = DIM // attention.num_heads
    query, key, value = attention.query(x), attention.key(x), attention.value(x)
    mixed = torch.zeros_like(query)
    for b in range(x.shape[0]):
        for h in range(attention.num_heads):
            part = slice(h * D, (h + 1) * D)
            for n in range(x.shape[1]):
                row = weights(query[b, n, part], key[b, :, part], query[b, :, part])
                mixed[b, n, part] = row @ value[b, :, part]
    y: Tensor = attention.output(mixed)
    return y


def _elu_weights(query: Tensor, keys: Tensor, _queries: Tensor) -> Tensor:
    similarities = (F.elu(keys) + 1) @ (F.elu(query) + 1)
    return similarities / (similarities.sum() + 1e-6)


def _softmax_weights(query: Tensor, keys: Tensor, _queries: Tensor) -> Tensor:
    return keys.softmax(dim=0) @ query.softmax(dim=0)


@pytest.mark.parametrize("fold", FOLDS)
@pytest.mark.parametrize(("kernel", "weights"), [("elu", _elu_weights), ("softmax", _softmax_weights)])
@pytest.mark.parametrize("tokens", [1, TOKENS, 30])
def test_linear_attention_is_a_sum_over_tokens(kernel: Any, weights: Any, fold: Any, tokens: int) -> None:
    attention = LinearAttention(DIM, HEADS, kernel, fold).double()
    x = _tokens(tokens)
    torch.testing.assert_close(attention(x), _kernel_attention(attention, x, weights), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "create",
    [
        *(lambda fold, kernel=kernel: LinearAttention(DIM, HEADS, kernel, fold) for kernel in ("elu", "softmax")),
        lambda fold: DoubleAttention(DIM, 5, 7, fold),
        lambda fold: HamAttention(DIM, 4, 2, 3, fold=fold),
    ],
)
def test_folding_changes_neither_values_nor_gradients(create: Callable[[str], Attention]) -> None:
    x = _tokens().requires_grad_()
    mask = torch.arange(TOKENS).expand(2, TOKENS) < torch.tensor([[TOKENS], [6]])
    first, second = create("always").double(), create("never").double()
    second.load_state_dict(first.state_dict())
    outputs = [attention.eval()(x, mask=mask) for attention in (first, second)]
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-10)
    gradients = [
        torch.autograd.grad(y.sin().sum(), [x, *attention.parameters()])
        for y, attention in zip(outputs, (first, second), strict=True)
    ]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-10)


def test_the_elu_feature_stays_positive_far_below_zero() -> None:
    attention = LinearAttention(DIM, HEADS, eps=1e-30)
    with torch.no_grad():
        attention.key.weight.copy_(-30 * torch.eye(DIM))
        attention.value.weight.copy_(torch.eye(DIM))
        attention.output.weight.copy_(torch.eye(DIM))
    x = torch.rand(1, 6, DIM) + 1
    torch.testing.assert_close(attention(x).amax() <= x.amax() + 1e-5, torch.tensor(True))
    assert attention(x).amin() >= x.amin() - 1e-5  # a mean of the values, not zero over zero


def _favor_weights(features: Tensor, eps: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """FAVOR+ as in the paper's code: exponents shifted by their largest, eps added to each feature."""

    def phi(z: Tensor, largest: Tensor) -> Tensor:
        return torch.exp(features @ z - z.square().sum() / 2 - largest) + eps

    def weights(query: Tensor, keys: Tensor, _queries: Tensor) -> Tensor:
        scale = len(query) ** -0.25
        largest = max((features @ (key * scale)).max() for key in keys)
        query_features = phi(query * scale, (features @ (query * scale)).max())
        similarities = torch.stack([phi(key * scale, largest) @ query_features for key in keys])
        return similarities / similarities.sum()

    return weights


@pytest.mark.parametrize("tokens", [1, TOKENS])
def test_performer_is_a_sum_over_tokens(tokens: int) -> None:
    attention = PerformerAttention(DIM, HEADS, num_features=9).double()
    x = _tokens(tokens)
    expected = _kernel_attention(attention, x, _favor_weights(attention.features, attention.eps))
    torch.testing.assert_close(attention(x), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("num_features", [5, 16])
def test_performer_is_performer_pytorchs(num_features: int) -> None:
    library = pytest.importorskip("performer_pytorch", reason="performer-pytorch is not installed")
    theirs = library.SelfAttention(
        DIM, heads=HEADS, dim_head=DIM // HEADS, nb_features=num_features, attn_out_bias=False
    ).eval()
    ours = PerformerAttention(DIM, HEADS, num_features).eval()
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out": "output"}
    state = {f"{names[name.split('.')[0]]}.weight": value for name, value in theirs.named_parameters()}
    ours.load_state_dict({**state, "features": theirs.fast_attention.projection_matrix})
    x = torch.randn(2, TOKENS, DIM)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-5)


def test_performer_approaches_softmax_attention_as_features_grow() -> None:
    x = 0.3 * _tokens()  # the variance grows exponentially with the squared lengths of queries and keys
    exact = create_attention("self", DIM, num_heads=HEADS).double()

    def error(num_features: int) -> float:
        attention = PerformerAttention(DIM, HEADS, num_features, eps=1e-9).double()
        with torch.no_grad():
            layers = (attention.query, attention.key, attention.value)
            exact.get_parameter("query_key_value.weight").copy_(torch.cat([layer.weight for layer in layers]))
            exact.get_parameter("output.weight").copy_(attention.output.weight)
            return float((attention(x) - exact(x)).std() / exact(x).std())

    few, many = error(16), error(16_000)
    assert many < 0.1
    assert many < few / 8  # a standard error falls as 1 / sqrt(features): 1 / 32


def test_redrawing_changes_the_features_and_the_random_state_alone() -> None:
    attention = PerformerAttention(DIM, HEADS)
    before = {name: value.clone() for name, value in attention.state_dict().items()}
    attention.redraw_features()
    changed = [name for name, value in attention.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["features"]


def test_random_features_are_orthogonal_with_the_lengths_of_normal_vectors() -> None:
    features = orthogonal_features(7, 3)
    products = features @ features.T
    blocks = torch.arange(7) // 3
    same = (blocks[:, None] == blocks) & ~torch.eye(7, dtype=torch.bool)
    assert products[same].abs().max() < 1e-5
    many = orthogonal_features(6000, 3)
    assert many.mean().abs() < 0.03
    assert (many.square().mean() - 1).abs() < 0.03
    assert (many.square().sum(dim=1).std() - 6**0.5).abs() < 0.15  # chi squared with 3 degrees of freedom


@pytest.mark.parametrize("fold", FOLDS)
def test_double_attention_gathers_over_tokens_and_distributes_over_maps(fold: Any) -> None:
    attention = DoubleAttention(DIM, num_maps=5, feature_size=7, fold=fold).double()
    x = _tokens()
    expected = torch.zeros_like(x)
    for b, sample in enumerate(x):
        gathering = torch.stack([attention.gather(token) for token in sample])
        descriptors = []
        for m in range(5):
            weights = gathering[:, m].exp() / gathering[:, m].exp().sum()  # over the tokens of this sample alone
            descriptors.append(sum(w * attention.feature(token) for w, token in zip(weights, sample, strict=True)))
        for n, token in enumerate(sample):
            shares = attention.distribute(token).softmax(dim=0)
            mixed = sum(share * descriptor for share, descriptor in zip(shares, descriptors, strict=True))
            expected[b, n] = attention.output(mixed)
    torch.testing.assert_close(attention(x), expected, rtol=0, atol=1e-10)


def _factorise(attention: HamAttention, hidden: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Lee and Seung's updates of one sample, (N, R) and (C, R)."""
    bases = attention.bases.to(hidden.dtype)
    coefficients = (hidden @ bases).softmax(dim=1)
    for _ in range(steps):
        coefficients = coefficients * (hidden @ bases) / (coefficients @ bases.T @ bases + attention.eps)
        bases = bases * (hidden.T @ coefficients) / (bases @ coefficients.T @ coefficients + attention.eps)
    return coefficients, bases


@pytest.mark.parametrize("fold", FOLDS)
@pytest.mark.parametrize("training", [False, True])
def test_ham_is_a_factorisation_between_two_maps(fold: Any, training: bool) -> None:
    attention = HamAttention(DIM, rank=4, steps=2, eval_steps=3, fold=fold).double().train(training)
    x = _tokens().requires_grad_()
    expected, held = [], []
    for sample in x:
        hidden = F.relu(attention.lower(sample))
        coefficients, bases = _factorise(attention, hidden.detach(), 2 if training else 3)
        # The one-step gradient: both factors are constants in the last update of the coefficients.
        last = coefficients * (hidden @ bases) / (coefficients @ bases.T @ bases + attention.eps)
        expected.append(attention.upper(last @ bases.T))
        held.append(bases)
    y = attention(x)
    torch.testing.assert_close(y, torch.stack(expected), rtol=0, atol=1e-10)
    leaves = [x, *attention.parameters()]
    gradients = torch.autograd.grad(y.sin().sum(), leaves)
    torch.testing.assert_close(
        gradients, torch.autograd.grad(torch.stack(expected).sin().sum(), leaves), rtol=0, atol=1e-10
    )


def test_ham_approaches_the_tokens_as_it_iterates() -> None:
    hidden = torch.rand(30, 4, dtype=torch.float64) @ torch.rand(4, DIM, dtype=torch.float64)

    def error(steps: int) -> float:
        attention = HamAttention(DIM, rank=4, steps=steps, eval_steps=steps).double().eval()
        with torch.no_grad():
            for layer in (attention.lower, attention.upper):
                layer.weight.copy_(torch.eye(DIM))
        return float((attention(hidden[None]) - hidden).detach().norm() / hidden.norm())

    errors = [error(steps) for steps in (1, 10, 300)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.05


def test_hams_full_gradient_is_that_of_every_update() -> None:
    attention = HamAttention(4, rank=2, steps=2, eval_steps=2, gradient="full").double()
    x = torch.randn(1, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(attention, x)


@pytest.mark.parametrize(
    ("name", "options", "multiply_adds"),
    [
        ("linear", {"fold": "never"}, lambda N, C, D: 4 * N * C * C + 2 * N * C * D),
        ("performer", {"num_features": 9}, lambda N, C, _: 4 * N * C * C + 4 * N * C * 9 + HEADS * 9 * N),
        ("double", {"num_maps": 5, "feature_size": 7, "fold": "never"}, lambda N, C, _: (2 * C * 12 + 70) * N),
        ("ham", {"rank": 4, "fold": "never"}, lambda N, C, _: (2 * C * C + 17 * 4 * C + 15 * 16) * N + 15 * C * 16),
    ],
)
def test_costs_are_the_docstrings(
    name: str, options: dict[str, Any], multiply_adds: Callable[[int, int, int], int]
) -> None:
    heads = {} if name in ("double", "ham") else {"num_heads": HEADS}
    cost = attention_cost(name, DIM, (50,), **heads, **options)
    assert cost.multiply_adds == multiply_adds(50, DIM, DIM // HEADS)


@pytest.mark.parametrize("create", [DoubleAttention, HamAttention, LinearAttention, PerformerAttention])
def test_samples_of_a_batch_do_not_see_each_other(create: Callable[[int], Attention]) -> None:
    attention = create(16).double().eval()
    x = torch.randn(3, 7, 16, dtype=torch.float64)
    together = attention(x)
    alone = torch.cat([attention(sample[None]) for sample in x])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("create", "message"),
    [
        (lambda: LinearAttention(DIM, HEADS, kernel="relu"), "kernel must be elu or softmax; got 'relu'"),
        (lambda: LinearAttention(DIM, HEADS, fold="often"), "fold must be one of auto, always, never; got 'often'"),
        (lambda: LinearAttention(DIM, HEADS, eps=0.0), "eps must be positive"),
        (lambda: LinearAttention(DIM, 5), "'linear'"),
        (lambda: PerformerAttention(DIM, HEADS, num_features=0), "num_features"),
        (lambda: PerformerAttention(DIM, HEADS, eps=-1.0), "eps must be positive"),
        (lambda: DoubleAttention(DIM, num_maps=0), "num_maps"),
        (lambda: HamAttention(DIM, rank=0), "rank"),
        (lambda: HamAttention(DIM, gradient="two_step"), "gradient must be one_step or full; got 'two_step'"),
    ],
)
def test_bad_options_are_told(create: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create()
