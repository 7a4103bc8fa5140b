"""The masked autoencoder and its parts."""

from sameguard.reconstruction.masked_autoencoder import PASSES, MAEConfig, MaskedAutoencoder, draw_visible
from sameguard.reconstruction.patching import ImagePatcher, VectorPatcher, patcher_for

__all__ = ["PASSES", "ImagePatcher", "MAEConfig", "MaskedAutoencoder", "VectorPatcher", "draw_visible", "patcher_for"]
