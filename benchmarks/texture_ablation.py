"""Which texture terms `typicality` rests on: AUROC with and without the grey-level terms, from the raw terms that real_data.py kept.

    python benchmarks/texture_ablation.py cifar10 --out runs/cifar10

Needs no network and no data set. Prints Markdown: texture alone / the whole score, in percent. Explains, chooses nothing.
"""

from pathlib import Path

import numpy as np
import typer

from sameguard.evaluation.metrics import auroc
from sameguard.scoring import ScoreConfig, Terms, combination_for

GREY_LEVELS = ("share_black", "share_white", "share_faint", "distinct_levels", "histogram_entropy")
VARIANTS = {
    "all terms (default)": (),
    "without grey levels": GREY_LEVELS,
    "without grey levels and compressed size": (*GREY_LEVELS, "compressed_size"),
}
SEEDS_FOR_JBDA = 4000  # as in real_data.py: these test images were perturbed, the others are the honest side


def main(dataset: str, out: Path = Path("runs"), seed: int = 0) -> None:
    """One data set, one seed."""
    sets: dict[str, Terms] = {}
    with np.load(out / f"terms-{seed}.npz") as stored:
        for key in stored.files:
            part, name = key.rsplit("/", 1)
            sets.setdefault(part, {})[name] = stored[key]
    honest_rows = np.random.default_rng(0).permutation(len(sets["test"]["error_full"]))[SEEDS_FOR_JBDA:]
    others = [part for part in sets if part not in ("statistics", "test")]
    print(f"### {dataset}: texture alone / whole score\n\n| terms | " + " | ".join(others) + " |\n|---|" + "---|" * len(others))
    for variant, left_out in VARIANTS.items():
        names = [name for name in sets["statistics"] if name not in left_out and not name.startswith(("victim_", "masked_auxiliary"))]
        combination = combination_for(ScoreConfig()).fit({name: sets["statistics"][name] for name in names})
        honest = {name: sets["test"][name][honest_rows] for name in names}
        cells = []
        for part in others:
            terms = {name: sets[part][name] for name in names}
            pairs = [(combination.stage_a(honest), combination.stage_a(terms)), (combination.score(honest), combination.score(terms))]
            cells.append(" / ".join(f"{100 * auroc(*pair):.1f}" for pair in pairs))
        print(f"| {variant} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    typer.run(main)
