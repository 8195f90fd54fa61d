"""Make the two pictures of README.md from a real run of the tour.

``python docs/pictures.py [FOLDER]`` runs ``errata tour --once`` on the sample feed in a pseudo-terminal,
draws what it printed as ``docs/tour.png``, and takes a screenshot of the status page as ``docs/page.png``.
Both need Chromium. FOLDER keeps configuration, data and recording (default: a temporary folder). Where it
holds the recording of an earlier run already, only the pictures are made again.
"""

import os
import pty
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import uvicorn
from rich.console import Console
from rich.text import Text

from daemon.api.app import make_app
from daemon.core.config.settings import CONFIG_VARIABLE, load_config
from daemon.core.ledger.ledger import Ledger

DOCS = Path(__file__).resolve().parent
COLUMNS = 100  # the widest terminal whose text is still legible at the 830 pixels of a README
BATCH = 4  # facts: several revisions, so that the page has curves
FIRST_LINE = "what the model said before"  # the picture begins at the tour's second heading
ROWS = 8  # rows of the table of answers in the picture; the rest is left out, and a line says so
PAGE_SIZE = (1100, 1250)  # pixels: numbers, curves and the newest corrections
_CONTROL = re.compile(r"(\x1b\[[0-9;?]*[A-Za-z]|\r|\n)")


def main(folder: Path) -> None:
    """Run the tour in ``folder`` unless its recording is there, then draw both pictures."""
    recording, config = folder / "tour.ansi", folder / "errata.toml"
    if not recording.exists():
        sample = DOCS.parent / "deploy" / "sample" / "corrections.jsonl"
        feed = f'[[feeds]]\nkind = "jsonl"\nname = "sample"\npath = "{sample}"\n'
        edit = f"[edit]\nbatch_size = {BATCH}\n"
        config.write_text(f'data_dir = "{folder / "data"}"\n{edit}{feed}', encoding="utf-8")
        text = record_tour(config)
        recording.write_bytes(text)
    lines = screen_lines(recording.read_text(encoding="utf-8"))
    first = next(number for number, line in enumerate(lines) if FIRST_LINE in line)
    draw_terminal(shortened(lines[first:]), DOCS / "tour.png")
    draw_page(config, DOCS / "page.png")


def record_tour(config: Path) -> bytes:
    """Run ``errata tour --once`` in a pseudo-terminal and return the bytes that it wrote.

    Raises:
        SystemExit: the tour ended with an error.
    """
    size = {"COLUMNS": str(COLUMNS), "LINES": "60", "TERM": "xterm-256color"}
    os.environ.update({**size, CONFIG_VARIABLE: str(config)})
    written = bytearray()

    def read(descriptor: int) -> bytes:
        chunk = os.read(descriptor, 65_536)
        written.extend(chunk)
        return chunk

    status = pty.spawn([sys.executable, "-m", "daemon.cli", "tour", "--once"], read)
    if status != 0:
        raise SystemExit(f"errata tour ended with wait status {status}")
    return bytes(written)


def screen_lines(text: str) -> list[str]:
    """The lines that a terminal shows in the end: progress bars as they stood when they were done.

    Colours stay in as escape sequences. Rich erases a whole line before it draws it again, so columns
    need not be followed.
    """
    lines, row = [""], 0
    for piece in _CONTROL.split(text):
        if piece == "\n":
            row += 1
            lines.extend([""] * (row + 1 - len(lines)))
        elif piece.startswith("\x1b[") and piece.endswith("A"):
            row -= int(piece[2:-1] or 1)
        elif piece == "\x1b[2K":
            lines[row] = ""
        elif piece.endswith("m") or not _CONTROL.fullmatch(piece):
            lines[row] += piece
    return lines


def shortened(lines: list[str]) -> list[str]:
    """The lines without the rows of the first table after its first ``ROWS``."""
    end = next(number for number, line in enumerate(lines) if line.startswith("└"))
    starts = [number for number, line in enumerate(lines[:end]) if "applied" in line]
    left_out = len(starts) - ROWS
    if left_out <= 0:
        return lines
    return [*lines[: starts[ROWS]], f"  … {left_out} more", *lines[end:]]


def draw_terminal(lines: list[str], picture: Path) -> None:
    """Draw coloured terminal lines as a PNG."""
    with tempfile.TemporaryDirectory() as folder, Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere, force_terminal=True)
        for line in lines:
            console.print(Text.from_ansi(line), soft_wrap=True)
        drawing = Path(folder) / "tour.svg"
        console.save_svg(str(drawing), title="errata tour --once", font_aspect_ratio=0.61)
        box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', drawing.read_text(encoding="utf-8"))
        assert box is not None  # noqa: S101 (Rich writes it at the top of every drawing)
        width, height = (int(float(side)) for side in box.groups())
        page = Path(folder) / "tour.html"
        page.write_text(f'<body style="margin:0"><img src="tour.svg" width={width}>', encoding="utf-8")
        screenshot(page.as_uri(), (width, height), picture)


def draw_page(config: Path, picture: Path) -> None:
    """Serve the API on the tour's ledger and take a screenshot of its status page."""
    settings = load_config(config)
    ledger = Ledger.open_existing(settings.ledger_url)
    app = make_app(ledger, settings)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]
    screenshot(f"http://127.0.0.1:{port}/", PAGE_SIZE, picture)
    server.should_exit = True
    thread.join()
    ledger.close()


def screenshot(url: str, size: tuple[int, int], picture: Path) -> None:
    """Take a screenshot of ``size`` pixels (width, height) with headless Chromium.

    Raises:
        SystemExit: no Chromium is installed.
    """
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("no Chromium here; on Debian and Ubuntu: apt-get install chromium")
    with tempfile.TemporaryDirectory() as profile:
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
                   "--hide-scrollbars", f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}",
                   "--virtual-time-budget=2000", f"--screenshot={picture}", url]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, timeout=120)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
        main(Path(sys.argv[1]).resolve())
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
