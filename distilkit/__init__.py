"""Dataset distillation with exact, memory-flat meta-gradients.

`import distilkit as dk` gives every public name as `dk.NAME`. A name is imported when it is first asked for (PEP 562), so
that the import itself, and `distilkit --help`, need neither torch nor a second of time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# Where each public name lives. The imports under TYPE_CHECKING say the same to editors and mypy; a test holds them equal.
_MODULES: dict[str, tuple[str, ...]] = {
    "distilkit.boosting": ("BoostSchedule",),
    "distilkit.data.augmentation": ("DSA", "Augmentation", "FlipRotate"),
    "distilkit.data.bundle": ("DataBundle", "DataSource", "Split"),
    "distilkit.data.distilled": ("DistilledSet",),
    "distilkit.data.preprocessing": ("Identity", "KorniaZCA", "Preprocessing", "Standardize", "Whiten"),
    "distilkit.data.sources": (
        "MNIST",
        "SVHN",
        "Arrays",
        "CIFAR10",
        "CIFAR100",
        "CUB200",
        "Digits",
        "FashionMNIST",
        "HuggingFace",
        "ImageFolder",
        "TinyImageNet",
    ),
    "distilkit.distiller": ("Distiller",),
    "distilkit.evaluation": ("Evaluation",),
    "distilkit.fields": ("evolve",),
    "distilkit.unroll.adjoints": ("Adjoint", "AutogradAdjoint", "ReplayAdjoint"),
    "distilkit.functional.clipping": ("EMAClip",),
    "distilkit.functional.losses": ("MSE", "CrossEntropy", "Loss"),
    "distilkit.functional.optimizers": ("SGD", "Adam", "AdamW", "Optimizer", "RMSProp", "TorchOpt"),
    "distilkit.functional.schedules": ("Constant", "Cosine", "Schedule"),
    "distilkit.functional.streams": ("Stream",),
    "distilkit.learner": ("Learner",),
    "distilkit.networks": ("MLP", "VGG", "AlexNet", "ConvNet", "Functional", "Network", "ResNet"),
    "distilkit.outer": ("Images", "Labels", "Outer"),
    "distilkit.progress": ("Progress", "Silent"),
    "distilkit.runs.evaluate": ("evaluate",),
    "distilkit.runs.plan": ("plan",),
    "distilkit.runs.run": ("run",),
    "distilkit.storage": ("load", "open"),
    "distilkit.studies": ("gradient_study", "intercorrelation", "intercorrelation_study", "subset_grid"),
    "distilkit.truncation": (
        "FixedStart",
        "FullUnroll",
        "RandomHorizon",
        "RandomTruncation",
        "StepInfo",
        "TailTruncation",
        "TruncationPolicy",
        "Window",
    ),
    "distilkit.unroller": ("Unroller",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted([*_HOME, "__version__"])

if TYPE_CHECKING:
    from distilkit.boosting import BoostSchedule as BoostSchedule
    from distilkit.data.augmentation import DSA as DSA, Augmentation as Augmentation, FlipRotate as FlipRotate
    from distilkit.data.bundle import DataBundle as DataBundle, DataSource as DataSource, Split as Split
    from distilkit.data.distilled import DistilledSet as DistilledSet
    from distilkit.data.preprocessing import (
        Identity as Identity,
        KorniaZCA as KorniaZCA,
        Preprocessing as Preprocessing,
        Standardize as Standardize,
        Whiten as Whiten,
    )
    from distilkit.data.sources import (
        CIFAR10 as CIFAR10,
        CIFAR100 as CIFAR100,
        CUB200 as CUB200,
        MNIST as MNIST,
        SVHN as SVHN,
        Arrays as Arrays,
        Digits as Digits,
        FashionMNIST as FashionMNIST,
        HuggingFace as HuggingFace,
        ImageFolder as ImageFolder,
        TinyImageNet as TinyImageNet,
    )
    from distilkit.distiller import Distiller as Distiller
    from distilkit.evaluation import Evaluation as Evaluation
    from distilkit.fields import evolve as evolve
    from distilkit.functional.clipping import EMAClip as EMAClip
    from distilkit.functional.losses import MSE as MSE, CrossEntropy as CrossEntropy, Loss as Loss
    from distilkit.functional.optimizers import (
        SGD as SGD,
        Adam as Adam,
        AdamW as AdamW,
        Optimizer as Optimizer,
        RMSProp as RMSProp,
        TorchOpt as TorchOpt,
    )
    from distilkit.functional.schedules import Constant as Constant, Cosine as Cosine, Schedule as Schedule
    from distilkit.functional.streams import Stream as Stream
    from distilkit.learner import Learner as Learner
    from distilkit.networks import (
        MLP as MLP,
        VGG as VGG,
        AlexNet as AlexNet,
        ConvNet as ConvNet,
        Functional as Functional,
        Network as Network,
        ResNet as ResNet,
    )
    from distilkit.outer import Images as Images, Labels as Labels, Outer as Outer
    from distilkit.progress import Progress as Progress, Silent as Silent
    from distilkit.runs.evaluate import evaluate as evaluate
    from distilkit.runs.plan import plan as plan
    from distilkit.runs.run import run as run
    from distilkit.storage import load as load, open as open
    from distilkit.studies import (
        gradient_study as gradient_study,
        intercorrelation as intercorrelation,
        intercorrelation_study as intercorrelation_study,
        subset_grid as subset_grid,
    )
    from distilkit.truncation import (
        FixedStart as FixedStart,
        FullUnroll as FullUnroll,
        RandomHorizon as RandomHorizon,
        RandomTruncation as RandomTruncation,
        StepInfo as StepInfo,
        TailTruncation as TailTruncation,
        TruncationPolicy as TruncationPolicy,
        Window as Window,
    )
    from distilkit.unroll.adjoints import Adjoint as Adjoint, AutogradAdjoint as AutogradAdjoint, ReplayAdjoint as ReplayAdjoint
    from distilkit.unroller import Unroller as Unroller


def __getattr__(name: str) -> object:
    """Import a public name from its room on first use and keep it."""
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    from distilkit.errors import nearest

    close = nearest(name, _HOME)
    raise AttributeError(f"distilkit has no {name!r}" + (f"; did you mean dk.{close}?" if close else "."))


def __dir__() -> list[str]:
    """List the public names, imported or not, beside what is there already."""
    return sorted({*globals(), *_HOME})
