"""NaN and infinite numbers, told where they first appear: which step, which module, which tensor.

Training goes on long after the first number has gone wrong, and the loss tells it last. A watch looks at every tensor
on its way, in the order in which they are computed: what goes into a module and what comes out of it, its weights and
buffers, the gradients on their way back, those of the weights, and the weights and the optimizer's state after a step.

It waits for the device at every one of them, so it is for finding out, not for training: without it nothing here runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class NumericsWatch:
    """Raises at the first number that is not finite.

    The gradient of a tensor between two modules is told with both: the later one, whose backward made it, first.

    Args:
        networks: by name; their modules are told as name.path. Copies made later are watched too.
        optimizers: by the same names, as torch's or as Fabric's.
        unit: what `shown` counts, in the plural.
        enabled: False does nothing at all: no hook, no cost.

    Attributes:
        step: the step that is told, from 1; the training sets it.
        shown: clouds or images before that step; set by the training too.
    """

    def __init__(
        self, networks: Mapping[str, nn.Module], optimizers: Mapping[str, Any], *, unit: str, enabled: bool
    ) -> None:
        self.step, self.shown, self.unit = 0, 0, unit
        if not enabled:
            return
        for name, network in networks.items():
            for path, module in network.named_modules(prefix=name):
                place = f"{path} ({type(module).__name__})"
                module.register_forward_pre_hook(self._before(path, place), with_kwargs=True)
                module.register_forward_hook(self._after(place))
                for own, parameter in module.named_parameters(recurse=False):
                    parameter.register_post_accumulate_grad_hook(self._accumulated(f"weight {path}.{own}"))
        for name, optimizer in optimizers.items():
            self._watch_optimizer(name, networks[name], getattr(optimizer, "optimizer", optimizer))

    def _before(self, path: str, place: str) -> Any:
        def check(module: nn.Module, arguments: Any, keywords: Any) -> None:
            for kind, tensors in (
                ("weight", module.named_parameters(recurse=False)),
                ("buffer", module.named_buffers(recurse=False)),
            ):
                for name, tensor in tensors:
                    self._check(tensor, f"{kind} {path}.{name}")
            for tensor in _tensors((arguments, keywords)):
                self._check(tensor, f"input of {place}")
                self._follow_back(tensor, f"input of {place}")

        return check

    def _after(self, place: str) -> Any:
        def check(_module: nn.Module, _arguments: Any, output: Any) -> None:
            for tensor in _tensors(output):
                self._check(tensor, f"output of {place}")
                self._follow_back(tensor, f"output of {place}")

        return check

    def _accumulated(self, what: str) -> Any:
        def check(parameter: Tensor) -> None:
            if parameter.grad is not None:
                self._check(parameter.grad, f"gradient of {what}")

        return check

    def _follow_back(self, tensor: Tensor, what: str) -> None:
        """Looks at the gradient of a tensor when it comes; a tensor that passes several modules is looked at once.

        Hooks on tensors and not on modules: those make their outputs views, which in-place activations refuse.
        """
        if not tensor.requires_grad:
            return
        seen: tuple[int, list[str]] | None = getattr(tensor, "_watched", None)
        if seen is not None and seen[0] == tensor._version:  # not changed in place since: the same node of the graph
            seen[1].append(what)
            return
        names = [what]
        tensor._watched = (tensor._version, names)  # type: ignore[attr-defined]

        def check(gradient: Tensor) -> None:
            # What a tensor goes into comes after what it comes out of, so the last is whose backward was first.
            also = f" (the {names[0]})" if len(names) > 1 else ""
            self._check(gradient, f"gradient of the {names[-1]}{also}")

        tensor.register_hook(check)  # type: ignore[no-untyped-call]

    def _watch_optimizer(self, name: str, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        paths = {parameter: path for path, parameter in network.named_parameters(prefix=name)}

        def check(*_: Any) -> None:
            for parameter, path in paths.items():
                for key, value in optimizer.state.get(parameter, {}).items():
                    if isinstance(value, Tensor):
                        self._check(value, f"optimizer's {key} of weight {path}")
                self._check(parameter, f"weight {path} after the update")

        optimizer.register_step_post_hook(check)

    @torch.no_grad()
    def _check(self, tensor: Tensor, what: str) -> None:
        if not (tensor.is_floating_point() or tensor.is_complex()) or bool(tensor.isfinite().all()):
            return
        bad = ~tensor.isfinite()
        nans = int(tensor.isnan().sum())
        place = bad.nonzero()[0].tolist()
        raise ValueError(
            f"numbers went wrong at step {self.step} (after {self.shown:,} {self.unit}): {what}: {int(bad.sum()):,} of "
            f"{tensor.numel():,} values are not finite ({nans:,} NaN, {int(bad.sum()) - nans:,} infinite), the first "
            f"at {place} of {list(tensor.shape)}; the last good checkpoint stands"
        )


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in what a module takes or returns."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
