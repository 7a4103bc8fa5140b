"""Patchers: queries to patch tokens and back. Parameter-free and invertible; a new modality is a new patcher, and nothing else.

A side that the patch size does not divide is padded (edge values for images, zeros for vectors) and cropped on the way back, so any size works.
"""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from sameguard.errors import ConfigurationError


@runtime_checkable
class Patcher(Protocol):
    """tokens: number of patches N. token_dim: values per patch D. visible_set: (N,) which of the four masked passes shows a patch."""

    tokens: int
    token_dim: int

    def patchify(self, queries: Float[Tensor, "batch *input"]) -> Float[Tensor, "batch tokens token_dim"]: ...

    def unpatchify(self, patches: Float[Tensor, "batch tokens token_dim"]) -> Float[Tensor, "batch *input"]: ...

    def partition(self, passes: int) -> Tensor: ...


class ImagePatcher:
    """Non-overlapping square patches of (C, H, W) images, row by row; D = C * patch_size²."""

    def __init__(self, shape: tuple[int, int, int], patch_size: int) -> None:
        if patch_size < 1 or patch_size > max(shape[1:]):
            raise ConfigurationError(f"patch_size must be in [1, {max(shape[1:])}] for images of {shape[1]}x{shape[2]}, got {patch_size}.")
        self.shape = shape
        self.patch_size = patch_size
        self.rows, self.columns = -(-shape[1] // patch_size), -(-shape[2] // patch_size)
        self.tokens = self.rows * self.columns
        self.token_dim = shape[0] * patch_size**2

    def patchify(self, queries: Float[Tensor, "batch *input"]) -> Float[Tensor, "batch tokens token_dim"]:
        C, H, W = self.shape  # channels, height, width
        P, R, Q = self.patch_size, self.rows, self.columns  # patch side, patches down, patches across
        if (R * P, Q * P) != (H, W):
            queries = F.pad(queries, (0, Q * P - W, 0, R * P - H), mode="replicate")
        patches = queries.reshape(-1, C, R, P, Q, P).permute(0, 2, 4, 1, 3, 5)  # batch, R, Q, C, P, P
        return patches.reshape(-1, R * Q, C * P * P)

    def unpatchify(self, patches: Float[Tensor, "batch tokens token_dim"]) -> Float[Tensor, "batch *input"]:
        C, H, W = self.shape
        P, R, Q = self.patch_size, self.rows, self.columns
        queries = patches.reshape(-1, R, Q, C, P, P).permute(0, 3, 1, 4, 2, 5)  # batch, C, R, P, Q, P
        return queries.reshape(-1, C, R * P, Q * P)[:, :, :H, :W]

    def partition(self, passes: int) -> Tensor:
        """(N,) the pass in [0, passes) that shows each patch: (row - column) mod passes, so that every row and column is spread.

        A grid too small for that to use every pass (2x2) is counted through instead.
        """
        row, column = torch.meshgrid(torch.arange(self.rows), torch.arange(self.columns), indexing="ij")
        if self.rows + self.columns - 1 < passes:
            return torch.arange(self.tokens) % passes
        return ((row - column) % passes).reshape(-1)


class VectorPatcher:
    """Consecutive groups of `patch_size` features of (D,) vectors."""

    def __init__(self, features: int, patch_size: int) -> None:
        if patch_size < 1 or patch_size > features:
            raise ConfigurationError(f"patch_size must be in [1, {features}] for vectors of {features} features, got {patch_size}.")
        self.features = features
        self.token_dim = patch_size
        self.tokens = -(-features // patch_size)

    def patchify(self, queries: Float[Tensor, "batch features"]) -> Float[Tensor, "batch tokens token_dim"]:
        padded = F.pad(queries, (0, self.tokens * self.token_dim - self.features))
        return padded.reshape(-1, self.tokens, self.token_dim)

    def unpatchify(self, patches: Float[Tensor, "batch tokens token_dim"]) -> Float[Tensor, "batch features"]:
        return patches.reshape(-1, self.tokens * self.token_dim)[:, : self.features]

    def partition(self, passes: int) -> Tensor:
        """(N,) the pass in [0, passes) that shows each patch: index mod passes."""
        return torch.arange(self.tokens) % passes


def patcher_for(shape: tuple[int, ...], patch_size: int) -> Patcher:
    """The patcher of images (C, H, W) or vectors (D,)."""
    if len(shape) == 3:
        return ImagePatcher(shape, patch_size)
    if len(shape) == 1:
        return VectorPatcher(shape[0], patch_size)
    raise ConfigurationError(f"input shape must be (channels, height, width) or (features,), got {shape}.")
