"""The mutants of tests/faults/mutations.py fit the source as it is: each text to break is there once, and what is broken compiles."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
_spec = importlib.util.spec_from_file_location("mutations", ROOT / "tests" / "faults" / "mutations.py")
assert _spec is not None
assert _spec.loader is not None
mutations = importlib.util.module_from_spec(_spec)
sys.modules["mutations"] = mutations
_spec.loader.exec_module(mutations)


@pytest.mark.parametrize("mutant", mutations.MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_changes_the_source_in_one_place_and_compiles(mutant) -> None:
    source = (ROOT / mutations.PACKAGE / mutant.file).read_text()
    broken = mutant.apply(source)
    compile(broken, mutant.file, "exec")
    assert ast.dump(ast.parse(broken)) != ast.dump(ast.parse(source))


@pytest.mark.parametrize("mutant", mutations.MUTANTS, ids=lambda mutant: mutant.name)
def test_the_tests_that_should_catch_it_are_there(mutant) -> None:
    for likely in mutant.likely:
        file, *names = likely.split("::")
        assert (ROOT / file).is_file()
        place: Any = ast.parse((ROOT / file).read_text())
        for name in names:
            place = next((part for part in ast.iter_child_nodes(place) if getattr(part, "name", "") == name), None)
            assert place is not None, likely


def test_names_are_names() -> None:
    assert len({mutant.name for mutant in mutations.MUTANTS}) == len(mutations.MUTANTS)


def test_a_source_that_has_moved_on_is_noticed() -> None:
    with pytest.raises(mutations.Drift, match="offsets-before-outputs"):
        mutations.MUTANTS[0].apply("something else")
