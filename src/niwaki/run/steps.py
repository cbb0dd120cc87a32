"""The steps of a recipe, one after the other: each is kept under the hash of all that went into it."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from niwaki.checkpoint import WEIGHTS, model_hash, save, write_text, written_aside
from niwaki.errors import NiwakiError
from niwaki.measure import count_parameters
from niwaki.parts import OnDisk, Plan
from niwaki.recipe import Recipe, Step
from niwaki.technique import Context


def carry_out(
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
    digest = model_hash(model, context.parts.weights_hash(model))
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
