"""A rehearsal on the meta device: what would stay behind on the CPU, what would wait for it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyrocryo.testing.checks import Fault, first_line

__all__ = ["Rehearsal"]

WAITS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
MIXED = re.compile(r"expected device|same device|two devices")
UNKNOWN = re.compile(r"no fake impl or Meta kernel|with arguments from the 'Meta' backend")


class _Left(Exception):
    """A tensor was left on the CPU."""


class _Waits(Exception):
    """The host would wait for the device."""


class Rehearsal:
    """Runs code on meta tensors, which have a device and a shape but no values.

    Twice, since what is copied to the device once and kept there does not stand in the way.

    Args:
        run: The code, everything that it should use already on the meta device.
    """

    def __init__(self, run: Callable[[], Any]) -> None:
        self._left: str | None = None
        self._waits: str | None = None
        self._unknown: str | None = None
        try:
            with torch.no_grad():
                for first in (True, False):
                    with _Watch(copies=first):
                        run()
        except _Left as error:
            self._left = first_line(error).removeprefix("_Left: ")
        except _Waits as error:
            self._waits = first_line(error).removeprefix("_Waits: ")
        except Exception as error:  # whatever the code under test may raise
            line = first_line(error)
            if MIXED.search(str(error)):
                self._left = f"a tensor stays on the cpu: {line}"
            elif UNKNOWN.search(str(error)):
                self._unknown = line
            else:
                self._waits = line

    def device(self) -> str:
        """Raises Fault if a tensor stays on the CPU."""
        if self._left:
            raise Fault(self._left)
        return "nothing stays on the cpu"

    def capture(self) -> str:
        """Raises Fault if the host has to know a value."""
        if self._waits:
            raise Fault(self._waits)
        if self._unknown:
            return f"cannot tell: {self._unknown}"
        return "no value is asked for by the host"


class _Watch(TorchDispatchMode):
    """Sees every operation; meta kernels alone let many mixtures of devices pass."""

    def __init__(self, *, copies: bool) -> None:
        super().__init__()
        self.copies = copies  # whether they are allowed

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        meta = any(t.is_meta for t in given)
        if name == "_to_copy":
            target = kwargs.get("device")
            moved = target is not None and (target.type == "meta") != meta
            if moved and (meta or not self.copies):
                raise _Waits("a tensor is copied between cpu and device at every call")
        elif meta and any(not t.is_meta and t.dim() for t in given):
            shapes = [tuple(t.shape) for t in given if not t.is_meta and t.dim()]
            raise _Left(f"a tensor of shape {shapes[0]} stays on the cpu (in {name})")
        elif meta and WAITS & set(func.tags) and name != "index":  # a mask there ends in nonzero
            raise _Waits(f"the host waits for a value: {_WORDS.get(name, name)}")
        return func(*args, **kwargs)


_WORDS = {"_local_scalar_dense": ".item(), float(), or a branch on a tensor"}
