"""Settings of the engines that answer prompts, and their prices."""

from typing import Annotated, Literal

from pydantic import Field

from dualview.config.base import NotNegative, Positive, Settings

TemplateArguments = dict[str, bool | int | float | str | None]


class VllmEngine(Settings):
    """vLLM in the actors, on CPU or GPU."""

    kind: Literal["vllm"]
    model: str
    """A folder, a name on the Hugging Face hub, or package:NAME/FOLDER."""
    revision: str | None
    """Branch, tag or commit on the hub; null takes the default branch."""
    dtype: Literal["bfloat16", "float16", "float32"]
    """Data type of weights and activations."""
    max_model_len: Positive
    """Maximum length of prompt and answer together, in tokens."""
    max_num_seqs: Positive
    """Maximum number of requests that the engine processes at once."""
    kv_cache_gib: Annotated[float, Field(gt=0)] | None
    """Size of the KV cache in GiB on CPU; null leaves it to the engine."""
    compile: bool
    """Run torch.compile at start. It takes a minute, which pays off only in long runs."""
    tensor_parallel: Positive
    """Number of GPUs of one node that the model is split over; 1 on CPU."""
    trust_remote_code: bool
    """Allow Python code from the model's repository to run."""
    chat_template_kwargs: TemplateArguments
    """Arguments of the model's chat template; {} for none. Reasoning models need {enable_thinking: false}: a verdict
    must be a single word, and reasoning would use up the writer's tokens."""


class HttpEngine(Settings):
    """A server with the OpenAI chat completions API: vLLM's own, a gateway or a hosted service."""

    kind: Literal["http"]
    base_url: str
    """URL of the API, including the /v1 of most servers and without credentials."""
    model: str
    """Name of the model on the server."""
    api_key_env: str | None
    """Environment variable that holds the API key; null sends no key."""
    num_logprobs: Annotated[int, Field(ge=0, le=20)]
    """Maximum number of log-probabilities per token that the server reports; with 0, a verdict is the word alone."""
    max_concurrency: Positive
    """Maximum number of concurrent requests per actor."""
    timeout_seconds: Annotated[float, Field(gt=0)]
    """Timeout of one attempt, in seconds."""
    max_tries: Positive
    """Maximum number of attempts per request, including the first."""
    max_pause_seconds: Annotated[float, Field(gt=0)]
    """Longest wait before a retry, in seconds. The run ends if the server asks for a longer one."""
    chat_template_kwargs: TemplateArguments
    """Arguments of the model's chat template. The vLLM and SGLang servers accept them; others refuse them and need
    {}."""


# Keys of HttpEngine that do not affect the answers.
CONNECTION = {"api_key_env", "max_concurrency", "timeout_seconds", "max_tries", "max_pause_seconds"}


class ScriptedEngine(Settings):
    """Deterministic answers without a model, for tests and for measuring overhead."""

    kind: Literal["scripted"]
    seed: int
    """Random seed of the answers."""


class Price(Settings):
    """Prices in dollars, for the costs of a run."""

    per_million_prompt_tokens: NotNegative
    """Dollars per million prompt tokens."""
    per_million_completion_tokens: NotNegative
    """Dollars per million generated tokens."""
    per_gpu_hour: NotNegative
    """Dollars per GPU hour; in a study, per hour of a device of any kind."""
