"""The public names and where they live: what `distilkit/__init__.py` gives, and what type checkers see."""

from .adaptive import AdaptiveTruncation as AdaptiveTruncation
from .boosting import BoostSchedule as BoostSchedule
from .data.augmentation import DSA as DSA, Augmentation as Augmentation, FlipRotate as FlipRotate
from .data.bundle import DataBundle as DataBundle, DataSource as DataSource, Split as Split
from .data.distilled import DistilledSet as DistilledSet
from .data.preprocessing import (
    Identity as Identity,
    KorniaZCA as KorniaZCA,
    Preprocessing as Preprocessing,
    Standardize as Standardize,
    Whiten as Whiten,
)
from .data.sources.arrays import Arrays as Arrays
from .data.sources.digits import Digits as Digits
from .data.sources.folders import CUB200 as CUB200, ImageFolder as ImageFolder, TinyImageNet as TinyImageNet
from .data.sources.huggingface import HuggingFace as HuggingFace
from .data.sources.torchvision_sources import (
    CIFAR10 as CIFAR10,
    CIFAR100 as CIFAR100,
    MNIST as MNIST,
    SVHN as SVHN,
    FashionMNIST as FashionMNIST,
)
from .distiller import Distiller as Distiller
from .errors import DistilkitError as DistilkitError, GradientError as GradientError, RunError as RunError
from .evaluation import Evaluation as Evaluation
from .fields import evolve as evolve
from .functional.clipping import EMAClip as EMAClip
from .functional.losses import MSE as MSE, CrossEntropy as CrossEntropy, Loss as Loss
from .functional.optimizers import (
    SGD as SGD,
    Adam as Adam,
    AdamW as AdamW,
    Optimizer as Optimizer,
    RMSProp as RMSProp,
    TorchOpt as TorchOpt,
)
from .functional.schedules import Constant as Constant, Cosine as Cosine, Schedule as Schedule
from .functional.streams import Stream as Stream
from .growth import Growth as Growth
from .learner import Learner as Learner
from .networks.alexnet import AlexNet as AlexNet
from .networks.base import Network as Network
from .networks.convnet import ConvNet as ConvNet
from .networks.mlp import MLP as MLP
from .networks.module import Functional as Functional
from .networks.resnet import ResNet as ResNet
from .networks.vgg import VGG as VGG
from .outer import Images as Images, Labels as Labels, Outer as Outer
from .progress import Progress as Progress, Silent as Silent
from .runs.evaluate import evaluate as evaluate
from .runs.loggers import Logger as Logger, TensorBoard as TensorBoard, Tracker as Tracker
from .runs.plan import plan as plan
from .runs.run import run as run
from .storage import load as load, open as open
from .studies.gradients import gradient_study as gradient_study
from .studies.sources import intercorrelation as intercorrelation, intercorrelation_study as intercorrelation_study
from .studies.subsets import subset_grid as subset_grid
from .truncation import (
    FixedStart as FixedStart,
    FullUnroll as FullUnroll,
    Growing as Growing,
    Probe as Probe,
    ProbingPolicy as ProbingPolicy,
    RandomHorizon as RandomHorizon,
    RandomTruncation as RandomTruncation,
    StepInfo as StepInfo,
    TailTruncation as TailTruncation,
    TruncationPolicy as TruncationPolicy,
    Window as Window,
)
from .unroll.adjoints import Adjoint as Adjoint, AutogradAdjoint as AutogradAdjoint, ReplayAdjoint as ReplayAdjoint
from .unroller import Unroller as Unroller

__version__: str
