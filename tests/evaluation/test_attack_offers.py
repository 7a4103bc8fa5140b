"""Attacks as a caller sees them: every option refuses what is not its type, defaults are the classes' own, own attacks are offered alike."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from sameguard.errors import ConfigurationError
from sameguard.evaluation.attack_kinds import ATTACK_KINDS, Belongings
from sameguard.evaluation.attack_offers import MEANINGS, offer, offers, own_offer
from sameguard.networks import SmallConv

ROOT = Path(__file__).resolve().parents[2]
NUMBERS = [(one.name, option.name) for one in offers() for option in one.options.values() if option.types != (str,)]


@pytest.fixture
def belongings(digits):
    def zeros(queries):
        return np.zeros(len(queries))

    return Belongings(
        lambda: SmallConv(10), proxy=digits.train, seeds=digits.train, seed_count=5, score=zeros, project=lambda queries: queries
    )


def test_every_option_of_the_registry_has_a_type_a_default_and_a_meaning():
    assert [one.name for one in offers()] == list(ATTACK_KINDS)
    for one in offers():
        assert tuple(sorted(one.options)) == tuple(sorted(ATTACK_KINDS[one.name].options))
        for option in one.options.values():
            assert option.types, f"{option.name} of {one.name}"
            assert MEANINGS[option.name]
    assert set(MEANINGS) == {name for one in offers() for name in one.options}


def test_defaults_given_as_options_make_the_same_attack(belongings):
    for one in offers():
        given = one.read([f"{option.name}={option.default}" for option in one.options.values() if option.name != "seed_count"])
        made, plain = one.make(belongings, 10, given), one.make(belongings, 10, {})
        assert {name: getattr(made, name) for name in given if hasattr(made, name)} == {
            name: getattr(plain, name) for name in given if hasattr(plain, name)
        }


@pytest.mark.parametrize(("name", "option"), NUMBERS)
@pytest.mark.parametrize("text", ["abc", "", "nan", "1e999", f"1{400 * '0'}.5", "True", "[1]", "'3'", "1j", "(" * 500])
def test_what_is_no_number_is_refused_by_every_number(name, option, text):
    with pytest.raises(ConfigurationError, match=rf"option {option} of attack {name} must be (a whole|a finite) number( or None)?, got "):
        offer(name).read([f"{option}={text}"])


@pytest.mark.parametrize(("name", "option"), NUMBERS)
def test_a_negative_number_is_refused_by_every_attack_in_a_sentence_that_names_the_option(name, option, belongings):
    one = offer(name)
    with pytest.raises(ConfigurationError, match=option):
        one.make(belongings, 10, one.read([f"{option}=-1"]))


def test_whole_numbers_are_numbers_and_none_is_a_value_where_it_may_be():
    assert offer("jbda").read(["step=1", "reservoir=None", "flip_every=3", "direction=loss"]) == {
        "step": 1, "reservoir": None, "flip_every": 3, "direction": "loss",
    }  # fmt: skip
    with pytest.raises(ConfigurationError, match="option step of attack jbda must be a finite number, got 'None'"):
        offer("jbda").read(["step=None"])


class Own:
    def __init__(
        self, proxy, *, budget, substitute, flag: bool = False, many: int | None = None, free=3, word: str, seeds=None, labels="x"
    ):
        self.given = (proxy, budget, flag, many, free, word, seeds, labels)

    def run(self, endpoint, seed):
        raise NotImplementedError


def test_an_own_class_gets_what_its_parameters_name_and_offers_the_others(belongings):
    one = own_offer(Own, "my:Own")
    assert one.needs == ("proxy",)
    assert list(one.options) == ["flag", "many", "free", "word"]
    made = one.make(belongings, 10, one.read(["flag=True", "many=4", "free=[1, 2]", "word=7"]))
    assert made.given == (belongings.proxy, 10, True, 4, [1, 2], "7", belongings.seeds, "soft")
    with pytest.raises(ConfigurationError, match="attack my:Own needs the option word, got none: add --set word=VALUE"):
        one.read([])
    with pytest.raises(ConfigurationError, match="option flag of attack my:Own must be True or False, got '1'"):
        one.read(["flag=1", "word=a"])


def test_arguments_without_a_name_cannot_be_given():
    def made(proxy, /):
        return None

    with pytest.raises(ConfigurationError, match="attack my:made must take its arguments by name, got proxy by position alone"):
        own_offer(made, "my:made")
    with pytest.raises(ConfigurationError, match="must have a signature that tells what it needs"):
        own_offer(dict, "my:dict")


def test_the_document_is_what_the_registry_says():
    tool = runpy.run_path(str(ROOT / "tools" / "attacks_reference.py"))
    document = (ROOT / "docs" / "attacks.md").read_text(encoding="utf-8")
    assert tool["rewritten"](document) == document, "run tools/attacks_reference.py"
