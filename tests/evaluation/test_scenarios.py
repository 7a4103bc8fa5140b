"""The plan as data: what is run at which scale, what the paper's tables need, and what counts as development."""

import dataclasses

import pytest

from sameguard.errors import ConfigurationError
from sameguard.evaluation.attack_kinds import ATTACK_KINDS, Belongings, make_attack
from sameguard.evaluation.exhibits import KINDS, steps
from sameguard.evaluation.families import SCORINGS
from sameguard.evaluation.results import reported
from sameguard.evaluation.scenarios import BOUND, DEVELOPMENT, EVALUATION, FAMILIES, SCALES, exhibits, paper_attacks, select, settings_of
from sameguard.evaluation.tables import SECTIONS
from sameguard.networks import SmallConv


@pytest.mark.parametrize("scale", SCALES)
def test_every_exhibit_of_a_scale_can_be_planned_computed_and_printed(scale):
    every = exhibits(scale)
    assert len({exhibit.key for exhibit in every}) == len(every)
    for exhibit in every:
        assert exhibit.kind in KINDS
        assert exhibit.kind in SECTIONS
        assert len({row.name for row in exhibit.attacks}) == len(exhibit.attacks)
        assert all(row.kind in ATTACK_KINDS for row in exhibit.attacks)
        assert set(exhibit.families) <= {*SCORINGS, BOUND}
        titles = [step.title for step in steps(exhibit)]
        assert titles[0].endswith("victim")


def test_all_tables_and_figures_of_the_paper_are_enumerated():
    names = {exhibit.name for exhibit in exhibits("cpu")}
    assert names >= {f"table-{number}" for number in (1, 2, 3, 4)} | {f"figure-{number}" for number in (1, 2, 4, 5, 6, 7)} | {"weights"}
    assert names == {exhibit.name for exhibit in exhibits("paper")}


@pytest.mark.parametrize(
    ("table", "settings", "budgets"),
    [("table-1", ["mnist"], (1000, 4000)), ("table-2", ["cifar10-strong", "cifar10-paper"], (6000, 10_000))],
)
def test_the_detection_tables_have_the_papers_attacks_and_budgets(table, settings, budgets):
    chosen = select("cpu", (table,))
    assert [exhibit.setting.name for exhibit in chosen] == settings
    for exhibit in chosen:
        assert {(row.reported, row.budget) for row in exhibit.attacks} == {
            (attack, budget) for attack in ("JBDA", "Knockoff", "DFME") for budget in budgets
        }
        assert exhibit.families == FAMILIES
        assert {(row["attack"], row["budget"]) for row in reported()[table]["rows"]} == {
            (row.reported, row.budget) for row in exhibit.attacks
        }


def test_what_was_looked_at_while_the_score_was_built_is_marked_and_nothing_else():
    rows = {row.name: row.status for exhibit in exhibits("cpu") if exhibit.setting.name != "cifar10-paper" for row in exhibit.attacks}
    for name, status in rows.items():
        seen = name.startswith(("jbda", "knockoff", "copycat")) and not name.startswith("jbda-tr") and "levels" not in name
        assert status == (DEVELOPMENT if seen else EVALUATION), name
    assert {row.status for row in paper_attacks(settings_of("cpu")["cifar10-paper"])} == {EVALUATION}


def test_the_papers_seeds_and_step_are_the_defaults():
    setting = settings_of("cpu")["mnist"]
    assert setting.seeds == 200
    assert all(row.options == () for row in paper_attacks(setting))
    paper = settings_of("paper")["mnist"]
    assert (paper.preset, paper.fit_epochs) == ("paper", None)


def test_unknown_scales_and_names_are_refused_with_what_is_known():
    with pytest.raises(ConfigurationError, match="scale must be one of tiny, cpu, paper, got 'huge'"):
        exhibits("huge")
    with pytest.raises(ConfigurationError, match=r"table or figure at scale tiny must be one of table-1, .*, got 'table-9'"):
        select("tiny", ("table-9",))
    assert [exhibit.key for exhibit in select("cpu", ("table-2-cifar10-paper",))] == ["table-2-cifar10-paper"]


def test_outliers_and_proxy_never_come_from_the_same_half():
    for scale in SCALES:
        for setting in settings_of(scale).values():
            assert not {dataclasses.astuple(source) for source in setting.proxies} & {
                dataclasses.astuple(source) for source in setting.outliers
            }


def test_an_attack_says_what_it_lacks_and_which_options_it_has():
    belongings = Belongings(lambda: SmallConv(10))
    with pytest.raises(ConfigurationError, match=r"attack must be one of noise, knockoff, .*, got 'theft'"):
        make_attack("theft", belongings, 10)
    with pytest.raises(ConfigurationError, match="attack knockoff needs proxy, got none"):
        make_attack("knockoff", belongings, 10)
    with pytest.raises(ConfigurationError, match="attack knockoff-filtered needs proxy and score"):
        make_attack("knockoff-filtered", belongings, 10)
    with pytest.raises(ConfigurationError, match="attack noise takes the options kind, got stepp"):
        make_attack("noise", belongings, 10, {"stepp": 1})
    made = make_attack("noise", belongings, 10, {"kind": "bernoulli"})
    assert made.kind == "bernoulli"


def test_a_disguise_is_a_transform_of_the_attack(digits):
    belongings = Belongings(lambda: SmallConv(10), proxy=digits.train, seeds=digits.test, seed_count=5)
    queries = digits.benign[:4]
    blurred = make_attack("knockoff", belongings, 10, {"disguise": "blur"}).transform(queries)
    assert blurred.shape == queries.shape
    assert not (blurred == queries).all()
    with pytest.raises(ConfigurationError, match="disguise must be blur, median, jpeg or levels, got 'wig'"):
        make_attack("knockoff", belongings, 10, {"disguise": "wig"})
    with pytest.raises(ConfigurationError, match="disguise levels needs seeds"):
        make_attack("knockoff", Belongings(lambda: SmallConv(10), proxy=digits.train), 10, {"disguise": "levels"})
