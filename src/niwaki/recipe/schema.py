"""Describe the YAML of recipes as JSON schema, so that editors complete and check it."""

from __future__ import annotations

import inspect
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from niwaki import techniques
from niwaki.technique import Technique
from niwaki.train import Train


def schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12), made from the parameters of `Train` and of each technique."""
    found: dict[str, type[BaseModel]] = {name: techniques.get(name) for name in techniques.names()}
    found[Train.name] = Train
    _, top = models_json_schema([(model, "validation") for model in found.values()], ref_template="#/$defs/{model}")
    definitions = top.get("$defs", {})
    for model in found.values():
        definitions[model.__name__]["description"] = inspect.getdoc(model) or ""
    together = [name for name in found if name != Train.name and _overrides(found[name], "accompany")]
    alone = [name for name in found if name == Train.name or _overrides(found[name], "apply")]
    definitions[Train.__name__]["properties"]["together"] = {
        "type": "array",
        "items": _choice(found, together),
        "description": "techniques that accompany the training, from coarse to fine",
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "niwaki recipe",
        "type": "object",
        "required": ["steps"],
        "additionalProperties": False,
        "properties": {"steps": {"type": "array", "minItems": 1, "items": _choice(found, alone)}},
        "$defs": definitions,
    }


def _choice(found: dict[str, type[BaseModel]], names: list[str]) -> dict[str, Any]:
    """Return the schema of one step: a bare name, or one name with its parameters."""
    named = [
        {
            "type": "object",
            "required": [name],
            "additionalProperties": False,
            "properties": {name: {"anyOf": [{"$ref": f"#/$defs/{found[name].__name__}"}, {"type": "null"}]}},
        }
        for name in names
    ]
    return {"anyOf": [{"enum": names}, *named]}


def _overrides(model: type[BaseModel], method: str) -> bool:
    """Say whether a technique has the method itself."""
    return getattr(model, method) is not getattr(Technique, method)
