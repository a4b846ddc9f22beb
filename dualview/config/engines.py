"""Who answers prompts, and what that costs."""

from typing import Annotated, Literal

from pydantic import Field

from dualview.config.base import NotNegative, Positive, Settings

TemplateArguments = dict[str, bool | int | float | str | None]


class VllmEngine(Settings):
    """vLLM inside the actors, on CPU or GPU."""

    kind: Literal["vllm"]
    model: str
    """A folder, a name on the Hugging Face hub, or package:NAME/FOLDER."""
    revision: str | None
    """Branch, tag or commit on the hub; null takes the default branch."""
    dtype: Literal["bfloat16", "float16", "float32"]
    """Type of weights and activations."""
    max_model_len: Positive
    """Longest prompt and answer together, in tokens."""
    max_num_seqs: Positive
    """Most requests that the engine processes at once."""
    kv_cache_gib: Annotated[float, Field(gt=0)] | None
    """Size of the KV cache in GiB on CPU; null leaves it to the engine."""
    compile: bool
    """Run torch.compile at start: it takes a minute, which only long runs recover."""
    tensor_parallel: Positive
    """GPUs of one node that share the model; 1 on CPU."""
    trust_remote_code: bool
    """Run Python code that the model's repository brings."""
    chat_template_kwargs: TemplateArguments
    """Arguments of the model's chat template; {} for none. Models that can reason before they answer need
    {enable_thinking: false}, or their verdicts are not a single word and reasoning uses up a writer's tokens."""


class HttpEngine(Settings):
    """A server with the chat completions of the OpenAI API: vLLM's own, a gateway, a hosted one."""

    kind: Literal["http"]
    base_url: str
    """URL of the API, with the /v1 that most servers have and without credentials."""
    model: str
    """Name of the model on the server."""
    api_key_env: str | None
    """Name of the environment variable that holds the API key; null sends no key."""
    num_logprobs: Annotated[int, Field(ge=0, le=20)]
    """Most log-probabilities per token that the server reports; with 0, a verdict is the word alone."""
    max_concurrency: Positive
    """Most requests at a time, per actor."""
    timeout_seconds: Annotated[float, Field(gt=0)]
    """Time limit of one try, in seconds."""
    max_tries: Positive
    """Most tries per request, including the first."""
    max_pause_seconds: Annotated[float, Field(gt=0)]
    """Longest wait before another try, in seconds. A server that asks for more ends the run."""
    chat_template_kwargs: TemplateArguments
    """Arguments of the model's chat template. The servers of vLLM and SGLang read them; others refuse them and
    need {}."""


# Of an HttpEngine: how the server is reached, which decides no answer.
CONNECTION = {"api_key_env", "max_concurrency", "timeout_seconds", "max_tries", "max_pause_seconds"}


class ScriptedEngine(Settings):
    """Deterministic answers without a model: for tests and for measuring our own overhead."""

    kind: Literal["scripted"]
    seed: int
    """Random seed of the answers."""


class Price(Settings):
    """Prices in dollars, for the account of a run."""

    per_million_prompt_tokens: NotNegative
    """Dollars per million prompt tokens."""
    per_million_completion_tokens: NotNegative
    """Dollars per million generated tokens."""
    per_gpu_hour: NotNegative
    """Dollars per hour of one GPU; in a study, of one device of any kind."""
