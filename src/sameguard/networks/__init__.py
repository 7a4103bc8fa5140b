"""Architectures of victims, auxiliary models and substitutes, and how a classifier is trained."""

from sameguard.networks.classifier import Augmentation, fit_classifier, predict_logits
from sameguard.networks.conv3 import MLP, Conv3, SmallConv
from sameguard.networks.fast_cifar import FastCifar
from sameguard.networks.resnet import ResNet18

__all__ = ["MLP", "Augmentation", "Conv3", "FastCifar", "ResNet18", "SmallConv", "fit_classifier", "predict_logits"]
