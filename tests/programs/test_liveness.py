"""Peak memory of a recorded program, from shapes."""

import torch

from distilkit.programs.liveness import peak_bytes
from distilkit.programs.programs import record

X = torch.ones(1000)  # 4,000 bytes


def peak(function, *arguments):
    return peak_bytes(record(function, arguments))


def test_what_dies_makes_room():
    assert peak(lambda x: x.sin().cos().exp().tan(), X) == 8000  # never more than one input of an operation and its result


def test_what_is_needed_later_stays():
    assert peak(lambda x: x.sin().cos().exp() * x.tanh().sin().cos(), X) == 12000


def test_results_stay_and_views_are_free():
    assert peak(lambda x: (x.sin(), x.cos()), X) == 8000
    assert peak(lambda x: x.sin().view(10, 100).t()[0] + 1, X) == 4000 + 40


def test_arguments_do_not_count():
    assert peak(lambda x: x.view(10, 100), X) == 0
