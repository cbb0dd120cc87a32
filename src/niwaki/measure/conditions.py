"""What the numbers depend on: the machine, the packages, the inputs."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

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


def machine(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, Any]:
    """Return `device`, `instruction_sets`, `cores`, `os`, `date`, `load_average` of this machine.

    Instruction sets decide which precision pays (int8 wants vnni or amx; bf16 without hardware is slower than
    f32). Where there is no /proc/cpuinfo they are left empty: unknown, not absent.
    """
    from niwaki.runtime import default_threads

    fields = _first_processor(cpuinfo)
    flags = set(f"{fields.get('flags', '')} {fields.get('Features', '')}".split())
    return {
        "device": fields.get("model name") or platform.processor() or platform.machine(),
        "instruction_sets": tuple(name for name, kin in INSTRUCTION_SETS.items() if flags.intersection(kin)),
        "cores": default_threads(),
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


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
