"""What the numbers depend on: the machine, the packages, the inputs."""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

CPUINFO = Path("/proc/cpuinfo")
PACKAGES = ("niwaki", "torch", "transformers", "onnxruntime", "openvino")
INSTRUCTION_SETS = {
    "avx2": ("avx2",),
    "avx512": ("avx512f",),
    "vnni": ("avx512_vnni", "avx_vnni"),
    "amx": ("amx_int8", "amx_bf16"),
    "bf16": ("avx512_bf16", "amx_bf16", "bf16"),
    "neon": ("asimd", "neon"),
    "dotprod": ("asimddp",),
    "i8mm": ("i8mm",),
    "sve": ("sve",),
}


def machine(cpuinfo: Path = CPUINFO) -> dict[str, Any]:
    """Return `device`, `instruction_sets`, `cores`, `os`, `date`, `load_average` of this machine.

    Instruction sets decide which precision pays (int8 wants vnni or amx; bf16 without hardware is slower than
    f32).
    """
    from niwaki.runtime import default_threads

    return {
        "device": _first_processor(cpuinfo).get("model name") or platform.processor() or platform.machine(),
        "instruction_sets": instruction_sets(cpuinfo),
        "cores": default_threads(),
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


@functools.cache
def instruction_sets(cpuinfo: Path = CPUINFO) -> tuple[str, ...]:
    """Return which of `INSTRUCTION_SETS` the processor has; without a /proc/cpuinfo none: unknown, not absent."""
    fields = _first_processor(cpuinfo)
    flags = set(f"{fields.get('flags', '')} {fields.get('Features', '')}".split())
    return tuple(name for name, kin in INSTRUCTION_SETS.items() if flags.intersection(kin))


def adds_in_16_bits(sets: Sequence[str]) -> bool:
    """Say whether kernels on such a processor add products of bytes in pairs in 16 bits, where they may not fit.

    AVX2 and AVX-512 have one instruction for that (`vpmaddubsw`), and it saturates; VNNI and AMX add in 32 bits, as the
    kernels for ARM do.

    >>> adds_in_16_bits(("avx2", "avx512")), adds_in_16_bits(("avx2", "vnni")), adds_in_16_bits(("neon",))
    (True, False, False)
    """
    return "avx2" in sets and not {"vnni", "amx"}.intersection(sets)


def _first_processor(cpuinfo: Path) -> dict[str, str]:
    """Return the fields of the first processor in a cpuinfo file, empty where there is none."""
    if not cpuinfo.exists():
        return {}
    first = cpuinfo.read_text(encoding="utf-8", errors="replace").strip().split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def versions() -> dict[str, str]:
    """Return the versions of Python and of those packages that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def describe_lengths(lengths: npt.NDArray[np.integer[Any]]) -> dict[str, Any]:
    """Return mean, p50, p90 and max of row lengths (N,), in tokens."""
    p50, p90 = np.percentile(lengths, [50, 90])
    return {
        "mean": float(np.mean(lengths)),
        "p50": float(p50),
        "p90": float(p90),
        "max": int(np.max(lengths)),
    }
