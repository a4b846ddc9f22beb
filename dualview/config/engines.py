"""Who answers prompts, and what that costs."""

from typing import Annotated, Literal

from pydantic import Field

from dualview.config.base import NotNegative, Positive, Settings

# Of the model's chat template; {}: as it is. Models that may reason first want {enable_thinking: false} here, or they
# answer no judge with a word, and a writer's tokens are used up.
TemplateArguments = dict[str, bool | int | float | str | None]


class VllmEngine(Settings):
    kind: Literal["vllm"]
    model: str  # a folder, a hub name, or package:NAME/FOLDER
    revision: str | None
    dtype: Literal["bfloat16", "float16", "float32"]
    max_model_len: Positive
    max_num_seqs: Positive
    kv_cache_gib: Annotated[float, Field(gt=0)] | None  # on CPU; None: the engine's own choice
    compile: bool  # torch.compile when it starts: a minute that only long runs earn back
    tensor_parallel: Positive  # GPUs of one node that share a model; on CPU: 1
    trust_remote_code: bool
    chat_template_kwargs: TemplateArguments


class HttpEngine(Settings):
    """A server with the chat completions of the OpenAI API: vLLM's own, a gateway, a hosted one."""

    kind: Literal["http"]
    base_url: str  # with the /v1 that most have; no credentials in it
    model: str  # as the server calls it
    api_key_env: str | None  # NAME of the environment variable that holds the key; None: no key
    num_logprobs: Annotated[
        int, Field(ge=0, le=20)
    ]  # most the server reports; 0: a verdict is the word alone
    max_concurrency: Positive  # requests at a time, per actor
    timeout_seconds: Annotated[float, Field(gt=0)]  # of one try
    max_tries: Positive  # per request, the first one counted
    max_pause_seconds: Annotated[
        float, Field(gt=0)
    ]  # before a further try; a server that asks for more ends the run
    chat_template_kwargs: TemplateArguments  # vLLM's and SGLang's servers know them; others refuse them: {}


# Of an HttpEngine: how the server is reached, which decides no answer.
CONNECTION = {"api_key_env", "max_concurrency", "timeout_seconds", "max_tries", "max_pause_seconds"}


class ScriptedEngine(Settings):
    """Deterministic answers without a model: for tests and for measuring our own overhead."""

    kind: Literal["scripted"]
    seed: int


class Price(Settings):
    per_million_prompt_tokens: NotNegative
    per_million_completion_tokens: NotNegative
    per_gpu_hour: NotNegative
