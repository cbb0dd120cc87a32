"""Write a model as a plain safetensors file with every weight in it, zeros too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from niwaki.checkpoint import WEIGHTS, load, save, weights_hash
from niwaki.errors import MismatchError, NiwakiError
from niwaki.export.parity import Parity, logits_of


def export_safetensors(model: nn.Module, examples: Sequence[Mapping[str, Tensor]], path: str | Path) -> Parity:
    """Write `model.safetensors` without bitmaps, with `config.json` beside it, and read it back to check.

    Plain Transformers reads that folder where all layers ended up alike and nothing is packed into bits; niwaki always
    does.

    Args:
        model: a Transformers model. It is left as it was.
        examples: inputs to check on, (B, T) each.
        path: the file, called model.safetensors; the folder must exist.

    Returns:
        How well the file agrees with the model: altogether, or it is an error.

    Raises:
        NiwakiError: another file name.
        MismatchError: what is read back is another model; the file is not left behind.
    """
    path = Path(path)
    if path.name != WEIGHTS:
        raise NiwakiError(
            f"{path} is called {path.name}", expected=f"a file called {WEIGHTS}", fix=str(path.with_name(WEIGHTS))
        )
    modes = {module: module.training for module in model.modules()}
    save(model.eval(), path.parent, dense=True)
    again = load(path.parent)
    before_NC, after_NC = logits_of(model, examples), logits_of(again, examples)
    for module, mode in modes.items():
        module.training = mode
    if weights_hash(model) != weights_hash(again) or not torch.equal(before_NC, after_NC):
        path.unlink()
        raise MismatchError("what was written reads as another model", expected="the same bits", place=str(path))
    return Parity(agreement=1.0, largest_difference=0.0, count=len(before_NC))
