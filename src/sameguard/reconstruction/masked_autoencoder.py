"""The masked autoencoder of SAME (Eq. 4): a ViT that sees a quarter of the patches and paints the whole query.

Training hides patches at random, drawn for a whole batch at once. Scoring uses two fixed views: `full` shows every patch, `masked` runs
four passes over a fixed partition of the patches, each visible once and hidden three times. Both are deterministic, and a query's
reconstruction does not depend on its batch. Inputs are standardised inside, so the exported graph needs no pre-processing.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sameguard.errors import ConfigurationError
from sameguard.reconstruction.patching import patcher_for
from sameguard.reconstruction.transformer import Block

PASSES = 4  # of the masked view: a quarter of the patches is visible in each, as in training at mask_ratio .75
NORM_PIX_EPSILON = 1e-6


@dataclass(frozen=True)
class MAEConfig:
    """Sizes and loss of the masked autoencoder.

    input_shape: (channels, height, width) or (features,). patch_size: side of a patch in pixels, or features per patch.
    mask_ratio: share of patches hidden in training. loss: over `all` values (Eq. 4 as written), over `masked` (hidden) patches only
    (He et al.), or `norm_pix`: hidden patches, each standardised by its own mean and variance (He et al.).
    """

    input_shape: tuple[int, ...]
    patch_size: int
    embed_dim: int = 192
    depth: int = 12
    num_heads: int = 3
    decoder_embed_dim: int = 192
    decoder_depth: int = 4
    decoder_num_heads: int = 3
    mask_ratio: float = 0.75
    loss: str = "all"

    def __post_init__(self) -> None:
        for name in ("embed_dim", "depth", "num_heads", "decoder_embed_dim", "decoder_depth", "decoder_num_heads"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not 0.0 <= self.mask_ratio < 1.0:
            raise ConfigurationError(f"mask_ratio must be in [0, 1), got {self.mask_ratio}: at least one patch has to stay visible.")
        if self.loss not in ("all", "masked", "norm_pix"):
            raise ConfigurationError(f"loss must be all, masked or norm_pix, got {self.loss!r}.")
        if self.loss != "all" and self.mask_ratio == 0.0:
            raise ConfigurationError(f"loss {self.loss} needs hidden patches, got mask_ratio 0: use loss all.")
        tokens = patcher_for(self.input_shape, self.patch_size).tokens
        if tokens < PASSES:
            raise ConfigurationError(
                f"patch_size must leave at least {PASSES} patches, got {tokens} with patch_size {self.patch_size}: lower it."
            )

    @classmethod
    def vit_tiny(cls, input_shape: tuple[int, ...], patch_size: int = 2) -> "MAEConfig":
        """The paper's network: ViT-Tiny encoder 192/12/3 and a decoder of 4 blocks of the same width."""
        return cls(tuple(input_shape), patch_size)

    @classmethod
    def cpu(cls, input_shape: tuple[int, ...]) -> "MAEConfig":
        """The network of the `cpu` preset, by input (algorithms.md 2.6)."""
        if len(input_shape) == 1:
            return cls(tuple(input_shape), max(1, -(-input_shape[0] // 16)), 128, 4, 4, 64, 2, 2)
        channels, height, width = input_shape
        side = max(height, width)
        if side <= 12:
            return cls((channels, height, width), 2, 128, 4, 4, 64, 2, 2)
        if channels == 1 and side <= 28:
            return cls((channels, height, width), 4, 128, 4, 4, 64, 2, 2)
        return cls((channels, height, width), 4 if side <= 32 else 8, 192, 6, 3, 96, 2, 3)

    @property
    def patcher(self):
        return patcher_for(self.input_shape, self.patch_size)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "input_shape": list(self.input_shape)}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> "MAEConfig":
        return cls(**{**stored, "input_shape": tuple(stored["input_shape"])})


def draw_visible(batch: int, tokens: int, mask_ratio: float, generator: torch.Generator) -> Int[Tensor, "batch visible"]:
    """Indices of the visible patches of each query, floor(tokens * (1 - mask_ratio)) of them and at least one, by one batched argsort.

    Sorted within a row: the order of a set of tokens means nothing to attention, and a sorted gather reads memory in order.
    """
    visible = max(1, int(tokens * (1.0 - mask_ratio) + 1e-9))
    noise = torch.rand(batch, tokens, generator=generator, device=generator.device)
    return noise.argsort(dim=1)[:, :visible].sort(dim=1).values


class MaskedAutoencoder(nn.Module):
    """Encoder over visible patches, decoder over all; both pre-norm transformers with learned positions and a class token.

    shift, scale: per channel (images) or per feature (vectors), set from training data by `set_normalisation`. Reconstructions are in
    input units; for vectors, errors are in units of each feature's standard deviation, so that no feature drowns the others.
    """

    def __init__(self, config: MAEConfig) -> None:
        super().__init__()
        self.config = config
        self.patcher = config.patcher
        tokens, width, decoder_width = self.patcher.tokens, config.embed_dim, config.decoder_embed_dim
        self.embed = nn.Linear(self.patcher.token_dim, width)
        self.position = nn.Parameter(torch.empty(1, tokens, width))
        self.class_token = nn.Parameter(torch.empty(1, 1, width))
        self.encoder = nn.Sequential(*[Block(width, config.num_heads) for _ in range(config.depth)], nn.LayerNorm(width))
        self.bridge = nn.Identity() if decoder_width == width else nn.Linear(width, decoder_width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, decoder_width))
        self.decoder_position = nn.Parameter(torch.empty(1, tokens + 1, decoder_width))
        self.decoder = nn.Sequential(*[Block(decoder_width, config.decoder_num_heads) for _ in range(config.decoder_depth)])
        self.head = nn.Linear(decoder_width, self.patcher.token_dim)
        for token in (self.position, self.class_token, self.mask_token, self.decoder_position):
            nn.init.trunc_normal_(token, std=0.02)
        per_channel = (config.input_shape[0], *([1] * (len(config.input_shape) - 1)))
        self.register_buffer("shift", torch.zeros(per_channel))
        self.register_buffer("scale", torch.ones(per_channel))
        partition = self.patcher.partition(PASSES)
        hidden = (partition != torch.arange(PASSES).unsqueeze(1)).float()  # PASSES, N: 1 where a pass hides a patch
        values = self.patcher.unpatchify(hidden.unsqueeze(-1).expand(-1, -1, self.patcher.token_dim)).contiguous()
        self.register_buffer("hidden_values", values, persistent=False)  # PASSES, *input
        weights = values.flatten(1) / values.flatten(1).sum(dim=1, keepdim=True) / PASSES
        self.register_buffer(
            "hidden_weights", weights.flatten(), persistent=False
        )  # PASSES * input: mean over hidden values, then over passes
        self.groups = _passes_by_size(partition)  # passes that show equally many patches run as one batch
        for number, passes in enumerate(self.groups):
            order = torch.stack([torch.argsort(hidden[index], stable=True) for index in passes])  # passes, N: visible first, hidden after
            self.register_buffer(f"visible_{number}", order[:, : int((partition == passes[0]).sum())].contiguous(), persistent=False)
            self.register_buffer(f"back_{number}", order.argsort(dim=1), persistent=False)  # passes, N: undoes that order

    def set_normalisation(self, inputs: Float[Tensor, "batch *input"]) -> None:
        """Fits shift and scale to training inputs: each channel's (feature's) mean and standard deviation, the latter at least 1e-3."""
        axes = [axis for axis in range(inputs.ndim) if axis != 1]
        std, mean = torch.std_mean(inputs.double(), dim=axes, correction=0)
        self.shift.copy_(mean.reshape(self.shift.shape))
        self.scale.copy_(std.clamp_min(1e-3).reshape(self.scale.shape))

    # ------------------------------------------------------------------ training

    def loss(self, queries: Float[Tensor, "batch *input"], generator: torch.Generator) -> Float[Tensor, ""]:
        """The training loss at random masks, in standardised units (a constant factor away from Eq. 4's)."""
        patches = self._patches(queries)
        visible = draw_visible(len(queries), self.patcher.tokens, self.config.mask_ratio, generator)
        painted = self._paint(patches, visible).float()
        if self.config.loss == "all":
            return (painted - patches).square().mean()
        if self.config.loss == "norm_pix":
            mean, deviation = _patch_statistics(patches)
            patches = (patches - mean) / deviation
        hidden = torch.ones(patches.shape[:2], device=patches.device).scatter(1, visible, 0.0)  # B, N
        return ((painted - patches).square().mean(dim=-1) * hidden).sum() / hidden.sum()

    def reconstruct_random(self, queries: Float[Tensor, "batch *input"], generator: torch.Generator) -> Float[Tensor, "batch *input"]:
        """Reconstructions at a fresh random mask for each query: what the paper's auxiliary model is trained on."""
        visible = draw_visible(len(queries), self.patcher.tokens, self.config.mask_ratio, generator)
        patches = self._patches(queries)
        return self._fold(self._paint(patches, visible), patches)

    # ------------------------------------------------------------------ scoring

    def reconstruct_full(self, queries: Float[Tensor, "batch *input"]) -> Float[Tensor, "batch *input"]:
        """The `full` view: reconstructions with every patch visible."""
        patches = self._patches(queries)
        return self._fold(self._paint(patches, None), patches)

    def reconstruct_masked(self, queries: Float[Tensor, "batch *input"]) -> Float[Tensor, "batch passes *input"]:
        """The `masked` view: one reconstruction for each of the four sets of visible patches."""
        patches = self._patches(queries)
        B, N, D = patches.shape  # batch, patches, values per patch
        views: list[Tensor] = [patches] * PASSES
        for number, passes in enumerate(self.groups):
            painted = self._paint_fixed(patches, getattr(self, f"visible_{number}"), getattr(self, f"back_{number}"))  # B * passes, N, D
            painted = painted.reshape(B, len(passes), N, D)
            for position, index in enumerate(passes):
                views[index] = painted[:, position]
        repeated = patches.unsqueeze(1).expand(B, PASSES, N, D).reshape(B * PASSES, N, D)
        images = self._fold(torch.stack(views, dim=1).reshape(B * PASSES, N, D), repeated)
        return images.reshape(B, PASSES, *self.config.input_shape)

    def error_full(self, queries: Float[Tensor, "batch *input"], reconstruction: Float[Tensor, "batch *input"]) -> Float[Tensor, "batch"]:
        """Mean squared error over all input values of each query: L_rec of the `full` view."""
        return self._squared_error(queries, reconstruction).flatten(1).mean(dim=1)

    def error_masked(
        self, queries: Float[Tensor, "batch *input"], reconstructions: Float[Tensor, "batch passes *input"]
    ) -> Float[Tensor, "batch"]:
        """Mean squared error over the hidden values of each pass, then over the passes: L_rec of the `masked` view."""
        squares = self._squared_error(queries.unsqueeze(1), reconstructions)  # B, PASSES, *input
        # one weighted sum over a flat axis: reducing in two steps made OpenVINO 2026.4 return uninitialised memory at large batches
        return (squares.flatten(1) * self.hidden_weights).sum(dim=1)

    # ------------------------------------------------------------------ parts

    def _patches(self, queries: Tensor) -> Tensor:
        return self.patcher.patchify((queries - self.shift) / self.scale)

    def _fold(self, painted: Tensor, patches: Tensor) -> Tensor:
        painted = painted.float()
        if self.config.loss == "norm_pix":  # the network paints patches without their mean and contrast: give them back their own
            mean, deviation = _patch_statistics(patches)
            painted = painted * deviation + mean
        return self.patcher.unpatchify(painted) * self.scale + self.shift

    def _squared_error(self, queries: Tensor, reconstruction: Tensor) -> Tensor:
        difference = reconstruction - queries
        return (difference if len(self.config.input_shape) == 3 else difference / self.scale).square()

    def _paint(self, patches: Tensor, visible: Tensor | None) -> Tensor:
        """Patches in standardised units, (B, N, D), painted from those visible: all of them (None), or indices (B, V) for each query."""
        if visible is None:
            return self._decode(*self._encode(self.embed(patches) + self.position))
        rows = torch.arange(patches.shape[0], device=patches.device).unsqueeze(1)
        class_token, shown = self._encode(self.embed(patches[rows, visible]) + self.position[0][visible])
        index = visible.unsqueeze(-1).expand(-1, -1, shown.shape[-1])
        filled = self.mask_token.to(shown.dtype).expand(patches.shape[0], patches.shape[1], -1).scatter(1, index, shown)
        return self._decode(class_token, filled)

    def _paint_fixed(self, patches: Tensor, visible: Tensor, back: Tensor) -> Tensor:
        """Patches (B * P, N, D) from P fixed sets of visible ones (P, V); query by query, set by set. Constant gathers, fast in every engine."""
        B, N, D = patches.shape  # batch, patches, values per patch
        P, V = visible.shape  # sets, visible patches
        tokens = self.embed(patches[:, visible.reshape(-1)].reshape(B, P, V, D)) + self.position[0][visible]  # B, P, V, width
        class_token, shown = self._encode(tokens.reshape(B * P, V, -1))
        filled = torch.cat([shown, self.mask_token.to(shown.dtype).expand(B * P, N - V, -1)], dim=1)  # B * P, N, width
        flat = back + torch.arange(P, device=back.device).unsqueeze(1) * N  # P, N: positions in the P * N tokens of one query
        filled = filled.reshape(B, P * N, -1)[:, flat.reshape(-1)].reshape(B * P, N, -1)
        return self._decode(class_token, filled)

    def _encode(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Class token (B, 1, width) and the other tokens after the encoder, in the decoder's width."""
        first = self.class_token.expand(tokens.shape[0], -1, -1).to(tokens.dtype)
        encoded = self.bridge(self.encoder(torch.cat([first, tokens], dim=1)))
        return encoded[:, :1], encoded[:, 1:]

    def _decode(self, class_token: Tensor, tokens: Tensor) -> Tensor:
        decoded = self.decoder(torch.cat([class_token, tokens], dim=1) + self.decoder_position)
        return self.head(decoded[:, 1:])


def _passes_by_size(partition: Tensor) -> list[list[int]]:
    """Passes grouped by how many patches they show, since only equal numbers stack into one batch."""
    sizes = torch.bincount(partition, minlength=PASSES).tolist()
    return [[index for index in range(PASSES) if sizes[index] == size] for size in sorted(set(sizes), reverse=True)]


def _patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return mean, (variance + NORM_PIX_EPSILON).sqrt()
