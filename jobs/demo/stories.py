"""The demo: runs every job on real input, one after another, on this machine, and writes a report."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import zip_longest
import os
from pathlib import Path
import shutil
from threading import Event, Thread
import time
from typing import Any

from factbook import write_examples, write_flips
import psutil
import ray
from rich.console import Console
from rich.table import Table
from smollm2 import checkpoint

from dualview.config.base import canonical_json, plain_json
from dualview.config.evaluate import EvaluateConfig
from dualview.config.generate import GenerateConfig
from dualview.config.loading import SettingsType, load
from dualview.config.train import TrainConfig
from dualview.evaluation.page import page
from dualview.evaluation.report import HEADLINE, Summary, print_table
from dualview.evaluation.side_by_side import Found, print_found
from dualview.pipelines.evaluate import evaluate
from dualview.pipelines.generate.judge_gate import validation_sentences
from dualview.pipelines.generate.run import generate
from dualview.pipelines.search import search
from dualview.pipelines.train.run import train
from dualview.records import ACCEPTED, DualView
from dualview.runs.run import open_run

CONFIGS = Path("configs/demo")
BUCKET = "s3://dualview/"  # of the demo's configs
NUM_QUERIES, QUERIES_SEED = 200, 7
NUM_EXAMPLES = 5
OBJECT_STORE_BYTES = 512 * 2**20
GIB = 2**30


@dataclass(frozen=True)
class Story:
    """A demo: the names of the configs that it runs, and the arm whose encoder it keeps."""

    title: str
    generate: Mapping[str, tuple[int, int]]  # config -> number of source examples, random seed
    train: tuple[str, ...]
    evaluate: str
    best: str
    changes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # config -> KEY=VALUE


FROZEN = Story(
    "Frozen documents: an index learns to follow instructions",
    generate={"facets-many": (12000, 1)},
    train=("frozen",),
    evaluate="evaluate-frozen",
    best="frozen",
)


def _with_llm_data(views: str) -> str:
    """A mixture of composed complements and a few written by the LLM, at the budget of the config."""
    common = {
        "views": views,
        "weight": None,
        "num_hard_negatives": 0,
        "rewordings": False,
        "min_judged_margin": None,
    }
    parts = [
        {"data": f"{BUCKET}{data}", "num_instances": num_instances, **common}
        for data, num_instances in (("facets", 1192), ("llm", 8))
    ]
    return f"mixture.parts={canonical_json(parts)}"


STORIES = {
    "first": replace(
        FROZEN,
        generate={"facets-many": (4000, 1)},
        changes={
            "train-frozen": ("mixture.parts.0.num_instances=2400", "budget.instances=2400"),
        },
    ),
    "frozen": FROZEN,
    "dual": Story(
        "Dual views: one view or both, at equal budget",
        generate={"llm": (48, 2), "facets": (4000, 1)},
        train=("single", "dual"),
        evaluate="evaluate",
        best="dual",
        changes={
            "train-single": (_with_llm_data("original"),),
            "train-dual": (_with_llm_data("both"),),
        },
    ),
}


def run_demo(story: Story, folder: Path, general: Path | None) -> None:
    """Generates, trains, evaluates and searches; writes everything under `folder`.

    `general` is a BEIR folder that measures general retrieval. Removes the output of an earlier demo, except
    the converted language model.
    """
    _clear(story, folder)
    clock = Clock()
    runs: dict[str, dict[str, Any]] = {}
    notes: list[str] = []

    def config(schema: type[SettingsType], name: str, *more: str) -> SettingsType:
        file = str(CONFIGS / f"{name}.yaml")
        return under(folder, load(schema, file, [*story.changes.get(name, ()), *more]))

    with clock.stage("data"):
        for name, (num_examples, seed) in story.generate.items():
            write_examples(f"{folder}/seeds/{name}", "train", num_examples, seed)
        write_flips(f"{folder}/flips", "test", NUM_QUERIES, QUERIES_SEED)
    with clock.watch_memory(), local_cluster():
        for name in story.generate:
            assignments = []
            if name == "llm":
                with clock.stage("language model"):
                    model = checkpoint(folder.absolute() / "models" / "smollm2-135m-instruct")
                    assignments = [f"engine.model={model}"]
            with clock.stage(f"generate, {name}"):
                generating = config(GenerateConfig, name, *assignments)
                runs[name] = generate(generating)
                notes += validation_sentences(generating, runs[name]["judge_validation"])
        trained = {}
        for arm in story.train:
            with clock.stage(f"train, {arm}"):
                trained[arm] = train(config(TrainConfig, f"train-{arm}"))
        with clock.stage("evaluate"):
            watched = _general(CONFIGS / f"{story.evaluate}.yaml", general)
            evaluation = config(EvaluateConfig, story.evaluate, *watched)
            scores = evaluate(evaluation)
        with clock.stage("search"):
            found = search(evaluation.output, None, [])
            rows = {name: _rows(str(folder / name)) for name in runs}
            if "llm" in rows:
                notes += [agreement_sentence(rows["llm"]), *written_sentences(rows["llm"])]
            shutil.copytree(folder / f"train-{story.best}" / "encoder", folder / "encoder")

    (folder / "report.html").write_text(
        page(
            story.title,
            scores,
            found,
            {name: {ACCEPTED: run["accepted"], **run["rejected"]} for name, run in runs.items()},
            notes,
            {arm: list(enumerate(result["losses"], start=1)) for arm, result in trained.items()},
            *_examples(rows),
        )
    )
    summary = {
        "seconds": clock.seconds,
        "peak_memory_gib": round(clock.peak_bytes / GIB, 1),
        "generation": {**_total(runs), "runs": runs, "notes": notes},
        "training": {
            arm: {key: value for key, value in result.items() if key != "losses"}
            for arm, result in trained.items()
        },
        "evaluation": _headline(scores),
    }
    (folder / "summary.json").write_text(plain_json(summary, indent=2))
    _print_end(folder, summary, scores, found)


def under(folder: Path, settings: SettingsType) -> SettingsType:
    """The same settings, with a folder instead of the demo's bucket."""
    return type(settings).model_validate_json(settings.model_dump_json().replace(BUCKET, f"{folder}/"))


class Clock:
    """Seconds of each stage, and the peak memory of the demo."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.peak_bytes = 0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        print(f"\n== {name}", flush=True)
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 1)

    @contextmanager
    def watch_memory(self) -> Iterator[None]:
        before, over = psutil.virtual_memory().used, Event()

        def watch() -> None:
            while not over.wait(timeout=0.5):
                self.peak_bytes = max(self.peak_bytes, psutil.virtual_memory().used - before)

        watcher = Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()


@contextmanager
def local_cluster() -> Iterator[None]:
    """A Ray cluster on this machine only; it stops with the demo."""
    os.environ.pop("RAY_ADDRESS", None)
    ray.init(
        address="local",
        num_cpus=max(2, os.cpu_count() or 1),
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=True,  # Ray Train queries it for the state of its actors
        dashboard_port=0,
        logging_level="WARNING",
    )
    try:
        yield
    finally:
        ray.shutdown()


def agreement_sentence(rows: list[DualView]) -> str:
    """How often the LLM judge and the passage's attributes give the same verdict on a draft."""
    same = total = 0
    for row in rows:
        margins: dict[str, dict[str, float]] = {}
        for verdict in row.verdicts:
            if verdict.margin is not None and verdict.condition == "new":
                kind = verdict.judge.partition(":")[0]
                margins.setdefault(verdict.passage_id, {})[kind] = verdict.margin
        both = [pair for pair in margins.values() if len(pair) == 2]
        total += len(both)
        same += sum((pair["llm"] > 0) == (pair["attributes"] > 0) for pair in both)
    share = f"{same / total:.0%}" if total else "none"
    return f"The LLM judge agrees with the attributes on {share} of {total} verdicts; chance is 50%."


def written_sentences(rows: list[DualView]) -> list[str]:
    """How many of the LLM's complements are accepted, and the first of them."""
    accepted = [row for row in rows if row.status == ACCEPTED]
    return [
        f"The attributes confirm {len(accepted)} of {len(rows)} complementary instructions by the LLM"
        + (", for example:" if accepted else "."),
        *(
            f"  {row.example.query}. {row.example.instruction} -> {row.new_instruction}"
            for row in accepted[:NUM_EXAMPLES]
        ),
    ]


def _clear(story: Story, folder: Path) -> None:
    trained = (f"train-{arm}" for arm in story.train)
    for name in ("seeds", "flips", *story.generate, *trained, "evaluation", "encoder"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("report.html", "summary.json"):
        (folder / name).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)


def _general(evaluation: Path, folder: Path | None) -> list[str]:
    """The --set assignment that adds a general collection to the demo's benchmarks."""
    if folder is None:
        print("general retrieval is not measured; pass a BEIR folder as --general FOLDER")
        return []
    benchmarks = load(EvaluateConfig, str(evaluation)).model_dump(mode="json")["benchmarks"]
    added = {"kind": "beir", "name": folder.name, "path": str(folder.absolute())}
    return [f"benchmarks={canonical_json([*benchmarks, added])}"]


def _rows(url: str) -> list[DualView]:
    return list(open_run(url).rows())


def _examples(rows: Mapping[str, list[DualView]]) -> tuple[list[DualView], list[DualView]]:
    """Accepted and rejected rows to read: accepted ones from every run, rejected ones of different kinds."""
    accepted_of = [[row for row in of_run if row.status == ACCEPTED] for of_run in rows.values()]
    accepted = [row for turn in zip_longest(*accepted_of) for row in turn if row is not None]
    rejected = [row for of_run in rows.values() for row in of_run if row.status != ACCEPTED]
    first_of_kind = {row.status: row for row in reversed(rejected)}.values()
    further = [row for row in rejected if row not in first_of_kind]
    return accepted[:NUM_EXAMPLES], [*first_of_kind, *further][:NUM_EXAMPLES]


def _total(runs: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    rejected, tokens = Counter[str](), Counter[str]()
    for run in runs.values():
        rejected.update(run["rejected"])
        tokens.update(run["tokens"])
    return {
        "planned": sum(run["planned"] for run in runs.values()),
        "accepted": sum(run["accepted"] for run in runs.values()),
        "trainable": sum(run["trainable"] for run in runs.values()),
        "rejected": dict(rejected),
        "tokens": dict(tokens),
    }


def _headline(scores: Summary) -> dict[str, Any]:
    """Scores x100: every arm and difference on the demo's collection, then on the other collections by name."""
    main, *further = dict.fromkeys(name for results in scores["encoders"].values() for name in results)

    def on(benchmark: str) -> dict[str, Any]:
        arms = {
            arm: {metric: round(100 * cell["mean"], 2) for metric, cell in results[benchmark].items()}
            for arm, results in scores["encoders"].items()
        }
        differences = {
            f"{pair['first']} minus {pair['second']}": {
                metric: {name: round(100 * cell[name], 2) for name in ("mean", "low", "high")}
                for metric, cell in pair["benchmarks"][benchmark].items()
            }
            for pair in scores["differences"]
        }
        return {**arms, **differences}

    return {**on(main), **{benchmark: on(benchmark) for benchmark in further}}


def _print_end(folder: Path, summary: dict[str, Any], scores: Summary, found: Sequence[Found]) -> None:
    print()
    print_table(scores, metrics=HEADLINE)
    table = Table("stage", "seconds")
    for stage, seconds in summary["seconds"].items():
        table.add_row(stage, f"{seconds:.0f}")
    table.add_row("all", f"{sum(summary['seconds'].values()):.0f}", style="bold")
    Console().print(table)
    for note in summary["generation"]["notes"]:
        print(note)
    print_found(found)
    print(
        f"Try your own query: python jobs/search.py --evaluation {folder}/evaluation --query ... --instruction ..."
    )
    print(
        f"Peak memory {summary['peak_memory_gib']} GiB. All output is in {folder}; the report is {folder}/report.html"
    )
