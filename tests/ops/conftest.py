"""What the operator tests share: the backends, and hypothesis without chance or clock."""

from __future__ import annotations

from collections.abc import Iterator

import hypothesis
import pytest

from tf_deformable import _native, config

hypothesis.settings.register_profile(
    "tf_deformable",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=25,
    # The backend fixture holds for all examples of a test, which is what is wanted.
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("tf_deformable")


@pytest.fixture(params=["native", "reference"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test on both implementations. A missing library fails, and does not skip."""
    with config.use_backend(request.param):
        if request.param == "native":
            _native.load()
        yield request.param
