"""`compress`: carry out a recipe, step by step, into a run folder that an interruption cannot harm."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from niwaki.anatomy import anatomy_of, label_names, longest_input
from niwaki.artifacts import export_run, require_exportable, usual_exports
from niwaki.checkpoint import JOURNAL, WEIGHTS, load, load_tokenizer, save, weights_hash, write_text, written_aside
from niwaki.comparison import RUNTIMES, Comparison, compare, joined, usual_runtimes
from niwaki.errors import NiwakiError
from niwaki.measure import count_parameters
from niwaki.measure.conditions import machine
from niwaki.parts import OnDisk, Parts, Plan, can_stream, is_large, layout_of
from niwaki.recipe import Recipe, Step
from niwaki.report import card
from niwaki.runtime import default_threads
from niwaki.task import Dataset, Task
from niwaki.teacher import cache_folder
from niwaki.technique import Context, Grain
from niwaki.train import Train

#: What the log of a run says that nothing was measured in.
STREAMED = (
    "the base was read from disk block by block: nothing was measured; where it fits in memory, niwaki compare does it"
)


@dataclass(frozen=True)
class Run:
    """Name a run folder and read what is in it; the folder of a family holds runs, its members."""

    folder: Path

    @property
    def name(self) -> str:
        """Return the folder's name."""
        return self.folder.name

    @property
    def recipe(self) -> Recipe:
        """Return the recipe that was carried out, with every default."""
        return Recipe.read(self.folder / "recipe.yaml")

    @property
    def members(self) -> list[Run]:
        """Return the runs of a family, in the order of its recipe; a single run is its own only member."""
        return [Run(self.folder / name) for name in self.recipe.family()] or [self]

    @property
    def is_measured(self) -> bool:
        """Say whether there is a comparison: not of a model that was read block by block, or not to be measured."""
        return all((member.folder / "measurement.json").is_file() for member in self.members)

    @property
    def comparison(self) -> Comparison:
        """Return what was measured of the run, or of all members, beside the base."""
        return joined([Comparison.read(member.folder / "measurement.json") for member in self.members])

    @property
    def base(self) -> dict[str, Any]:
        """Return which base model and data the run came from."""
        return dict(json.loads((self.folder / "base.json").read_text(encoding="utf-8")))

    def load(self) -> nn.Module:
        """Load the compressed model."""
        if self.members != [self]:
            names = [member.name for member in self.members]
            raise NiwakiError(
                f"{self.folder} is a family of {len(names)} runs",
                expected="one of its members",
                fix=f"niwaki.load({str(self.folder / names[0])!r})",
            )
        return load(self.folder)

    def __fspath__(self) -> str:
        return str(self.folder)


def compress(
    base: nn.Module | str | Path,
    recipe: Recipe | str | Path,
    task: Task,
    out: str | Path,
    *,
    seed: int = 0,
    export: Sequence[str] | None = None,
    measure: bool = True,
    runtimes: Sequence[str] | None = None,
    threads: int | None = None,
    progress: bool = True,
    stream: bool | None = None,
) -> Run:
    """Carry out a recipe on a fine-tuned model, measure the result beside it, and write a run folder with a model card.

    The base is left as it was.

    A recipe with a list of targets makes a family: a run folder for each target in `out`, from one calibration. What
    comes back names the folder of the family, and its `members` are the runs.

    On an existing folder it goes on: finished steps are kept (each keyed by the hash of all that went into it), and an
    interrupted training takes up its last checkpoint and ends with the weights it would have had.

    Args:
        base: a fine-tuned model (loaded by `niwaki.load`), its folder, or a hub id.
        recipe: a recipe, a YAML file, or the name of a shipped recipe.
        task: the task and its data.
        out: the run folder.
        seed: of everything random.
        export: artifacts to write, of "onnx", "openvino" and "safetensors"; by default onnx, of a language model none.
        measure: compare the result with the base when it is done, and write the model card.
        runtimes: to measure in; by default those that are installed and run such models.
        threads: of PyTorch, and of one inference when measured; by default as PyTorch is set, and the physical cores.
        progress: draw progress bars.
        stream: read a decoder from disk block by block, and never have it in memory as a whole; for a recipe of a
            single `quantize`. Nothing is measured then. By default a decoder that, in 32 bits, takes more than a
            quarter of the free memory.

    Raises:
        NiwakiError: the base, the recipe or the data do not fit together, or an artifact does not agree with the model.
    """
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.read(recipe)
    export = usual_exports(task) if export is None else export
    require_exportable(task, [*export, *(RUNTIMES[runtime] for runtime in runtimes or () if RUNTIMES.get(runtime))])
    formats = {*export, *(RUNTIMES.get(runtime, "") for runtime in (runtimes or usual_runtimes(task)) if measure)}
    folder = Path(out)
    stream = _streams(base, recipe, stream)
    family = recipe.family()
    members = {folder / name: member for name, member in family.items()} or {folder: recipe}
    if family:
        _refuse_other_content(folder, members)
    runs = [
        carry_out_into(
            place,
            base,
            member,
            task,
            seed=seed,
            export=export,
            formats=formats,
            threads=threads,
            progress=progress,
            new_head=False,
            beside=list(members),
            stream=stream,
        )
        for place, member in members.items()
    ]
    if family:
        write_text(folder / "recipe.yaml", recipe.dump())
    if stream:
        return Run(folder)
    if measure and not all(
        _is_measured(run, runtimes or usual_runtimes(task), threads or default_threads()) for run in runs
    ):
        compare(_folder_of(base), *runs, task=task, runtimes=runtimes, threads=threads, seed=seed, progress=progress)
    for run in runs if measure else ():
        card(run.folder)
    return Run(folder)


def _streams(base: nn.Module | str | Path, recipe: Recipe, asked: bool | None) -> bool:
    """Say whether the base is to be read block by block, and refuse where that was asked for and cannot be."""
    able = not isinstance(base, nn.Module) and [getattr(step, "streams", False) for step in recipe.steps] == [True]
    if asked and not able:
        raise NiwakiError(
            "this recipe cannot be carried out on a model that is read from disk block by block",
            expected="a folder or a hub id, and one step: quantize, without smooth, allowed_drop, by: measured and "
            "activations: static",
            fix="--no-stream",
        )
    if asked is not None or isinstance(base, nn.Module):
        return bool(asked)
    return able and can_stream(base) and is_large(base)


def _check(recipe: Recipe, model: nn.Module, formats: Collection[str]) -> None:
    """Refuse what cannot be done to the base, and what cannot be written, as far as that is known before.

    Behind a step that cuts units the widths are no longer those of the base: what fits into a file is seen then.
    """
    widths_known = True
    for step in recipe.steps:
        step.check(model)
        for part in step.together if isinstance(step, Train) else (step,):
            if widths_known:
                part.check_export(model, formats)
            widths_known &= part.cuts != Grain.UNIT


def _is_measured(run: Run, runtimes: Sequence[str], threads: int) -> bool:
    """Say whether these weights were measured before, on this machine, with these threads, in these runtimes.

    Other weights take the measurement away.
    """
    file = run.folder / "measurement.json"
    if not file.is_file():
        return False
    rows = run.comparison.rows
    made = {(row.conditions.device, row.conditions.threads) for row in rows if row.conditions}
    return made == {(machine()["device"], threads)} and set(runtimes) <= {row.runtime for row in rows}


def _folder_of(base: nn.Module | str | Path) -> str:
    """Return where the base can be opened from; one that was changed in memory is put into the cache first."""
    if not isinstance(base, nn.Module):
        return str(base)
    source = str(base.config._name_or_path)  # type: ignore[union-attr]
    if weights_hash(load(source)) == weights_hash(base):
        return source
    return str(save(base, cache_folder() / "bases" / weights_hash(base)[:20], load_tokenizer(source)))


def carry_out_into(
    folder: Path,
    base: nn.Module | str | Path,
    recipe: Recipe,
    task: Task,
    *,
    seed: int,
    threads: int | None,
    progress: bool,
    new_head: bool,
    export: Sequence[str] = (),
    formats: Collection[str] = (),
    beside: Sequence[Path] = (),
    stream: bool = False,
) -> Run:
    """Read base and data, check the recipe against them, carry it out, save the result and write the artifacts.

    Steps that a run `beside` this one has done the same way are taken from there. `formats` are all those the result is
    to be written in, then or later. Where weights `stream`, the model is on the meta device throughout.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    torch.manual_seed(seed)
    labels = (list(task.read().labels) or None) if new_head else None
    parts = OnDisk(base) if stream and not isinstance(base, nn.Module) else Parts()
    if isinstance(parts, OnDisk):
        model = parts.open()
    else:
        model = base if isinstance(base, nn.Module) else load(base, labels=labels)
    source = str(model.config._name_or_path) if isinstance(base, nn.Module) else str(base)  # type: ignore[union-attr]
    tokenizer = load_tokenizer(source)
    anatomy_of(model)
    task.check(model)
    _check(recipe, model, formats)
    data = task.encode(tokenizer, longest_input(model, tokenizer, task.max_length), label_names(model))
    _refuse_other_content(folder)
    folder.mkdir(parents=True, exist_ok=True)
    log = _logger(folder / "log.jsonl")
    write_text(
        folder / "base.json",
        json.dumps({**_base_record(model, source, task, data, parts), "seed": seed}, indent=2) + "\n",
    )
    write_text(folder / "recipe.yaml", recipe.dump())
    for note in data.notes:
        log({"event": "note", "note": note})
    teacher = copy.deepcopy(model).eval().requires_grad_(False)
    context = Context(task, data, tokenizer, teacher, seed, folder, cache_folder(), log, progress, parts=parts)
    result, context = _carry_out(recipe, model, context, folder, beside)
    if stream:
        log({"event": "note", "note": STREAMED})
        _link_result(step_folders(recipe, folder)[-1], context.tokenizer, folder)
    else:
        _save_result(result, context.tokenizer, folder)
    for to in export:
        export_run(folder, to, context.data.evaluation, log)
    return Run(folder)


def _carry_out(
    recipe: Recipe, model: nn.Module, context: Context, folder: Path, beside: Sequence[Path] = ()
) -> tuple[nn.Module, Context]:
    """Run the steps that are not done yet, from the last one that is; return the model, and what it reads."""
    keys = step_keys(recipe, model, context)
    folders = step_folders(recipe, folder)
    done = 0
    while done < len(keys) and (_is_done(folders[done], keys[done]) or _taken(folders[done], keys[done], beside)):
        context.log({"event": "note", "note": f"{folders[done].name} was done before"})
        done += 1
    current = context.parts.load(folders[done - 1]) if done else copy.deepcopy(model)
    reading = context
    for step, key, place in list(zip(recipe.steps, keys, folders, strict=True))[done:]:
        workspace = _workspace(place, key)
        begin = time.monotonic()

        def log(event: dict[str, Any], name: str = place.name) -> None:
            context.log({"step": name, **event})

        log({"event": "step-begin"})
        reading = reading.as_read_by(current)
        here = replace(reading, workspace=workspace, log=log)
        try:
            current = _after(step, current, here)
        except NiwakiError as error:
            raise error.at(f"steps[{place.name[:2].lstrip('0') or '0'}]") from error
        with written_aside(place) as aside:
            if isinstance(here.parts, OnDisk):
                here.parts.save(current, aside)
            else:
                save(current, aside)
            write_text(aside / "key.json", json.dumps({"key": key}))
        shutil.rmtree(workspace)
        log(
            {
                "event": "step-end",
                "seconds": round(time.monotonic() - begin, 2),
                "parameters": count_parameters(current),
            }
        )
    return current, reading.as_read_by(current)


def _after(step: Step, model: nn.Module, context: Context) -> nn.Module:
    """Return the model after a step, on the CPU; one that is read from disk stays empty, and its file is begun."""
    parts = context.parts
    if not isinstance(parts, OnDisk):
        return step.run(model, context).cpu()
    plan = replace(context, parts=Plan(), log=lambda event: None)
    parts.lay_out(step.run(copy.deepcopy(model), plan), context.workspace)
    return step.run(model, context)


def step_folders(recipe: Recipe, folder: Path) -> list[Path]:
    """Return where the result of each step stands in a run folder."""
    return [folder / "steps" / f"{index:02d}-{step.name}" for index, step in enumerate(recipe.steps)]


def step_keys(recipe: Recipe, model: nn.Module, context: Context) -> list[str]:
    """Return for each step the hash of all that goes into it: version, base, data, seed, and the steps up to it."""
    digest = context.parts.weights_hash(model)
    parts = [version("niwaki"), digest, context.data.fingerprint, context.task.metric, str(context.seed)]
    key = _hash(*parts)
    keys = []
    for step in recipe.steps:
        key = _hash(key, step.name, json.dumps(step.model_dump(mode="json"), sort_keys=True))
        keys.append(key)
    return keys


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _is_done(folder: Path, key: str) -> bool:
    file = folder / "key.json"
    return file.is_file() and json.loads(file.read_text())["key"] == key and (folder / WEIGHTS).is_file()


def _taken(folder: Path, key: str, beside: Sequence[Path]) -> bool:
    """Copy a finished step from a run that has it, if one has."""
    for other in beside:
        source = other / "steps" / folder.name
        if _is_done(source, key):
            with written_aside(folder) as aside:
                shutil.copytree(source, aside, dirs_exist_ok=True)
            return True
    return False


def _workspace(place: Path, key: str) -> Path:
    """Return the folder an unfinished step works in; what another recipe left there goes."""
    workspace = place.with_name(f"{place.name}.unfinished")
    file = workspace / "key.json"
    if not (file.is_file() and json.loads(file.read_text())["key"] == key):
        shutil.rmtree(workspace, ignore_errors=True)
        workspace.mkdir(parents=True)
        write_text(file, json.dumps({"key": key}))
    for half_written in workspace.glob(".*.writing"):
        shutil.rmtree(half_written, ignore_errors=True)
    return workspace


def _save_result(model: nn.Module, tokenizer: Any, folder: Path) -> None:
    """Write the model into the run folder, unless these very weights are there already."""
    stamp = folder / ".weights"
    digest = weights_hash(model)
    if (folder / WEIGHTS).is_file() and stamp.is_file() and stamp.read_text() == digest:
        return
    stamp.unlink(missing_ok=True)
    shutil.rmtree(folder / "artifacts", ignore_errors=True)
    (folder / "measurement.json").unlink(missing_ok=True)
    save(model, folder, tokenizer)
    write_text(stamp, digest)


def _link_result(step: Path, tokenizer: Any, folder: Path) -> None:
    """Let the run folder have the files of its last step, which are not copied, and the tokenizer.

    The weights come last: a folder that has them is whole.
    """
    tokenizer.save_pretrained(folder)
    for name in ("config.json", JOURNAL, WEIGHTS):
        aside = folder / f".{name}.writing"
        aside.unlink(missing_ok=True)
        try:
            os.link(step / name, aside)
        except OSError:  # a file system without links
            shutil.copyfile(step / name, aside)
        aside.replace(folder / name)


def _refuse_other_content(folder: Path, members: Collection[Path] = ()) -> None:
    """Refuse to write a run, or the members of a family, where something else stands."""
    if folder.is_file():
        raise NiwakiError(f"{folder} is a file", expected="a folder for the run", fix=f"--out {folder}-run")
    ours = any((place / "base.json").is_file() for place in members or [folder])
    if folder.is_dir() and any(folder.iterdir()) and not ours:
        raise NiwakiError(
            f"{folder} holds other files",
            expected="an empty folder, or a run to go on with",
            fix=f"--out {folder}/small",
        )


def _base_record(model: nn.Module, source: str, task: Task, data: Dataset, parts: Parts) -> dict[str, Any]:
    def rows(split: Any) -> int | None:
        return None if split is None else len(split)

    return {
        "model": source,
        "sha256": parts.weights_hash(model),
        "family": anatomy_of(model).family.name,
        "labels": list(data.labels),
        "parameters": count_parameters(model),
        "size_bytes": sum(tensor.numel() * tensor.element_size() for tensor in layout_of(model).values()),
        "task": task.model_dump(mode="json"),
        "data": {
            "source": task.data,
            "fingerprint": data.fingerprint,
            "rows": {"train": rows(data.train), "validation": rows(data.validation), "test": rows(data.test)},
            "notes": list(data.notes),
        },
    }


def _logger(file: Path) -> Callable[[dict[str, Any]], None]:
    """Return a function that appends one JSON line an event, with the time."""

    def log(event: dict[str, Any]) -> None:
        with file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"time": round(time.time(), 3), **event}) + "\n")

    return log
