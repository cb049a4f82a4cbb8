"""Table 12 of the external attention paper (arXiv 2105.02358): its costs beside those counted here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

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

    HEAD: ClassVar[str] = (
        f"{'at 1 x 512 x 128 x 128':26}{'reported M':>12}{'counted':>9}{'reported G':>12}{'counted':>9}"
    )

    def __str__(self) -> str:
        """A line of the table under HEAD."""
        parameters = f"{self.reported_parameters_m:12.2f}{self.counted.parameters / 1e6:9.2f}"
        operations = f"{self.reported_multiply_adds_g:12.1f}{self.counted.multiply_adds / 1e9:9.2f}"
        return f"{self.label:26}{parameters}{operations}  {self.remark}"


# Label, reported M and G, variant, options, and why the counted numbers differ.
_ROWS: tuple[tuple[str, float, float, str, dict[str, Any], str], ...] = (
    ("self-attention (SA)", 1.00, 292.0, "self", {}, "4 C^2 = 2^20 parameters are the paper's 1.00 M"),
    (
        "double attention (A2)",
        1.01,
        25.7,
        "double",
        {"fold": "never"},
        "2^20 parameters as above and 0.01 M of biases, which are not needed here",
    ),
    ("double, folded here", 1.01, 25.7, "double", {}, "same function: two maps are multiplied into the descriptors"),
    (
        "Hamburger (Ham)",
        0.50,
        17.6,
        "ham",
        {"fold": "never", "eval_steps": 6},
        "two maps are the paper's 0.50 M = 2^19 parameters, biases apart; six steps (the released models take seven)",
    ),
    (
        "ham, folded here",
        0.50,
        17.6,
        "ham",
        {"eval_steps": 6},
        "same function: the upper bread is multiplied into the bases",
    ),
    (
        "external, paper's form",
        0.55,
        9.2,
        "external",
        {"form": "projected", "query_bias": True, "fold": "never"},
        "the paper counts one of the two memories; 591,360 parameters with the block's batch norm",
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
