"""The report: report.md with all tables, and report.html, one page with the same tables and every picture inside it; no network, no script.

Made from result JSON and the small pictures beside it; raw scores and the cache are not read.
"""

import base64
import html
import re
from collections.abc import Iterable
from pathlib import Path

from sameguard.errors import ConfigurationError
from sameguard.evaluation.cache import write_text
from sameguard.evaluation.figures import figures_of
from sameguard.evaluation.results import Result, absent, read_failures, read_results, reported
from sameguard.evaluation.run import read_folder
from sameguard.evaluation.tables import PREFACE, markdown, section

STYLE = """
:root { color-scheme: light dark; --ink: #1d2126; --soft: #5d6670; --ground: #ffffff; --line: #d9dde2; --band: #f4f6f8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7ea; --soft: #9aa4ae; --ground: #15181c; --line: #343a41; --band: #1d2126; } }
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem; background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; border-top: 1px solid var(--line); padding-top: 1rem; }
p, li { max-width: 60rem; } .note { color: var(--soft); font-size: 0.9em; }
.wide { overflow-x: auto; margin: 0.8rem 0; } table { border-collapse: collapse; font-size: 0.85em; font-variant-numeric: tabular-nums; }
th, td { padding: 0.2rem 0.6rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; vertical-align: top; }
th { white-space: normal; } td:first-child, th:first-child { position: sticky; left: 0; background: var(--ground); }
tr:hover td { background: var(--band); } tr.group td { padding-top: 0.7rem; }
figure { margin: 1rem 0; } figure img { max-width: 100%; height: auto; } figcaption { color: var(--soft); font-size: 0.9em; }
.sheets { display: flex; flex-wrap: wrap; gap: 1rem; } .sheets img { image-rendering: pixelated; width: 16rem; }
nav a { margin-right: 0.8rem; } summary { cursor: pointer; }
"""


def write_report(out: Path, page: Path | None = None) -> list[Path]:
    """Writes both files and returns their paths, where nothing could be made with the reasons alone.

    Raises ConfigurationError for an empty or foreign folder, InvalidDataError for a damaged result.
    """
    read_folder(out)
    results = read_results(out)
    if not results and not read_failures(out):
        raise ConfigurationError(
            f"results folder {out} must hold at least one result, got none: sameguard evaluate --out {out} has not finished a table."
        )
    text, page = out / "report.md", page or out / "report.html"
    write_text(text, markdown(out))
    write_text(page, html_page(out, results))
    return [page, text]


def html_page(out: Path, results: list[Result]) -> str:
    """The whole page."""
    scale = read_folder(out)["scale"]
    links = " ".join(
        f'<a href="#{result.key}">{html.escape(result.first["title"])}, {html.escape(result.first["setting"]["name"])}</a>'
        for result in results
    )
    parts = [
        "<!doctype html>", '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>sameguard: results at scale {scale}</title><style>{STYLE}</style></head><body>",
        f"<h1>Results of the laboratory, scale {scale}</h1>", f"<p>{html.escape(PREFACE)}</p>", f"<nav>{links}</nav>",
        "<h2>What is missing</h2>", *to_html([f"- {sentence}" for sentence in absent(out, results)] or ["Nothing."]),
    ]  # fmt: skip
    for result in results:
        parts += _result_html(out, result)
    parts += ["<h2>Notes on the paper's numbers</h2>", *to_html([f"- {note}" for note in reported()["notes"]]), "</body></html>"]
    return "\n".join(parts)


def _result_html(out: Path, result: Result) -> list[str]:
    title = f"{result.first['title']}: {result.first['setting']['title']}"
    parts = [f'<h2 id="{result.key}">{html.escape(title)}</h2>', *to_html(section(result))]
    for caption, picture in figures_of(result):
        parts.append(
            f'<figure><img alt="{html.escape(caption)}" src="{_uri(picture)}"><figcaption>{html.escape(caption)}</figcaption></figure>'
        )
    folder = out / "pictures" / f"{result.key}-seed{result.seeds[0]}"
    sheets = sorted(folder.glob("*.png"))
    if sheets:
        caption = "Queries (above), what the autoencoder paints of each patch while it is hidden (middle), "
        caption += f"squared error, dark is large (below); seed {result.seeds[0]}"
        images = [
            f'<figure><img alt="{html.escape(path.stem)}" src="{_uri(path.read_bytes())}"><figcaption>{html.escape(path.stem)}</figcaption></figure>'
            for path in sheets
        ]
        parts += [f'<p class="note">{caption}.</p><div class="sheets">', *images, "</div>"]
    return parts


def _uri(picture: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(picture).decode()


# ---------------------------------------------------------------------- our own Markdown: tables, lists, paragraphs, and what is folded away

FOLDED, UNFOLDED = re.compile(r"<details><summary>(.*)</summary>"), "</details>"


def to_html(lines: Iterable[str]) -> list[str]:
    """HTML of the Markdown that `tables` writes."""
    parts: list[str] = []
    block: list[str] = []
    for line in [*lines, ""]:
        kind = line[:1] if line[:2] in ("| ", "|-", "- ") else ""
        if block and kind != (block[0][:1] if block[0][:2] in ("| ", "|-", "- ") else ""):
            parts += _block(block)
            block = []
        if line == UNFOLDED:
            parts.append(UNFOLDED)
        elif folded := FOLDED.fullmatch(line):
            parts.append(f"<details><summary>{_inline(folded[1])}</summary>")
        elif line and not kind:
            parts.append(f"<p>{_inline(line)}</p>")
        elif line:
            block.append(line)
    return parts


def _block(lines: list[str]) -> list[str]:
    if lines[0].startswith("- "):
        return ["<ul>", *[f"<li>{_inline(line[2:])}</li>" for line in lines], "</ul>"]
    rows = [[_inline(cell.strip()) for cell in line.strip().strip("|").split("|")] for line in lines if not line.startswith("|-")]
    head = "".join(f"<th>{cell}</th>" for cell in rows[0])
    body = []
    for row in rows[1:]:
        group = ' class="group"' if row[0].startswith("<strong>") and not any(row[1:]) else ""
        body.append(f"<tr{group}>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>")
    return [f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>', *body, "</tbody></table></div>"]


def _inline(text: str) -> str:
    text = html.escape(text)
    text = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", text)
    text = re.sub(r"(?<![\w*])\*([^*]+?)\*(?![\w*])", r"<em>\1</em>", text)
    return re.sub(r"`(.+?)`", r"<code>\1</code>", text)
