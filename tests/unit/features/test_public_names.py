"""`tidemill.features` has the public names of the feature store, and importing tiles or views does not load Redis' client."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tidemill import features
from tidemill.features import store


@pytest.mark.parametrize("name", features.__all__)
def test_public_names_are_those_of_the_store(name: str) -> None:
    assert getattr(features, name) is getattr(store, name)


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        features.nothing  # noqa: B018


@pytest.mark.slow
def test_stages_load_no_client_library() -> None:
    code = (
        "import sys, tidemill.features, tidemill.features.tiles, tidemill.features.views, tidemill.offline.backtest; "
        "import tidemill.stages.featurizer.service, tidemill.stages.materializer.service, tidemill.stages.joiner.service; "
        "print([name for name in ('redis', 'confluent_kafka') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
