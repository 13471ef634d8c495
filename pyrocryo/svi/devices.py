"""Where a fit runs: device, precision and number of processes, by Lightning Fabric."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

__all__ = ["Machine", "first_process", "machine", "matrix_products"]


@dataclass(frozen=True)
class Machine:
    """One of the processes that train together.

    Attributes:
        device: Its device.
        rank: Its number; 0 is the one that writes.
        world: How many there are.
        autocast: The context in which networks run.
    """

    device: torch.device
    rank: int = 0
    world: int = 1
    autocast: Callable[[], AbstractContextManager] = contextlib.nullcontext


def machine(device: str | torch.device, devices: int, precision: str) -> Machine:
    """Takes a device, or starts as many processes as there are ``devices``.

    Each further process runs the whole script again up to this point, as Lightning Fabric does it
    (and torchrun, and SLURM on several machines, whose processes are recognised).

    Args:
        device: "cpu", "cuda", "cuda:1", ...; which kind, where there are several.
        devices: How many processes, each with a device of its own.
        precision: "float32", "tf32" or "bf16".
    """
    device = torch.device(device)
    if devices == 1 and precision != "bf16":
        return Machine(device)  # nothing for Fabric to do, so it need not be loaded
    from lightning_fabric import Fabric

    for name in ("lightning.fabric", "lightning_fabric"):  # says what was just asked for
        logging.getLogger(name).setLevel(logging.WARNING)
    fabric = Fabric(
        accelerator=device.type,
        devices=devices if device.type == "cpu" or device.index is None else [device.index],
        strategy="ddp" if devices > 1 else "auto",
        precision="bf16-mixed" if precision == "bf16" else "32-true",
    )
    fabric.launch()
    return Machine(fabric.device, fabric.global_rank, fabric.world_size, fabric.autocast)


def first_process() -> bool:
    """Whether this is the process that writes, before and after the others are started."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank() == 0
    names = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
    return not any(os.environ.get(name, "0") != "0" for name in names)


@contextlib.contextmanager
def matrix_products(precision: str) -> Iterator[None]:
    """Matrix products of float32 in TF32 where ``precision`` says so (on a GPU that has it)."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
