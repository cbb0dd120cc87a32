"""What is said in words: parameters, techniques, recipes, and the schema that editors read."""

from __future__ import annotations

import json
import typing

import pytest
from pydantic import BaseModel, Field

from niwaki import techniques
from niwaki.errors import NiwakiError
from niwaki.explain import explain
from niwaki.parameters import default_of, takes
from niwaki.recipe import Recipe, shipped
from niwaki.train import Train


class Example(BaseModel):
    plain: int
    share: float | None = Field(0.5, gt=0, le=1)
    word: typing.Literal["a", "b"] = "a"
    one: typing.Literal[8] = 8
    layers: int | tuple[int, ...] | None = None
    names: list[str] = []
    table: dict[str, int] = {}


@pytest.mark.parametrize(
    ("name", "words", "default"),
    [
        ("plain", "a whole number", ""),
        ("share", "a number, above 0 and at most 1 or null", "0.5"),
        ("word", "one of a, b", "a"),
        ("one", "8", "8"),
        ("layers", "a whole number, or a list, each a whole number, or null", "null"),
        ("names", "a list, each a word", "[]"),
        ("table", "a mapping", "{}"),
    ],
)
def test_what_a_parameter_takes_is_said_in_words(name: str, words: str, default: str):
    field = Example.model_fields[name]
    assert (takes(field), default_of(field)) == (words, default)


def test_the_schema_describes_every_step():
    schema = json.loads(json.dumps(Recipe.schema()))
    text = json.dumps(schema)
    references = {word.split('"')[0] for word in text.split("#/$defs/")[1:]}
    assert references <= set(schema["$defs"])
    named = schema["properties"]["steps"]["items"]["anyOf"][0]["enum"]
    beside = schema["$defs"]["Train"]["properties"]["together"]["items"]["anyOf"][0]["enum"]
    assert "train" in named and "train" not in beside
    assert set(named) | set(beside) == {"train", *techniques.names()}
    assert "distill" in beside and "distill" not in named
    assert schema["$defs"]["Prune"]["additionalProperties"] is False


@pytest.mark.parametrize("name", ["train", *techniques.names()])
def test_explain_tells_the_idea_and_every_parameter(name: str):
    model = Train if name == "train" else techniques.get(name)
    text = explain(name)
    assert (model.__doc__ or "").partition("\n")[0] in text
    for parameter in model.model_fields:
        assert f"\n{parameter} " in text


def test_explain_without_a_name_lists_everything():
    lines = explain().splitlines()
    for name in ("train", *techniques.names(), *shipped.names()):
        assert any(line.strip().startswith(f"{name} ") for line in lines)


def test_explain_knows_a_near_name():
    with pytest.raises(NiwakiError, match="niwaki explain prune"):
        explain("prun")


@pytest.mark.parametrize("name", shipped.names())
def test_explain_prints_a_shipped_recipe(name: str):
    assert explain(name) == shipped.text(name)
