"""Read and write the YAML of recipes: the core schema of YAML 1.2, its mistakes placed by line and column."""

from __future__ import annotations

import re
from typing import Any

import yaml

from niwaki.errors import NiwakiError

# PyYAML speaks YAML 1.1, where 5e-5 is a word, `no` is false and 1:30 is ninety. Recipes mean what they say.
_PLAIN: list[tuple[str, str, str]] = [
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("merge", r"<<", "<"),
]


class _Loader(yaml.SafeLoader):
    """Load plain data only."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse a key that stands twice; YAML would silently keep the last."""
        seen: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise NiwakiError(
                    f'"{key.value}" stands twice, in lines {seen[key.value]} and {key.start_mark.line + 1}',
                    expected="each name once in a mapping",
                    place=_spot(key.start_mark),
                )
            seen[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)

    def construct_decimal(self, node: yaml.ScalarNode) -> int:
        """Read digits as a decimal number; YAML 1.1 takes 010 for eight."""
        return int(node.value)


class _Dumper(yaml.SafeDumper):
    """Quote what `_Loader` or YAML 1.1 (no, 1:30) would not read as a word, so that any reader agrees."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write equal lists twice rather than as anchors."""
        return True

    def represent_word(self, word: str) -> yaml.Node:
        """Escape the line breaks of Unicode, which PyYAML writes as they are and reads as spaces."""
        breaks = any(letter in word for letter in "\x85\u2028\u2029")
        return self.represent_scalar("tag:yaml.org,2002:str", word, style='"' if breaks else None)


for _name, _pattern, _first in _PLAIN:
    _compiled = re.compile(f"^(?:{_pattern})$")
    _letters = [letter if letter != "\0" else "" for letter in _first]
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _compiled, _letters)
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _compiled, _letters)
_Dumper.add_representer(str, _Dumper.represent_word)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_decimal)


def load(text: str) -> Any:
    """Return the data of a YAML text.

    Raises:
        NiwakiError: not YAML, or a key that stands twice; placed by line and column.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        context = f"{error.context}, " if error.context else ""
        snippet = f"\n{mark.get_snippet(indent=4)}" if mark else ""
        raise NiwakiError(
            f"this is not YAML: {context}{error.problem}{snippet}",
            fix="spaces in place of tabs" if "\\t" in str(error.problem) else "",
            place=_spot(mark) if mark else "",
        ) from None
    except (yaml.YAMLError, ValueError) as error:
        raise NiwakiError(f"this is not YAML: {error}") from None


def dump(data: Any) -> str:
    """Return the data as YAML: keys in their order, innermost mappings and lists on one line."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=110, allow_unicode=True)


def inline(value: Any) -> str:
    """Return a value as one line of YAML.

    >>> inline({"bits": 8, "by": None})
    '{bits: 8, by: null}'
    """
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _spot(mark: Any) -> str:
    """Return a mark as the user counts."""
    return f"line {mark.line + 1}, column {mark.column + 1}"
