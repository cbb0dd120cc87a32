"""The parameters of `attend`, and what is done with them."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator
from torch import nn

from niwaki.anatomy import Layer, anatomy_of, longest_read
from niwaki.errors import NiwakiError
from niwaki.layers.attention import Mechanism, mechanisms_of
from niwaki.layers.kinds import OF_DECODERS, SETTINGS, Kind
from niwaki.surgery import extend_positions, swap_attention
from niwaki.swapping import Coin, Curriculum, Pair, Schedule, Swapping
from niwaki.technique import Companion, Context, Grain, Technique
from niwaki.techniques.attend.break_even import LONGEST, Times, times_of
from niwaki.techniques.attend.exact import Exact
from niwaki.techniques.attend.transfer import Swapped, transfer


class Attend(Technique):
    """Put attention whose time and memory grow with the length, not with its square, in the place of softmax attention.

    Exact: softmax(Q K^T / sqrt(S)) V, each of T tokens with all T. By "window" a token sees those less than `window`
    away, and the first `global_tokens` see all and are seen by all; inputs of up to `window` tokens are attended to as
    before. By "linear" exp(q k / sqrt(S)) becomes phi(q) phi(k) with learnt features phi, and the sums over tokens are
    taken once. By "nystrom" tokens meet through `landmarks`, the means of as many segments of the text: a softmax of
    low rank. A decoder is changed by "hybrid": each token sees the last `window` by a softmax and all earlier ones
    through features, so that a token more costs the same however long the text is. Projections stay as they are.

    Features begin as the identity. Before anything else they are taught, layer by layer, with the rest of the model
    held still, what the exact attention does on `examples` rows: its maps (cross-entropy) or its outputs (mean square
    over variance). Then comes a `train`, with the whole model as the teacher.

    Short inputs do not get faster: a window of 128 and a text of 25 tokens have nothing to save. So the step times both
    attentions on this machine, says from which length on the new one is faster, and refuses where that is beyond what
    the model reads, or where the training texts as they are would not get faster.

    `positions` lets the model read longer inputs: its table of positions is copied behind itself, or stretched.

    Args:
        by: of an encoder "window", "linear" or "nystrom"; of a decoder "hybrid".
        keep: indices of layers, from 0, that stay exact.
        window: of "window" and "hybrid", at least 1. 64 to 256.
        global_tokens: of "window": first tokens that see all and are seen by all. 1, where the first token is read.
        features: of "linear" and "hybrid": "hedgehog", softmax([x W + b, -x W - b]), or "t2r", max(0, x W + b).
        landmarks: of "nystrom": segments of a text. 32 to 128.
        positions: tokens the model is to read; as many as now when null.
        fill: "copied": shorter inputs are read as before; "interpolated": all positions move, and training must follow.
        match: of "linear" and "hybrid": what is taught before training, "maps", "outputs" or "nothing"; when null
            "maps" of linear, "outputs" of hybrid, which learns no maps.
        examples: training rows to learn from. 256 to 2048.
        length: of long rows the first so many tokens are learnt from; maps take memory by its square. 128 to 512.
        passes: over these rows. 2 to 10.
        learning_rate: of Adam, for features alone. 1e-3 to 1e-2.
        end: inside `train`: until this progress a coin decides for each layer who answers, the exact attention or the
            new one, which answers more and more often; 0 is never the exact one. 0.2 to 0.6.
        coin: one for each layer and "batch", or for each layer and "example".
        probability: of the new one at first, in [0, 1]. 0 to 0.5.
        schedule: how that rises to 1 at `end`: "linear", "cosine", or "constant" until it jumps.
        allow_slower: go on where nothing gets faster.

    Raises:
        NiwakiError: nothing gets faster on this machine, no layer is left to change, positions inside a `train` or of a
            decoder, or a kind that is not for this model.

    Composes with: distill (recommended), prune, drop, replace, quantize and factor: projections are those of any
        attention, and feature maps of heads that go, go with them.

    References:
        Beltagy et al. 2020, Longformer, sections 3.1 (window, global tokens) and 5 (positions). Zhang et al. 2024, The
        Hedgehog and the Porcupine, sections 4.1 and 4.2 (features, maps). Kasai et al. 2021, Finetuning Pretrained
        Transformers into RNNs, section 2.2 (t2r). Xiong et al. 2021, Nystromformer, equations 13 and 14 (nystrom).
        Zhang et al. 2025, LoLCATs, section 3 (outputs, hybrid).

    Example:
        >>> Attend(window=64).by, Attend(by="linear").features
        ('window', 'hedgehog')
    """

    grain: ClassVar[Grain] = Grain.NONE

    by: Kind = "window"
    keep: tuple[int, ...] = ()
    window: int = Field(128, ge=1)
    global_tokens: int = Field(1, ge=0)
    features: Literal["hedgehog", "t2r"] = "hedgehog"
    landmarks: int = Field(64, ge=1)
    positions: int | None = Field(None, ge=1)
    fill: Literal["copied", "interpolated"] = "copied"
    match: Literal["maps", "outputs", "nothing"] | None = None
    examples: int = Field(512, ge=1)
    length: int = Field(256, ge=2)
    passes: int = Field(4, ge=1)
    learning_rate: float = Field(1e-2, gt=0, le=1)
    end: float = Field(0.0, ge=0, le=1)
    coin: Coin = "batch"
    probability: float = Field(0.0, ge=0, le=1)
    schedule: Schedule = "linear"
    allow_slower: bool = False

    @model_validator(mode="after")
    def _sound(self) -> Attend:
        if self.by == "window" and self.global_tokens > self.window:
            raise ValueError(f"global_tokens is {self.global_tokens}, expected at most the window, {self.window}")
        if self.by == "hybrid" and self.match == "maps":
            raise ValueError("match is maps, of hybrid expected outputs or nothing")
        return self

    @property
    def without_dropping(self) -> str:
        """Return what is to be written: it tells no scores of tokens."""
        return "attend or drop-tokens, not both"

    @property
    def settings(self) -> dict[str, Any]:
        """Return the parameters that this kind of attention has."""
        return {name: getattr(self, name) for name in SETTINGS[self.by]}

    def check(self, model: nn.Module) -> None:
        """Refuse what this model cannot do, and what would not get faster even on the longest input that it reads."""
        self._check_kind(model)
        self._check_positions(model)
        layers = self._chosen(model)
        if self.allow_slower:
            return
        longest = self._longest_timed(self.positions or longest_read(model))
        if self._times(layers[0], longest).break_even > longest:
            beyond = self._times(layers[0], max(longest, LONGEST)).break_even
            if beyond <= longest:
                return  # the clock says so once in two: what the training texts gain is for `apply` to say
            begins = f"beyond {LONGEST}" if math.isinf(beyond) else f"at about {beyond:.0f}"
            lengthens = "" if self.by in OF_DECODERS else "positions: 4096, with longer texts; or "
            raise NiwakiError(
                f"by {self.by}, nothing gets faster up to {longest} tokens, the longest input this model reads",
                expected=f"longer inputs: on this machine it begins to pay {begins} tokens",
                fix=f"{lengthens}allow_slower: true",
                place=self.name,
            )

    def _check_kind(self, model: nn.Module) -> None:
        decodes = anatomy_of(model).family.pre_norm
        if decodes != (self.by in OF_DECODERS):
            fitting = [kind for kind in SETTINGS if decodes == (kind in OF_DECODERS)]
            name = model.config.model_type  # type: ignore[union-attr]
            raise NiwakiError(
                f"by is {self.by}, and a {name} reads {'from left to right' if decodes else 'in both directions'}",
                expected=" or ".join(fitting),
                fix=f"by: {fitting[0]}",
                place=self.name,
            )

    def _longest_timed(self, reads: int) -> int:
        """Return up to which length attention is timed: a decoder may read more than one would wait for."""
        return min(reads, LONGEST) if self.by in OF_DECODERS else reads

    def _check_positions(self, model: nn.Module) -> None:
        reads = longest_read(model)
        if self.positions is not None and self.by in OF_DECODERS:
            raise NiwakiError(
                f"positions is {self.positions}, of a model without a table of positions",
                expected="null: rotary positions are not lengthened here",
                place=self.name,
            )
        if self.positions is not None and self.positions < reads:
            raise NiwakiError(
                f"positions is {self.positions}",
                expected=f"at least {reads}, which the model reads now",
                place=self.name,
            )

    def _chosen(self, model: nn.Module) -> list[Layer]:
        """Return the layers whose attention is swapped."""
        layers = anatomy_of(model).layers
        if absent := sorted(set(self.keep) - set(range(len(layers)))):
            raise NiwakiError(f"keep has {absent}", expected=f"layers in 0..{len(layers) - 1}", place=self.name)
        chosen = [layer for layer in layers if layer.index not in self.keep and layer.heads and not self._stands(layer)]
        if not chosen:
            raise NiwakiError(
                "attend finds no attention to swap",
                expected="a layer with heads that keep leaves, and that does not attend like this already",
                place=self.name,
            )
        return chosen

    def _stands(self, layer: Layer) -> bool:
        """Say whether the layer attends like this already: what it has learnt stays."""
        mechanism = getattr(layer.attention, "mechanism", None)
        return isinstance(mechanism, Mechanism) and mechanism.form == (self.by, self.settings)

    def _times(self, layer: Layer, longest: int) -> Times:
        settings = tuple(self.settings.items())
        return times_of(self.by, layer.heads, layer.head_size, layer.key_value_heads, longest, settings)

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Lengthen the positions, swap the attentions, and teach them."""
        self._swap(model, context)
        return model

    def _swap(self, model: nn.Module, context: Context) -> Swapped:
        """Do what `apply` does; return the attentions that are new."""
        self.check(model)
        if self.positions is not None and self.positions > longest_read(model):
            extend_positions(model, tokens=self.positions, fill=self.fill)
            context = context.as_read_by(model)
        self._check_texts(model, context)
        before = [mechanism for _, mechanism in mechanisms_of(model)]
        for layer in self._chosen(model):
            swap_attention(model, layer=layer.index, by=self.by, **self.settings)
        swapped = [(place, one) for place, one in mechanisms_of(model) if all(one is not old for old in before)]
        self._teach(model, swapped, context)
        return swapped

    def check_accompany(self) -> None:
        """Refuse to lengthen what is read while it is read."""
        if self.positions is not None:
            raise NiwakiError(
                f"positions is {self.positions} inside train, which has read its texts already",
                expected="a step of its own, before train",
                fix=f"- attend: {{positions: {self.positions}}}",
                place=self.name,
            )

    def accompany(self, model: nn.Module, context: Context) -> Companion:
        """Swap the attentions and teach them; then all learns together."""
        self.check_accompany()
        swapped = self._swap(model, context)
        pairs = [Pair(mechanism, [Exact(mechanism)]) for _, mechanism in swapped] if self.end else []
        curriculum = Curriculum(self.schedule, self.probability, self.end)
        return Swapping(pairs, curriculum, coin=self.coin, seed=context.seed)

    def _check_texts(self, model: nn.Module, context: Context) -> None:
        """Say from which length on it pays, and refuse texts that would not get faster."""
        if self.allow_slower:
            return
        times = self._times(self._chosen(model)[0], self._longest_timed(longest_read(model)))
        lengths = context.train.lengths
        speedup = times.speedup(lengths)
        context.log(
            {
                "event": "break-even",
                "by": self.by,
                "tokens": times.break_even,
                "speedup": speedup,
                "mean_length": float(lengths.mean()),
                "lengths": list(times.lengths),
                "seconds": {"exact": list(times.exact), self.by: list(times.other)},
            }
        )
        if speedup <= 1.0:
            raise NiwakiError(
                f"by {self.by}, attention to these texts, {lengths.mean():.0f} tokens in the mean and {lengths.max()} "
                f"at most, takes {1 / speedup:.2g} times as long as it does now",
                expected=f"texts of more than {times.break_even:.0f} tokens, where it begins to pay on this machine",
                fix="allow_slower: true, if longer texts than these will come",
                place=self.name,
            )
        pays = f"{self.by} attention pays from about {times.break_even:.0f} tokens on in PyTorch on this machine"
        context.log({"event": "note", "note": f"{pays}, and attends to the training texts {speedup:.2g} times as fast"})

    def _teach(self, model: nn.Module, swapped: Swapped, context: Context) -> None:
        """Teach features what exact attention does, where there are any."""
        learns = any(True for _, mechanism in swapped for _ in mechanism.parameters())
        match = self.match or ("outputs" if self.by == "hybrid" else "maps")
        if match == "nothing" or not learns:
            return
        batches = list(context.calibration_batches(self.examples, batch_size=8, length=self.length))
        first, last = transfer(
            model, swapped, batches, match=match, passes=self.passes, learning_rate=self.learning_rate
        )
        context.log({"event": "attention-transfer", "match": match, "first_pass": first, "last_pass": last})
