"""report.html: one self-contained page with a run's data, training and scores."""

from collections.abc import Mapping, Sequence
from html import escape

import matplotlib
from matplotlib.figure import Figure

from dualview.evaluation.html import GREY, PALETTE, STYLE, html_page, svg_of
from dualview.evaluation.report import HEADLINE, Summary, in_hundredths
from dualview.evaluation.side_by_side import Found, found_html
from dualview.records import ACCEPTED, DualView

LEAD = """<p class="lead">A retriever that follows instructions must change its ranking when only the instruction
changes. p-MRR measures how far passages that stop being relevant fall: 0 ignores the instruction, 100 is perfect,
below 0 they rise instead.</p>"""


def page(
    title: str,
    summary: Summary,
    found: Sequence[Found],
    funnels: Mapping[str, Mapping[str, int]],
    notes: Sequence[str],
    losses: Mapping[str, Sequence[tuple[int, float]]],
    accepted: Sequence[DualView],
    rejected: Sequence[DualView],
) -> str:
    """The page as HTML; it loads nothing. Sections without data are left out.

    found: example searches, shown first. funnels: run -> status -> number of requests. notes: sentences
    about the generation. losses: arm -> (step, loss). Shows all rows of accepted and rejected.
    """
    arms = dict.fromkeys([*summary["encoders"], *losses])
    colors = {arm: PALETTE[number % len(PALETTE)] for number, arm in enumerate(arms)}
    with matplotlib.rc_context(STYLE):
        parts = [
            LEAD,
            _cards(summary),
            found_html(found),
            *_scores(summary, colors),
            *_differences(summary),
            *_generation(funnels, notes),
            *_training(losses, colors),
            *_examples("Accepted examples", accepted),
            *_examples("Rejected examples", rejected),
        ]
    return html_page(title, parts)


def _cards(summary: Summary) -> str:
    cards = []
    for pair in summary["differences"]:
        for benchmark, metrics in pair["benchmarks"].items():
            if "p-MRR" in metrics:
                cell = metrics["p-MRR"]
                cards.append(
                    f'<div class="card"><span>p-MRR on {escape(benchmark)}</span><b>{100 * cell["mean"]:+.1f}</b>'
                    f"<span>{escape(pair['first'])} minus {escape(pair['second'])}</span>"
                    f"<span>[{100 * cell['low']:+.1f}, {100 * cell['high']:+.1f}], p = {cell['p_value']:.2g}</span></div>"
                )
    return f'<div class="cards">{"".join(cards)}</div>' if cards else ""


def _scores(summary: Summary, colors: Mapping[str, str]) -> list[str]:
    if not summary["encoders"]:
        return []
    parts = [
        "<h2>Scores</h2>",
        '<p class="note">Mean over queries, x100, with its 95% bootstrap interval over topics.</p>',
    ]
    for benchmark in dict.fromkeys(name for results in summary["encoders"].values() for name in results):
        parts += [f"<h3>{escape(benchmark)}</h3>", _scores_figure(summary, benchmark, colors)]
    return [*parts, _tables(summary)]


def _scores_figure(summary: Summary, benchmark: str, colors: Mapping[str, str]) -> str:
    results = {arm: cells[benchmark] for arm, cells in summary["encoders"].items() if benchmark in cells}
    metrics = [metric for metric in HEADLINE if any(metric in cells for cells in results.values())]
    figure = Figure(figsize=(9.2 if len(metrics) > 1 else 4.6, 0.8 + 0.36 * len(results)))
    figure.set_layout_engine("constrained", w_pad=0.12)  # keeps the tick labels of two panels apart
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for axes, metric in zip(panels, metrics, strict=True):
        for row, (arm, cells) in enumerate(results.items()):
            if metric in cells:
                _interval(axes, row, cells[metric], colors[arm], f"{100 * cells[metric]['mean']:.1f}")
        if metric.startswith("p-MRR"):
            axes.axvline(0, color=GREY, linewidth=0.8, zorder=0)
        _rows(axes, list(results))
        axes.set_title(metric, loc="left")
    return svg_of(figure, f"Scores on {benchmark}")


def _differences(summary: Summary) -> list[str]:
    if not summary["differences"]:
        return []
    parts = [
        "<h2>Differences</h2>",
        '<p class="note">Paired bootstrap over topics with the same queries in both arms, 95% interval, x100. Grey '
        "if the interval contains 0. It covers the choice of topics, not another training seed.</p>",
    ]
    for pair in summary["differences"]:
        name = f"{pair['first']} minus {pair['second']}"
        parts += [f"<h3>{escape(name)}</h3>", _differences_figure(name, pair["benchmarks"])]
    return parts


def _differences_figure(name: str, benchmarks: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    rows = [
        (f"{benchmark}  {metric}", metrics[metric])
        for benchmark, metrics in benchmarks.items()
        for metric in HEADLINE
        if metric in metrics
    ]
    figure = Figure(figsize=(9.2, 0.5 + 0.36 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for row, (_, cell) in enumerate(rows):
        color = GREY if cell["low"] <= 0 <= cell["high"] else PALETTE[0]
        _interval(axes, row, cell, color, f"{100 * cell['mean']:+.1f}")
    axes.axvline(0, color=GREY, linewidth=0.8, zorder=0)
    _rows(axes, [label for label, _ in rows])
    return svg_of(figure, f"Paired differences, {name}")


def _interval(axes: matplotlib.axes.Axes, row: int, cell: Mapping[str, float], color: str, text: str) -> None:
    mean, low, high = (100 * cell[key] for key in ("mean", "low", "high"))
    axes.plot([low, high], [row, row], color=color, linewidth=2.2, alpha=0.55, solid_capstyle="round")
    axes.plot(mean, row, "o", color=color, markersize=6.5)
    axes.annotate(text, (mean, row), (0, 7), textcoords="offset points", ha="center", fontsize=9)


def _rows(axes: matplotlib.axes.Axes, labels: list[str]) -> None:
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.75)
    axes.locator_params(axis="x", nbins=5)
    axes.grid(axis="x")
    axes.margins(x=0.12)


def _generation(funnels: Mapping[str, Mapping[str, int]], notes: Sequence[str]) -> list[str]:
    parts = ["<h2>Generation</h2>"] if funnels else []
    for name, funnel in funnels.items():
        total, kept = sum(funnel.values()), funnel.get(ACCEPTED, 0)
        parts += [
            f"<h3>{escape(name)}</h3>",
            f'<p class="note">{kept:,} of {total:,} requests were accepted. All others are kept with their '
            "reason.</p>",
            _funnel_figure(name, funnel),
        ]
    return [*parts, *(f"<p>{escape(note)}</p>" for note in notes)]


def _funnel_figure(name: str, funnel: Mapping[str, int]) -> str:
    statuses = sorted(
        (status for status, count in funnel.items() if count), key=lambda s: (s != ACCEPTED, -funnel[s])
    )
    total = sum(funnel.values())
    figure = Figure(figsize=(9.2, 0.4 + 0.34 * len(statuses)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(
        [status.replace("_", " ") for status in statuses],
        [funnel[status] for status in statuses],
        color=[PALETTE[2] if status == ACCEPTED else PALETTE[1] for status in statuses],
        height=0.62,
    )
    axes.bar_label(
        bars, [f"{funnel[s]:,}  ({funnel[s] / total:.1%})" for s in statuses], padding=6, color=GREY
    )
    axes.invert_yaxis()
    axes.margins(x=0.18)
    axes.spines["bottom"].set_visible(False)
    axes.set_xticks([])
    return svg_of(figure, f"Requests of {name} by status")


def _training(losses: Mapping[str, Sequence[tuple[int, float]]], colors: Mapping[str, str]) -> list[str]:
    return ["<h2>Training loss</h2>", _losses_figure(losses, colors)] if losses else []


def _losses_figure(losses: Mapping[str, Sequence[tuple[int, float]]], colors: Mapping[str, str]) -> str:
    figure = Figure(figsize=(9.2, 3.4), layout="constrained")
    axes = figure.subplots()
    for arm, points in losses.items():
        axes.plot(*zip(*points, strict=True), color=colors[arm], linewidth=1.6, label=arm)
    axes.grid(axis="y")
    axes.set_xlabel("step")
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside upper left", ncols=len(losses), frameon=False
    )
    return svg_of(figure, "Training loss by step")


def _tables(summary: Summary) -> str:
    rows = [
        f"<tr><td>{escape(benchmark)}</td><td>{escape(metric)}</td><td>{escape(arm)}</td>"
        f"<td>{in_hundredths(cell)}</td><td>{cell['num_topics']:,.0f}</td></tr>"
        for arm, benchmarks in summary["encoders"].items()
        for benchmark, metrics in benchmarks.items()
        for metric, cell in metrics.items()
    ]
    return (
        '<details><summary>All numbers</summary><div class="wide"><table><tr><th>benchmark<th>metric<th>encoder'
        f"<th>mean [95% interval]<th>topics</tr>{''.join(rows)}</table></div></details>"
    )


def _examples(heading: str, rows: Sequence[DualView]) -> list[str]:
    return [f"<h2>{heading}</h2>", *map(_example, rows)] if rows else []


def _example(row: DualView) -> str:
    roles = {row.example.positive.id: "positive", row.target_id: "N*"}
    target = next((p for p in row.example.instruction_negatives if p.id == row.target_id), None)
    verdicts = "; ".join(
        f"{verdict.judge} on {roles.get(verdict.passage_id, verdict.passage_id)}: "
        + ("undecided" if verdict.surplus is None else "right" if verdict.surplus > 0 else "wrong")
        + ("" if verdict.margin is None else f" ({verdict.margin:+.1f})")
        for verdict in row.verdicts
    )
    terms = {
        "original instruction": row.example.instruction,
        "its positive": row.example.positive.full_text,
        "new instruction": row.new_instruction or "none",
        "its positive, N*": target.full_text if target else "none",
        "verdicts": verdicts or "none",
    }
    status = "accepted" if row.status == ACCEPTED else "rejected"
    listed = "".join(f"<dt>{term}</dt><dd>{escape(text)}</dd>" for term, text in terms.items())
    return (
        f'<article><span class="tag {status}">{escape(row.status.replace("_", " "))}</span>'
        f"<strong>{escape(row.example.query)}</strong><dl>{listed}</dl></article>"
    )
