"""Whether two runs hold the same numbers."""

import numpy as np


def same(a, b):
    """Fail where two trees differ in anything but seconds and what says which run they are of."""
    assert set(a.children) == set(b.children)
    for group in a.children:
        for name, array in a[group].to_dataset().variables.items():
            if name != "seconds":
                values, others = array.values, b[group].to_dataset().variables[name].values
                assert np.array_equal(values, others, equal_nan=values.dtype.kind == "f"), (group, name)
        for name in ("outer_step", "validation_accuracy", "execution", "execution_fallbacks", "protocol"):
            assert a[group].attrs.get(name) == b[group].attrs.get(name), (group, name)
