"""Instruction-following retrieval: dual-view data, training and evaluation on Ray.

    generate(config), train(config), evaluate(config), adapt(config), search(evaluation)    the verbs; they run on Ray
    open_run(output)    a generate run: rows(), trainable(), summary(), to_huggingface()
    p_mrr(original, changed, stopped)    how far passages drop that are no longer relevant, -1..1
    info_nce(scores, relation, temperature)    contrastive loss over a matrix of views and passages; needs torch
    bootstrap_interval(values, samples, seed)    mean over queries with its 95% interval, by topic
    paired_difference(first, second, samples, seed)    interval and p-value of two systems on the same queries
    sign_flip_test(differences, samples, seed)    the p-value alone

Names are imported on first use, so that metrics import neither Ray nor torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dualview.extras import needs

if TYPE_CHECKING:
    from dualview.api import adapt, evaluate, generate, search, train
    from dualview.errors import InputError
    from dualview.evaluation.metrics import p_mrr
    from dualview.evaluation.significance import bootstrap_interval, paired_difference, sign_flip_test
    from dualview.runs.run import open_run
    from dualview.training.losses import info_nce

__all__ = [
    "InputError",
    "adapt",
    "bootstrap_interval",
    "evaluate",
    "generate",
    "info_nce",
    "open_run",
    "p_mrr",
    "paired_difference",
    "search",
    "sign_flip_test",
    "train",
]

_MODULE_OF = {
    "InputError": "dualview.errors",
    "adapt": "dualview.api",
    "bootstrap_interval": "dualview.evaluation.significance",
    "evaluate": "dualview.api",
    "generate": "dualview.api",
    "info_nce": "dualview.training.losses",
    "open_run": "dualview.runs.run",
    "p_mrr": "dualview.evaluation.metrics",
    "paired_difference": "dualview.evaluation.significance",
    "search": "dualview.api",
    "sign_flip_test": "dualview.evaluation.significance",
    "train": "dualview.api",
}


def __getattr__(name: str) -> Any:  # PEP 562
    if name == "__version__":
        from importlib.metadata import version

        return version("dualview")
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with needs("train", name):
        value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF, "__version__"])
