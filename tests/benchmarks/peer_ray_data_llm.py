"""The same requests answered by a pipeline built on `ray.data.llm`, beside which the job is measured.

Writing and judging are two processors, one after the other: a machine with one accelerator holds one
engine at a time, and the judge's prompts are made of what was written. The second gets recorded prompts
too, so that both sides do the same work; parsing and rules, which the job does meanwhile, are left out
here, and so is everything that would make the run resumable.

Settings: the engine's are the job's own. Batches are small and many, as Ray's own measurements advise
(ray-project/ray pull 52634), twice as many requests in flight as the engine has sequences. Chat template
and tokens in stages of their own, as by default; texts are made by the engine, which saves a stage.
`log_engine_metrics` would need ray[serve], and a plain number as `concurrency` would mean an autoscaling pool.
"""

from collections.abc import Sequence
from dataclasses import dataclass
import math
from pathlib import Path
import time
from typing import Any

import pyarrow.parquet as pq
import ray
from ray.data.llm import build_processor, vLLMEngineProcessorConfig

from dualview.config.engines import VllmEngine
from dualview.config.generate import GenerateConfig
from dualview.engines import Request
from dualview.synthesis.judging import yes_no_margin

BATCH_SIZE = 16
_SMALL_STAGE = {"num_cpus": 0.1}  # as many as the pipeline has must find room beside the engine


@dataclass(frozen=True)
class Measured:
    tokens: int  # read and written
    seconds: float  # from the first request at the engine to the last row, of both passes
    seconds_with_starts: float  # the engine's start in it, once a pass


def answer_all(config: GenerateConfig, phases: Sequence[Sequence[Request]], folder: Path) -> Measured:
    """One pass for each phase's requests, its rows written to Parquet below `folder`.

    Needs a cluster that has been joined, with room for the job's actor and one CPU more.
    """
    passes = [
        _one_pass(config, requests, folder / f"pass-{number}") for number, requests in enumerate(phases)
    ]
    return Measured(
        tokens=sum(each.tokens for each in passes),
        seconds=sum(each.seconds for each in passes),
        seconds_with_starts=sum(each.seconds_with_starts for each in passes),
    )


def _one_pass(config: GenerateConfig, requests: Sequence[Request], folder: Path) -> Measured:
    assert isinstance(config.engine, VllmEngine)
    process = build_processor(
        _processor_config(config.engine, config.actors.cpus),
        preprocess=_ask,
        postprocess=_read,
        preprocess_map_kwargs=_SMALL_STAGE,
        postprocess_map_kwargs=_SMALL_STAGE,
    )
    rows = [_row(request) for request in requests]
    started = time.time()
    # A block for each batch: all of them are on their way at once.
    num_blocks = math.ceil(len(rows) / BATCH_SIZE)
    process(ray.data.from_items(rows, override_num_blocks=num_blocks)).write_parquet(str(folder))
    seconds_with_start = time.time() - started
    answers = pq.read_table(folder).to_pylist()
    assert len(answers) == len(requests)
    return Measured(
        tokens=sum(answer["tokens"] for answer in answers),
        # A row knows when it was done and how long it had been at the engine; the first to come was there
        # when the engine had started.
        seconds=max(answer["done"] for answer in answers)
        - min(answer["done"] - answer["seconds"] for answer in answers),
        seconds_with_starts=seconds_with_start,
    )


def _processor_config(engine: VllmEngine, num_cpus: float) -> vLLMEngineProcessorConfig:
    from vllm.platforms import current_platform

    return vLLMEngineProcessorConfig(
        model_source=engine.model,
        engine_kwargs={
            "dtype": engine.dtype,
            "max_model_len": engine.max_model_len,
            "max_num_seqs": engine.max_num_seqs,
            "kv_cache_memory_bytes": engine.kv_cache_gib and int(engine.kv_cache_gib * 2**30),
            "enforce_eager": not engine.compile,
            "enable_prefix_caching": True,
            "enable_chunked_prefill": not current_platform.is_cpu(),  # see dualview/engines/vllm.py
            "disable_log_stats": True,
        },
        batch_size=BATCH_SIZE,
        max_concurrent_batches=math.ceil(2 * engine.max_num_seqs / BATCH_SIZE),
        concurrency=(1, 1),
        chat_template_stage={"enabled": True, **_SMALL_STAGE},
        tokenize_stage={"enabled": True, **_SMALL_STAGE},
        detokenize_stage={"enabled": False},
        log_engine_metrics=False,
        placement_group_config={"bundle_per_worker": {"CPU": num_cpus}},
    )


def _row(request: Request) -> dict[str, Any]:
    return {
        "messages": [{"role": turn.role, "content": turn.text} for turn in request.prompt],
        "sampling_params": {
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": request.seed,
            "logprobs": request.num_logprobs or None,
        },
    }


def _ask(row: dict[str, Any]) -> dict[str, Any]:
    return {"messages": row["messages"], "sampling_params": row["sampling_params"]}


def _read(row: dict[str, Any]) -> dict[str, Any]:
    first = row["logprobs"][0].values() if row["logprobs"] is not None else ()
    return {
        "text": row["generated_text"],
        "margin": yes_no_margin({token["decoded_token"]: token["logprob"] for token in first}),
        "tokens": row["num_input_tokens"] + row["num_generated_tokens"],
        "seconds": row["time_taken_llm"],
        "done": time.time(),
    }
