"""What a declaration's own functions return is what it means: missing is missing, and text is neither true nor false."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import small

from tidemill import category, flag, number
from tidemill.declare.feature import Feature
from tidemill.errors import DeclarationError
from tidemill.stages.featurizer.service import extractor


@pytest.mark.parametrize("make", [number, category, flag])
@pytest.mark.parametrize(
    "missing", [None, float("nan"), np.nan, np.float32("nan"), pd.NA, pd.NaT, np.datetime64("NaT")]
)
def test_what_is_missing_is_missing_in_every_kind(make: Any, missing: Any) -> None:
    assert extractor(make(lambda _: missing))({}) is None


@pytest.mark.parametrize(
    ("feature", "value"),
    [
        (number(lambda _: np.int64(3)), 3.0),
        (number(lambda _: np.float32(0.5)), 0.5),
        (number(lambda _: np.True_), 1.0),
        (category(lambda _: np.int64(3)), "3"),
        (category(lambda _: np.str_("a")), "a"),
        (flag(lambda _: np.True_), True),
        (flag(lambda _: np.int8(0)), False),
        (flag(lambda _: 1.0), True),
    ],
)
def test_numpys_values_are_what_they_mean(feature: Feature, value: Any) -> None:
    given = extractor(feature)({})
    assert (given, type(given)) == (value, type(value))


@pytest.mark.parametrize("text", ["no", "false", "0", "", "yes", b"1", 2, -1, [], {"a": 1}])
def test_a_flag_is_not_made_of_what_is_neither_true_nor_false(text: Any) -> None:
    with pytest.raises(TypeError, match="where true or false was expected"):
        extractor(flag(lambda _: text))({})


def test_a_flag_of_a_text_field_is_refused_with_the_mend() -> None:
    with pytest.raises(DeclarationError, match=r"request\['late'\]: field 'carrier' is string, .* e\['carrier'\] =="):
        small.make(request={"late": flag("carrier")})
