"""The page of an adapted index: what it can obey, how well it does, and how to use it; and the model card."""

from collections.abc import Mapping
from html import escape
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from dualview.catalog.probe import is_usable
from dualview.catalog.scoring import METRICS
from dualview.config.adapt import AdaptConfig
from dualview.evaluation.html import PALETTE, STYLE, html_page, html_table, svg_of

OURS = "instruction encoder"
ORDER = (OURS, "probe", "arithmetic", "DEO", "subtraction", "untouched", "query alone", "ceiling", "filter")
_MEANING = {
    OURS: "reads the instruction; its vector is added to the query's",
    "probe": "the query plus the linear probe's own directions, which know the metadata",
    "arithmetic": "the query plus vectors of wanted phrases, minus unwanted ones",
    "DEO": "the same from the vector of query and instruction (arXiv 2603.09185, at its stationary point)",
    "subtraction": "query and wanted phrases as one text, minus vectors of unwanted phrases",
    "untouched": "the untouched encoder reads query and instruction",
    "query alone": "ignores the instruction",
    "filter": "the query among the documents that obey by their metadata: exact, where the metadata are known",
    "ceiling": "the probe's directions without the query: how well any single direction orders the pairs",
}
_GROUPS = {
    "polarity=inclusion": "inclusions only",
    "polarity=exclusion": "with an exclusion",
    "kind=another value": "another value",
    "kind=reversal": "reversal",
    "kind=compound": "compound",
    "range=yes": "numbers and dates",
    "value=unseen": "values that training never names",
}


def page(config: AdaptConfig, found: Mapping[str, Any]) -> str:
    """The page as HTML; it loads nothing. found: what the stages found, as `adapt` returns it."""
    scores, probe = found["test"], found["probe"]
    with matplotlib.rc_context(STYLE):
        parts = [
            f'<p class="lead">{escape(_lead(config, found))}</p>',
            _cards(scores),
            "<h2>What this index can obey</h2>",
            '<p class="note">With frozen documents an instruction is a direction in the vector space. AUC, cross-validated: the'
            " probability that the best direction puts a document with the value above one without it, with its 95%"
            f" interval. Values below {config.draft.min_auc} are left out of training: the vectors know them too little for"
            " instructions.</p>",
            *_probe_tables(config, probe),
            "<h2>Test</h2>",
            f'<p class="note">{escape(_test_note(found))}</p>',
            html_table(*_table(scores)),
            _curves(scores),
            "<h3>p-MRR by kind of instruction</h3>",
            html_table(*_by_group(scores)),
            "<h2>Use a filter where you can</h2>",
            f"<p>{escape(FILTER)}</p>",
            "<h2>In front of your index</h2>",
            f"<pre>{escape(usage(config, found['train']['strength']))}</pre>",
        ]
    return html_page(f"Instructions on {config.noun}", parts)


FILTER = (
    "If the metadata are in your index and the requirement can be stated in them, filter: it is exact. The encoder is for"
    " what a filter cannot do: instructions in plain words, documents without metadata, values that the metadata lack,"
    " and a preference in place of a condition."
)


def _lead(config: AdaptConfig, found: Mapping[str, Any]) -> str:
    probe, train = found["probe"], found["train"]
    known = sum(is_usable(value["auc"], config.draft.min_auc) for value in probe["values"])
    return (
        f"{probe['num_documents']:,} {config.noun}; the vectors know {known} of {len(probe['values'])} values well enough."
        f" Trained for {train['kept_step']:,} steps; default strength {train['strength']:g}. Documents and plain queries"
        " keep the vectors of the untouched encoder."
    )


def _cards(scores: Mapping[str, Any]) -> str:
    cards = []
    for metric in ("p-MRR", "both right", "nDCG@10"):
        cell, difference = scores["rows"][OURS]["metrics"][metric], scores["differences"]["untouched"][metric]
        cards.append(
            f'<div class="card"><span>{metric}</span><b>{100 * cell["mean"]:.1f}</b><span>{_signed(difference)} against'
            " the untouched encoder</span></div>"
        )
    return f'<div class="cards">{"".join(cards)}</div>'


def _probe_tables(config: AdaptConfig, probe: Mapping[str, Any]) -> list[str]:
    parts = []
    num_documents = probe["num_documents"]
    for name in dict.fromkeys(value["attribute"] for value in probe["values"]):
        values = [value for value in probe["values"] if value["attribute"] == name]
        rows = [
            [
                value["value"],
                f"{value['num_having']:,}",
                auc_text(value),
                "yes" if is_usable(value["auc"], config.draft.min_auc) else "**no**",
            ]
            for value in sorted(values, key=lambda value: -(value["auc"] or 0))
        ]
        share = probe["known"][name] / num_documents
        parts += [
            f"<h3>{escape(name)}: known for {share:.0%} of the documents</h3>",
            html_table(["value", "documents", "AUC", "used"], rows),
        ]
    unusable = [f"{name}: {reason}." for name, reason in probe["unusable"].items()]
    return parts + [f"<p>{escape(' '.join(unusable))}</p>"] * bool(unusable)


def auc_text(value: Mapping[str, Any]) -> str:
    if value["auc"] is None:
        return "not measured"
    return f"{value['auc']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"


def _test_note(found: Mapping[str, Any]) -> str:
    scores = found["test"]
    return (
        f"{scores['num_cases']} pairs of instructions on queries, in wordings and partly on values that training never had;"
        " no document on a test query's topic was trained on. Rankings are of the whole catalog, and each row has the"
        " strength that the development queries choose. Means x100 with 95% intervals over queries."
    )


def _table(scores: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    rows = []
    for name in ORDER:
        row = scores["rows"][name]
        metrics = METRICS if name != "ceiling" else ("pair accuracy", "both right")
        cells = [cell_text(row["metrics"][metric]) if metric in metrics else "" for metric in METRICS]
        strength = (
            "" if row["strength"] is None or name in ("untouched", "query alone") else f"{row['strength']:g}"
        )
        rows.append([f"**{name}**" if name == OURS else name, strength, *cells, _MEANING[name]])
    return ["", "strength", *METRICS, ""], rows


def _by_group(scores: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    ours, untouched = (scores["rows"][name]["metrics"] for name in (OURS, "untouched"))
    rows = [
        [text, str(ours[key]["num_cases"]), cell_text(ours[key]), cell_text(untouched[key])]
        for group, text in _GROUPS.items()
        if (key := f"p-MRR {group}") in ours
    ]
    return ["", "pairs", OURS, "untouched"], rows


def cell_text(cell: Mapping[str, Any]) -> str:
    if cell["low"] is None:  # a single query
        return f"{100 * cell['mean']:.1f}"
    return f"{100 * cell['mean']:.1f} [{100 * cell['low']:.1f}, {100 * cell['high']:.1f}]"


def _signed(cell: Mapping[str, Any]) -> str:
    return f"{100 * cell['mean']:+.1f} [{100 * cell['low']:+.1f}, {100 * cell['high']:+.1f}]"


def _curves(scores: Mapping[str, Any]) -> str:
    figure = Figure(figsize=(9.2, 4.2), layout="constrained")
    axes = figure.subplots()
    names = [name for name in ORDER if scores["rows"][name]["curve"]]
    for number, name in enumerate(names):
        curve = scores["rows"][name]["curve"]
        points = [(100 * at["p-MRR"], 100 * at["nDCG@10"]) for at in curve.values()]
        if name in ("untouched", "query alone"):
            points = points[:1]
        axes.plot(
            *zip(*points, strict=True),
            marker="o",
            color=PALETTE[number % len(PALETTE)],
            linewidth=2.4 if name == OURS else 1.2,
            markersize=6 if name == OURS else 4,
            label=name,
        )
        if name == OURS:
            for (x, y), strength in zip(points, curve, strict=True):
                axes.annotate(f"{float(strength):g}", (x, y), (0, 7), textcoords="offset points", fontsize=8)
    axes.set_xlabel("p-MRR")
    axes.set_ylabel("nDCG@10")
    axes.grid()
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    return svg_of(figure, "Obedience and relevance at each strength")


def usage(config: AdaptConfig, strength: float) -> str:
    """How a program makes the vector to send to a vector database."""
    return f"""from sentence_transformers import SentenceTransformer

encoder = SentenceTransformer("{config.output.rstrip("/")}/encoder")
query = encoder.encode("prison escape", task="query")  # as before
instruction = encoder.encode("Leave out comedies.", task="instruction")
vector = query + {strength:g} * instruction  # search your index with it, by inner product
"""


def card(config: AdaptConfig, result: Mapping[str, Any]) -> str:
    """README of the encoder's folder."""
    return f"""---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
base_model: {config.encoder.model}
---

# Instructions on {config.noun}

An encoder of instructions for an index of `{config.encoder.model}`, trained with dualview on the metadata of
{config.noun}. Documents and queries keep the vectors of the untouched encoder; the vector of an instruction is added to the
query's.

```python
{usage(config, result["strength"])}```

Trained for {result["kept_step"]:,} of {result["steps"]:,} steps on {result["num_values"]} values of the metadata and
{result["num_terms"]} terms of the texts; seed {config.seed}.
"""
