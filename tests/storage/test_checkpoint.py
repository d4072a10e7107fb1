"""Checkpoints: exact, atomic, never pickle, and honest about the ones that a disk or a kill has spoiled."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, NamedTuple

import attrs
import pytest
import torch

from distilkit.errors import RunError
from distilkit.storage import checkpoint

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool)


def numbers(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    made = {str(d): (torch.randn(3, 2, generator=generator) * 5).abs().to(d) for d in DTYPES}
    flat = torch.randn(12, generator=generator)
    return made | {"scalar": torch.tensor(float(step)), "empty": torch.zeros(0, 3), "view": flat[:6], "strided": flat.view(3, 4).T}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def test_every_dtype_and_every_view_comes_back(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path / "nothing") is None
    meta = {"spec": "é 鳥", "ema": None, "nested": {"a": [1, 2.5, True]}}
    checkpoint.save(tmp_path / "made", 7, numbers(7), meta)
    found = checkpoint.latest(tmp_path / "made")
    assert found is not None
    assert (found.step, found.meta, found.warnings) == (7, meta, ())
    assert same(found.tensors, numbers(7))


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_last_k_stay(tmp_path: Path, keep: int) -> None:
    for step in (0, 5, 10, 100):
        checkpoint.save(tmp_path, step, numbers(step), {}, keep=keep)
    assert checkpoint.steps(tmp_path) == [0, 5, 10, 100][-keep:]


def test_going_on_from_an_earlier_step_gives_up_the_later_ones(tmp_path: Path) -> None:
    for step in (10, 20):
        checkpoint.save(tmp_path, step, numbers(step), {}, keep=2)
    checkpoint.save(tmp_path, 15, numbers(15), {}, keep=2)
    assert checkpoint.steps(tmp_path) == [10, 15]


def truncate(path: Path, part: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))


DAMAGE = {
    "empty": lambda p: truncate(p, 0),
    "cut in the header": lambda p: truncate(p, 0.1),
    "cut in the data": lambda p: truncate(p, 0.9),
    "one bit": flip,
    "other file": lambda p: p.write_bytes(b"not a checkpoint, but long enough to have a header length in it"),
    "step of another": lambda p: p.write_bytes((p.parent / "step-000000001.safetensors").read_bytes()),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_spoiled_checkpoint_falls_back_and_says_so(tmp_path: Path, damage: Any, caplog: pytest.LogCaptureFixture) -> None:
    for step in (1, 2):
        path = checkpoint.save(tmp_path, step, numbers(step), {"step": step})
    damage(path)
    with pytest.raises(RunError, match=path.name):
        checkpoint.load(tmp_path, 2)
    with caplog.at_level(logging.WARNING):
        found = checkpoint.latest(tmp_path)
    assert found is not None
    assert (found.step, found.meta) == (1, {"step": 1})
    assert same(found.tensors, numbers(1))
    assert len(found.warnings) == 1
    assert path.name in found.warnings[0]
    assert path.name in caplog.text
    truncate(tmp_path / "step-000000001.safetensors", 0.5)
    with pytest.raises(RunError, match="None of the checkpoints"):
        checkpoint.latest(tmp_path)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_kill_while_saving_leaves_the_one_before(tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path, 1, numbers(1), {})

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    for step in (1, 2):  # the same step once more, and the next
        with monkeypatch.context() as patch:
            patch.setattr(os, call, killed)
            with pytest.raises(KeyboardInterrupt):
                checkpoint.save(tmp_path, step, numbers(3), {})
        found = checkpoint.latest(tmp_path)
        assert found is not None
        assert same(found.tensors, numbers(1))
        assert found.warnings == ()
    checkpoint.save(tmp_path, 2, numbers(2), {})
    assert not list(tmp_path.glob("*.part"))


MISTAKES = {
    "meta": (lambda p: checkpoint.save(p, 1, {}, {"a": object()}), "plain JSON"),
    "step": (lambda p: checkpoint.save(p, -1, {}, {}), "at least 0"),
    "keep": (lambda p: checkpoint.save(p, 1, {}, {}, keep=0), "at least 1"),
    "complex": (lambda p: checkpoint.save(p, 1, {"a": torch.zeros(1, dtype=torch.complex128)}, {}), "real numbers"),
    "absent": (lambda p: checkpoint.load(p, 3), "no checkpoint"),
}


@pytest.mark.parametrize(("act", "words"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_in_words(tmp_path: Path, act: Any, words: str) -> None:
    with pytest.raises(RunError, match=words):
        act(tmp_path)


class Moments(NamedTuple):
    mu: Any
    count: Any


@attrs.frozen
class State:
    step: int
    params: dict[str, Any]
    inner: Any
    _hidden: float = 0.5
    name: str = "adam"


def state(value: float, step: int) -> State:
    moments = (Moments({"a.b": torch.full((2,), value), "a": {"b": torch.full((2,), -value)}}, torch.tensor(step)), None)
    return State(step, {"w": torch.full((3,), value, requires_grad=True)}, [moments, (), {"inner": State(step + 1, {}, value > 0)}], value)


def test_a_tree_of_state_goes_through_a_checkpoint(tmp_path: Path) -> None:
    truth = state(1.5, 2**40 + 1)
    checkpoint.save(tmp_path, 1, checkpoint.flatten(truth), {})
    back = checkpoint.unflatten(state(0.0, 0), checkpoint.load(tmp_path, 1).tensors)
    assert (back.step, back._hidden, back.inner[2]["inner"].step, back.inner[2]["inner"].inner) == (2**40 + 1, 1.5, 2**40 + 2, True)
    assert isinstance(back.inner[0][0], Moments)
    assert back.inner[0][1] is None
    moments = back.inner[0][0]
    assert torch.equal(moments.mu["a.b"], torch.full((2,), 1.5))  # a dot in a name and a level of the tree are not one
    assert torch.equal(moments.mu["a"]["b"], torch.full((2,), -1.5))
    assert moments.count.dtype == torch.int64
    assert back.params["w"].requires_grad
    assert back.params["w"].is_leaf
    assert checkpoint.flatten(back).keys() == checkpoint.flatten(truth).keys()


def test_a_torchopt_state_goes_round() -> None:
    torchopt = pytest.importorskip("torchopt")
    made = torchopt.adam(lr=0.1).init({"w": torch.ones(3), "b": torch.zeros(())})
    changed = checkpoint.unflatten(made, {name: t + 1 for name, t in checkpoint.flatten(made).items()})
    assert type(changed) is type(made)
    for name, tensor in checkpoint.flatten(changed).items():
        assert torch.equal(tensor, checkpoint.flatten(made)[name] + 1)


UNLIKE = {
    "missing": ({"a": torch.ones(2)}, {}, "lacks"),
    "left over": ({}, {"['a']": torch.ones(2)}, "has also"),
    "shape": ({"a": torch.ones(2)}, {"['a']": torch.ones(3)}, r"\(3,\).*\(2,\)"),
    "dtype": ({"a": torch.ones(2)}, {"['a']": torch.ones(2, dtype=torch.float64)}, "float64"),
    "number": ({"a": 3}, {"['a']": torch.tensor(3.0)}, "int64"),
}


@pytest.mark.parametrize(("template", "tensors", "words"), UNLIKE.values(), ids=UNLIKE)
def test_a_state_of_another_structure_is_refused(template: Any, tensors: Any, words: str) -> None:
    with pytest.raises(RunError, match=words):
        checkpoint.unflatten(template, tensors)
