"""Table 12 of the external attention paper (arXiv 2105.02358): its costs beside those counted here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shared_attn.complexity import Cost, attention_cost

__all__ = ["PublishedCost", "compare_costs"]

CHANNELS, GRID = 512, (128, 128)


@dataclass(frozen=True)
class PublishedCost:
    """What the paper reports (M parameters; G "FLOPs", which are multiply-adds), and what is counted."""

    label: str
    reported_parameters_m: float
    reported_multiply_adds_g: float
    counted: Cost
    remark: str


# Label, reported M and G, variant, options, and why the counted numbers differ.
_ROWS: tuple[tuple[str, float, float, str, dict[str, Any], str], ...] = (
    ("self-attention (SA)", 1.00, 292.0, "self", {}, "1.00 M is 2^20; 4 C^2 parameters, 4 N C^2 + 2 N^2 C"),
    ("double attention (A2)", 1.01, 25.7, "double", {}, "biases and the count of 1.00 M as 2^20"),
    (
        "Hamburger (Ham)",
        0.50,
        17.6,
        "ham",
        {},
        "0.50 M is 2^19 for the two maps; the factorisation's own products are counted here too",
    ),
    (
        "external, paper's form",
        0.55,
        9.2,
        "external",
        {"form": "projected", "query_bias": True, "fold": "never"},
        "the paper's row counts one of the two memories once",
    ),
    (
        "external, folded here",
        0.55,
        9.2,
        "external",
        {"form": "projected", "query_bias": True},
        "same function and weights: the maps are multiplied into the memories first",
    ),
)


def compare_costs() -> list[PublishedCost]:
    """The table's rows that have a variant here, counted at 1 x 512 x 128 x 128."""
    return [
        PublishedCost(label, millions, giga, attention_cost(name, CHANNELS, GRID, **options), remark)
        for label, millions, giga, name, options, remark in _ROWS
    ]
