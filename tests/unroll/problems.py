"""Small inner problems for the truth tests, and an adjoint-free reference: autograd over the whole inner run."""

import torch
from torch.nn import functional as F

import distilkit as dk
from distilkit.unroll.inner import OuterVariables
from distilkit.unroller import RealBatch

CLASSES, PER_CLASS, SHAPE = 3, 3, (1, 8, 8)


def learner(optimizer, *, activation="gelu", depth=2, batch_per_class=None, classes_per_step=None, augment=None, **rates):
    network = dk.ConvNet(width=4, depth=depth, activation=activation).bind(SHAPE, CLASSES)
    return dk.Learner(network, optimizer, batch_per_class=batch_per_class, classes_per_step=classes_per_step, augment=augment, **rates)


def problem(dtype=torch.float64, lr=0.05, rates=1):
    """A distilled set of three images of each of three classes, and a real batch; several rates are all different."""
    stream = dk.Stream(7)
    classes = torch.arange(CLASSES).repeat_interleave(PER_CLASS)
    labels = F.one_hot(classes, CLASSES).double() * 0.9 + 0.05 * stream.fold("labels").uniform(len(classes), CLASSES, dtype=torch.float64)
    images = stream.fold("images").normal(len(classes), *SHAPE, dtype=torch.float64)
    real = stream.fold("real").normal(24, *SHAPE, dtype=torch.float64)
    targets = F.one_hot(torch.arange(24) % CLASSES, CLASSES).double()
    log_lr = torch.tensor(lr, dtype=torch.float64).log()
    log_lr = log_lr if rates == 1 else log_lr + 0.1 * torch.arange(rates)
    leaves = OuterVariables(images.to(dtype), labels.to(dtype), log_lr.to(dtype))
    return leaves, RealBatch(real.to(dtype), targets.to(dtype)), classes


def outer_loss(inner, leaves, window, batch, stream, classes, places=()):
    """The outer loss as a function of the leaves, written with torch.autograd alone: no adjoint and no functorch.

    It is the mean of the losses after `places`, numbers of steps from the beginning of the inner run, and at its end.

    The steps before the window run on detached leaves, and what they leave is detached.
    """
    frozen = OuterVariables(*(x.detach() for x in leaves))
    state = inner.init(stream.fold("network"), dtype=leaves.images.dtype)
    params = state.params.detach().requires_grad_()
    optimizer, losses = state.optimizer, []
    for t in range(window.stop):
        if t in places:
            losses.append(inner.loss(inner.logits(params, batch.images), batch.labels))
        use = leaves if t >= window.start else frozen
        draw = inner.draw(stream.fold("draw").fold(t), classes, SHAPE)
        rate = use.log_lr if use.log_lr.ndim == 0 else use.log_lr[min(t, len(use.log_lr) - 1)]
        (gradient,) = torch.autograd.grad(inner.objective(params, use.images, use.labels, draw), params, create_graph=True)
        params, optimizer = inner.update(type(state)(params, optimizer), gradient, rate)
        if t < window.start:
            params, optimizer = params.detach().requires_grad_(), _detached(optimizer)
    losses.append(inner.loss(inner.logits(params, batch.images), batch.labels))
    return torch.stack(losses).mean()


def reference(inner, leaves, window, batch, stream, classes, places=()):
    """Whole-window autograd: (loss, gradient with respect to each leaf)."""
    leaves = OuterVariables(*(x.clone().requires_grad_() for x in leaves))
    loss = outer_loss(inner, leaves, window, batch, stream, classes, places)
    gradients = torch.autograd.grad(loss, list(leaves), allow_unused=True)
    return loss.detach(), OuterVariables(*(torch.zeros_like(x) if g is None else g for x, g in zip(leaves, gradients, strict=False)))


def relative(a, b):
    """|a - b| / |b|, or |a| where b is zero."""
    return ((a - b).norm() / b.norm()).item() if b.norm() > 0 else a.norm().item()


def _detached(tree):
    from distilkit.functional.pytrees import tensor_map

    return tensor_map(torch.Tensor.detach, tree)
