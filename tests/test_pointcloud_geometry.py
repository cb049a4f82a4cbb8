"""Farthest points, neighbours, grouping and the Morton order against naive loops in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pointcloud.geometry import farthest_points, group, k_nearest, morton_order


def naive_farthest_points(cloud: Tensor, count: int) -> list[int]:
    chosen, points = [0], cloud.double().tolist()
    for _ in range(count - 1):
        distances = [min(sum((a - b) ** 2 for a, b in zip(p, points[c], strict=True)) for c in chosen) for p in points]
        chosen.append(distances.index(max(distances)))
    return chosen


def distances(queries: Tensor, points: Tensor) -> Tensor:
    return (queries.double().unsqueeze(2) - points.double().unsqueeze(1)).square().sum(-1)


@pytest.mark.parametrize("N, count", [(1, 1), (2, 2), (40, 17), (40, 40)])
def test_farthest_points_equal_a_naive_loop(N: int, count: int) -> None:
    points = torch.randn(3, N, 3)
    assert farthest_points(points, count).tolist() == [naive_farthest_points(cloud, count) for cloud in points]


def test_farthest_points_are_nested_and_start_at_the_first() -> None:
    points = torch.randn(2, 60, 3)
    many = farthest_points(points, 30)
    assert (many[:, 0] == 0).all()
    assert torch.equal(farthest_points(points, 11), many[:, :11])


def test_farthest_points_of_each_cloud_do_not_depend_on_the_batch() -> None:
    points = torch.randn(4, 50, 3)
    together = farthest_points(points, 20)
    assert torch.equal(together, torch.cat([farthest_points(cloud.unsqueeze(0), 20) for cloud in points]))


def test_farthest_points_take_every_distinct_point_before_any_twice() -> None:
    distinct = torch.randn(5, 3)
    points = distinct[torch.tensor([0, 1, 0, 2, 2, 3, 4, 4])].unsqueeze(0)
    chosen = farthest_points(points, 12)[0]
    assert len(points[0, chosen[:5]].unique(dim=0)) == 5
    assert (chosen[5:] == 0).all()


def test_farthest_points_of_collinear_points_take_the_ends_then_the_middle() -> None:
    points = torch.zeros(1, 9, 3)
    points[0, :, 0] = torch.arange(9.0)
    assert farthest_points(points, 3).tolist() == [[0, 8, 4]]


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_neighbours_equal_brute_force_even_far_from_the_origin(offset: float) -> None:
    """|p|^2 + |q|^2 - 2 p.q in float32 gets neighbours wrong at an offset of 100."""
    points = torch.randn(2, 300, 3) * 0.1 + offset
    queries = points[:, :40]
    found = k_nearest(points, queries, 12)
    exact = distances(queries, points)
    nearest = exact.topk(12, largest=False)
    torch.testing.assert_close(exact.gather(2, found), nearest.values, rtol=1e-4, atol=1e-12)
    assert (found[..., 0] == torch.arange(40)).all()
    assert torch.equal(found.sort(-1).values, nearest.indices.sort(-1).values)


def test_more_neighbours_than_points_repeat_them_in_turn() -> None:
    points = torch.randn(2, 3, 3)
    index = k_nearest(points, points, 8)
    assert index.shape == (2, 3, 8)
    assert torch.equal(index[..., :3], index[..., 3:6])
    assert torch.equal(index[..., :2], index[..., 6:])
    assert k_nearest(points[:, :1], points[:, :1], 4).unique().tolist() == [0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_of_equally_near_neighbours_the_first_are_taken(dtype: torch.dtype) -> None:
    assert k_nearest(torch.zeros(1, 10, 3, dtype=dtype), torch.zeros(1, 2, 3, dtype=dtype), 4).tolist() == [
        [[0, 1, 2, 3], [0, 1, 2, 3]]
    ]
    points = torch.randint(-2, 3, (3, 70, 3)).to(dtype)
    exact = distances(points[:, :9], points)
    for k in (1, 5, 69, 70):
        assert torch.equal(k_nearest(points, points[:, :9], k), exact.sort(stable=True, dim=-1).indices[..., :k])


@pytest.mark.parametrize("threads", [1, 2])
def test_points_past_a_clouds_length_do_not_exist(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        points, lengths = torch.randn(5, 30, 3), torch.tensor([1, 7, 30, 12, 2])
        chosen, near = farthest_points(points, 9, lengths), k_nearest(points, points[:, :4], 10, lengths)
        for b, length in enumerate(lengths.tolist()):
            cloud = points[b : b + 1, :length]
            assert torch.equal(chosen[b : b + 1], farthest_points(cloud, 9))
            assert torch.equal(near[b : b + 1], k_nearest(cloud, points[b : b + 1, :4], 10))
    finally:
        torch.set_num_threads(before)


def test_group_gathers_rows_and_their_gradients() -> None:
    features = torch.randn(2, 7, 5, dtype=torch.float64, requires_grad=True)
    index = torch.randint(7, (2, 4, 3))
    grouped = group(features, index)
    for b in range(2):
        for i in range(4):
            for k in range(3):
                assert torch.equal(grouped[b, i, k], features[b, index[b, i, k]])
    weight = torch.randn_like(grouped)
    (grouped * weight).sum().backward()
    expected = torch.zeros_like(features)
    for b in range(2):
        expected[b].index_add_(0, index[b].flatten(), weight[b].flatten(0, 1))
    assert features.grad is not None
    torch.testing.assert_close(features.grad, expected)


def test_morton_order_of_a_grid_is_the_interleaved_bits() -> None:
    axis = torch.arange(4)
    cells = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).view(-1, 3)
    shuffled = cells[torch.randperm(64)]
    ordered = shuffled[morton_order(shuffled.float().unsqueeze(0), bits=2)[0]]

    def code(x: int, y: int, z: int) -> int:
        return sum(((v >> bit) & 1) << (3 * bit + 2 - place) for place, v in enumerate((x, y, z)) for bit in range(2))

    assert [code(*cell) for cell in ordered.tolist()] == list(range(64))


def test_morton_neighbours_are_near() -> None:
    points = torch.rand(1, 1000, 3)
    ordered = group(points, morton_order(points))
    step = (ordered[:, 1:] - ordered[:, :-1]).norm(dim=-1).mean()
    assert step < 0.25 * (points[:, 1:] - points[:, :-1]).norm(dim=-1).mean()


def test_morton_order_of_one_place_keeps_the_order() -> None:
    assert morton_order(torch.ones(1, 5, 3)).tolist() == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize(
    "call",
    [
        lambda: farthest_points(torch.zeros(1, 0, 3), 1),
        lambda: farthest_points(torch.zeros(1, 2, 3), 0),
        lambda: k_nearest(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), 0),
        lambda: k_nearest(torch.zeros(1, 0, 3), torch.zeros(1, 2, 3), 1),
        lambda: morton_order(torch.zeros(1, 2, 3), bits=21),
    ],
)
def test_impossible_numbers_are_refused(call) -> None:  # noqa: ANN001
    with pytest.raises(ValueError, match="expected"):
        call()
