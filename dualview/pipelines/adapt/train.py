"""The third stage: an encoder of instructions learns the directions of values and terms."""

# V = values and terms, E = embedding size, C = cases

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
import random
import tempfile
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
import torch

from dualview.catalog import rivals
from dualview.catalog.instructions import VIEWS, Clause, Clauses, draw_clauses, word
from dualview.catalog.page import card
from dualview.catalog.terms import terms_of
from dualview.catalog.vocabulary import Value
from dualview.config.adapt import AdaptConfig
from dualview.config.base import plain_json
from dualview.pipelines.adapt.state import AdaptRun, Curve, best_strength, curve_of, device
from dualview.runs.publishing import LAST_KEY, offer, publish
from dualview.training.instruction_encoder import (
    InstructionBatch,
    encode_instructions,
    export,
    instruction_encoder,
    metric_of,
    train,
)


def learn(run: AdaptRun) -> Iterator[str]:
    """Trains the instruction encoder and publishes it with result.json."""
    if publish(run.store):
        return
    config, settings = run.config, run.config.training
    named = [number for number in run.usable if number not in run.drawn.unseen]
    values, directions_VE = _with_terms(run)
    known = [number for number in named if np.isfinite(directions_VE[number]).all()]
    encoder = instruction_encoder(
        config.encoder.model,
        pooling=config.encoder.pooling,
        trust_remote_code=config.encoder.trust_remote_code,
    ).to(device())
    development = _Development(run)
    losses: list[float] = []
    evaluations: list[dict[str, Any]] = []
    best: dict[str, torch.Tensor] = {}
    for loss in train(
        encoder,
        _batches(config, values, known, range(len(run.values), len(values)), directions_VE),
        metric_of(run.documents.vectors_DE[run.to_learn_from_D]),
        steps=settings.steps,
        learning_rate=settings.learning_rate,
    ):
        losses.append(loss)
        step = len(losses)
        if step % settings.evaluate_every_steps and step != settings.steps:
            continue
        curve = development.curve(encoder)
        strength = best_strength(curve)
        found = {"step": step, "strength": strength, "curve": curve}
        if all(_worth(found) > _worth(earlier) for earlier in evaluations):
            best = {name: weight.clone() for name, weight in encoder.state_dict().items()}
        evaluations.append(found)
        yield (
            f"step {step} of {settings.steps}: loss {loss:.2f}; on development p-MRR"
            f" {100 * curve[strength]['p-MRR']:.1f}, nDCG@10 {100 * curve[strength]['nDCG@10']:.1f} at strength"
            f" {strength:g}"
        )
    encoder.load_state_dict(best)
    chosen = max(evaluations, key=_worth)
    result = {
        "steps": settings.steps,
        "kept_step": chosen["step"],
        "strength": chosen["strength"],
        "evaluations": evaluations,
        "losses": losses,
        "num_values": len(known),
        "num_terms": len(values) - len(run.values),
    }
    with tempfile.TemporaryDirectory() as folder:
        export(encoder, run.encoder, Path(folder) / "encoder", card(config, result))
        (Path(folder) / LAST_KEY).write_text(plain_json(result))
        offer(run.store, uuid4().hex, Path(folder))
    publish(run.store)


def _with_terms(run: AdaptRun) -> tuple[list[Value], NDArray[np.floating]]:
    """The values of the catalog, followed by terms of the texts, and the direction of each."""
    used_D = run.to_learn_from_D
    terms, terms_TE = terms_of(
        [text for text, is_used in zip(run.documents.texts, used_D, strict=True) if is_used],
        run.documents.vectors_DE[used_D],
        run.config.noun,
        [run.values[number].value for number in sorted(run.drawn.unseen)],
        run.config.training.num_terms,
    )
    return [*run.values, *terms], np.concatenate([run.directions_VE, terms_TE])


def _batches(
    config: AdaptConfig,
    values: Sequence[Value],
    named: Sequence[int],
    terms: Sequence[int],
    directions_VE: NDArray[np.floating],
) -> Iterator[InstructionBatch]:
    """Instructions on the named values, some with a term in a value's place, and the directions that they ask for.

    Each is followed by its opposite in other words, which shows what turns the sign and what does not.
    """
    settings, rng = config.training, random.Random(config.seed)
    while True:
        drawn: list[Clauses] = []
        while len(drawn) < settings.batch:
            clauses = tuple(
                Clause(clause.include, rng.choice(terms))
                if terms and rng.random() < settings.term_share
                else clause
                for clause in draw_clauses(values, named, settings.compound_share, rng)
            )
            drawn += [clauses, tuple(clause.opposite for clause in clauses)]
        yield InstructionBatch(
            [word(values, clauses, "train", rng) for clauses in drawn],
            rivals.signed_sums(drawn, directions_VE),
        )


class _Development:
    """The development cases, for choosing the step and the strength."""

    def __init__(self, run: AdaptRun) -> None:
        self.run, self.cases = run, run.drawn.cases["development"]
        self.queries_CE = run.encode_queries([run.drawn.queries[case.query] for case in self.cases])

    def curve(self, encoder: SentenceTransformer) -> Curve:
        rows = {
            view: rivals.QueryVectors(
                self.queries_CE,
                encode_instructions(encoder, [case.instructions[view] for case in self.cases]),
            )
            for view in VIEWS
        }
        return curve_of(self.run.catalog, self.cases, rows, self.run.config.strengths)


def _worth(evaluation: Mapping[str, Any]) -> float:
    scores = evaluation["curve"][evaluation["strength"]]
    return float(scores["p-MRR"] + scores["nDCG@10"])
