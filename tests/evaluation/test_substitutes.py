"""What a thief trains: fresh weights of the victim's architecture where it can be seen, and a reason where it cannot."""

from functools import partial

import pytest
import torch
from torch import nn

from sameguard.contract import InputContract
from sameguard.errors import ConfigurationError
from sameguard.evaluation.substitutes import SUBSTITUTES, named_substitute, own_substitute, substitute_for
from sameguard.networks import SmallConv, predict_logits
from sameguard.networks.fresh import fresh_copy
from sameguard.networks.torch_victim import TorchVictim
from sameguard.training import seeded


def small_conv() -> SmallConv:
    with seeded(3):
        return SmallConv(10, width=4)


class Stubborn(nn.Module):
    """A matrix that nothing draws anew."""

    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.ones(64, 10))

    def forward(self, images):
        return images.flatten(1) @ self.matrix


def test_a_fresh_copy_has_the_architecture_and_none_of_the_weights():
    network = small_conv().requires_grad_(False)
    before = [value.clone() for value in network.parameters()]
    state = torch.get_rng_state()
    with seeded(0):
        made = fresh_copy(network)
    with seeded(0):
        again = fresh_copy(network)
    assert torch.equal(state, torch.get_rng_state())
    assert [value.shape for value in made.parameters()] == [value.shape for value in before]
    assert all(torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True))
    assert not any(torch.equal(old, new) for old, new in zip(before, made.parameters(), strict=True))
    assert all(torch.equal(old, new) for old, new in zip(again.parameters(), made.parameters(), strict=True))
    assert all(value.requires_grad for value in made.parameters())


def test_what_cannot_be_drawn_anew_or_copied_is_refused_with_a_remedy():
    with pytest.raises(
        ConfigurationError, match=r"network Stubborn must start from fresh weights, got matrix .* give it a method reset\(\)"
    ):
        fresh_copy(Stubborn())
    hooked = small_conv()
    hooked.generator = (value for value in ())
    with pytest.raises(ConfigurationError, match="network SmallConv must be one that can be copied, got TypeError"):
        fresh_copy(hooked)
    scripted = torch.jit.ScriptModule.__new__(torch.jit.ScriptModule)
    with pytest.raises(ConfigurationError, match="got a scripted one, which cannot be"):
        fresh_copy(scripted)


def test_a_torch_victim_shows_its_architecture_even_where_clients_send_normalised_images():
    for contract in (InputContract.images(1, 8, 8), InputContract.images(1, 8, 8, mean=[0.1], std=[0.3])):
        state = torch.get_rng_state()
        chosen = substitute_for(TorchVictim(small_conv(), contract, classes=10))
        assert torch.equal(state, torch.get_rng_state())
        assert chosen.what == "SmallConv, the victim's architecture"
        with seeded(0):
            assert chosen.make().features[0].out_channels == 4


@pytest.mark.parametrize(
    ("module", "contract", "output", "why"),
    [
        (small_conv(), InputContract.images(1, 8, 8, layout="NHWC"), "logits", "takes other inputs than canonical queries"),
        (small_conv(), InputContract.images(1, 8, 8, dtype="UINT8"), "logits", "takes other inputs than canonical queries"),
        (small_conv(), InputContract.images(1, 8, 8), "probs", "gives probs, and a substitute is trained on its logits"),
        (Stubborn(), InputContract.images(1, 8, 8), "logits", "must start from fresh weights, got matrix"),
    ],
)
def test_a_torch_victim_that_is_no_substitute_gives_the_default_and_the_reason(module, contract, output, why):
    chosen = substitute_for(TorchVictim(module, contract, classes=10, output=output))
    assert chosen.what.startswith("SmallConv, the default for its input: ")
    assert why in chosen.what
    with seeded(0):
        assert chosen.make().features[0].out_channels == 32


@pytest.mark.parametrize(
    ("name", "contract"),
    [
        ("MLP", InputContract.vectors(5)),
        ("SmallConv", InputContract.images(1, 8, 8)),
        ("Conv3", InputContract.images(1, 16, 16)),
        ("FastCifar", InputContract.images(3, 32, 32)),
        ("ResNet18", InputContract.images(3, 32, 40)),
    ],
)
def test_a_named_architecture_is_built_for_the_input(name, contract):
    chosen = named_substitute(name, contract, 4)
    with seeded(0):
        assert predict_logits(chosen.make(), torch.zeros(2, *contract.shape)).shape == (2, 4)
    for other in SUBSTITUTES:
        if not SUBSTITUTES[other].suits(contract.shape):
            with pytest.raises(ConfigurationError, match=f"substitute {other} takes .*, got queries of shape"):
                named_substitute(other, contract, 4)


def test_a_function_is_called_with_the_classes_or_with_nothing():
    def any_width(width=3):
        return SmallConv(7, width=width)

    for make, classes in ((SmallConv, 4), (lambda count: SmallConv(count), 4), (any_width, 7), (partial(SmallConv, width=3), 4)):
        with seeded(0):
            assert own_substitute(make, "own", 4).make().head[-1].out_features == classes
