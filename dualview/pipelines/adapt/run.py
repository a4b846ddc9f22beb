"""`dualview adapt`: from documents with metadata to an encoder of instructions, stage by stage.

Each stage puts its files under the output and is skipped if they exist, so an interrupted run continues with the stage that
it was in. adapt.json pins the output to its settings; report.html, the page, comes last.
"""

from collections.abc import Callable, Iterator, Mapping
import json
import logging
from typing import Any

import ray

from dualview.beir import file_sha256
from dualview.catalog.page import page
from dualview.config.adapt import AdaptConfig, Stage
from dualview.config.base import fingerprint
from dualview.distributed.cluster import ENCODING_ENVIRONMENT, errors_of_workers, join_cluster
from dualview.errors import InputError
from dualview.models import check_model, model_fingerprint, pooling_of
from dualview.pipelines.adapt.cases import draw
from dualview.pipelines.adapt.documents import encode_documents, keep_sample
from dualview.pipelines.adapt.probe import find_out
from dualview.pipelines.adapt.state import CASES_KEY, PROBE_KEY, SCORES_KEY, VOCABULARY_KEY, AdaptRun
from dualview.pipelines.adapt.test import test
from dualview.pipelines.adapt.train import learn
from dualview.runs.manifest import pin_embedding_cache, pin_manifest
from dualview.runs.publishing import LAST_KEY
from dualview.storage import Store, check_reachable, open_store

logger = logging.getLogger(__name__)

CONFIG_KEY = "adapt.json"
REPORT_KEY = "report.html"

# What a stage is called in `until`, the file that it puts last, and what runs on a worker.
STAGES: Mapping[Stage, tuple[str, Callable[[AdaptRun], Iterator[str]]]] = {
    "probe": (PROBE_KEY, find_out),
    "cases": (CASES_KEY, draw),
    "train": (LAST_KEY, learn),
    "test": (SCORES_KEY, test),
}


def adapt(config: AdaptConfig) -> dict[str, Any]:
    """Runs the stages that are left, up to `until`.

    Returns what the stages found, by stage: the contents of probe.json, cases.json, result.json and scores.json.
    """
    store = open_store(config.output)
    check_reachable(store)
    check_model(config.encoder.model)
    pooling_of(config.encoder.model, config.encoder.pooling)
    if config.embeddings is not None:
        check_reachable(open_store(config.embeddings))
        pin_embedding_cache(open_store(config.embeddings))
    _pin(config, store)
    keep_sample(config, store)
    encode_documents(config, store)
    _forget_old_probe(store)
    found: dict[str, Any] = {}
    for stage, (key, do) in STAGES.items():
        if not store.list(key):
            for message in _on_worker(config, store, do):
                logger.info(message)
        found[stage] = json.loads(store.get(key))
        if stage == "probe":
            _warn(found[stage])
        if stage == config.until:
            return found
    store.put_new(REPORT_KEY, page(config, found).encode(), attempt="driver")
    return found


def _forget_old_probe(store: Store) -> None:
    """Removes probe.json if vocabulary.yaml was edited or removed since, which is allowed until the cases are made."""
    if store.list(PROBE_KEY) and not store.list(CASES_KEY):
        probed = json.loads(store.get(PROBE_KEY))["vocabulary"]
        is_there = store.list(VOCABULARY_KEY)
        if not is_there or probed != fingerprint(store.get(VOCABULARY_KEY).decode()):
            store.remove(PROBE_KEY)


def _pin(config: AdaptConfig, store: Store) -> None:
    settings, deciding = config.model_dump(mode="json"), config.deciding()
    content = {
        "corpus": file_sha256(config.corpus)[:16],
        "documents": model_fingerprint(config.encoder.model, "document"),
        "queries": model_fingerprint(config.encoder.model, "query"),
    }
    if store.list(LAST_KEY) and not store.list(CONFIG_KEY):
        raise InputError(f"{store.url}: holds {LAST_KEY} of another verb; choose another output")
    metadata = {key: value for key, value in settings.items() if key not in deciding}
    pin_manifest(store, CONFIG_KEY, {**deciding, "content": content}, metadata)


def _on_worker(config: AdaptConfig, store: Store, do: Callable[[AdaptRun], Iterator[str]]) -> Iterator[str]:
    """Runs a stage where `learner` says; yields its messages as they come."""
    join_cluster(config.learner)
    task = ray.remote(
        num_cpus=config.learner.cpus,
        num_gpus=config.learner.gpus,
        max_retries=0,
        runtime_env={"env_vars": _environment(config)},
    )(_run)
    with errors_of_workers():
        for message in task.options(num_returns="streaming").remote(do, config, store):
            yield ray.get(message)


def _environment(config: AdaptConfig) -> dict[str, str]:
    """For a worker: memory that is kept between steps, and no warning of DeepSpeed, which libraries import."""
    return {
        **ENCODING_ENVIRONMENT["env_vars"],
        **({} if config.learner.gpus else {"DS_ACCELERATOR": "cpu"}),
    }


def _run(do: Callable[[AdaptRun], Iterator[str]], config: AdaptConfig, store: Store) -> Iterator[str]:
    yield from do(AdaptRun(config, store))


def _warn(probe: Mapping[str, Any]) -> None:
    for name, reason in probe["unusable"].items():
        logger.warning(f"{name}: left out, because {reason}")
    for name, number in probe["odd"].items():
        logger.warning(f"{name}: {number:,} values of another type count as unknown")


def read_strength(store: Store) -> float:
    """The default strength of a run. Raises InputError if its encoder is not trained yet."""
    try:
        return float(json.loads(store.get(LAST_KEY))["strength"])
    except FileNotFoundError:
        raise InputError(
            f"{store.url}: has no trained encoder yet; finish the run with dualview adapt"
        ) from None


def read_config(store: Store) -> AdaptConfig:
    """The settings of a run. Raises InputError if there is none at the store."""
    try:
        settings = json.loads(store.get(CONFIG_KEY))
        settings.pop("content")
        return AdaptConfig.model_validate(settings)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"{store.url}: there is no {CONFIG_KEY}; expected the output of dualview adapt"
        ) from None
