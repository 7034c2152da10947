"""Subjects that the tests of the core share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from customcontrast.pipeline import CustomContrast, Subject
from tests.conftest import Cutout


@pytest.fixture(scope="session")
def bear(any_custom: CustomContrast, cutout: Callable[[int], Cutout]) -> Subject:
    """A subject of one reference, on each tiny base in turn."""
    return any_custom.subject(cutout(1), "bear")


@pytest.fixture(scope="session")
def cat(any_custom: CustomContrast, cutout: Callable[[int], Cutout]) -> Subject:
    """Another one, of two references."""
    return any_custom.subject([cutout(2), cutout(3)], "cat")
