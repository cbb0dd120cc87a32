"""Where the residual width is: the modules that hold, write, read and normalise the hidden channels between the layers.

Every hidden channel is one column of the embedding tables, one row of each linear that adds to the residual stream, one
column of each that reads it, and one entry of each norm over it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from niwaki.anatomy import Anatomy, anatomy_of, rows_of

READERS = ("query", "key", "value", "up", "gate")
WRITERS = ("output", "down")
NORMS = ("attention_norm", "output_norm")


@dataclass(frozen=True)
class Residual:
    """Give the dotted names of all that the residual width runs through.

    Attributes:
        tables: embedding tables whose columns are channels; none where a family projects its embeddings.
        norms: norms over the channels.
        writers: linears whose outputs are added to the stream, or begin it.
        readers: linears that read the stream.
        sources: what puts numbers into the stream that no norm has seen: where a gate on the channels must stand beside
            the norms.
        width: the number of channels.
    """

    tables: tuple[str, ...]
    norms: tuple[str, ...]
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    sources: tuple[str, ...]
    width: int


def residual_of(model: nn.Module) -> Residual:
    """Find the residual width of a model of a known family.

    In post-norm families the stream is always the output of a norm; in pre-norm ones it is the plain sum of what the
    embeddings and the writers put out.
    """
    anatomy = anatomy_of(model)
    projection = _present(anatomy, anatomy.prefix + anatomy.family.embedding_projection)
    # a projection ends the embedding's own width: what lies before it stays
    tables = () if projection else tuple(anatomy.embedding_names())
    start_norms = () if projection else tuple(_embedding_norms(anatomy))
    writers = (*projection, *_parts(anatomy, WRITERS))
    final = _optional(anatomy, "final_norm")
    pre_norm = getattr(anatomy.family, "pre_norm", False)
    return Residual(
        tables=tables,
        norms=(*start_norms, *_parts(anatomy, NORMS), *(_present(anatomy, anatomy.prefix + final) if final else ())),
        writers=writers,
        readers=(*_parts(anatomy, READERS), *_first_of_head(anatomy), *_first_of_exits(model)),
        sources=(*tables, *writers) if pre_norm else projection,
        width=rows_of(anatomy.layers[0].part("down")),
    )


def _parts(anatomy: Anatomy, roles: tuple[str, ...]) -> Iterator[str]:
    """Yield the dotted names of these roles in every layer; a family need not have them all."""
    for layer in anatomy.layers:
        for role in roles:
            if _optional(anatomy, role):
                yield layer.name_of(role)


def _first_of_head(anatomy: Anatomy) -> tuple[str, ...]:
    """Return what reads the last hidden state: the pooling linear where there is one, else the head."""
    family = anatomy.family
    bare = not anatomy.prefix
    for path in (family.pooler, family.head, _optional(anatomy, "language_head")):
        found = _present(anatomy, path.removeprefix(f"{family.backbone}.") if bare else path)
        if found:
            return found
    return ()


def _first_of_exits(model: nn.Module) -> Iterator[str]:
    """Yield what reads the stream in the heads of exits."""
    for name, _ in model.named_modules():
        if name.startswith("exits.heads.") and name.endswith(".dense"):
            yield name


def _embedding_norms(anatomy: Anatomy) -> Iterator[str]:
    start = anatomy.prefix + anatomy.family.embeddings
    for name, module in anatomy.embeddings.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.dim() == 1:
            yield f"{start}.{name}"


def _optional(anatomy: Anatomy, role: str) -> str:
    """Return the path of a role that not every family has, or nothing."""
    return str(getattr(anatomy.family, role, ""))


def _present(anatomy: Anatomy, name: str) -> tuple[str, ...]:
    """Return the name in a tuple of one where such a module is there, else nothing."""
    names = {found for found, _ in anatomy.model.named_modules() if found}
    return (name,) if name in names else ()
