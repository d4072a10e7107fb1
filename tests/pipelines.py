"""A pipeline as small as one can be, to change a part of."""

import torch

import distilkit as dk


def tiny(**changes):
    settings = {
        "data": dk.Digits(),
        "learner": dk.Learner(dk.MLP(hidden=(12,)), dk.Adam(lr=0.01)),
        "truncation": dk.RandomTruncation(horizon=6, window=3),
        "outer": dk.Outer(steps=6, batch_size=64, optimizer=dk.Adam(lr=0.05)),
        "labels": dk.Labels(learn=True),
        "evaluation": dk.Evaluation(seeds=2, steps=(5, 10), every=3),
    }
    return dk.Distiller(**(settings | changes))


def ruin(monkeypatch, after=0):
    """Let every outer step but the first ones leave empty images, of which nothing can be learned."""
    real = dk.Distiller.step

    def step(self, state, attempt=1):
        state, info = real(self, state, attempt)
        empty = state.leaves._replace(images=torch.zeros_like(state.leaves.images))
        return (state._replace(leaves=empty) if state.step > after else state), info

    monkeypatch.setattr(dk.Distiller, "step", step)


# Where the accuracy is not looked at.
BARE = dk.Evaluation(seeds=1, steps=(2,), every=0, baselines=())
