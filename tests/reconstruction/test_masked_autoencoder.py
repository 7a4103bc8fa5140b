import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sameguard.errors import ConfigurationError
from sameguard.reconstruction import PASSES, MAEConfig, MaskedAutoencoder, draw_visible
from sameguard.reconstruction.transformer import Attention
from sameguard.training import seeded

TINY = {"embed_dim": 16, "depth": 2, "num_heads": 2, "decoder_embed_dim": 8, "decoder_depth": 1, "decoder_num_heads": 2}


def tiny(shape=(1, 8, 8), patch=2, **changes) -> MaskedAutoencoder:
    with seeded(0):
        return MaskedAutoencoder(MAEConfig(shape, patch, **(TINY | changes))).eval()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("tokens", "ratio"), [(64, 0.75), (49, 0.75), (16, 0.5), (16, 0.0), (10, 0.9)])
def test_the_number_of_hidden_patches_is_tokens_minus_the_floor_of_the_visible_share(tokens, ratio):
    visible = draw_visible(5, tokens, ratio, generator())
    assert visible.shape == (5, math.floor(tokens * (1 - ratio) + 1e-9))
    assert all(len(set(row)) == len(row) for row in visible.tolist())
    assert visible.min() >= 0
    assert visible.max() < tokens


def test_masks_depend_on_the_generator_alone_and_differ_between_queries():
    state = torch.random.get_rng_state()
    first, again, other = (
        draw_visible(64, 64, 0.75, generator(1)),
        draw_visible(64, 64, 0.75, generator(1)),
        draw_visible(64, 64, 0.75, generator(2)),
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len({tuple(row) for row in first.tolist()}) == 64
    assert torch.equal(torch.random.get_rng_state(), state)


def test_every_patch_is_visible_equally_often():
    counts = torch.bincount(draw_visible(20_000, 16, 0.75, generator()).reshape(-1), minlength=16)
    assert (counts - 5000).abs().max() < 5 * math.sqrt(20_000 * 0.25 * 0.75)


def test_attention_written_out_equals_the_fused_kernel():
    with seeded(0):
        written = Attention(24, 3, fused=False)
    fused = Attention(24, 3, fused=True)
    fused.load_state_dict(written.state_dict())
    tokens = torch.randn(4, 11, 24, generator=generator())
    torch.testing.assert_close(written(tokens), fused(tokens), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("shape", "patch"), [((1, 8, 8), 2), ((3, 9, 10), 4), ((2, 14, 14), 7), ((21,), 2)])
def test_reconstructions_have_the_shape_of_the_queries_for_any_input(shape, patch):
    network = tiny(shape, patch)
    queries = torch.rand(3, *shape, generator=generator())
    assert network.reconstruct_full(queries).shape == (3, *shape)
    assert network.reconstruct_masked(queries).shape == (3, PASSES, *shape)
    assert network.loss(queries, generator()).isfinite()


@torch.no_grad()
def test_a_hidden_patch_cannot_influence_the_reconstruction():
    network = tiny()
    queries = torch.rand(2, 1, 8, 8, generator=generator())
    changed = queries.clone()
    hidden = network.hidden_values[1].bool().expand_as(changed)
    changed[hidden] = torch.rand(int(hidden.sum()), generator=generator(1))
    torch.testing.assert_close(network.reconstruct_masked(queries)[:, 1], network.reconstruct_masked(changed)[:, 1], rtol=0, atol=0)
    assert not torch.equal(network.reconstruct_masked(queries)[:, 0], network.reconstruct_masked(changed)[:, 0])


@torch.no_grad()
@pytest.mark.parametrize(("shape", "patch"), [((1, 8, 8), 2), ((1, 10, 14), 2), ((21,), 2)])
def test_the_fixed_views_equal_the_random_path_with_the_same_visible_patches(shape, patch):
    network = tiny(shape, patch)
    queries = torch.rand(3, *shape, generator=generator())
    patches = network._patches(queries)
    partition = network.patcher.partition(PASSES)
    masked = network.reconstruct_masked(queries)
    for index in range(PASSES):
        visible = torch.nonzero(partition == index).reshape(-1).expand(3, -1)
        torch.testing.assert_close(masked[:, index], network._fold(network._paint(patches, visible), patches), rtol=1e-5, atol=1e-6)
    everything = torch.arange(network.patcher.tokens).expand(3, -1)
    torch.testing.assert_close(network._paint(patches, None), network._paint(patches, everything), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_errors_equal_the_formula_written_as_loops():
    network = tiny((1, 6, 6), 2)
    queries = torch.rand(2, 1, 6, 6, generator=generator())
    full, masked = network.reconstruct_full(queries), network.reconstruct_masked(queries)
    partition = network.patcher.partition(PASSES)
    for row in range(2):
        assert network.error_full(queries, full)[row].item() == pytest.approx(float(((full[row] - queries[row]) ** 2).mean()), rel=1e-5)
        passes = []
        for index in range(PASSES):
            squares = [
                float((masked[row, index, 0, y, x] - queries[row, 0, y, x]) ** 2)
                for y in range(6) for x in range(6) if partition[(y // 2) * 3 + x // 2] != index
            ]  # fmt: skip
            passes.append(np.mean(squares))
        assert network.error_masked(queries, masked)[row].item() == pytest.approx(np.mean(passes), rel=1e-5)


@torch.no_grad()
def test_scoring_views_are_deterministic_and_independent_of_the_batch():
    network = tiny((3, 16, 16), 4)
    queries = torch.rand(9, 3, 16, 16, generator=generator())
    together = network.error_masked(queries, network.reconstruct_masked(queries))
    alone = torch.cat([network.error_masked(row[None], network.reconstruct_masked(row[None])) for row in queries])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-9)
    assert torch.equal(network.reconstruct_full(queries), network.reconstruct_full(queries))


def test_the_losses_are_over_all_values_hidden_values_or_standardised_hidden_patches():
    queries = torch.rand(4, 1, 8, 8, generator=generator())
    networks = {loss: tiny(loss=loss) for loss in ("all", "masked", "norm_pix")}
    patches = networks["all"]._patches(queries)
    visible = draw_visible(4, 16, 0.75, generator(3))
    painted = networks["all"]._paint(patches, visible)
    hidden = torch.ones(4, 16).scatter(1, visible, 0.0).bool()
    assert networks["all"].loss(queries, generator(3)).item() == pytest.approx(F.mse_loss(painted, patches).item(), rel=1e-5)
    assert networks["masked"].loss(queries, generator(3)).item() == pytest.approx(
        F.mse_loss(painted[hidden], patches[hidden]).item(), rel=1e-5
    )
    standard = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()
    assert networks["norm_pix"].loss(queries, generator(3)).item() == pytest.approx(
        F.mse_loss(painted[hidden], standard[hidden]).item(), rel=1e-4
    )


def test_normalisation_makes_reconstructions_equivariant_to_the_units_of_a_feature():
    vectors = torch.randn(50, 8, generator=generator()) * torch.tensor([1.0, 100, 0.01, 5, 1, 1, 1, 1]) + 3
    network = tiny((8,), 2)
    network.set_normalisation(vectors)
    plain = tiny((8,), 2)
    standard = (vectors - vectors.mean(0)) / vectors.std(0, correction=0)
    with torch.no_grad():
        torch.testing.assert_close(
            network.error_full(vectors, network.reconstruct_full(vectors)),
            plain.error_full(standard, plain.reconstruct_full(standard)),
            rtol=1e-4,
            atol=1e-6,
        )


def test_presets_have_the_sizes_of_the_paper_and_of_the_measured_cpu_network():
    paper = MAEConfig.vit_tiny((3, 32, 32))
    assert (paper.patch_size, paper.embed_dim, paper.depth, paper.num_heads, paper.decoder_depth, paper.mask_ratio) == (
        2,
        192,
        12,
        3,
        4,
        0.75,
    )
    colour, grey = MAEConfig.cpu((3, 32, 32)), MAEConfig.cpu((1, 28, 28))
    assert (colour.patch_size, colour.embed_dim, colour.depth, colour.num_heads, colour.decoder_depth, colour.decoder_embed_dim) == (
        4,
        192,
        6,
        3,
        2,
        96,
    )
    assert (grey.patch_size, grey.embed_dim, grey.depth, grey.num_heads, grey.decoder_depth, grey.decoder_embed_dim) == (
        4,
        128,
        4,
        4,
        2,
        64,
    )
    assert MAEConfig.cpu((1, 8, 8)).patch_size == 2
    assert MAEConfig.cpu((3, 96, 96)).patch_size == 8
    assert MAEConfig.cpu((64,)).patcher.tokens == 16
    parameters = sum(p.numel() for p in MaskedAutoencoder(paper).parameters())
    assert 7.0e6 < parameters < 7.4e6  # about 16 blocks of 445 k


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"mask_ratio": 1.0}, r"mask_ratio must be in \[0, 1\), got 1.0: at least one patch has to stay visible"),
        ({"loss": "l1"}, "loss must be all, masked or norm_pix"),
        ({"loss": "masked", "mask_ratio": 0.0}, "needs hidden patches"),
        ({"patch_size": 8}, "must leave at least 4 patches, got 1"),
        ({"depth": 0}, "depth must be at least 1"),
    ],
)
def test_impossible_settings_are_refused_with_the_rule(changes, match):
    with pytest.raises(ConfigurationError, match=match):
        MAEConfig(**({"input_shape": (1, 8, 8), "patch_size": 2} | changes))


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ConfigurationError, match="multiple of num_heads"):
        tiny(embed_dim=10, num_heads=3)
