"""Networks as pure functions: frozen values with `init(stream) -> params` and `apply(params, x) -> logits`."""

from distilkit.networks.alexnet import AlexNet
from distilkit.networks.base import Network
from distilkit.networks.convnet import ConvNet
from distilkit.networks.mlp import MLP
from distilkit.networks.module import Functional
from distilkit.networks.resnet import ResNet
from distilkit.networks.vgg import VGG

__all__ = ["MLP", "VGG", "AlexNet", "ConvNet", "Functional", "Network", "ResNet"]
