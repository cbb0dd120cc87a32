"""The package itself: every public name, loaded on first use."""

from __future__ import annotations

import importlib
import inspect
from importlib.metadata import version

import pytest

import niwaki


def test_the_version_is_the_package_s():
    assert niwaki.__version__ == version("niwaki")


@pytest.mark.parametrize("name", niwaki.__all__)
def test_every_public_name_is_there(name: str):
    assert name in dir(niwaki)
    assert getattr(niwaki, name) is not None


def test_a_verb_keeps_its_name_when_its_module_is_imported():
    for name in ("measure", "report", "export", "explain", "demo", "finetune"):
        importlib.import_module(f"niwaki.{name}")
        assert callable(getattr(niwaki, name))
        assert not inspect.ismodule(getattr(niwaki, name))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'shrink'"):
        _ = niwaki.shrink
