"""Recipes: what is read is what was written, and every mistake is named by its place, with what to write."""

from __future__ import annotations

import contextlib
import typing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from niwaki import dialect, techniques
from niwaki.errors import NiwakiError
from niwaki.recipe import Recipe, shipped
from niwaki.technique import Grain, Technique
from niwaki.techniques.distill import Distill
from niwaki.techniques.drop import Drop
from niwaki.techniques.prune import Prune
from niwaki.techniques.quantize import Quantize
from niwaki.train import Train

SMALL = """
# half the neurons, a quarter of the bits
steps:
  - train:
      epochs: 3
      learning_rate: 5e-5
      together:
        - distill: {temperature: 4}
        - prune:   {keep_neurons: 0.5}
  - quantize: {bits: 8}
"""


def refusal(text: str) -> str:
    with pytest.raises(NiwakiError) as caught:
        Recipe.parse(text, "small.yaml")
    return str(caught.value)


# What is read


def test_yaml_and_python_are_the_same_recipe():
    together = (Distill(temperature=4), Prune(keep_neurons=0.5))
    by_hand = Recipe([Train(epochs=3, learning_rate=5e-5, together=together), Quantize(bits=8)])
    assert Recipe.parse(SMALL) == by_hand
    assert by_hand.steps[0].learning_rate == 0.00005


@pytest.mark.parametrize("step", ["quantize", "{quantize: }", "{quantize: {}}", "{quantize: null}"])
def test_a_technique_may_stand_without_parameters(step):
    assert Recipe.parse(f"steps:\n  - {step}").steps == (Quantize(),)


def test_lists_are_tuples():
    assert Recipe.parse("steps: [{drop: {keep_layers: [0, 2]}}]").steps == (Drop(keep_layers=(0, 2)),)


def test_a_recipe_is_a_step():
    first = Recipe([Drop(keep_layers=2)])
    assert Recipe([first, Train(), Recipe([Quantize()])]) == Recipe([Drop(keep_layers=2), Train(), Quantize()])
    with pytest.raises(AttributeError):
        first.steps = ()  # type: ignore[misc]


def test_every_default_is_written_out():
    written = dialect.load(Recipe([Train(together=[Prune()])]).dump())
    (train,) = (step["train"] for step in written["steps"])
    assert set(train) == set(Train.model_fields)
    assert set(train["together"][0]["prune"]) == set(Prune.model_fields)


def test_a_file_a_run_folder_and_a_byte_order_mark_are_read(tmp_path: Path):
    (tmp_path / "recipe.yaml").write_bytes(b"\xef\xbb\xbf" + SMALL.encode())
    assert Recipe.read(tmp_path / "recipe.yaml") == Recipe.read(str(tmp_path)) == Recipe.parse(SMALL)


@pytest.mark.parametrize("name", shipped.names())
def test_shipped_recipes_are_good_and_say_what_they_were_measured_to_do(name: str):
    assert Recipe.read(name).steps
    assert shipped.headline(name)


def test_an_unknown_recipe_names_the_shipped_ones(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shipped, "names", lambda: ("encoder-cpu",))
    with pytest.raises(NiwakiError, match="encoder-cpu") as caught:
        Recipe.read("encoder-cqu")
    assert str(caught.value).endswith("write: encoder-cpu")


# The round trip


def values_of(annotation: Any, metadata: list[Any]) -> st.SearchStrategy[Any]:
    """Draw values of a field's type inside its bounds; pydantic refuses the rest."""
    if typing.get_origin(annotation) is typing.Annotated:
        inner, *more = typing.get_args(annotation)
        return values_of(inner, [*more, *metadata])
    parts = typing.get_args(annotation) if is_union(annotation) else (annotation,)
    return st.one_of([bounded(part, metadata) for part in parts])


def is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) is typing.Union or type(annotation).__name__ == "UnionType"


def bounded(kind: Any, metadata: list[Any]) -> st.SearchStrategy[Any]:
    low = next(
        (
            item.ge if hasattr(item, "ge") else item.gt
            for item in metadata
            if hasattr(item, "ge") or hasattr(item, "gt")
        ),
        None,
    )
    high = next(
        (
            item.le if hasattr(item, "le") else item.lt
            for item in metadata
            if hasattr(item, "le") or hasattr(item, "lt")
        ),
        None,
    )
    if kind is int:
        return st.integers(0 if low is None else int(low), 64 if high is None else int(high))
    if kind is float:
        return st.floats(0 if low is None else low, 1e6 if high is None else high)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return parameters_of(kind).map(lambda values: kind(**values))
    return st.from_type(kind)


def parameters_of(model: type[BaseModel]) -> st.SearchStrategy[dict[str, Any]]:
    def of(field: FieldInfo) -> st.SearchStrategy[Any]:
        return values_of(field.annotation, field.metadata)

    fields = {name: field for name, field in model.model_fields.items() if name != "together"}
    needed = {name: of(field) for name, field in fields.items() if field.is_required()}
    optional = {name: of(field) for name, field in fields.items() if not field.is_required()}
    return st.fixed_dictionaries(needed, optional=optional)


def drawn(data: st.DataObject, model: type[BaseModel]) -> Any:
    """Draw a value of the model, or its neutral one where the parameters do not go together."""
    try:
        return model(**data.draw(parameters_of(model)))
    except (ValidationError, NiwakiError):
        needed = {
            name: values_of(f.annotation, f.metadata) for name, f in model.model_fields.items() if f.is_required()
        }
        return model(**data.draw(st.fixed_dictionaries(needed)))


def drawn_or_none(data: st.DataObject, model: type[BaseModel]) -> Any:
    try:
        return drawn(data, model)
    except (ValidationError, NiwakiError):
        return None


def stands_inside_train(technique: Technique) -> bool:
    """Say whether it may, with these parameters."""
    with contextlib.suppress(NiwakiError):
        technique.check_accompany()
        return technique.can_accompany
    return False


@pytest.mark.parametrize("name", techniques.names())
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_python_to_yaml_to_python_is_equal(name: str, data: st.DataObject):
    technique = drawn_or_none(data, techniques.get(name))
    if technique is None:
        return
    steps: list[Any] = [technique] if technique.can_apply else []
    if stands_inside_train(technique):
        steps.insert(0, drawn(data, Train).model_copy(update={"together": (technique,)}))
    if len(steps) == 2 and technique.grain == Grain.BIT:
        steps.pop()
    recipe = Recipe(steps)
    again = Recipe.parse(recipe.dump())
    assert again == recipe
    assert again.dump() == recipe.dump()


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(), st.lists))
@settings(max_examples=200, deadline=None)
def test_the_dialect_reads_what_it_wrote(value: Any):
    assert dialect.load(dialect.dump({"value": value})) == {"value": value}


@pytest.mark.parametrize(
    "word", ["no", "yes", "off", "5e-5", "1:30", "010", "null", "~", "", "2020-01-01", "1_000", "<<", "="]
)
def test_words_that_look_like_something_else_stay_words(word: str):
    assert dialect.load(dialect.dump({"by": word})) == {"by": word}


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("5e-5", 5e-5),
        ("1E3", 1000.0),
        ("010", 10),
        ("no", "no"),
        ("true", True),
        ("1:30", "1:30"),
        (".5", 0.5),
        ("~", None),
    ],
)
def test_values_mean_what_they_say(written: str, meant: Any):
    value = dialect.load(f"value: {written}")["value"]
    assert value == meant
    assert type(value) is type(meant)


# What is refused


# fmt: off
@pytest.mark.parametrize(
    ("text", "place", "wrong", "expected", "fix"),
    [
        ("steps: [quantise]", "steps[0]", 'there is no technique "quantise"', "train, attend, cluster", "quantize"),
        ("steps: [{train: {together: [pruns]}}]", "steps[0].together[0]",
         '"pruns"', "distill, drop", "prune"),
        ("steps: [{prune: {keep_neuron: 1}}]", "steps[0]",
         'no parameter "keep_neuron"', "keep_heads", "keep_neurons"),
        ("steps: [{train: {epoch: 1}}]", "steps[0]", 'train has no parameter "epoch"', "epochs", "epochs"),
        ("steps: [{prune: {sparsity: 0.3}}]", "steps[0]",
         "sparsity", "numbers say what stays", "keep_neurons: 0.7"),
        ("steps: [{prune: {keep_neurons: 1.5}}]", "steps[0]",
         "keep_neurons is 1.5", "at most 1", "keep_neurons: 1"),
        ("steps: [{prune: {keep_neurons: half}}]", "steps[0]",
         "keep_neurons is half", "a number, above 0", "1.0"),
        ("steps: [{drop: {keep_layers: 2, by: unifrom}}]", "steps[0]",
         "by is unifrom", "influence", "by: uniform"),
        ("steps: [drop]", "steps[0]", "drop needs keep_layers", "a whole number", ""),
        ("steps: [{drop: {keep_layers: [3, 1]}}]", "steps[0]", "keep_layers is [3, 1]", "ascending", ""),
        ("steps: [{prune: {begin: 0.5, end: 0.1}}]", "steps[0]", "end is 0.1", "", ""),
        ("steps: [{train: {epochs: -1}}]", "steps[0]", "epochs is -1", "above 0", "epochs: 3.0"),
        ("steps:\n- prune:\n  keep_heads: 0.5", "steps[0]",
         "2 names", "indented", "- prune: {keep_heads: 0.5}"),
        ("steps: [{quantize: 8}]", "steps[0]", "quantize is given 8", "by name", "- quantize: {bits: 8}"),
        ("steps: [{train: {together: distill}}]", "steps[0]",
         "together is distill", "a list", "together: [distill]"),
        ("steps: [{train: {together: [train]}}]", "steps[0].together[0]",
         "train stands inside train", "a technique", ""),
        ("steps: [3]", "steps[0]", "there is 3", "a name", "- prune"),
        ("steps:\n-", "steps[0]", "there is nothing", "a name", "- prune"),
        ("steps: [distill]", "steps[0]", "of its own", "inside train", "- train: {together: [distill]}"),
        ("steps: [{train: {together: [{drop: {keep_layers: 1}}]}}]", "steps[0].together[0]",
         "inside train", "own", "- drop"),
        ("step: [quantize]", "small.yaml", 'no "step"', "steps", "steps"),
        ("", "small.yaml", "nothing", "a list of steps", "- quantize"),
        ("- quantize", "small.yaml", "a list", "a list of steps", "- quantize"),
        ("steps: []", "small.yaml", "steps is an empty list", "at least one", "- quantize"),
        ("steps:\n- prune: {begin: 0.5\n- drop", "line 3, column 7", "not YAML", "", ""),
        ("steps:\n\t- prune", "line 2, column 1", "not YAML", "", "spaces in place of tabs"),
        ("steps:\n- prune: {end: 1}\nsteps: []", "line 3, column 1",
         '"steps" stands twice, in lines 1 and 3', "once", ""),
        ("steps: !!python/object:os.system {}", "line 1", "not YAML", "", ""),
        ("steps: \0", "small.yaml", "not YAML", "", ""),
        ("? [steps]\n: 1", "line 1", "not YAML", "", ""),
        ("steps: !!int many", "small.yaml", "not YAML", "", ""),
    ],
)
# fmt: on
def test_a_mistake_is_named_by_place_value_and_what_to_write(
    text: str, place: str, wrong: str, expected: str, fix: str
):
    with pytest.raises(NiwakiError) as caught:
        Recipe.parse(text, "small.yaml")
    error = caught.value
    assert error.place.startswith("small.yaml")
    assert place in error.place
    assert wrong in error.wrong
    assert expected in error.expected
    assert fix in error.fix


@given(st.text(alphabet="steps:train[]{},- \n\t#&*!?|>'\"%@0.5", max_size=40))
@settings(max_examples=200, deadline=None)
def test_no_text_breaks_the_reader(text: str):
    with contextlib.suppress(NiwakiError):
        Recipe.parse(text)


def test_a_message_reads_like_this():
    assert refusal("steps:\n- train:\n    together:\n    - distill\n    - prune: {sparsity: 0.3}") == (
        'small.yaml, steps[0].together[1]: prune has no parameter "sparsity"\n'
        f"  expected: it has {', '.join(Prune.model_fields)}; numbers say what stays\n"
        "  write: keep_heads: 0.7, or keep_neurons: 0.7, or keep_hidden: 0.7, or keep_weights: 0.7"
    )


def test_text_must_be_utf8(tmp_path: Path):
    file = tmp_path / "small.yaml"
    file.write_bytes("# größer\nsteps: [quantize]".encode("latin-1"))
    with pytest.raises(NiwakiError, match="byte 4 is not UTF-8"):
        Recipe.read(file)


@pytest.mark.parametrize("steps", [[], "quantize", None, [None], ["quantize"], [Quantize]])
def test_steps_are_values(steps: Any):
    with pytest.raises(NiwakiError):
        Recipe(steps)


# Single values


def test_single_values_are_set_anew():
    recipe = Recipe.parse(SMALL).replaced(
        [
            "steps[0].train.epochs=2",
            "steps.0.train.together[1].prune.keep_neurons=0.25",
            "steps[0].train.learning_rate=1e-4",
        ]
    )
    train = recipe.steps[0]
    assert isinstance(train, Train)
    assert (train.epochs, train.learning_rate) == (2.0, 1e-4)
    assert train.together[1] == Prune(keep_neurons=0.25)


@pytest.mark.parametrize(
    ("assignment", "wrong"),
    [
        ("steps[0].train.epochs", "sets nothing"),
        ("=2", "sets nothing"),
        ("steps[2].quantize.bits=8", "there is no [2]"),
        ("steps[x].quantize.bits=8", "there is no [x]"),
        ("steps[0].trian.epochs=2", 'there is no "trian"'),
        ("steps[0].train.epoch=2", 'no parameter "epoch"'),
        ("steps[0].train.epochs=-2", "epochs is -2"),
        ("steps[0].train.epochs.x=2", "nothing below"),
        ("steps[0].train.epochs=[", "not YAML"),
    ],
)
def test_a_wrong_assignment_is_named(assignment: str, wrong: str):
    with pytest.raises(NiwakiError) as caught:
        Recipe.parse(SMALL).replaced([assignment])
    assert caught.value.place.startswith(assignment)
    assert wrong in caught.value.wrong
