"""What the stages that run on a worker share: the files of a run, read once. Files under the output:

vocabulary.yaml   what instructions may ask for, and how it is said; may be edited until cases.json exists
probe.json        how well the vectors know each value
cases.json        queries, and pairs of instructions on them, for development and test
encoder/          the encoder, with a side for documents, for queries and for instructions
result.json       training: steps, losses, development scores; the default strength
scores.json       the test: each row's metrics, with intervals, and its curve over strengths
"""

# D = documents, V = values, E = embedding size

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
import json

import numpy as np
from numpy.typing import NDArray
import ray
from sentence_transformers import SentenceTransformer

from dualview.catalog import rivals
from dualview.catalog.attributes import Attribute
from dualview.catalog.instructions import Case, from_json
from dualview.catalog.probe import directions, is_usable
from dualview.catalog.scoring import Catalog, score
from dualview.catalog.vocabulary import Value, parse, values_of
from dualview.catalog.wordings import Split
from dualview.config.adapt import AdaptConfig
from dualview.config.base import fingerprint
from dualview.errors import InputError
from dualview.pipelines.adapt.documents import Documents, read_documents, spec_of
from dualview.retrieval.encoder import encode, encoder_of
from dualview.storage import Store

VOCABULARY_KEY, PROBE_KEY, CASES_KEY, SCORES_KEY = (
    "vocabulary.yaml",
    "probe.json",
    "cases.json",
    "scores.json",
)


@dataclass(frozen=True)
class Drawn:
    """The queries and cases of a run."""

    queries: list[str]
    splits: dict[Split, list[int]]  # numbers of queries
    unseen: frozenset[int]  # numbers of values that training does not name
    cases: dict[Split, list[Case]]
    on_topic: dict[int, NDArray[np.int64]]  # query -> documents


@dataclass(frozen=True)
class AdaptRun:
    """A worker's view of a run. Each property needs the files of the stages before."""

    config: AdaptConfig
    store: Store

    @cached_property
    def documents(self) -> Documents:
        return read_documents(self.config, self.store)

    @cached_property
    def attributes(self) -> list[Attribute]:
        return self.documents.attributes[0]

    @cached_property
    def vocabulary_text(self) -> str:
        return self.store.get(VOCABULARY_KEY).decode()

    @cached_property
    def values(self) -> list[Value]:
        where = f"{self.store.url}/{VOCABULARY_KEY}"
        return values_of(parse(self.vocabulary_text, where, self.attributes), self.attributes)

    @cached_property
    def labels_DV(self) -> NDArray[np.int8]:
        known = {attribute.name: attribute for attribute in self.attributes}
        return np.stack([known[value.attribute].labels(value.value) for value in self.values], axis=1)

    @cached_property
    def usable(self) -> list[int]:
        """The values that the vectors know well enough."""
        found = json.loads(self.store.get(PROBE_KEY))["values"]
        min_auc = self.config.draft.min_auc
        return [number for number, value in enumerate(found) if is_usable(value["auc"], min_auc)]

    @cached_property
    def drawn(self) -> Drawn:
        """Raises InputError if vocabulary.yaml has changed since the cases were made."""
        content = json.loads(self.store.get(CASES_KEY))
        if content["vocabulary"] != fingerprint(self.vocabulary_text):
            raise InputError(
                f"{self.store.url}/{VOCABULARY_KEY}: was changed after {CASES_KEY} was made from it; give it as `vocabulary`"
                " of a run with another output"
            )
        return Drawn(
            content["queries"],
            content["splits"],
            frozenset(content["unseen"]),
            {split: [from_json(row) for row in rows] for split, rows in content["cases"].items()},
            {int(number): np.array(documents) for number, documents in content["on_topic"].items()},
        )

    @property
    def catalog(self) -> Catalog:
        return Catalog(self.documents.vectors_DE, self.labels_DV, self.drawn.on_topic)

    @cached_property
    def to_learn_from_D(self) -> NDArray[np.bool_]:
        """The documents that are on no test query's topic: training, and the rivals, learn from these alone."""
        used_D = np.ones(len(self.documents.passages), bool)
        for number in self.drawn.splits["test"]:
            used_D[self.drawn.on_topic[number]] = False
        return used_D

    @cached_property
    def directions_VE(self) -> NDArray[np.float64]:
        """The direction of each value; NaN for one that no document to learn from has, or lacks."""
        return directions(self.documents.vectors_DE, self.labels_DV, self.to_learn_from_D)

    @cached_property
    def encoder(self) -> SentenceTransformer:
        """The untouched encoder."""
        trust = self.config.encoder.trust_remote_code
        pooling = spec_of(self.config, "query").pooling
        return encoder_of(self.config.encoder.model, pooling, trust_remote_code=trust).to(device())

    def encode_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return encode(self.encoder, spec_of(self.config, "query"), list(texts)).vectors_NE


def device() -> str:
    return "cuda" if ray.is_initialized() and ray.get_gpu_ids() else "cpu"


Curve = Mapping[float, Mapping[str, float]]  # strength -> metric -> mean


def curve_of(
    catalog: Catalog,
    cases: Sequence[Case],
    rows: Mapping[str, rivals.QueryVectors],
    strengths: Sequence[float],
) -> Curve:
    """The mean of each metric at each strength. rows: by view."""
    curve = {}
    for strength in strengths:
        metrics = score(catalog, cases, {view: row.at(strength) for view, row in rows.items()})
        curve[strength] = {metric: float(values.mean()) for metric, values in metrics.items()}
    return curve


_KEPT_NDCG = 0.9


def best_strength(curve: Curve) -> float:
    """The largest strength that keeps 90% of the best nDCG@10: beyond it, obedience costs the topic too much."""
    best = max(scores["nDCG@10"] for scores in curve.values())
    return max(strength for strength, scores in curve.items() if scores["nDCG@10"] >= _KEPT_NDCG * best)
