"""`Functional`: any `torch.nn.Module` as a network, through `torch.func.functional_call`."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any, Literal

import attrs
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from distilkit import fields
from distilkit.errors import CombinationError, DistilkitError, FieldError
from distilkit.functional.streams import Stream
from distilkit.networks import base, dropout

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_OTHER_DROPOUTS = (nn.AlphaDropout, nn.FeatureAlphaDropout)  # than those of `dropout`
BatchNorm = Literal["refuse", "batch"]
_FACTORY = "Functional(lambda: MyNet())  # a function that builds the module anew"


def _buildable(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if not callable(value):
        raise FieldError(attribute.name, value, "a torch.nn.Module, or a function without arguments that builds one", fix=_FACTORY)


@attrs.frozen(eq=False)
class Functional:
    """Any `torch.nn.Module` that maps a batch of images to logits, as a pure function of its parameters.

    `Functional(MyNet)` or `Functional(lambda: MyNet(width=64))`, a factory, is the better form: `init` builds the module
    anew under a seed from the stream, so its own initialisation is used. `Functional(my_net)`, an instance, is copied, and
    `reset_parameters` of every layer is called under such a seed; an initialisation that a parent module wrote over its
    layers in `__init__` is then lost. A factory must draw from torch's CPU generator alone.

    Dropout layers drop in training mode: their masks are drawn with the step, from its stream (`sample`), and without masks, as in tests,
    nothing is dropped. A layer that is called several times in one pass takes the same mask each time.

    Buffers are constants, those of one build; they follow the dtype and device of the batch. All parameters are trained.
    Two `Functional`s are equal only when they are the same object. When the network is bound, the module is called once on
    two images of zeros, to find early what could only go wrong later.

    Args:
        module: a function without arguments that builds the module, such as its class, or the module itself. Training or
            evaluation mode is kept as it is.
        image_shape: (C, H, W), or (D,); left out, it is filled in from the data.
        classes: number of classes; left out, it is filled in from the data.
        batch_norm: what becomes of batch norms that keep running statistics, which no pure function can. "refuse" raises an error; "batch"
            drops the statistics, so that images are normalised by the batch that they are in, in training and in tests alike. A test
            accuracy then depends a little on how the test images are parted into batches.

    Raises:
        DistilkitError: the module has hidden state or hidden randomness (batch norm with running statistics, dropout by a function,
            in-place changes of buffers), or it cannot be initialised again.
        CombinationError: the module does not take `image_shape`, or its output is not (N, classes).

    >>> net = Functional(lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 3))).bind((1, 2, 2), 3)
    >>> net.apply(net.init(Stream(0)), torch.zeros(5, 1, 2, 2)).shape
    torch.Size([5, 3])
    """

    module: nn.Module | Callable[[], nn.Module] = attrs.field(validator=_buildable)
    image_shape: tuple[int, ...] | None = fields.integers(default=None, optional=True)
    classes: int | None = fields.integer(default=None, least=1, optional=True)
    batch_norm: BatchNorm = fields.choice(BatchNorm, default="refuse")
    _template: nn.Module = attrs.field(init=False, repr=False)
    _names: frozenset[str] = attrs.field(init=False, repr=False)
    _buffers: dict[str, torch.Tensor] = attrs.field(init=False, repr=False)
    _tied: bool = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        """Build the module once, refuse what cannot be a pure function, and try it when the shapes are known."""
        if isinstance(self.module, nn.Module) and self.batch_norm == "refuse":
            _refuse_impure(self.module)
        template = self._build(0)
        _refuse_impure(template)
        names = [name for name, _ in template.named_parameters()]
        buffers = {name: b.detach() for name, b in template.named_buffers()}
        every = itertools.chain(template.named_parameters(remove_duplicate=False), template.named_buffers(remove_duplicate=False))
        object.__setattr__(self, "_template", template)
        object.__setattr__(self, "_names", frozenset(names))
        object.__setattr__(self, "_buffers", buffers)
        object.__setattr__(self, "_tied", len(list(every)) > len(names) + len(buffers))
        if self.image_shape is not None and self.classes is not None:
            _try_out(self, template)

    def bind(self, image_shape: tuple[int, ...], classes: int) -> Functional:
        """Return this network for images of `image_shape` and `classes` classes; see `base.bind`."""
        return base.bind(self, image_shape, classes)

    def init(self, stream: Stream) -> base.Params:
        """Build or reset the module under a seed from `stream`; parameters float32 on the CPU, tied ones once."""
        base.bound(self)
        return _parameters(self._build(stream.integer_seed()))

    def apply(self, params: base.Params, x: torch.Tensor, drawn: base.Params | None = None) -> torch.Tensor:
        """Map images (N, *image_shape) to logits (N, classes); in training, with what `sample` has drawn."""
        base.check_input(self, x)
        tensors = self._tensors(params, x) | (drawn or {})
        logits: torch.Tensor = torch.func.functional_call(self._template, tensors, (x,), tie_weights=self._tied)
        return logits

    def sample(self, stream: Stream, count: int) -> base.Params:
        """Draw what is random in a training step on so many images: masks of dropout, by name; empty where there is none."""
        return dropout.masks(self._template, stream, count)

    def _tensors(self, params: base.Params, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """A fresh dict of parameters and buffers: functional_call writes into the one that it gets."""
        if params.keys() != self._names:
            # functional_call would quietly use the template's own values, and their gradient would be zero.
            odd = ", ".join(sorted(params.keys() ^ self._names))
            raise CombinationError(
                f"These parameters do not belong to the module: {odd} is missing or too much.", fix="params = network.init(stream)"
            )
        buffers = {n: b.to(x.device, x.dtype if b.is_floating_point() else b.dtype) for n, b in self._buffers.items()}
        return {**buffers, **params}

    def _build(self, seed: int) -> nn.Module:
        # Only the CPU generator is seeded and put back: torch.manual_seed would also seed every GPU.
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.default_generator.manual_seed(seed)
            if isinstance(self.module, nn.Module):
                return self._made_pure(_reset(self.module))
            try:
                module = self.module()
            except TypeError as error:
                raise FieldError("module", self.module, f"a function without arguments; it raised {error}", fix=_FACTORY) from error
        if not isinstance(module, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise FieldError("module", self.module, f"a function that builds a torch.nn.Module; it gave {module!r}", fix=_FACTORY)
        if module is getattr(self, "_template", None):
            raise DistilkitError("The factory gave the same module twice, so its parameters would not be drawn anew.", fix=_FACTORY)
        return self._made_pure(module)

    def _made_pure(self, module: nn.Module) -> nn.Module:
        if self.batch_norm == "batch":
            torch.func.replace_all_batch_norm_modules_(module)
        return dropout.replaced(module)


def _parameters(module: nn.Module) -> base.Params:
    return {name: p.detach().to("cpu", torch.float32) for name, p in module.named_parameters()}


def _reset(module: nn.Module) -> nn.Module:
    """A copy of the module on the CPU with every layer initialised again, children before their parents."""
    try:
        module = copy.deepcopy(module).cpu()
    except RuntimeError as error:
        raise DistilkitError(f"This {type(module).__name__} cannot be copied: {error}.", fix=_FACTORY) from error

    def reset(layer: nn.Module) -> None:
        method = getattr(layer, "reset_parameters", None)
        if callable(method):
            method()
        elif any(True for _ in layer.parameters(recurse=False)):
            raise DistilkitError(
                f"{type(layer).__name__} owns the parameter {next(layer.named_parameters(recurse=False))[0]!r} and has no "
                "reset_parameters, so this instance cannot be initialised again.",
                fix=_FACTORY,
            )

    return module.apply(reset)


def _refuse_impure(module: nn.Module) -> None:
    """Refuse by name what has hidden state or randomness, or cannot be trained as a whole."""
    for name, layer in module.named_modules():
        what = f"{type(layer).__name__} ({name or 'the module itself'})"
        if getattr(layer, "running_mean", None) is not None:
            fix = 'Functional(module, batch_norm="batch")' if isinstance(layer, _BATCH_NORMS) else "track_running_stats=False"
            raise DistilkitError(f"{what} keeps running statistics, which change inside a function that must be pure.", fix=fix)
        if isinstance(layer, _OTHER_DROPOUTS) and layer.training and layer.p > 0:
            raise DistilkitError(
                f"{what} with p = {layer.p} draws random numbers that no stream controls, so a step could not be replayed.",
                fix=f"nn.Dropout({layer.p})  # whose masks a step draws; or module.eval()",
            )
    for name, tensor in itertools.chain(module.named_parameters(), module.named_buffers()):
        if is_lazy(tensor):
            raise DistilkitError(f"{name} has no shape yet (a lazy module).", fix="nn.Linear(in_features, out_features)  # not LazyLinear")
        if tensor.is_meta:
            raise DistilkitError(f"{name} is on the meta device, where tensors have no values.", fix=_FACTORY)
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            raise DistilkitError(
                f"{name} has requires_grad = False, and distilkit trains every parameter.",
                fix="self.register_buffer(name, tensor)  # buffers are constants",
            )


def _try_out(functional: Functional, module: nn.Module) -> None:
    """Call the module once on zeros (2, *image_shape) and look for hidden randomness, hidden state and a wrong output shape."""
    shape, classes = base.bound(functional)
    kind = type(module).__name__
    x = torch.zeros(2, *shape, dtype=torch.float32)
    given = {name: t.clone() for name, t in functional._tensors(_parameters(module), x).items()}  # pyright: ignore[reportPrivateUsage]
    tensors = dict(given)
    before = x._version, {name: t._version for name, t in given.items()}
    dropout.forget_shapes(module)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        state = torch.random.get_rng_state()
        try:
            y = torch.func.functional_call(module, tensors, (x,), tie_weights=functional._tied)  # pyright: ignore[reportPrivateUsage]
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise CombinationError(f"{kind} does not take images of shape {shape!r}: {error}") from error
        random = not torch.equal(state, torch.random.get_rng_state())
    if random:
        raise DistilkitError(
            f"{kind} draws random numbers in its forward pass that no stream controls, so a step could not be replayed.",
            fix="nn.Dropout(0.5)  # a layer, not a function: its masks are drawn with the step",
        )
    if x._version != before[0]:
        raise DistilkitError(f"{kind} changes its input in place: the distilled images themselves.", fix="nn.ReLU(inplace=False)")
    changed = [name for name, t in given.items() if tensors[name] is not t or t._version != before[1][name]]
    if changed:
        raise DistilkitError(
            f"{kind} changes {', '.join(changed)} in its forward pass, so it is not a pure function.",
            fix="module.eval()  # if it stops there",
        )
    if not isinstance(y, torch.Tensor) or y.shape != (2, classes):
        got = f"a tensor of shape {tuple(y.shape)!r}" if isinstance(y, torch.Tensor) else f"a {type(y).__name__}"
        raise CombinationError(
            f"{kind} gives {got} for 2 images; distilkit needs logits (2, {classes}).",
            fix=f"nn.Linear(features, {classes})  # as the last layer",
        )
