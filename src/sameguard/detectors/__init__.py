"""Detectors: what scores queries, and the defences that SAME is compared with."""

from sameguard.detectors.base import Detector
from sameguard.detectors.diverse_ensemble import DiverseEnsemble
from sameguard.detectors.features import Mahalanobis, NearestNeighbours, RelativeMahalanobis, penultimate
from sameguard.detectors.outlier_exposure import OutlierExposure
from sameguard.detectors.outputs import Energy, Entropy, MaxProbability
from sameguard.detectors.plain_autoencoder import PlainAutoencoder, VictimOnReconstruction
from sameguard.detectors.prada import Prada
from sameguard.detectors.presets import AuxiliaryConfig, default_auxiliary, preset
from sameguard.detectors.same import SAME
from sameguard.detectors.supervised import SupervisedUpperBound
from sameguard.detectors.trivial import NearestTrainingImage, OffGrid, TextureTerm, trivial_detectors

__all__ = [
    "SAME",
    "AuxiliaryConfig",
    "Detector",
    "DiverseEnsemble",
    "Energy",
    "Entropy",
    "Mahalanobis",
    "MaxProbability",
    "NearestNeighbours",
    "NearestTrainingImage",
    "OffGrid",
    "OutlierExposure",
    "PlainAutoencoder",
    "Prada",
    "RelativeMahalanobis",
    "SupervisedUpperBound",
    "TextureTerm",
    "VictimOnReconstruction",
    "default_auxiliary",
    "penultimate",
    "preset",
    "trivial_detectors",
]
