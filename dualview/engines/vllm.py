"""vLLM's asynchronous engine. The only module that imports vllm."""

from collections.abc import Iterable
from itertools import count
import logging
import math
import os
from typing import Any

# Read by vLLM on import. A line per request would flood a cluster's logs, and usage is not reported to anyone.
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
# vLLM's warm-up compiles FlashInfer's sampler with nvcc and ends the engine without it, as in our image. That sampler
# does not support seeds, which our requests have. Remove when vllm-project/vllm#49497 is closed.
os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")

import numpy as np
from vllm import AsyncEngineArgs, SamplingParams
from vllm.exceptions import VLLMClientError
from vllm.inputs import tokens_input
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from dualview.config.engines import VllmEngine
from dualview.engines import Completion, EngineDied, Request
from dualview.engines.chat import Chat
from dualview.models import local_model


class Vllm:
    """An Engine over one AsyncLLM with prefix caching."""

    def __init__(self, settings: VllmEngine) -> None:
        self.name = settings.model if settings.revision is None else f"{settings.model}@{settings.revision}"
        self._llm = AsyncLLM.from_engine_args(
            AsyncEngineArgs(
                model=local_model(settings.model),
                revision=settings.revision,
                dtype=settings.dtype,
                max_model_len=settings.max_model_len,
                max_num_seqs=settings.max_num_seqs,
                tensor_parallel_size=settings.tensor_parallel,
                kv_cache_memory_bytes=_gib_to_bytes(settings.kv_cache_gib),
                trust_remote_code=settings.trust_remote_code,
                enforce_eager=not settings.compile,
                enable_prefix_caching=True,
                # vLLM 0.32 rewinds the random generator of a seeded request after a partial prefill.
                # The CPU generator does not support that and the engine dies. Remove when
                # gpu_model_runner.py no longer calls set_offset on it.
                enable_chunked_prefill=not current_platform.is_cpu(),
                disable_log_stats=True,
            )
        )
        # The engine's process logs why it dies, and waiting requests get EngineDied. This logger repeats it, and also
        # reports normal shutdown as an error, because Ray kills the engine's process before the actor.
        # Must follow the engine's start, which resets all levels.
        logging.getLogger("vllm.v1.engine.async_llm").setLevel(logging.CRITICAL)
        self._chat = Chat(self._llm.get_tokenizer(), settings.chat_template_kwargs)
        self._request_ids = count()

    async def complete(self, request: Request) -> Completion:
        try:
            token_ids = self._chat.token_ids(request.prompt)
        except ValueError as error:
            return Completion(str(error), "error", 0, 0, {})
        sampling = SamplingParams(
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            seed=request.seed,
            logprobs=request.num_logprobs or None,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        try:
            async for output in self._llm.generate(
                tokens_input(token_ids), sampling, str(next(self._request_ids))
            ):
                answer = output.outputs[0]
        except EngineDeadError as error:
            raise EngineDied(str(error)) from error
        except (VLLMClientError, EngineGenerateError) as error:
            return Completion(str(error), "error", len(token_ids), 0, {})
        return Completion(
            text=answer.text,
            finish_reason=answer.finish_reason if answer.finish_reason in ("stop", "length") else "error",
            prompt_tokens=len(token_ids),
            completion_tokens=len(answer.token_ids),
            first_token_logprobs=_by_text(answer.logprobs[0].values(), request.num_logprobs)
            if request.num_logprobs
            else {},
        )

    def close(self) -> None:
        self._llm.shutdown()


def _gib_to_bytes(gib: float | None) -> int | None:
    return None if gib is None else int(gib * 2**30)


def _by_text(listed: Iterable[Any], num_logprobs: int) -> dict[str, float]:
    """Decoded token -> log probability; the probabilities of tokens with the same text are added.

    vLLM appends the sampled token if it is not among the most likely ones. It is dropped here, so that the
    smallest value bounds every token that is not listed.
    """
    by_text: dict[str, float] = {}
    for token in listed:
        if token.rank <= num_logprobs:
            before = by_text.get(token.decoded_token, -math.inf)
            by_text[token.decoded_token] = float(np.logaddexp(before, token.logprob))
    return by_text
