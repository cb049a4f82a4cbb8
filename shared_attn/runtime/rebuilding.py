"""A network rebuilt from a file's weights and description, without trusting that they belong together.

The description says how large the network is, and the weights show it: the network is first made on torch's meta
device, which takes no memory, and gets real memory only where every name and shape is what the file holds.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from shared_attn.runtime.messages import one_line

Network = TypeVar("Network", bound=nn.Module)

LARGEST = 2**20  # number in a description: a width, a number of heads, points or layers
MOST_CONSTANT_BYTES = 2**30  # of tables that a network computes for itself
# What constructors raise for keywords that nobody has checked.
MISTAKES = (
    LookupError,
    TypeError,
    RuntimeError,
    ValueError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    MemoryError,
)


def rebuild(create: Callable[..., Network], model: Any, state: Mapping[str, Tensor], *, optional: str = "") -> Network:
    """``create(**model)`` holding ``state``.

    Args:
        create: A module's class.
        model: Its keywords, as a file describes them.
        optional: How the names of those weights end that the file may lack.

    Raises:
        ValueError: The description is none, has numbers above LARGEST, describes another network than the weights', or
            the weights are not finite; in one line without the file's name.
    """
    try:
        check_numbers(model)
        with _at_most(len(state)), torch.device("meta"), _Unfilled():
            network = create(**model)
        expected = network.state_dict()
        _compare(expected, state, optional)
        state = {name: tensor.to(expected[name].dtype) for name, tensor in state.items()}  # files may hold halves
        network.load_state_dict(state, strict=False, assign=True)
        tensors = [*network.parameters(), *network.buffers()]
        if any(tensor.is_meta for tensor in tensors):  # what is computed when a network is made
            if sum(tensor.nbytes for tensor in tensors if tensor.is_meta) > MOST_CONSTANT_BYTES:
                raise ValueError("it would compute tables larger than a gigabyte")
            network = create(**model)
            network.load_state_dict(state, strict=False)
    except MISTAKES as error:
        raise ValueError(one_line(error, at_most=400)) from error
    return network


def check_numbers(described: Any, name: str = "model") -> None:
    """Raises ValueError, naming it, for a whole number in nested lists and objects that is larger than LARGEST."""
    if isinstance(described, Mapping):
        for key, value in described.items():
            check_numbers(value, f"{name}.{key}")
    elif isinstance(described, (list, tuple)):
        for value in described:
            check_numbers(value, name)
    elif isinstance(described, (int, float)) and abs(described) > LARGEST:
        raise ValueError(f"{name} = {str(described)[:40]}, expected at most {LARGEST}")


def _compare(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], optional: str) -> None:
    missing = sorted(name for name in expected.keys() - state.keys() if not (optional and name.endswith(optional)))
    unknown = sorted(state.keys() - expected.keys())
    if missing or unknown:
        named = [f"lacks {missing[0]}"] if missing else []
        named += [f"holds {unknown[0][:80]}, which the description has not"] if unknown else []
        raise ValueError(" and ".join(named))
    for name, tensor in state.items():
        wanted = expected[name]
        if (
            tensor.shape != wanted.shape
            or tensor.is_floating_point() != wanted.is_floating_point()
            or tensor.is_complex()
        ):
            found, described = (f"{part.dtype} {tuple(part.shape)}" for part in (tensor, wanted))
            raise ValueError(f"{name} is {found}, its description says {described}")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"{name} holds a number that is not finite")


class _Unfilled(TorchFunctionMode):
    """Leaves out the drawing of first weights: on the meta device it takes torch's compiler, and seconds to import."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        drawn = func is torch.Tensor.normal_ or getattr(func, "__module__", "") == nn.init.__name__
        tensor = args[0] if args else (kwargs or {}).get("tensor")
        return tensor if drawn and isinstance(tensor, Tensor) else func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _at_most(count: int) -> Iterator[None]:
    """Ends the making of a network, by a ValueError, when this thread gives it more than so many parameters."""
    made, thread = 0, threading.get_ident()

    def register(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> None:
        nonlocal made
        made += parameter is not None and threading.get_ident() == thread
        # A constructor may register a parameter anew, where it ties or wraps one.
        if made > 4 * count + 64:
            raise ValueError(f"it describes more weights than the {count} that are there")

    hook = register_module_parameter_registration_hook(register)
    try:
        yield
    finally:
        hook.remove()
