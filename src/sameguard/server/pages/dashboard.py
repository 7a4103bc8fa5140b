"""The dashboard's one page: what the history and the guard say, put into words, numbers and charts."""

from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from sameguard.server.decision import ACTIONS, OUTCOMES
from sameguard.server.history import MILD, HistoryView, Minute, Recent
from sameguard.server.pages import charts

STATIC_FILES = {"dashboard.css": "text/css", "dashboard.js": "text/javascript", "icon.svg": "image/svg+xml"}  # all that is ever served
HOURS = (1, 6)
BARS = 60
FEW = 12  # places of a line, which need some data each
FEWEST_SCORES = 5  # that a quantile of a few minutes may be told of
WORDS = {
    "allow": "answered", "coarsen": "coarsened", "challenge": "challenged", "too-costly": "refused as too costly", "refuse": "refused",
    "failed": "failed", "denied": "denied",
}  # fmt: skip
FAILED_PROOFS = ("expired", "invalid", "mismatch", "replayed")


class Tile(NamedTuple):
    """A number and what it means."""

    label: str
    number: str
    note: str


class RecentRow(NamedTuple):
    """One line of the table of recent requests."""

    time: str
    request_id: str
    principal: str
    rows: int
    said: str
    kind: str
    became: str
    score: str
    pictures: dict[str, str]


def render_dashboard(
    view: HistoryView,
    hours: int,
    description: Mapping[str, Any],
    readiness: Any,
    benign_scores: np.ndarray,
    *,
    thumbnails: bool,
    address: str,
    now: float,
) -> str:
    """The page as HTML. view: of the last `hours`. address: of this port, as the reader's browser knows it."""
    shadow = description["mode"] == "shadow"
    would = _withheld(view)
    return _template().render(
        hours=hours,
        all_hours=HOURS,
        now=_clock(now),
        today=datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d"),
        about=description,
        shadow=shadow,
        partly=not shadow and description["rollout"] < 1.0,
        withheld=_sentence(would),
        readiness=readiness,
        tiles=_tiles(view, description, would if shadow else None),
        traffic=_traffic(view, shadow),
        minutes_per_bar=max(1, 60 * hours // BARS),
        legend=[(kind, WORDS[kind]) for kind in OUTCOMES if any(kind in pair for pair in view.counts)],
        drift=_drift(view, benign_scores, description),
        scores=_scores(view, benign_scores, description),
        challenges=_challenges(view),
        latency=_latency(view),
        recent=[_recent_row(entry) for entry in view.recent],
        thumbnails=thumbnails,
        address=address,
        any_requests=bool(view.counts),
    )


@cache
def _template() -> Any:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string((files(__package__) / "templates" / "dashboard.html").read_text(encoding="utf-8"))


def read_static(name: str) -> bytes:
    """One of STATIC_FILES."""
    return (files(__package__) / "static" / name).read_bytes()


# ---------------------------------------------------------------------- in words


def _withheld(view: HistoryView) -> Counter[str]:
    """What the policy said of requests that were answered all the same."""
    would: Counter[str] = Counter()
    for (outcome, verdict), count in view.counts.items():
        if outcome == "allow" and verdict not in MILD:
            would[verdict] += count
    return would


def _sentence(would: Counter[str]) -> str:
    return ", ".join(f"{would[action]:,} {WORDS[action]}" for action in reversed(ACTIONS) if would[action])


def _tiles(view: HistoryView, description: Mapping[str, Any], would: Counter[str] | None) -> list[Tile]:
    """would: in shadow mode, what would have been done."""
    outcomes: Counter[str] = Counter()
    for (outcome, _), count in view.counts.items():
        outcomes[outcome] += count
    asked = _judged(view)
    flagged = sum(count for (_, verdict), count in view.counts.items() if verdict not in MILD)
    done, prefix = (outcomes, "") if would is None else (would, "would be ")
    challenges, total = view.challenges, view.latencies.get("total")
    told = (
        f"{challenges['issued']:,} new challenges, {challenges['valid']:,} solved"
        if would is None
        else "no challenge is issued in shadow mode"
    )
    return [
        Tile("requests", f"{outcomes.total():,}", f"{outcomes['allow'] + outcomes['coarsen']:,} answered"),
        Tile(
            "flagged",
            f"{flagged / asked:.1%}" if asked else "–",
            f"{flagged:,} of {asked:,} judged; set for {description['false_positive_rate']:.1%} of benign queries",
        ),
        Tile(f"{prefix}refused", f"{done['refuse'] + done['too-costly']:,}", f"{done['too-costly']:,} of them as too costly"),
        Tile(f"{prefix}challenged", f"{done['challenge']:,}", told),
        Tile("failed", f"{outcomes['failed']:,}", f"{outcomes['denied']:,} more denied: not understood, too large or too frequent"),
        Tile(
            "median time",
            charts.seconds(float(np.median(total))) if total is not None else "–",
            "of the last requests, the model server included",
        ),
    ]


def _judged(view: HistoryView) -> int:
    """Requests of which the policy said something."""
    return sum(count for (_, verdict), count in view.counts.items() if verdict)


def _recent_row(entry: Recent) -> RecentRow:
    decision = entry.decision
    would = decision.outcome == "allow" and not decision.enforced
    became = f"answered; would have been {WORDS[decision.verdict]}" if would else WORDS.get(decision.outcome, decision.outcome)
    level = f", level {decision.level}" if decision.level else ""
    score, part = (decision.score, "") if np.isfinite(decision.score) else (decision.stage_a_score, " (stage A)")
    return RecentRow(
        time=_clock(decision.time),
        request_id=decision.request_id,
        principal=decision.principal[:12],
        rows=decision.rows,
        said=decision.verdict,
        kind=decision.verdict,
        became=f"{became}{level}" + (f" ({decision.status})" if decision.status >= 400 else ""),
        score=f"{charts.short(float(score))}{part}" if np.isfinite(score) else "–",
        pictures={} if entry.thumbnails is None else entry.thumbnails.urls,
    )


def _clock(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%H:%M:%S")


# ---------------------------------------------------------------------- in charts


def _traffic(view: HistoryView, shadow: bool) -> Markup | None:
    """Requests over time by what they got; in shadow mode by what the policy said of them."""
    if not view.counts:
        return None
    bins = _bins(view, BARS)
    series = {kind: [0] * len(bins) for kind in OUTCOMES}
    for place, minutes in enumerate(bins):
        for _, minute in minutes:
            for (outcome, verdict), count in minute.counts.items():
                kind = verdict if shadow and outcome == "allow" and verdict else outcome
                series[kind][place] += count
    what = "what the policy said of them" if shadow else "what became of them"
    return charts.stacked_bars(series, _labels(bins), description=f"Requests over time by {what}.")


def _drift(view: HistoryView, benign_scores: np.ndarray, description: Mapping[str, Any]) -> dict[str, Any] | None:
    """Quantiles of the scores of allowed queries, beside the same quantiles of the calibration's allowed ones: like with like."""
    bins = _bins(view, FEW)
    pooled = [np.array([score for _, minute in minutes for score in minute.scores]) for minutes in bins]
    if not any(len(scores) >= FEWEST_SCORES for scores in pooled):
        return None
    threshold = float(description["threshold"])
    allowed = benign_scores[benign_scores <= threshold]
    series, levels = [], []
    for quantile, kind in ((0.9, "upper"), (0.5, "middle")):
        values = np.array([np.quantile(scores, quantile) if len(scores) >= FEWEST_SCORES else np.nan for scores in pooled])
        series.append(charts.Line(f"{quantile:.0%} of allowed queries", kind, values))
        if len(allowed):
            levels.append(charts.Level(f"{quantile:.0%} at calibration", f"benign-{kind}", float(np.quantile(allowed, quantile))))
    if np.isfinite(threshold):
        levels.append(charts.Level("threshold", "threshold", threshold))
    scores = np.concatenate(pooled)
    return {
        "chart": charts.lines(
            series, levels, _labels(bins), description="Quantiles of allowed queries' scores over time, with the threshold."
        ),
        "median": charts.short(float(np.median(scores))),
        "benign_median": charts.short(float(np.median(allowed))) if len(allowed) else "unknown",
        "threshold": charts.short(threshold) if np.isfinite(threshold) else "none",
    }


def _scores(view: HistoryView, benign_scores: np.ndarray, description: Mapping[str, Any]) -> dict[str, Any] | None:
    if not len(view.scores):
        return None
    threshold = float(description["threshold"])
    level = charts.Level("threshold", "threshold", threshold) if np.isfinite(threshold) else None
    return {
        "chart": charts.histogram(view.scores, benign_scores, level, description="Recent scores beside the calibration's benign scores."),
        "recent": len(view.scores),
        "benign": len(benign_scores),
        "above": f"{float(np.mean(~(view.scores <= threshold))):.1%}",
        "early": view.early,
        "early_share": f"{view.early / judged:.1%}" if (judged := _judged(view)) else "–",
    }


def _challenges(view: HistoryView) -> dict[str, Any] | None:
    told = view.challenges
    if not told:
        return None
    bins = _bins(view, FEW)
    failed = {result: told[result] for result in FAILED_PROOFS if told[result]}
    series = [
        charts.Line(name, kind, np.array([_told(minutes, results) for minutes in bins], float))
        for name, kind, results in (
            ("issued", "challenge", ("issued",)),
            ("solved", "allow", ("valid",)),
            ("failed", "refuse", FAILED_PROOFS),
        )
    ]
    return {
        "issued": told["issued"],
        "solved": told["valid"],
        "failed": sum(failed.values()),
        "how": ", ".join(f"{count:,} {result}" for result, count in failed.items()),
        "ratio": f"{told['valid'] / told['issued']:.0%}" if told["issued"] else "–",
        "chart": charts.lines(series, [], _labels(bins), description="Challenges issued, solved and failed over time.", counts=True),
        "minutes": len(bins[0]),
    }


def _told(minutes: list[tuple[int, Minute]], names: tuple[str, ...]) -> int:
    return sum(minute.challenges[name] for _, minute in minutes for name in names)


def _latency(view: HistoryView) -> Markup | None:
    if not view.latencies:
        return None
    rows = {
        stage.replace("_", " "): tuple(float(value) for value in np.quantile(values, (0.5, 0.95, 0.99)))
        for stage, values in view.latencies.items()
    }
    return charts.ranges(rows, description="Median, 95 % and 99 % of the time that requests spend in each stage.")


def _bins(view: HistoryView, places: int) -> list[list[tuple[int, Minute]]]:
    size = max(1, len(view.minutes) // places)
    return [view.minutes[start : start + size] for start in range(0, len(view.minutes), size)]


def _labels(bins: list[list[tuple[int, Minute]]]) -> list[str]:
    return [datetime.fromtimestamp(minutes[0][0], UTC).strftime("%H:%M") for minutes in bins]
