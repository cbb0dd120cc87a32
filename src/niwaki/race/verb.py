"""The verb: parents are made, each is compressed until it fits, and the finalists are measured in one session."""

from __future__ import annotations

import bisect
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from niwaki.anatomy import label_names
from niwaki.budget import Budget
from niwaki.checkpoint import load, model_hash, write_text
from niwaki.comparison import known_runtimes, measure_together
from niwaki.errors import NiwakiError
from niwaki.measure import Session
from niwaki.measure.conditions import machine
from niwaki.race.parents import Parent, read_parents
from niwaki.race.recipes import Strengths, strengths_of
from niwaki.race.record import Entrant, Race, Trial
from niwaki.race.standing import standings
from niwaki.recipe import Recipe, Step
from niwaki.run import Run, carry_out_into, check_recipe, compress, formats_of
from niwaki.run.folder import refuse_other_content
from niwaki.runtime import default_threads
from niwaki.surgery import keep_layers
from niwaki.task import Task, outcome_of
from niwaki.train import Train

PLAN, RESULT, MEASUREMENT = "plan.json", "race.json", "measurement.json"


def race(
    parents: Sequence[str | PathLike[str] | Parent],
    recipes: Strengths | Mapping[str, Strengths],
    task: Task,
    budget: Budget | str,
    out: str | Path,
    *,
    training: Train | None = None,
    runtimes: Sequence[str] | None = None,
    threads: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Race:
    """Compress several parents to one budget, measure them there in one session, and say which to start from.

    Each parent is compressed by the mildest of its recipes that fits; which one that is, is found by halving the list,
    and by size and latency alone: quality is looked at once, when all are done. Then parents and finalists are
    exported and measured together, in turns, and the finalists are paired on the same examples.

    On an existing folder it goes on: parents and runs that are done are kept.

    Args:
        parents: two or more: folders, hub ids, `NAME=MODEL`, and `MODEL:keep_layers=N` for a relative of fewer layers.
        recipes: for all parents, or of each by its name: a recipe, or several, from the mildest to the strongest. A
            recipe with a list of targets counts as so many recipes.
        task: the task and its data.
        budget: bounds on size, latency or memory: "latency=2ms".
        out: the folder of the race.
        training: how each parent is fine-tuned first; None where they are given fine-tuned.
        runtimes: to measure in; by default those that are installed and run such models.
        threads: of PyTorch, and of one inference when measured.
        seed: of everything random.
        progress: draw progress bars, and tell what each recipe came to.

    Returns:
        The race: printed, a table and a verdict; `to_json()` has it all.

    Raises:
        NiwakiError: a bound on quality or none at all, fewer than two parents, a recipe that cannot be carried out on
            its parent, labels in another order; or an artifact does not agree with its model.

    References:
        Li et al. 2020, Train Big, Then Compress: Rethinking Model Size for Efficient Training and Inference of
        Transformers.
    """
    bounds = _bounds(budget)
    named = read_parents(parents)
    strengths = strengths_of(named, recipes)
    runtimes = known_runtimes(task, runtimes)
    _check_all(named, strengths, task, training, formats_of(task, runtimes))
    folder = Path(out)
    refuse_other_content(folder, mark=PLAN)
    folder.mkdir(parents=True, exist_ok=True)
    plan = _plan(named, strengths, task, bounds, training, seed)
    write_text(folder / PLAN, plan + "\n")
    course = _Course(folder, task, bounds, runtimes, threads, seed, progress)
    sources = {name: course.made(parent, training) for name, parent in named.items()}
    trials = {name: course.tried(name, source, strengths[name]) for name, source in sources.items()}
    result = course.judged(named, sources, strengths, trials, plan)
    write_text(folder / RESULT, result.to_json() + "\n")
    return result


@dataclass(frozen=True)
class _Course:
    """Hold what is the same for all parents."""

    folder: Path
    task: Task
    bounds: Budget
    runtimes: tuple[str, ...]
    threads: int | None
    seed: int
    progress: bool

    def made(self, parent: Parent, training: Train | None) -> str:
        """Return where the parent lies, made first where it is a relative, or is to be fine-tuned."""
        steps = _making(parent, training)
        if not steps:
            return parent.model
        self.tell(f"{parent.name}: making the parent")
        run = carry_out_into(
            self.folder / "parents" / parent.name,
            parent.model,
            Recipe(steps),
            self.task,
            seed=self.seed,
            threads=self.threads,
            progress=self.progress,
            new_head=training is not None,
        )
        return str(run.folder)

    def tried(self, name: str, source: str, recipes: Sequence[Recipe]) -> tuple[Trial, ...]:
        """Compress a parent by as many of its recipes as it takes to find the mildest that fits."""
        trials: dict[int, Trial] = {}

        def fits(number: int) -> bool:
            beside = [self.folder / trial.run for trial in trials.values()]
            trials[number] = self.trial(name, source, recipes, number, beside)
            return not trials[number].misses

        bisect.bisect_left(range(1, len(recipes) + 1), True, key=fits)
        return tuple(trials[number] for number in sorted(trials))

    def trial(self, name: str, source: str, recipes: Sequence[Recipe], number: int, beside: Sequence[Path]) -> Trial:
        """Compress a parent by one of its recipes, measure it beside the parent, and say what it misses."""
        place = f"runs/{name}-recipe-{number}"
        head = f"{name}, recipe {number} of {len(recipes)}"
        self.tell(head)
        run = compress(
            source,
            recipes[number - 1],
            self.task,
            self.folder / place,
            seed=self.seed,
            export=(),
            runtimes=self.runtimes,
            threads=self.threads,
            progress=self.progress,
            stream=False,  # what is streamed is not measured
            beside=beside,
        )
        (misses,) = self.bounds.judge(run.comparison.rows, run.comparison.base).values()
        self.tell(f"{head}: {'; '.join(map(str, misses)) or 'fits'}")
        return Trial(recipe=number, run=place, misses=tuple(map(str, misses)))

    def judged(
        self,
        parents: Mapping[str, Parent],
        sources: Mapping[str, str],
        recipes: Mapping[str, Sequence[Recipe]],
        trials: Mapping[str, tuple[Trial, ...]],
        plan: str,
    ) -> Race:
        """Measure parents and finalists in one session, unless that was done, and rank them."""
        chosen = {name: trial for name, several in trials.items() for trial in several[::-1] if not trial.misses}
        finalists = {name: f"{name}, compressed" for name in trials if name in chosen}
        runs = {label: str(self.folder / chosen[name].run) for name, label in finalists.items()}
        key = self.key({**sources, **runs}, trials, plan)
        kept = Race.read(self.folder / RESULT) if (self.folder / RESULT).is_file() else None
        if kept and kept.key == key:
            return kept
        (self.folder / MEASUREMENT).unlink(missing_ok=True)
        found = standings(self.measured({**sources, **runs}), self.bounds, finalists) if finalists else {}
        entrants = [
            _entrant(parents[name], len(recipes[name]), trials[name], chosen.get(name), found.get(name, {}))
            for name in [*found, *(name for name in parents if name not in found)]
        ]
        return Race(budget=str(self.bounds), seed=self.seed, entrants=tuple(entrants), key=key)

    def measured(self, models: Mapping[str, str]) -> Session:
        """Measure all models in one session, and keep its rows."""
        self.tell(f"measuring {len(models)} models in one session")
        comparison, session = measure_together(
            models, self.task, runtimes=self.runtimes, threads=self.threads, seed=self.seed, progress=self.progress
        )
        write_text(self.folder / MEASUREMENT, comparison.to_json() + "\n")
        return session

    def key(self, models: Mapping[str, str], trials: Mapping[str, tuple[Trial, ...]], plan: str) -> str:
        """Return the hash of all that a result depends on: plan, data, models, what was tried, and the machine."""
        first = Run(self.folder / next(iter(trials.values()))[0].run)
        digests = {name: model_hash(load(source)) for name, source in models.items()}
        tried = {name: [trial.model_dump() for trial in several] for name, several in trials.items()}
        where = [machine()["device"], self.threads or default_threads(), self.runtimes]
        parts = [plan, first.base["data"]["fingerprint"], digests, tried, where]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def tell(self, words: str) -> None:
        """Say on standard error what is being done."""
        if self.progress:
            from rich.console import Console

            Console(stderr=True, highlight=False).print(words, markup=False)


def _entrant(
    parent: Parent, recipes: int, trials: tuple[Trial, ...], chosen: Trial | None, found: Mapping[str, Any]
) -> Entrant:
    """Return the record of one parent; where no recipe fits, with what the strongest missed."""
    return Entrant(
        **{
            "parent": parent.name,
            "model": parent.model,
            "keep_layers": parent.keep_layers,
            "recipes": recipes,
            "trials": trials,
            "recipe": chosen and chosen.recipe,
            "misses": trials[-1].misses,
            **found,
        }
    )


def _bounds(budget: Budget | str) -> Budget:
    """Return the bounds; those on quality are refused, for quality is what the race is about."""
    bounds = budget if isinstance(budget, Budget) else Budget.parse(budget)
    if bounds.quality_points is not None or bounds.quality_share is not None:
        raise NiwakiError(
            "quality is bounded, and it is what the race is about",
            expected="bounds on size, latency or memory alone",
            fix="latency=2ms",
            place=f'budget "{bounds}"',
        )
    if not str(bounds):
        raise NiwakiError("the budget bounds nothing", expected="size, latency or memory", fix="latency=2ms")
    return bounds


def _making(parent: Parent, training: Train | None) -> list[Step]:
    """Return the steps that make a parent of its model."""
    return [*parent.steps, *([training] if training else [])]


def _check_all(
    parents: Mapping[str, Parent],
    recipes: Mapping[str, Sequence[Recipe]],
    task: Task,
    training: Train | None,
    formats: Collection[str],
) -> None:
    """Refuse, before any work, models that are not there, recipes that they cannot take, and labels that differ."""
    new = (list(task.read().labels) or None) if training else None
    orders: dict[str, list[str]] = {}
    for name, parent in parents.items():
        try:
            model = load(parent.model, labels=new)
            task.check(model)
            steps = _making(parent, training)
            if steps:
                check_recipe(Recipe(steps), model, ())
        except NiwakiError as error:
            raise error.at(name) from None
        if parent.keep_layers:
            model = keep_layers(model, layers=list(range(parent.keep_layers)))
        for number, recipe in enumerate(recipes[name], start=1):
            try:
                check_recipe(recipe, model, formats)
            except NiwakiError as error:
                raise error.at(f"{name}, recipe {number}") from None
        if outcome_of(task.metric) == "classes":
            orders[name] = label_names(model)
    first, *others = orders or [""]
    for name in others:
        if orders[name] != orders[first]:
            raise NiwakiError(
                f"{name} tells the classes {', '.join(orders[name])}, and {first} {', '.join(orders[first])}",
                expected="the same names in the same order",
                fix="give the pre-trained models, and let the race fine-tune them",
            )


def _plan(
    parents: Mapping[str, Parent],
    recipes: Mapping[str, Sequence[Recipe]],
    task: Task,
    bounds: Budget,
    training: Train | None,
    seed: int,
) -> str:
    """Return what was asked for, as JSON."""
    plan = {
        "parents": [parent.model_dump() for parent in parents.values()],
        "training": training and training.model_dump(mode="json"),
        "recipes": {name: [recipe.plain() for recipe in several] for name, several in recipes.items()},
        "task": task.model_dump(mode="json"),
        "budget": str(bounds),
        "seed": seed,
    }
    return json.dumps(plan, indent=2)
