"""How much memory a device has left."""

from __future__ import annotations

import os
from pathlib import Path

import torch

__all__ = ["free_memory"]

GROUPS = Path("/sys/fs/cgroup")


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had on ``device``; its own memory for CUDA, else the machine's.

    What the kernel would give up for it (cached files) counts as free; a limit of the container
    or batch job counts where the kernel tells it (cgroup v2).
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        told = _numbers("/proc/meminfo")
        free = 1024 * told["MemAvailable:"]
    except (OSError, KeyError):  # not Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return min([free, *_left_in_groups()])


def _left_in_groups() -> list[int]:
    """What each cgroup of this process, from its own to the root, may still take."""
    left = []
    try:
        own = Path("/proc/self/cgroup").read_text().rpartition("0::")[2].strip().lstrip("/")
        for group in (GROUPS / own, *(GROUPS / own).parents):
            limit = group / "memory.max"
            if limit.is_file() and (most := limit.read_text().strip()) != "max":
                left.append(int(most) - _numbers(group / "memory.stat")["anon"])
    except (OSError, KeyError, ValueError):
        pass
    return left


def _numbers(path: str | Path) -> dict[str, int]:
    """The lines of a file that start with a name and a number."""
    lines = (line.split() for line in Path(path).read_text().splitlines())
    return {line[0]: int(line[1]) for line in lines}
