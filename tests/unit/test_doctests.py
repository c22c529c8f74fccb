"""Each rule and each aggregate has an example in its docstring, and the example is right."""

from __future__ import annotations

import doctest
from importlib import import_module

import pytest

from tidemill import aggregates, rules

RULES = [name for name in rules.__all__ if name[0].islower()]
PLUGINS = [f"tidemill.rules.{name}" for name in RULES] + [f"tidemill.aggregates.{name}" for name in aggregates.__all__]


@pytest.mark.parametrize("name", PLUGINS)
def test_the_example_of_a_plug_in_is_right(name: str) -> None:
    module = import_module(name)
    examples = doctest.DocTestFinder().find(getattr(module, name.rpartition(".")[2]), globs=vars(module).copy())
    assert sum(len(test.examples) for test in examples) >= 2
    runner = doctest.DocTestRunner()
    assert sum(runner.run(test).failed for test in examples) == 0


def test_all_rules_are_among_them() -> None:
    assert len(RULES) == 13
