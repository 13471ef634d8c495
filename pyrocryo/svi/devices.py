"""Where a fit runs: device, precision and number of processes, by Lightning Fabric."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pyrocryo.errors import InputError

__all__ = ["Machine", "company", "first_process", "machine", "matrix_products"]

GONE = re.compile("by peer|broken pipe|remote worker|remote process|NCCL", re.IGNORECASE)


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

    def of_all(self, value: Any) -> list[Any]:
        """The values that all processes have here, which they must ask for together."""
        if self.world == 1:
            return [value]
        gathered: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(gathered, value)
        return gathered


def machine(device: str | torch.device, devices: int, precision: str) -> Machine:
    """Takes a device, or starts as many processes as there are ``devices``.

    Each further process runs the whole script again up to this point, as Lightning Fabric does it
    (on several machines under SLURM, too, with ``devices`` on each).

    Args:
        device: "cpu", "cuda", "cuda:1", ...; which kind, where there are several.
        devices: How many processes, each with a device of its own.
        precision: "float32", "tf32" or "bf16".
    """
    device = torch.device(device)
    if device.type == "cuda" and device.index is None and devices == 1:
        device = torch.device("cuda", torch.cuda.current_device())
    if devices == 1 and precision != "bf16":
        return Machine(device)  # nothing for Fabric to do, so it need not be loaded
    from lightning_fabric import Fabric

    for name in ("lightning.fabric", "lightning_fabric"):  # says what was just asked for
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        fabric = Fabric(
            accelerator=device.type,
            devices=devices if device.type == "cpu" or device.index is None else [device.index],
            num_nodes=int(os.environ.get("SLURM_NNODES", 1)) if devices > 1 else 1,
            strategy="ddp" if devices > 1 else "auto",
            precision="bf16-mixed" if precision == "bf16" else "32-true",
        )
    except (ValueError, RuntimeError) as error:
        raise InputError(f"devices: {devices} of {device} ({error})") from None
    fabric.launch()
    return Machine(fabric.device, fabric.global_rank, fabric.world_size, fabric.autocast)


def first_process(devices: int = 1) -> bool:
    """Whether this is the process that writes, before and after the others are started.

    Args:
        devices: How many processes are to train together; one is always the first.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank() == 0
    if devices == 1:
        return True
    names = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
    return not any(os.environ.get(name, "0") != "0" for name in names)


@contextlib.contextmanager
def company(there: Machine, checkpoint: Path | None) -> Iterator[None]:
    """Says in one line that a process which trains with this one was killed, or failed.

    On GPUs, NCCL may wait for its time-out before it tells.

    Args:
        there: This process.
        checkpoint: The checkpoint of the fit, if it leaves one.

    Raises:
        ConnectionError: In place of what the transport between them raises.
    """
    try:
        yield
    except RuntimeError as error:
        if there.world == 1 or not GONE.search(str(error)):
            raise
        said = f"devices: another of {there.world} processes that train together is gone"
        if checkpoint is not None and checkpoint.exists():
            said += f"; {checkpoint} stays, --resume goes on from there (in Python, resume=True)"
        raise ConnectionError(said) from None


@contextlib.contextmanager
def matrix_products(precision: str) -> Iterator[None]:
    """Matrix products of float32 in TF32 where ``precision`` says so (on a GPU that has it)."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
