"""SAME on real data: the `cpu` preset fitted, calibrated and scored on MNIST or CIFAR-10, with every way of combining its terms.

    python benchmarks/victims.py mnist --data-root data --out runs/mnist
    python benchmarks/real_data.py mnist --data-root data --out runs/mnist

Every stage is kept in --out and skipped when it is there. Writes <out>/real_data.json, terms.npz (all raw terms, so that any number can be
recomputed) and prints Markdown. Queries are on the 8-bit grid; nothing is chosen by looking at malicious queries.
"""

import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import typer
from torch.nn import functional as F

from sameguard.calibration import calibrate, clopper_pearson, flag_count_range
from sameguard.contract import InputContract
from sameguard.data import Split, load
from sameguard.data.transforms import blur, jpeg, median, quantise, rotate, shift, to_grey
from sameguard.detectors import SAME, AuxiliaryConfig, preset
from sameguard.evaluation.metrics import auroc, average_precision, fpr_at_tpr
from sameguard.networks.torch_victim import TorchVictim
from sameguard.runtime import Scorer, choose_engine
from sameguard.scoring import ScoreConfig, Terms, combination_for
from sameguard.training import ProgressEvent, RunControl
from victims import held_out_split, load_victim

RATE = 0.05
SEEDS_FOR_JBDA = 4000  # test images that JBDA starts from; the other test images are the benign ones it is compared with
NEEDED = {"mnist": ("femnist-digits", "kmnist", "cifar100"), "cifar10": ("cifar100", "tiny-imagenet")}
MASKED = "masked_auxiliary"  # prefix of the terms that come from an auxiliary on masked reconstructions

SCORES: dict[str, ScoreConfig] = {
    "typicality (default)": ScoreConfig(),
    "two_sided": ScoreConfig(combination="two_sided"),
    "weighted, like released (full, .99)": ScoreConfig("weighted", "kl", ("full",), "full", 0.99, "none", 4.0, 0.1),
}
PAPER = ScoreConfig("weighted", "squared", ("masked",), "masked", 0.5, "zscore_benign")


def log(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def show(event: ProgressEvent) -> None:
    if event.step % 50 == 0 or event.step == event.steps:
        log(f"{event.stage} {event.step}/{event.steps} loss {event.loss:.4f} {event.seconds_left:.0f} s left")


# ---------------------------------------------------------------------- fits


def fitted(
    dataset: str, train: Split, held_out: np.ndarray, victim: TorchVictim, out: Path, seed: int, auxiliary: AuxiliaryConfig | None
) -> Path:
    """The artefact of one fit, made if it is not there; with `auxiliary`, a second one that shares the first one's autoencoder."""
    name = "artefact" if auxiliary is None else f"artefact-{MASKED}"
    directory, work = out / f"{name}-{seed}", out / f"{name}-{seed}.work"
    if directory.exists():
        return directory
    chosen = preset("cpu", victim.contract.shape, victim.classes)
    if auxiliary is not None:
        work.mkdir(parents=True, exist_ok=True)
        for file in ("autoencoder.checkpoint", "answers.npy", "answers.sha256", "data.sha256"):
            shutil.copy(out / f"artefact-{seed}.work" / file, work / file)
    same = SAME(victim.contract, victim.classes, auxiliary_config=auxiliary)
    control = RunControl(work, resume=True, progress=show, log=log)
    began = time.monotonic()
    same.fit(
        train,
        victim,
        chosen.fit.with_(seed=seed, compile=COMPILE, **({} if EPOCHS is None else {"epochs": EPOCHS})),
        benign=held_out,
        control=control,
    )
    log(f"{name}: {time.monotonic() - began:.0f} s, agreement {same.report['agreement']:.4f}")
    same.export(directory, overwrite=True)
    return directory


COMPILE = False
EPOCHS: int | None = None  # of the autoencoder, instead of the preset's


# ---------------------------------------------------------------------- queries


def gradient_sign(victim: torch.nn.Module, seeds: np.ndarray, step: float) -> np.ndarray:
    """One JBDA step on the victim's own loss (white box): seeds + step * sign of the gradient, on the 8-bit grid."""
    rows = []
    for start in range(0, len(seeds), 250):
        images = torch.from_numpy(seeds[start : start + 250]).requires_grad_(True)
        logits = victim(images)
        F.cross_entropy(logits, logits.argmax(1), reduction="sum").backward()
        rows.append((images.detach() + step * images.grad.sign()).numpy())
    return quantise(np.concatenate(rows))


def query_sets(
    dataset: str, root: Path, victim: torch.nn.Module, benign: np.ndarray, seeds: np.ndarray
) -> dict[str, tuple[str, Callable[[], np.ndarray]]]:
    """Name -> (malicious or honest, maker of the queries)."""

    def proxy(name: str) -> np.ndarray:
        data = load(name, root=root)
        part = data.test if data.test is not None and name != "femnist-digits" else data.train
        return part.take(np.random.default_rng(0).permutation(len(part))[:4000]).inputs

    ascending = lambda step: lambda: gradient_sign(victim, seeds, step)  # noqa: E731
    few = benign[:2000]
    honest = {"benign, blurred": lambda: blur(few), "benign, median-filtered": lambda: median(few), "benign, JPEG 50": lambda: jpeg(few),
              "benign, rotated 10 degrees": lambda: rotate(few), "benign, shifted 2 pixels": lambda: shift(few)}  # fmt: skip
    if dataset == "mnist":
        malicious = {
            "femnist-digits": lambda: proxy("femnist-digits"), "KMNIST": lambda: proxy("kmnist"),
            "CIFAR-100, grey": lambda: to_grey(proxy("cifar100"), 28),
            "JBDA .1 +": ascending(0.1), "JBDA .1 -": ascending(-0.1), "JBDA .05 +": ascending(0.05), "JBDA .05 -": ascending(-0.05),
            "JBDA .1, median-filtered": lambda: median(gradient_sign(victim, seeds, 0.1)),
        }  # fmt: skip
    else:

        def step(size: float) -> np.ndarray:
            return gradient_sign(victim, seeds[:2000], size)

        malicious = {
            "CIFAR-100": lambda: proxy("cifar100"), "Tiny ImageNet": lambda: proxy("tiny-imagenet"),
            "JBDA .1": ascending(0.1), "JBDA .05": ascending(0.05),
            "JBDA .1, blurred": lambda: blur(step(0.1)), "JBDA .1, median-filtered": lambda: median(step(0.1)), "JBDA .1, JPEG 50": lambda: jpeg(step(0.1)),
            "JBDA .05, blurred": lambda: blur(step(0.05)), "JBDA .05, median-filtered": lambda: median(step(0.05)),
            "JBDA .05, JPEG 50": lambda: jpeg(step(0.05)),
        }  # fmt: skip
    sets = {name: ("malicious", maker) for name, maker in malicious.items()}
    return sets | {name: ("honest", maker) for name, maker in honest.items()}


# ---------------------------------------------------------------------- scores


def all_terms(main: Scorer, other: Scorer | None, victim: TorchVictim, queries: np.ndarray) -> Terms:
    queries = victim.contract.canonicalise(queries)
    answers = victim.answer(queries)
    terms = main.score_terms(queries, answers)
    terms["victim_msp"] = -answers.max(axis=1).astype(np.float64)
    logits = victim._predict(queries).astype(np.float64)
    terms["victim_energy"] = -np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) - logits.max(1)
    if other is not None:
        masked = other.score_terms(queries, answers)
        terms |= {f"{MASKED}.{name}": values for name, values in masked.items() if name.startswith("deviation_")}
    return terms


def scores_of(statistics: Terms, terms: Terms) -> dict[str, np.ndarray]:
    """Every score of the tables, higher = more suspicious, fitted on benign `statistics` terms only."""

    def two_sided(name: str, values: Terms) -> np.ndarray:
        return np.abs(values[name] - np.median(statistics[name])) / statistics[name].std()

    scores = {
        "L_rec full (SAME-X)": terms["error_full"], "L_rec masked": terms["error_masked"],
        "L_dev squared": terms["deviation_squared"], "L_dev KL": terms["deviation_kl"], "L_dev disagreement (SAME-Y)": terms["deviation_disagreement"],
        "victim MSP": terms["victim_msp"], "victim energy": terms["victim_energy"],
        "compressed size, one-sided": terms["compressed_size"], "compressed size, two-sided": two_sided("compressed_size", terms),
        "Laplacian energy, two-sided": two_sided("laplacian_mean", terms), "share of faint pixels, one-sided": terms["share_faint"],
    }  # fmt: skip
    for name, config in SCORES.items():
        own = {key: value for key, value in statistics.items() if not key.startswith(("victim_", MASKED))}
        scores[name] = combination_for(config).fit(own).score(terms)
    combination = combination_for(ScoreConfig())
    combination.fit({key: value for key, value in statistics.items() if not key.startswith(("victim_", MASKED))})
    scores["texture typicality alone"] = combination.stage_a(terms)
    if f"{MASKED}.deviation_squared" in terms:
        swap = lambda values: {**values, "deviation_squared": values[f"{MASKED}.deviation_squared"]}  # noqa: E731
        scores["weighted, paper (masked, z-scores, .5)"] = combination_for(PAPER).fit(swap(statistics)).score(swap(terms))
        scores["L_dev squared, auxiliary on masked"] = terms[f"{MASKED}.deviation_squared"]
    return scores


def main(
    dataset: str,
    data_root: Path = Path("data"),
    out: Path = Path("runs"),
    seed: int = 0,
    masked_auxiliary: bool = True,
    compile: bool = False,
    epochs: int | None = None,
) -> None:
    """One data set, one seed."""
    global COMPILE, EPOCHS
    COMPILE, EPOCHS = compile, epochs
    for name in NEEDED[dataset]:  # before hours of training, not after
        load(name, root=data_root)
    data = load(dataset, root=data_root)
    train, held_out = held_out_split(data.train)
    network = load_victim(dataset, out)
    contract = InputContract.for_inputs(data.test.take(np.arange(1)).inputs)
    victim = TorchVictim(network, contract, classes=10)
    test = contract.canonicalise(data.test.inputs)
    accuracy = float(np.mean(victim.answer(test).argmax(1) == data.test.labels))
    held_out_inputs = held_out.inputs
    directory = fitted(dataset, train, held_out_inputs[:2000], victim, out, seed, None)
    other = None
    if masked_auxiliary:
        chosen = preset("cpu", contract.shape).auxiliary
        fit = chosen.fit.with_(epochs=max(2, chosen.fit.epochs // 2), warmup_epochs=min(0.9, chosen.fit.warmup_epochs))
        config = AuxiliaryConfig(fit, "masked", "victim_mse" if dataset == "mnist" else "victim_ce", chosen.augmentation)
        other = Scorer(fitted(dataset, train, held_out_inputs[:2000], victim, out, seed, config), for_calibration=True)

    scorer = Scorer(directory, for_calibration=True)
    engines = choose_engine(scorer, held_out_inputs, victim)
    if other is not None:
        other._open(scorer.provider)
    threshold = calibrate(scorer, held_out_inputs, victim, RATE)
    scorer.save(threshold)
    log(f"{scorer.provider}: {threshold}")

    benign_rows = np.random.default_rng(0).permutation(len(test))
    seeds, benign = test[benign_rows[:SEEDS_FOR_JBDA]], test[benign_rows[SEEDS_FOR_JBDA:]]
    keys = scorer.calibration.digests["statistics"]
    statistics_queries = held_out_inputs[_rows_of(scorer, held_out_inputs, keys)]
    terms = {"statistics": all_terms(scorer, other, victim, statistics_queries), "test": all_terms(scorer, other, victim, test)}
    kinds = {}
    for name, (kind, maker) in query_sets(dataset, data_root, network, benign, seeds).items():
        began = time.monotonic()
        terms[name], kinds[name] = all_terms(scorer, other, victim, maker()), kind
        log(f"{name}: {len(terms[name]['error_full'])} queries scored in {time.monotonic() - began:.0f} s")
    np.savez_compressed(
        out / f"terms-{seed}.npz", **{f"{part}/{name}": values for part, columns in terms.items() for name, values in columns.items()}
    )

    report = summary(dataset, accuracy, engines, scorer, threshold, terms, kinds, benign_rows[SEEDS_FOR_JBDA:])
    report |= {"seed": seed, "victim": json.loads((out / "victim-0.json").read_text()), "fit": scorer.manifest["fit"]}
    (out / f"real_data-{seed}.json").write_text(json.dumps(report, indent=1))
    print(markdown(report))


def _rows_of(scorer: Scorer, queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
    from sameguard.calibration import short_digests

    own = short_digests(scorer.contract.digests(scorer.contract.canonicalise(queries)))
    position = {key: row for row, key in enumerate(own.tolist())}
    return np.array([position[key] for key in keys.tolist()])


def summary(
    dataset: str,
    accuracy: float,
    engines: dict,
    scorer: Scorer,
    threshold,
    terms: dict[str, Terms],
    kinds: dict[str, str],
    benign_rows: np.ndarray,
) -> dict:
    test_stage_a, test_scores = scorer.combination.stage_a(terms["test"]), scorer.combination.score(terms["test"])
    flags = threshold.flags(test_scores, test_stage_a)
    low, high = flag_count_range(len(flags), threshold.k, threshold.n)
    report = {
        "dataset": dataset, "victim_accuracy": accuracy, "agreement": scorer.calibration.agreement, "engine": str(scorer.provider), "engines": engines,
        "threshold": threshold.to_json(),
        "test_flags": {"flagged": int(flags.sum()), "of": len(flags), "range_95": [low, high],
                       "clopper_pearson": list(clopper_pearson(int(flags.sum()), len(flags)))},
        "benign_rows": len(benign_rows), "sets": {},
    }  # fmt: skip
    benign_scores = {name: values[benign_rows] for name, values in scores_of(terms["statistics"], terms["test"]).items()}
    for name, kind in kinds.items():
        scores = scores_of(terms["statistics"], terms[name])
        flagged = threshold.flags(scorer.combination.score(terms[name]), scorer.combination.stage_a(terms[name]))
        rows = {
            method: {
                "auroc": auroc(benign_scores[method], values), "average_precision": average_precision(benign_scores[method], values),
                "fpr95": fpr_at_tpr(benign_scores[method], values, 0.95),
            }
            for method, values in scores.items()
        }  # fmt: skip
        report["sets"][name] = {"kind": kind, "n": len(flagged), "flagged_at_threshold": float(flagged.mean()), "methods": rows}
    return report


def markdown(report: dict) -> str:
    flags = report["test_flags"]
    lines = [
        f"### {report['dataset']}: victim {report['victim_accuracy']:.2%}, auxiliary agrees on {report['agreement']:.2%}, engine {report['engine']}", "",
        f"Flags on the {flags['of']} test images: **{flags['flagged']}**, 95 % beta-binomial range {flags['range_95'][0]} to {flags['range_95'][1]}.", "",
    ]  # fmt: skip
    for metric, title in (("auroc", "AUROC"), ("average_precision", "average precision"), ("fpr95", "FPR95")):
        names = [name for name, entry in report["sets"].items() if metric == "auroc" or entry["kind"] == "malicious"]
        lines += [f"{title} in percent ({report['benign_rows']} benign test images against n):", ""]
        lines.append("| score | " + " | ".join(f"{name} ({report['sets'][name]['n']})" for name in names) + " |")
        lines.append("|---|" + "---|" * len(names))
        for method in next(iter(report["sets"].values()))["methods"]:
            cells = [f"{100 * report['sets'][name]['methods'][method][metric]:.1f}" for name in names]
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
        lines.append("")
    lines += [
        "Flagged at the 5 % threshold: "
        + ", ".join(f"{name} {entry['flagged_at_threshold']:.1%}" for name, entry in report["sets"].items())
        + ".",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)
