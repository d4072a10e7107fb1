"""The tests' own components stand in the table of kinds, so that these tests need no torch and no other room."""

import sys
from pathlib import Path

import pytest

from distilkit.spec import kinds

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True, scope="module")
def sample_kinds():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kinds, "HOME", "spec_samples")
        for slot in kinds.KINDS:
            patch.setitem(kinds.KINDS, slot, ())
        patch.setitem(kinds.KINDS, "data", ("Digits",))
        patch.setitem(kinds.KINDS, "network", ("ConvNet", "MLP"))
        patch.setitem(kinds.KINDS, "optimizer", ("SGD", "Adam"))
        patch.setitem(kinds.KINDS, "schedule", ("Constant",))
        patch.setattr(kinds, "PYTHON_SLOTS", ("data", "network"))  # so that there are slots without
        yield
