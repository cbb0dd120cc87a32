"""The parameters of `quantize`, and how a model is packed with them."""

# O outputs, I inputs

from __future__ import annotations

import fnmatch
import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from niwaki.anatomy import anatomy_of
from niwaki.errors import NiwakiError, closest
from niwaki.export.packed import require_onnx
from niwaki.grid import Grid, Zero, nearest
from niwaki.layers.linear import is_int8
from niwaki.limit import Limit
from niwaki.packable import check_patterns, packable
from niwaki.surgery import quantize_embedding
from niwaki.technique import Companion, Context, Grain, Technique
from niwaki.techniques.quantize import measured, rounding
from niwaki.techniques.quantize.aware import Plan, Steps
from niwaki.techniques.quantize.calibration import Calibration, Wanted, calibrate
from niwaki.techniques.quantize.packing import DATA_FREE, ROWS, affine, pack, pack_linears
from niwaki.techniques.quantize.reduced import ranges_told, reduces
from niwaki.techniques.quantize.sensitivity import within

Bits = Literal[8, 6, 4, 3, 2]
By = Literal["nearest", "mean-square", "percentile", "gptq", "awq", "hqq", "measured"]
#: What most people want, by name.
PRESETS: dict[str, dict[str, Any]] = {
    "int8": {},
    "int8-static": {"activations": "static"},
    "int8-weights": {"activations": "none"},
    "int8-embeddings-int4": {"embeddings": 4},
    "int4": {"bits": 4, "group": 32, "symmetric": False, "by": "mean-square", "embeddings": 4},
    "int4-gptq": {"bits": 4, "group": 32, "symmetric": False, "by": "gptq", "embeddings": 4},
    "int4-awq": {"bits": 4, "group": 32, "symmetric": False, "by": "awq", "embeddings": 4},
}
#: What "measured" tries.
FORMS: dict[str, dict[str, Any]] = {
    "int8 dynamic": PRESETS["int8"],
    "int8 static": PRESETS["int8-static"],
    "int8 weights": PRESETS["int8-weights"],
    "int4 weights, int8 embeddings": PRESETS["int4"] | {"embeddings": True, "activations": "none"},
    "int4": PRESETS["int4"] | {"activations": "none"},
}
#: What `override` may say of single modules.
GRID = ("bits", "group", "symmetric", "by")
OVERRIDES = (*GRID, "activations")
#: What "measured" finds.
FOUND = ("bits", "group", "symmetric", "activations", "override")


class Quantize(Technique):
    """Store weights as integers of 8 to 2 bits, and compute with integers where the processor has such products.

    A weight becomes w = (q - z) s: s the step that the weights of a row share (or of a group of it, or of the whole
    matrix), q an integer, and z the integer that stands for 0: the middle of the range where `symmetric`, else one of
    each group. With 8 bits by row around the middle, products are those of integers: activations become x = (u - z) s
    with u in 0..255; their range is taken from each input at run time ("dynamic"), or once from calibration rows
    ("static"), or they stay as they are ("none": smaller, not faster), which is all that other grids have. An embedding
    table has one step a row. The integers in the saved model are the integers in the exported artifact.

    Which integers: "nearest" takes the range as it is; "mean-square" shrinks it to the least squared error;
    "percentile" cuts its tails; "hqq" moves the zero points, which become numbers between integers, until outliers no
    longer count. "gptq" and "awq" look at calibration rows: the first rounds column by column and lets the columns that
    are left make up for each error, the second scales up the inputs that carry most. Both take the layers in order, on
    inputs that the layers before, rounded, put out.

    `smooth` divides input channel j by s_j = max|X_j|^a / max|W_j|^(1 - a) and multiplies column j of the weights by
    it, so that the outliers of activations, whose channels share one step, become those of weights, whose rows do not.
    The division is folded where that is exact: into the values, for the output projection; into norms inside the
    residual branch (decoders), for query, key, value, up and gate; into the up projection of a gated feed-forward, for
    the down projection. A norm behind the residual sum (BERT) feeds the next sum too, and GELU is not linear: there
    inputs are multiplied before they are rounded. Factors of "awq" are folded by the same rule.

    Which form: with `allowed_drop` the modules that cost most stay in 8 bits, or as they are, until the model loses no
    more than that. "measured" tries every form that the runtimes here offer, as an exported file, by the clock, and
    takes the fastest within the limit.

    Inside `train` weights, table rows and inputs are rounded in each forward pass, and the steps learn beside the
    weights, from where "nearest", "mean-square", "percentile" or "hqq" begin; the integers trained are those packed.

    Args:
        bits: bits of a weight: 8, 6, 4, 3 or 2.
        group: inputs of a row that share a step, 16 to 128, or "channel" (a whole row), or "tensor" (the whole matrix).
        symmetric: the middle of the integers stands for 0; else each group has a zero point.
        by: how the integers are found; or "measured", which finds bits and activations too: leave those alone then.
        activations: "dynamic", "static" or "none"; by default dynamic where products are those of integers. Dynamic
            needs no calibration and loses least; static saves the pass that finds the range.
        embeddings: bits of the embedding tables, and of a language head tied to one; true is 8, false leaves them as
            they are. They are half of a small model's bytes.
        skip: dotted names, or patterns with * and ?, of modules that stay as they are.
        override: by name or pattern, other bits, group, symmetric, activations or by for single linears.
        smooth: the exponent a, in [0, 1]; 0 is off, 0.5 a good start. For linears whose activations are rounded.
        examples: training rows to look at; padding is never counted. 128 to 1024. A linear that saw fewer tokens than
            it has inputs is rounded to nearest in place of "gptq" and "awq"; below 32 tokens its static range becomes
            dynamic, and it is not smoothed. The log says so.
        length: the first so many tokens of each of these rows; none takes all. 32 to 512.
        keep_range: share of the values inside a static range, in (0.5, 1]; below 1 outliers are cut.
        allowed_drop: points of the task's metric (of a language model nats, or perplexity) that may be lost on the
            selection rows, 0.5 to 1 as a rule; none: whatever is lost. 1 by default with "measured".
        confidence: with which new rows like the selection rows lose no more than `allowed_drop`, in (0.5, 1), such as
            0.9; by default it is the loss as counted. It wants rows that the model has not learnt from: a test split
            beside the validation split, or a model fine-tuned with `best: true` and the same seed.
        reduce_range: keep 8-bit weights that meet rounded activations within -64..64, which processors without VNNI or
            AMX need to add products right; by default as this machine needs it.
        preset: a name for a whole setting: "int8", "int8-static", "int8-weights", "int8-embeddings-int4", "int4",
            "int4-gptq" or "int4-awq"; what is given beside it counts more.

    Raises:
        NiwakiError: a pattern matches nothing, everything is packed already, a group does not divide a width, weights
            are not finite, there are no rows to look at, or nothing can be packed within `allowed_drop`.

    Composes with: everything before it, and distill, prune and replace in the same train; comes last, for nothing may
        cut what is packed into bits.

    References:
        Jacob et al. 2018, Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference,
        equation 1. Zafrir et al. 2019, Q8BERT: Quantized 8Bit BERT. Nagel et al. 2021, A White Paper on Neural Network
        Quantization (mean-square). Wu et al. 2020, Integer Quantization for Deep Learning Inference (percentile).
        Frantar et al. 2023, GPTQ, algorithm 1. Lin et al. 2024, AWQ, equation 4. Xiao et al. 2023, SmoothQuant,
        equation 4 (smooth). Esser et al. 2020, Learned Step Size Quantization, section 2 (inside train). Badri and
        Shaji 2023, Half-Quadratic Quantization of Large Machine Learning Models (hqq).

    Example:
        >>> Quantize(bits=8).activations, Quantize(preset="int4").activations
        ('dynamic', 'none')
    """

    grain: ClassVar[Grain] = Grain.BIT

    bits: Bits = 8
    group: Annotated[int, Field(ge=2)] | Literal["channel", "tensor"] = "channel"
    symmetric: bool = True
    by: By = "nearest"
    activations: Literal["dynamic", "static", "none"] = "dynamic"
    embeddings: bool | Bits = True
    skip: tuple[str, ...] = ()
    override: dict[str, dict[str, bool | int | str]] = Field(default_factory=dict)
    smooth: float = Field(0.0, ge=0, le=1)
    examples: int = Field(256, ge=1)
    length: int | None = Field(None, ge=1)
    keep_range: float = Field(1.0, gt=0.5, le=1)
    allowed_drop: float | None = Field(None, ge=0)
    confidence: float | None = Field(None, gt=0.5, lt=1)
    reduce_range: bool | None = None
    preset: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _filled(cls, given: Any) -> Any:
        """Fill in what a preset says, and activations that the grid allows."""
        if not isinstance(given, dict):
            return given
        if (preset := given.get("preset")) is not None:
            if preset not in PRESETS:
                meant = closest(str(preset), PRESETS) or "int8"
                raise ValueError(f"there is no preset {preset!r}, expected one of {', '.join(PRESETS)}: {meant}")
            given = PRESETS[preset] | given
        known = {"bits": 8, "group": "channel", "symmetric": True, "by": "nearest"} | given
        if known["by"] == "awq":
            return {"activations": "none"} | given
        return given if is_int8(_grid(**{name: known[name] for name in GRID})) else {"activations": "none"} | given

    @model_validator(mode="after")
    def _sound(self) -> Quantize:
        if self.activations != "none" and not is_int8(self.grid):
            raise ValueError(
                f"activations {self.activations} want weights of 8 bits, symmetric, by channel or tensor: leave "
                f"activations, which are then floats, or write bits: 8 and leave group"
            )
        if self.activations != "none" and self.by == "awq":
            raise ValueError(
                f"activations {self.activations} and by awq, which is for products of floats: leave activations, which "
                f"are then floats, or write smooth: 0.5 in place of by"
            )
        if self.confidence is not None and self.allowed_drop is None and self.by != "measured":
            raise ValueError(
                "confidence is that of allowed_drop, which is not given: write allowed_drop: 1.0 beside it"
            )
        if self.by == "measured" and any(getattr(self, name) != _default(name) for name in FOUND):
            raise ValueError(f"by: measured finds {', '.join(FOUND)}: leave them")
        for pattern, settings in self.override.items():
            if settings.get("by") == "measured":
                raise ValueError(f"override {pattern!r} has by: measured, expected a way to find integers: by: gptq")
            if unknown := sorted(set(settings) - set(OVERRIDES)):
                raise ValueError(f"override {pattern!r} has {', '.join(unknown)}, expected {', '.join(OVERRIDES)}")
            self._with(settings)
        every = (self.activations, *(self._with(settings).activations for settings in self.override.values()))
        if self.smooth and set(every) == {"none"}:
            raise ValueError(
                f"smooth is {self.smooth:g}, and activations are floats, in which nothing is to be smoothed: leave "
                f"smooth, or write bits: 8 and leave group, symmetric, by and activations"
            )
        return self

    @property
    def streams(self) -> bool:
        """Say whether layers are looked at one by one.

        Static ranges and smoothing look at the whole model before; limits and forms look at it whole, and often.
        """
        settings = [self, *(self._with(one) for one in self.override.values())]
        looks = self.smooth or self.allowed_drop is not None or self.by == "measured"
        return not looks and all(one.activations != "static" for one in settings)

    @property
    def grid(self) -> Grid:
        """Return the grid of the linears; that of integer products as this processor needs it."""
        return replace(
            _grid(self.bits, self.group, self.symmetric, self.by), reduced=reduces(self.reduce_range, self.activations)
        )

    @property
    def table_bits(self) -> int:
        """Return the bits of embedding tables; 0 where they stay as they are."""
        return 8 if self.embeddings is True else int(self.embeddings)

    def of(self, name: str) -> Quantize:
        """Return the settings for one linear."""
        for pattern, settings in self.override.items():
            if fnmatch.fnmatchcase(name, pattern):
                return self._with(settings)
        return self

    def _with(self, settings: dict[str, bool | int | str]) -> Quantize:
        given: dict[str, Any] = {name: getattr(self, name) for name in GRID} | settings
        if (
            "activations" not in given
            and given["by"] != "awq"
            and is_int8(self.grid)
            and is_int8(_grid(*(given[name] for name in GRID)))
        ):
            given["activations"] = self.activations
        return Quantize(**given, reduce_range=self.reduce_range)

    def keeping(self, kept: Mapping[str, int], names: Collection[str]) -> list[Quantize]:
        """Return the steps that pack `names` as the settings say, those in `kept` in 8 bits, or in 32 not at all."""
        asked = self.model_copy(update={"allowed_drop": None, "confidence": None, "skip": (*self.skip, *kept)})
        others = tuple(name for name in names if kept.get(name) != 8)
        eight = Quantize(activations="none", embeddings=bool(self.embeddings), skip=(*self.skip, *others))
        return [asked] * (len(kept) < len(names)) + [eight] * (len(others) < len(names))

    def check(self, model: nn.Module) -> None:
        """Refuse, before any work begins, what cannot be done to this model."""
        if self.by == "measured":
            measured.runtimes_for(model)
        linears, tables = self.chosen(model)
        for name in (*linears, *tables):
            module = model.get_submodule(name)
            weight = cast(Tensor, module.weight)
            if not weight.is_meta and not bool(torch.isfinite(weight).all()):
                raise NiwakiError(f"{name} has weights that are not finite", expected="numbers", place="quantize")
            group = self.of(name).group
            if name in linears and isinstance(group, int) and weight.shape[1] % group:
                common = math.gcd(*(cast(nn.Linear, model.get_submodule(one)).in_features for one in linears))
                fits = max(size for size in range(1, group + 1) if common % size == 0)
                raise NiwakiError(
                    f"group is {group}, and {name} has {weight.shape[1]} inputs",
                    expected="a group that divides every width",
                    fix=f'group: {fits}, or override: {{"{name}": {{group: channel}}}}',
                    place="quantize",
                )

    def check_export(self, model: nn.Module, formats: Collection[str]) -> None:
        """Refuse what ONNX Runtime has no operator for."""
        if "onnx" not in formats or self.by == "measured":
            return
        linears, tables = self.chosen(model)
        grids = {name: self.of(name).grid for name in linears}
        packed = {name: grid for name, grid in grids.items() if not is_int8(grid) or self.of(name).by == "awq"}
        packed |= {name: Grid(self.table_bits) for name in tables if self.table_bits < 8}
        for name, grid in packed.items():
            try:
                require_onnx(grid, cast(Tensor, model.get_submodule(name).weight).shape[1], name)
            except NiwakiError as error:
                raise error.at("quantize") from None

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Pack the model now."""
        self.check(model)
        if self.by == "measured":
            return measured.fastest(self, FORMS, model, context)
        if self.allowed_drop is not None:
            return within(self, model, context, Limit(self.allowed_drop, self.confidence))
        linears, tables = self.chosen(model)
        heads = self._heads(model, linears, tables)
        own = [name for name in linears if name not in heads]
        found = self._calibrated(model, own, heads, context)
        rows = partial(context.calibration_batches, self.examples, length=self.length, batch_size=ROWS)
        pack_linears(model, own, found, rows, context.parts)
        with context.parts.held(model, *tables, *heads):
            for name in tables:
                quantize_embedding(model, module=name, bits=self.table_bits)
            pack(model, heads, found)
        return model

    @property
    def can_accompany(self) -> bool:
        """Say whether the method says where steps begin; those that solve for integers are for the end."""
        return self.allowed_drop is None and not self.smooth and (self.by == "nearest" or self.by in DATA_FREE)

    @property
    def at_once(self) -> str:
        """Return what looks at the model once, or solves for integers."""
        return (
            "with smooth" if self.smooth else "with allowed_drop" if self.allowed_drop is not None else f"by {self.by}"
        )

    def accompany(self, model: nn.Module, context: Context) -> Companion:
        """Round weights and inputs in each forward pass of the training, with steps that learn; pack at the end."""
        self.check(model)
        linears, tables = self.chosen(model)
        for name in linears:
            self.of(name)._check_learns(name)
        heads = self._heads(model, linears, tables)
        own = [name for name in linears if name not in heads]
        found = self._calibrated(model, own, heads, context)
        rows = Plan(Grid(self.table_bits), nearest if self.by == "nearest" else rounding.mean_square)
        plans = {name: _plan(name, found) for name in own} | dict.fromkeys(tables, rows)
        plans |= {name: _plan(name, found) for name in heads}  # the table's own steps, which stand there first
        return Steps(model, plans)

    def _check_learns(self, name: str) -> None:
        """Refuse, inside train, what does its work at once."""
        if self.can_accompany:
            return
        raise NiwakiError(
            f"{name} is quantized {self.at_once}, which does its work at once",
            expected=f"inside train: by nearest, {', '.join(DATA_FREE)}, which say where the steps begin",
            fix="by: mean-square, or quantize as a step of its own after train",
            place="quantize",
        )

    def _heads(self, model: nn.Module, linears: Collection[str], tables: Collection[str]) -> list[str]:
        """Return the language head that is a word table, where it is packed as one."""
        return [name for name in linears if tables and name in (anatomy_of(model).tied_names or ())]

    def _calibrated(
        self, model: nn.Module, own: Collection[str], heads: Collection[str], context: Context
    ) -> Calibration:
        """Look at calibration rows; return what they say, and what is wanted of each linear as they allow."""
        ranges_told(self.reduce_range, {self.of(name).activations for name in (*own, *heads)}, context.log)
        wanted = {name: self._wanted(name) for name in own} | {name: self._head(name) for name in heads}
        rows = partial(context.calibration_batches, self.examples, length=self.length)
        return calibrate(model, context, wanted, own, rows, self.smooth, self.keep_range)

    def _wanted(self, name: str) -> Wanted:
        one = self.of(name)
        return Wanted(one.by, one.activations, bool(self.smooth) and one.activations != "none", one.grid)

    def _head(self, name: str) -> Wanted:
        """Return what is wanted of a head that shares its table: the table's integers."""
        one = self.of(name)
        activations = "none" if self.table_bits < 8 or one.grid.reduced else one.activations
        return Wanted("nearest", activations, grid=Grid(self.table_bits))

    def chosen(self, model: nn.Module) -> tuple[list[str], list[str]]:
        """Return the dotted names of the linears and of the embedding tables to pack."""
        check_patterns(model, tuple(self.override), self.name, "override")
        return packable(model, embeddings=bool(self.embeddings), skip=self.skip, technique=self.name)


def _plan(name: str, found: Calibration) -> Plan:
    """Say how a linear is rounded while it trains."""
    wanted = found.wanted[name]
    limits = found.ranges.get(name)
    start_input = affine(*limits) if limits is not None else None
    return Plan(wanted.grid, DATA_FREE.get(wanted.by, nearest), wanted.activations, start_input)


def _default(name: str) -> Any:
    return Quantize.model_fields[name].get_default(call_default_factory=True)


def _grid(
    bits: int, group: int | Literal["channel", "tensor"] = "channel", symmetric: bool = True, by: str = "nearest"
) -> Grid:
    zero: Zero = "float" if by == "hqq" else "middle" if symmetric else "integer"
    return Grid(bits, group, zero)
