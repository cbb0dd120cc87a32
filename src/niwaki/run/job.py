"""`compress`: carry out a recipe, step by step, into a run folder that an interruption cannot harm."""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from torch import nn

from niwaki.anatomy import anatomy_of, label_names, longest_input
from niwaki.artifacts import export_run, require_exportable, usual_exports
from niwaki.checkpoint import load, load_tokenizer, model_hash, save, write_text
from niwaki.comparison import RUNTIMES, compare, usual_runtimes
from niwaki.errors import NiwakiError
from niwaki.measure.conditions import machine
from niwaki.parts import OnDisk, Parts, can_stream, is_large
from niwaki.recipe import Recipe
from niwaki.report import card
from niwaki.run.folder import Run, base_record, link_result, logger, refuse_other_content, save_result
from niwaki.run.steps import carry_out, step_folders
from niwaki.runtime import default_threads
from niwaki.task import Task
from niwaki.teacher import cache_folder
from niwaki.technique import Context, Grain
from niwaki.train import Train

#: What the log of a run says that nothing was measured in.
STREAMED = (
    "the base was read from disk block by block: nothing was measured; where it fits in memory, niwaki compare does it"
)


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
    beside: Sequence[str | Path] = (),
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
        beside: other run folders; a step that one of them has done the same way is taken from there.

    Raises:
        NiwakiError: the base, the recipe or the data do not fit together, or an artifact does not agree with the model.
    """
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.read(recipe)
    export = usual_exports(task) if export is None else export
    require_exportable(task, [*export, *(RUNTIMES[runtime] for runtime in runtimes or () if RUNTIMES.get(runtime))])
    formats = {*export, *(formats_of(task, runtimes) if measure else ())}
    folder = Path(out)
    stream = _streams(base, recipe, stream)
    family = recipe.family()
    members = {folder / name: member for name, member in family.items()} or {folder: recipe}
    if family:
        refuse_other_content(folder, members)
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
            beside=[*members, *map(Path, beside)],
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


def formats_of(task: Task, runtimes: Sequence[str] | None) -> set[str]:
    """Return the formats that the runtimes open, by default all usual ones; "" is the model folder itself."""
    return {RUNTIMES.get(runtime, "") for runtime in runtimes or usual_runtimes(task)}


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


def check_recipe(recipe: Recipe, model: nn.Module, formats: Collection[str]) -> None:
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
    if not run.is_measured:
        return False
    rows = run.comparison.rows
    made = {(row.conditions.device, row.conditions.threads) for row in rows if row.conditions}
    return made == {(machine()["device"], threads)} and set(runtimes) <= {row.runtime for row in rows}


def _folder_of(base: nn.Module | str | Path) -> str:
    """Return where the base can be opened from; one that was changed in memory is put into the cache first."""
    if not isinstance(base, nn.Module):
        return str(base)
    source = str(base.config._name_or_path)  # type: ignore[union-attr]
    digest = model_hash(base)
    if model_hash(load(source)) == digest:
        return source
    return str(save(base, cache_folder() / "bases" / digest[:20], load_tokenizer(source)))


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
    check_recipe(recipe, model, formats)
    data = task.encode(tokenizer, longest_input(model, tokenizer, task.max_length), label_names(model))
    refuse_other_content(folder)
    folder.mkdir(parents=True, exist_ok=True)
    log = logger(folder / "log.jsonl")
    write_text(
        folder / "base.json",
        json.dumps({**base_record(model, source, task, data, parts), "seed": seed}, indent=2) + "\n",
    )
    write_text(folder / "recipe.yaml", recipe.dump())
    for note in data.notes:
        log({"event": "note", "note": note})
    teacher = copy.deepcopy(model).eval().requires_grad_(False)
    context = Context(task, data, tokenizer, teacher, seed, folder, cache_folder(), log, progress, parts=parts)
    result, context = carry_out(recipe, model, context, folder, beside)
    if stream:
        log({"event": "note", "note": STREAMED})
        link_result(step_folders(recipe, folder)[-1], context.tokenizer, folder)
    else:
        save_result(result, context.tokenizer, folder)
    for to in export:
        export_run(folder, to, context.data.evaluation, log)
    return Run(folder)
