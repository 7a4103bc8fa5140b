import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sameguard.errors import ConfigurationError
from sameguard.reconstruction import PASSES, ImagePatcher, VectorPatcher, patcher_for


@settings(max_examples=40, deadline=None)
@given(channels=st.integers(1, 4), height=st.integers(2, 33), width=st.integers(2, 33), patch=st.integers(1, 9))
def test_unpatchify_undoes_patchify_for_any_image_size(channels, height, width, patch):
    patcher = ImagePatcher((channels, height, width), min(patch, max(height, width)))
    images = torch.arange(2 * channels * height * width, dtype=torch.float32).reshape(2, channels, height, width)
    patches = patcher.patchify(images)
    assert patches.shape == (2, patcher.tokens, patcher.token_dim)
    assert torch.equal(patcher.unpatchify(patches), images)


@settings(max_examples=30, deadline=None)
@given(features=st.integers(1, 70), patch=st.integers(1, 20))
def test_unpatchify_undoes_patchify_for_any_vector_length(features, patch):
    patcher = VectorPatcher(features, min(patch, features))
    vectors = torch.arange(3 * features, dtype=torch.float32).reshape(3, features)
    assert torch.equal(patcher.unpatchify(patcher.patchify(vectors)), vectors)


def test_patches_are_the_squares_of_the_image_row_by_row():
    patches = ImagePatcher((1, 4, 4), 2).patchify(torch.arange(16.0).reshape(1, 1, 4, 4))
    assert patches[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


@pytest.mark.parametrize(
    ("shape", "patch"), [((1, 28, 28), 4), ((3, 32, 32), 4), ((3, 32, 32), 2), ((1, 8, 8), 2), ((1, 4, 4), 2), ((17,), 2)]
)
def test_the_fixed_partition_shows_each_patch_once_in_nearly_equal_sets(shape, patch):
    partition = patcher_for(shape, patch).partition(PASSES)
    sizes = torch.bincount(partition, minlength=PASSES).tolist()
    assert sum(sizes) == patcher_for(shape, patch).tokens
    assert max(sizes) - min(sizes) <= 1


def test_the_partition_of_49_patches_has_sets_of_13_and_12():
    assert sorted(torch.bincount(ImagePatcher((1, 28, 28), 4).partition(4)).tolist()) == [12, 12, 12, 13]


def test_impossible_patch_sizes_and_shapes_are_refused():
    with pytest.raises(ConfigurationError, match="patch_size must be in"):
        ImagePatcher((1, 8, 8), 9)
    with pytest.raises(ConfigurationError, match="patch_size must be in"):
        VectorPatcher(4, 0)
    with pytest.raises(ConfigurationError, match="input shape must be"):
        patcher_for((8, 8), 2)
