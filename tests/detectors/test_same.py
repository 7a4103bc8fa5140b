import copy
import io
import threading

import numpy as np
import pytest
import torch

from sameguard.artifact import read_artifact
from sameguard.calibration import WeakAuxiliaryWarning
from sameguard.contract import InputContract
from sameguard.data import Split
from sameguard.detectors import SAME, AuxiliaryConfig, default_auxiliary, preset
from sameguard.errors import ConfigurationError, InvalidDataError, InvalidQueryError, InvalidVictimError, NotFittedError, TrainingError
from sameguard.networks import MLP, Conv3, FastCifar, SmallConv
from sameguard.networks.sharing import memory_bytes, share_trunk
from sameguard.networks.torch_victim import TorchVictim
from sameguard.reconstruction import MAEConfig
from sameguard.scoring import ScoreConfig, combination_for
from sameguard.training import FitConfig, RunControl, TrainingPausedError
from sameguard.victim import BlackBox

QUICK = FitConfig(epochs=1, batch_size=256, precision="fp32")
SMALL = MAEConfig((1, 8, 8), 2, embed_dim=16, depth=1, num_heads=2, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2)


def quick_same(digits, **changes) -> SAME:
    auxiliary = AuxiliaryConfig(
        FitConfig(epochs=1, batch_size=256, learning_rate=1e-3, precision="fp32"), **changes.pop("auxiliary_config", {})
    )
    return SAME(digits.contract, 10, autoencoder=SMALL, auxiliary_config=auxiliary, **changes)


def fit(same: SAME, digits, victim, **arguments) -> SAME:
    with pytest.warns(WeakAuxiliaryWarning, match="agrees with the victim on"):
        return same.fit(digits.train, victim, QUICK, benign=digits.benign[:100], **arguments)


# ---------------------------------------------------------------------- the fitted detector


def test_the_auxiliary_agrees_with_the_victim_on_held_out_digits(fitted_same):
    assert fitted_same.report["agreement"] > 0.9
    assert fitted_same.report["epoch_losses"][-1] < 0.7 * fitted_same.report["epoch_losses"][0]


def test_noise_queries_are_told_from_digits(fitted_same, victim, digits):
    draw = np.random.default_rng(0)
    noise = digits.contract.canonicalise((draw.random((100, 1, 8, 8)) < 0.5).astype(np.float32))
    half = len(digits.benign) // 2
    benign = fitted_same.score_terms(digits.benign, victim.query(digits.benign).probs)
    combination = combination_for(ScoreConfig()).fit({name: values[:half] for name, values in benign.items()})
    scores = combination.score(fitted_same.score_terms(noise, victim.answer(noise)))
    honest = combination.score({name: values[half:] for name, values in benign.items()})
    assert np.mean(scores[:, None] > honest[None, :]) > 0.99


def test_terms_are_the_same_alone_and_in_any_batch(fitted_same, victim, digits):
    queries = digits.contract.canonicalise(digits.benign[:20])
    answers = victim.answer(queries)
    together = fitted_same.score_terms(queries, answers)
    order = np.random.default_rng(0).permutation(20)
    shuffled = fitted_same.score_terms(queries[order], answers[order])
    for row in range(20):
        alone = fitted_same.score_terms(queries[row : row + 1], answers[row : row + 1])
        for name, values in together.items():
            assert alone[name][0] == pytest.approx(values[row], rel=1e-5, abs=1e-6), name
            assert shuffled[name][list(order).index(row)] == pytest.approx(values[row], rel=1e-5, abs=1e-6), name


def test_scoring_mutates_nothing_and_draws_nothing(fitted_same, victim, digits):
    queries = digits.contract.canonicalise(digits.benign[:8])
    before, state = queries.copy(), torch.random.get_rng_state()
    weights = copy.deepcopy(fitted_same.auxiliary.state_dict())
    first = fitted_same.score_terms(queries, victim.answer(queries))
    again = fitted_same.score_terms(queries, victim.answer(queries))
    assert np.array_equal(queries, before)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert all(torch.equal(value, fitted_same.auxiliary.state_dict()[name]) for name, value in weights.items())


def test_a_label_only_victim_is_scored_by_the_answered_class(fitted_same, victim, digits):
    queries = digits.contract.canonicalise(digits.benign[:6])
    reconstruction = fitted_same.reconstruct(queries)
    labels = BlackBox(lambda raw: victim.answer(raw).argmax(1), digits.contract, classes=10, output="labels")
    probs = fitted_same.auxiliary_probs(reconstruction).astype(np.float64)
    answered = probs[np.arange(6), victim.answer(queries).argmax(1)]
    found = fitted_same.deviation(reconstruction, labels.answer(queries))
    np.testing.assert_allclose(found["deviation_disagreement"], 1 - answered, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["deviation_kl"], -np.log(answered), rtol=1e-3, atol=1e-6)


def test_bad_queries_never_score(fitted_same, digits):
    good = digits.contract.canonicalise(digits.benign[:2])
    for bad, match in (
        (np.where(np.arange(64).reshape(1, 1, 8, 8) == 5, np.nan, good), "must be finite"),
        (good + 1.5, r"must lie in \[0, 1\]"),
        (good[:, :, :7], "query shape must be"),
        (good[:0], "at least one query"),
    ):
        with pytest.raises(InvalidQueryError, match=match):
            fitted_same.reconstruct(bad.astype(np.float32))
    with pytest.raises(InvalidQueryError, match=r"victim_probs must be \(2, 10\)"):
        fitted_same.deviation(fitted_same.reconstruct(good), np.ones((2, 9), np.float32))


def test_a_query_need_not_be_contiguous(fitted_same, digits):
    queries = digits.contract.canonicalise(digits.benign[:6])
    strided = np.repeat(queries, 2, axis=0)[::2]
    assert not strided.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(
        fitted_same.reconstruct(strided).terms["error_full"], fitted_same.reconstruct(queries).terms["error_full"]
    )


# ---------------------------------------------------------------------- fitting


def test_fitting_twice_with_one_seed_gives_the_same_terms_and_another_seed_others(digits, victim):
    queries = digits.contract.canonicalise(digits.benign[:10])
    answers = victim.answer(queries)
    first, again = (fit(quick_same(digits), digits, victim).score_terms(queries, answers) for _ in range(2))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    with pytest.warns(WeakAuxiliaryWarning):
        other = quick_same(digits).fit(digits.train, victim, QUICK.with_(seed=1), benign=digits.benign[:100])
    assert not np.array_equal(first["error_full"], other.score_terms(queries, answers)["error_full"])


def test_a_stopped_fit_resumes_to_the_same_terms(digits, victim, tmp_path):
    queries = digits.contract.canonicalise(digits.benign[:10])
    answers = victim.answer(queries)
    whole = fit(quick_same(digits), digits, victim).score_terms(queries, answers)
    with pytest.raises(TrainingPausedError, match="time budget is spent"):
        quick_same(digits).fit(digits.train, victim, QUICK, benign=digits.benign[:100], control=RunControl(tmp_path).with_time_budget(0.0))
    resumed = fit(quick_same(digits), digits, victim, control=RunControl(tmp_path, resume=True)).score_terms(queries, answers)
    for name in whole:
        np.testing.assert_array_equal(whole[name], resumed[name], err_msg=name)


def test_checkpoints_of_another_victim_are_refused(digits, victim, tmp_path):
    fit(quick_same(digits), digits, victim, control=RunControl(tmp_path))
    other = BlackBox(lambda raw: np.eye(10)[np.zeros(len(raw), int)], digits.contract, classes=10)
    with pytest.raises(TrainingError, match="must come from the same victim"):
        quick_same(digits).fit(digits.train, other, QUICK, control=RunControl(tmp_path, resume=True))


def test_a_frozen_victim_gets_an_auxiliary_that_learns(digits, victim):
    frozen_module = copy.deepcopy(victim.module).requires_grad_(False)
    for share in ("none", "trunk"):
        same = fit(quick_same(digits, share=share), digits, TorchVictim(frozen_module, digits.contract, classes=10))
        assert same.auxiliary.head[-1].weight.requires_grad


def test_checkpoints_of_other_data_are_refused(digits, victim, tmp_path):
    fit(quick_same(digits), digits, victim, control=RunControl(tmp_path))
    fewer = digits.train.take(np.arange(len(digits.train) - 1))
    with pytest.raises(TrainingError, match="must come from the same training data"):
        quick_same(digits).fit(fewer, victim, QUICK, control=RunControl(tmp_path, resume=True))


@pytest.mark.parametrize("name", ["answers", "reconstructions"])
def test_a_damaged_or_edited_intermediate_array_is_made_again_on_resume(digits, victim, tmp_path, name):
    fit(quick_same(digits), digits, victim, control=RunControl(tmp_path))
    path, heard = tmp_path / f"{name}.npy", []
    whole = path.read_bytes()
    edited = io.BytesIO()
    np.save(edited, np.roll(np.load(io.BytesIO(whole)), 1, axis=0))
    for content in (whole[:90], edited.getvalue(), b""):
        path.write_bytes(content)
        fit(quick_same(digits), digits, victim, control=RunControl(tmp_path, resume=True, log=heard.append))
        assert path.read_bytes() == whole
    assert [line for line in heard if f"{name}.npy is damaged or was made from something else: it is made again" in line] == heard
    assert len(heard) == 3


def test_a_fit_that_starts_anew_leaves_nothing_of_an_older_one_to_be_resumed(digits, victim, tmp_path):
    other = BlackBox(lambda raw: np.eye(10)[np.zeros(len(raw), int)], digits.contract, classes=10)
    quick_same(digits).fit(digits.train, other, QUICK, benign=digits.benign[:100], control=RunControl(tmp_path))
    with pytest.raises(TrainingPausedError):
        quick_same(digits).fit(digits.train, victim, QUICK, benign=digits.benign[:100], control=RunControl(tmp_path).with_time_budget(0.0))
    resumed = fit(quick_same(digits), digits, victim, control=RunControl(tmp_path, resume=True))
    clean = fit(quick_same(digits), digits, victim)
    queries = digits.contract.canonicalise(digits.benign[:10])
    found, wanted = (same.score_terms(queries, victim.answer(queries)) for same in (resumed, clean))
    for name in wanted:
        np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)


def test_reconstructions_of_another_autoencoder_are_not_taken_over(digits, victim, tmp_path):
    fit(quick_same(digits), digits, victim, control=RunControl(tmp_path))
    for name in ("autoencoder", "auxiliary"):
        (tmp_path / f"{name}.checkpoint").unlink()
    other = QUICK.with_(seed=1)
    with pytest.warns(WeakAuxiliaryWarning):
        resumed = quick_same(digits).fit(digits.train, victim, other, benign=digits.benign[:100], control=RunControl(tmp_path, resume=True))
    with pytest.warns(WeakAuxiliaryWarning):
        clean = quick_same(digits).fit(digits.train, victim, other, benign=digits.benign[:100])
    for mine, theirs in zip(resumed.auxiliary.parameters(), clean.auxiliary.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_an_auxiliary_that_nothing_can_draw_anew_is_refused(digits, victim):
    class Bare(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(64, 10))

        def forward(self, images):
            return images.flatten(1) @ self.weight

    with pytest.raises(ConfigurationError, match=r"auxiliary Bare must start from fresh weights, got weight that no reset_parameters\(\)"):
        quick_same(digits).fit(digits.train, TorchVictim(Bare(), digits.contract, classes=10), QUICK, benign=digits.benign[:100])


def test_the_artefact_says_what_the_fitted_victim_returns(digits, victim, fitted_same, tmp_path):
    fitted_same.export(tmp_path / "logits")
    assert read_artifact(tmp_path / "logits").manifest["victim"]["output"] == "logits"


@pytest.mark.parametrize("target", ["victim_mse", "victim_kl", "labels_ce"])
@pytest.mark.parametrize("view", ["full", "masked"])
def test_every_auxiliary_target_trains_on_either_view(digits, victim, target, view):
    same = fit(quick_same(digits, auxiliary_config={"view": view, "target": target}), digits, victim)
    queries = digits.contract.canonicalise(digits.benign[:3])
    terms = same.score_terms(queries, victim.answer(queries))
    assert all(np.isfinite(values).all() for values in terms.values())
    assert len(same.report["auxiliary_losses"]) == 1


def test_without_benign_data_training_rows_are_kept_aside_and_the_report_says_so(digits, victim):
    with pytest.warns(WeakAuxiliaryWarning):
        same = quick_same(digits).fit(digits.train, victim, QUICK)
    assert same.report["agreement_on"] == "training rows kept aside"
    assert same.report["rows"] + same.report["agreement_rows"] == len(digits.train)


def test_the_default_auxiliary_is_the_victims_architecture_with_fresh_weights(digits, victim):
    same = fit(quick_same(digits), digits, victim)
    assert isinstance(same.auxiliary, SmallConv)
    assert same.auxiliary is not victim.module
    first, second = (module.features[0].weight for module in (same.auxiliary, victim.module))
    assert not torch.allclose(first, second, atol=0.05)


def test_vectors_are_fitted_and_scored(victim):
    draw = np.random.default_rng(0)
    centres = draw.standard_normal((3, 20)) * 3
    labels = draw.integers(0, 3, 300)
    rows = (centres[labels] + draw.standard_normal((300, 20))).astype(np.float32) * np.linspace(0.01, 100, 20, dtype=np.float32)
    contract = InputContract.vectors(20)
    black_box = BlackBox(
        lambda raw: np.eye(3)[np.argmin(((raw[:, None] / np.linspace(0.01, 100, 20) - centres) ** 2).sum(2), 1)], contract, classes=3
    )
    same = SAME(contract, 3).fit(rows[:200], black_box, FitConfig(epochs=20, batch_size=64, precision="fp32"), benign=rows[200:])
    terms = same.score_terms(rows[200:], black_box.query(rows[200:]).probs)
    assert isinstance(same.auxiliary, MLP)
    assert same.report["agreement"] > 0.9
    assert set(terms) >= {"error_full", "error_masked", "norm", "share_zero", "deviation_disagreement"}
    assert 0.01 < np.median(terms["error_full"]) < 3  # in units of each feature's spread, not of the largest feature


@pytest.mark.parametrize(
    ("rows", "match"),
    [(0, "must hold at least 2 rows, got 0"), (1, "must hold at least 2 rows, got 1")],
)
def test_too_little_training_data_is_refused(digits, victim, rows, match):
    with pytest.raises(InvalidDataError, match=match):
        quick_same(digits).fit(digits.train.inputs[:rows], victim, QUICK)


def test_labels_out_of_range_and_missing_labels_are_refused(digits, victim):
    wrong = Split(digits.train.raw, digits.train.labels + 1, 11)
    with pytest.raises(InvalidDataError, match=r"labels must be in \[0, 10\), got 1 to 10"):
        quick_same(digits).fit(wrong, victim, QUICK)
    with pytest.raises(InvalidDataError, match="labels_ce needs labelled training data"):
        quick_same(digits, auxiliary_config={"target": "labels_ce"}).fit(digits.train.inputs, victim, QUICK)


def test_a_victim_that_breaks_its_contract_stops_the_fit(digits):
    def nan(raw):
        return np.full((len(raw), 10), np.nan)

    with pytest.raises(InvalidVictimError, match="must return finite probs"):
        quick_same(digits).fit(digits.train, BlackBox(nan, digits.contract, classes=10), QUICK)


def test_a_victim_of_another_contract_is_refused(digits):
    other = BlackBox(lambda raw: raw, InputContract.images(1, 9, 9), classes=10)
    with pytest.raises(ConfigurationError, match="must share contract and classes"):
        quick_same(digits).fit(digits.train, other, QUICK)


def test_an_unfitted_detector_says_so(digits):
    queries = digits.contract.canonicalise(digits.benign[:2])
    same = quick_same(digits)
    with pytest.raises(NotFittedError, match=r"needs fit\(\)"):
        same.reconstruct(queries)
    with pytest.raises(NotFittedError, match=r"run calibrate\(\) first"):
        same.score(queries, np.full((2, 10), 0.1, np.float32))
    with pytest.raises(NotFittedError, match=r"call fit\(\) first"):
        same.export("nowhere")


def test_fitting_in_a_thread_works_without_signal_handling(digits, victim):
    failures: list[BaseException] = []

    def work() -> None:
        try:
            quick_same(digits).fit(digits.train, victim, QUICK, benign=digits.benign[:100])
        except WeakAuxiliaryWarning:
            pass  # filterwarnings = error turns the warning into an exception in this thread; the fit is over by then
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failures == []


# ---------------------------------------------------------------------- settings


def test_a_hidden_only_loss_cannot_serve_the_full_view(digits):
    masked = MAEConfig((1, 8, 8), 2, loss="masked")
    with pytest.raises(ConfigurationError, match="leaves visible patches untrained"):
        SAME(digits.contract, 10, autoencoder=masked)


def test_presets_hold_the_documented_values():
    paper, released, cpu = (preset(name, (3, 32, 32)) for name in ("paper", "released", "cpu"))
    assert (paper.fit.epochs, paper.fit.warmup_epochs, paper.autoencoder.patch_size, paper.fit.learning_rate) == (500, 50, 2, 7.5e-5)
    assert (paper.auxiliary.view, paper.auxiliary.target, paper.score.combination, paper.score.deviation) == (
        "masked",
        "victim_mse",
        "weighted",
        "squared",
    )
    assert (released.fit.learning_rate, released.fit.batch_size, released.auxiliary.target, released.auxiliary.fit.epochs) == (
        0.01,
        128,
        "labels_ce",
        80,
    )
    assert (released.score.reconstruction_weight, released.score.error_factor, released.score.deviation_factor) == (0.99, 4.0, 0.1)
    assert released.score.normaliser == "none"
    assert (cpu.fit.epochs, cpu.fit.learning_rate, cpu.fit.batch_size, cpu.fit.gradient_clip) == (24, 1.5e-3, 256, 1.0)
    assert (cpu.auxiliary.view, cpu.auxiliary.target, cpu.auxiliary.fit.epochs, cpu.score.combination) == (
        "full",
        "victim_ce",
        8,
        "typicality",
    )
    assert preset("cpu", (1, 28, 28)).fit.epochs == 10
    with pytest.raises(ConfigurationError, match="preset must be one of cpu, paper, released"):
        preset("fast", (3, 32, 32))


def test_the_default_auxiliary_follows_the_input():
    assert isinstance(default_auxiliary((3, 32, 32), 10), FastCifar)
    assert isinstance(default_auxiliary((1, 28, 28), 10), Conv3)
    assert isinstance(default_auxiliary((1, 8, 8), 10), SmallConv)
    assert isinstance(default_auxiliary((30,), 4), MLP)


def test_released_units_equal_the_error_measured_on_minus_one_to_one():
    config = preset("released", (1, 8, 8)).score
    draw = np.random.default_rng(0)
    x, y = draw.random((50, 64)), draw.random((50, 64))
    kl = draw.random(50)
    terms = {"error_full": ((x - y) ** 2).mean(1), "deviation_kl": kl}
    expected = 0.99 * (((2 * x - 1) - (2 * y - 1)) ** 2).mean(1) + 0.01 * kl / 10
    np.testing.assert_allclose(combination_for(config).fit(terms).score(terms), expected, rtol=1e-12)


# ---------------------------------------------------------------------- structure sharing


def test_sharing_the_trunk_saves_memory_and_leaves_the_victims_answers_bit_identical(digits, victim):
    module = copy.deepcopy(victim.module)
    shared_victim = TorchVictim(module, digits.contract, classes=10)
    queries = digits.contract.canonicalise(digits.benign[:50])
    before = shared_victim.answer(queries)
    same = fit(quick_same(digits, share="trunk"), digits, shared_victim)
    assert np.array_equal(shared_victim.answer(queries), before)
    sizes = same.report["memory_bytes"]
    assert sizes["together"] < 0.6 * (sizes["victim"] + sizes["auxiliary"])
    assert same.auxiliary.features[0].weight is module.features[0].weight
    assert same.auxiliary.head[-1].weight is not module.head[-1].weight
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_identical_architecture_alone_saves_nothing(victim):
    twin = copy.deepcopy(victim.module)
    assert memory_bytes(victim.module, twin) == 2 * memory_bytes(twin)


def test_sharing_needs_a_torch_victim_with_a_trunk(digits, victim):
    function = BlackBox(victim.answer, digits.contract, classes=10)
    with pytest.raises(ConfigurationError, match="share trunk needs a TorchVictim"):
        quick_same(digits, share="trunk").fit(digits.train, function, QUICK)
    with pytest.raises(ConfigurationError, match="needs a victim with weights before its last linear layer"):
        share_trunk(torch.nn.Linear(4, 2))
    with pytest.raises(ConfigurationError, match="share must be none or trunk"):
        quick_same(digits, share="all")
