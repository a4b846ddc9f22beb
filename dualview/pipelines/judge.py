"""Measures a judge: tasks with an engine ask it about gold pairs, and the driver computes the statistics."""

import asyncio
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
import logging
import random
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dualview.config.base import fingerprint, plain_json
from dualview.config.engines import CONNECTION
from dualview.config.evaluate import Flips
from dualview.config.judge import JudgeConfig
from dualview.config.renames import with_new_names
from dualview.config.sources import TuplesSource
from dualview.distributed.cluster import errors_of_workers, join_cluster
from dualview.engines import EngineDied, EngineUnavailable, check_engine, open_engine
from dualview.errors import InputError, Interruption
from dualview.evaluation.benchmarks.flips import read_flips
from dualview.pipelines.generate.judge_gate import first_examples
from dualview.records import Passage
from dualview.runs.manifest import pin_manifest
from dualview.sources import open_source
from dualview.storage import check_reachable, open_store
from dualview.synthesis import prompts
from dualview.synthesis.judge_validation import (
    GoldPair,
    Kept,
    Measurement,
    as_floats,
    ask_pairs,
    draw_gold_pairs,
    flip_pairs,
    measure,
)
from dualview.synthesis.judging import judge_name

logger = logging.getLogger(__name__)

PAIRS_KEY = "pairs.parquet"
MEASURES_KEY = "measures.json"
PAIRS_SCHEMA = pa.schema(
    [
        ("gold", pa.string()),  # the collection
        ("query", pa.string()),
        ("instruction", pa.string()),
        ("passage_id", pa.string()),
        ("passage", pa.string()),
        ("relevant", pa.bool_()),  # by the labels
        ("margin", pa.float64()),  # the judge's log p(yes) - log p(no); null if undecided
        ("engine", pa.string()),
    ]
)


@dataclass(frozen=True)
class Judged:
    engines: list[str]  # names, usually one
    measurements: dict[str, Measurement]  # by gold collection


def judge(config: JudgeConfig) -> Judged:
    """Measures the judge on each gold collection; only reads a finished measurement.

    Puts `pairs.parquet` (PAIRS_SCHEMA) and `measures.json` under the output. Raises InputError if part of the
    config cannot be used, or the engine cannot be reached.
    """
    store = open_store(config.output)
    check_reachable(store)
    check_engine(config.engine)
    prompts.judging_prompt(prompts.load(config.judge.prompt), "", "", Passage("", ""))
    pairs = _gold_pairs(config)
    settings = {
        **config.model_dump(mode="json", exclude={"output": True, "actors": True, "engine": CONNECTION}),
        "judge_version": judge_name(config.judge),
    }
    # The questions themselves, because the files at the gold's paths may change.
    asked = {name: fingerprint([asdict(pair) for pair in of_gold]) for name, of_gold in pairs.items()}
    pin_manifest(
        store,
        "config.json",
        {**settings, "pairs": asked},
        metadata={},
        deciding=partial(with_new_names, JudgeConfig),
    )
    if store.list(PAIRS_KEY):
        logger.info(f"{config.output} is finished; nothing to ask")
    else:
        join_cluster(config.actors)
        logger.info(f"{config.output}: asking about {sum(map(len, pairs.values()))} gold pairs")
        sink = pa.BufferOutputStream()
        pq.write_table(_ask(config, pairs), sink)
        store.put_new(PAIRS_KEY, sink.getvalue().to_pybytes(), uuid4().hex)
    table = pq.read_table(pa.BufferReader(store.get(PAIRS_KEY)))
    judged = Judged(
        engines=table["engine"].unique().to_pylist(),
        measurements={name: _measure(config, table.filter(pc.field("gold") == name)) for name in pairs},
    )
    content = plain_json({**settings, **asdict(judged)}, indent=2).encode()
    store.put_new(MEASURES_KEY, content, uuid4().hex)
    return judged


def _gold_pairs(config: JudgeConfig) -> dict[str, list[GoldPair]]:
    """Collection -> its gold pairs: half of them relevant, half not."""
    pairs: dict[str, list[GoldPair]] = {}
    for gold in config.gold:
        num_pairs, rng = config.judge.validation.num_pairs, random.Random(config.judge.validation.seed)
        match gold:
            case Flips():
                name, drawn = gold.name, flip_pairs(read_flips(gold), num_pairs, rng)
            case TuplesSource():
                source = open_source(gold)
                examples = first_examples(source, source.inputs(), 10 * num_pairs)
                name, drawn = gold.kind, draw_gold_pairs(examples, num_pairs, rng)
        if name in pairs:
            raise InputError(
                f"gold: two collections have the name `{name}`; measure each in a run of its own"
            )
        pairs[name] = drawn
    return pairs


def _ask(config: JudgeConfig, pairs: dict[str, list[GoldPair]]) -> pa.Table:
    """FAN-OUT every n-th pair to one of n tasks, each with an engine -> OUTPUT the table of judged pairs."""
    flat = [(name, pair) for name, of_gold in pairs.items() for pair in of_gold]
    num = min(config.actors.num, len(flat))
    task = ray.remote(_answers).options(
        num_cpus=config.actors.cpus,
        num_gpus=config.actors.gpus,
        max_retries=1,
        retry_exceptions=[EngineDied],  # once, with a new engine
    )
    shares = [task.remote(config, [pair for _, pair in flat[start::num]]) for start in range(num)]
    with errors_of_workers():
        parts = ray.get(shares)
    answered: dict[int, tuple[str, float | None]] = {}
    for start, (engine, margins) in enumerate(parts):
        answered |= {start + num * i: (engine, margin) for i, margin in enumerate(margins)}
    return pa.Table.from_pylist(
        [
            {
                "gold": name,
                "query": pair.query,
                "instruction": pair.instruction,
                "passage_id": pair.passage.id,
                "passage": pair.passage.full_text,
                "relevant": pair.gold,
                "engine": answered[index][0],
                "margin": answered[index][1],
            }
            for index, (name, pair) in enumerate(flat)
        ],
        schema=PAIRS_SCHEMA,
    )


def _answers(config: JudgeConfig, pairs: list[GoldPair]) -> tuple[str, list[float | None]]:
    """The engine's name, and its margins for these pairs. Raises Interruption if it cannot be reached."""

    async def ask() -> tuple[str, list[float | None]]:
        engine = open_engine(config.engine)
        try:
            return engine.name, await ask_pairs(engine, config.judge, pairs)
        except EngineUnavailable as error:
            raise Interruption(f"{config.output}: {error}; wait until it answers") from None
        finally:
            engine.close()

    return asyncio.run(ask())


def _measure(config: JudgeConfig, table: pa.Table) -> Measurement:
    return measure(
        table["query"].to_pylist(),
        np.array(table["relevant"].to_pylist()),
        as_floats(table["margin"].to_pylist()),
        min_margin=config.judge.min_margin,
        wanted_precision=config.wanted_precision,
        samples=config.bootstrap_samples,
        seed=config.judge.validation.seed,
    )


# --- the terminal ---------------------------------------------------------------------------------


def print_judged(config: JudgeConfig, judged: Judged) -> None:
    """Prints a table of all collections, a calibration table for each, and what that means for a config."""
    console = Console()
    measurements = judged.measurements
    heading = f"{judge_name(config.judge)} answered by {', '.join(judged.engines)}"
    console.print(escape(heading), soft_wrap=True, highlight=False)
    table = Table()
    table.add_column("", no_wrap=True)
    for name in measurements:
        table.add_column(escape(name), justify="right")
    for label, cell in _ROWS.items():
        table.add_row(label, *(cell(measurement) for measurement in measurements.values()))
    console.print(table)
    for name, measurement in measurements.items():
        table = Table(title=escape(f"{name}: calibration"))
        for heading in ("p(yes)", "pairs", "mean p(yes)", "relevant"):
            table.add_column(heading, justify="right")
        for bin in measurement.bins:
            shares = (f"{share:.3f}" for share in (bin.mean_probability, bin.share_relevant))
            table.add_row(f"{bin.low:.1f} to {bin.high:.1f}", str(bin.num_pairs), *shares)
        console.print(table)
    for name, measurement in measurements.items():
        for sentence in threshold_sentences(config, measurement):
            console.print(escape(f"{name}: {sentence}"), soft_wrap=True, highlight=False)


_ROWS: dict[str, Callable[[Measurement], str]] = {
    "gold pairs": lambda m: str(m.result.num_pairs),
    "undecided": lambda m: f"{m.result.num_undecided / m.result.num_pairs:.0%}",
    "agreement": lambda m: f"{m.result.agreement:.3f}",
    "ROC AUC": lambda m: f"{m.result.auc:.3f}",
    "95% interval": lambda m: f"{m.auc_low:.3f} to {m.auc_high:.3f}",
    "calibration error": lambda m: "-" if m.result.ece is None else f"{m.result.ece:.3f}",
}


def threshold_sentences(config: JudgeConfig, measurement: Measurement) -> list[str]:
    """The result of the config's min_margin, and the thresholds that reach the wanted precision."""
    wanted, num_pairs = f"a precision of {config.wanted_precision:g}", measurement.result.num_pairs
    configured, least, yes = measurement.at_min_margin, measurement.min_margin, measurement.min_yes
    return [
        f"min_margin {config.judge.min_margin:g}, as configured, "
        + (_kept(configured, num_pairs, "right") if configured else "keeps no pair"),
        f"min_margin {least.threshold:.4g}, the smallest that reaches {wanted},"
        f" {_kept(least, num_pairs, 'right')}"
        if least
        else f"no min_margin reaches {wanted}",
        f"margin {yes.threshold:.4g}, the smallest that reaches {wanted} for a yes,"
        f" {_kept(yes, num_pairs, 'relevant')}"
        if yes
        else f"no margin reaches {wanted} for a yes",
    ]


def _kept(kept: Kept, num_pairs: int, hit: str) -> str:
    chance = "; too few to distinguish it from chance" if kept.low <= 0.5 < kept.precision else ""
    return (
        f"keeps {kept.num_kept} of {num_pairs} pairs ({kept.num_kept / num_pairs:.0%});"
        f" {kept.precision:.3f} [{kept.low:.3f}, {kept.high:.3f}] of them are {hit}{chance}"
    )
