"""A process ends within its limit after a signal, whatever it does, and at once at a second one."""

import signal
import subprocess
import sys
import time

import pytest

NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
BEGIN = (
    "import os, signal, sys, threading, time; from daemon.core.ending import Ending\n"
    "ending = Ending({seconds}, on_ask=lambda: os.write(1, b'asked\\n'),"
    " on_force=lambda: os.write(1, b'forced\\n'))\n"
    "ending.listen(); print('ready', flush=True)\n"
)
RESET = (  # a shell that runs the tests in the background has them ignored
    "import signal\nfor number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):"
    " signal.signal(number, signal.SIG_DFL)\n"
)
WAIT = "ending.asked.wait(); print('in order', flush=True)"
FOREVER = "while True: time.sleep(600)"
IN_C = (  # a database that waits for a lock does not come back to Python
    "import sqlite3, tempfile\n"
    "name = tempfile.mktemp(); a = sqlite3.connect(name); a.execute('begin exclusive')\n"
    "sqlite3.connect(name, timeout=600).execute('begin exclusive')"
)


def start(code: str, seconds: float) -> "subprocess.Popen[str]":
    program = RESET + BEGIN.format(seconds=seconds) + code
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def said(process: "subprocess.Popen[str]", limit: float) -> list[str]:
    out, _ = process.communicate(timeout=limit)
    assert process.returncode == 0
    return [line for line in out.splitlines() if not line.startswith("20")]  # without log lines


@pytest.mark.parametrize("number", NUMBERS)
def test_it_ends_in_order_where_it_listens(number: signal.Signals) -> None:
    process = start(WAIT, 30)
    process.send_signal(number)
    assert "in order" in said(process, 10)


@pytest.mark.parametrize("code", [FOREVER, IN_C])
def test_it_is_ended_at_the_limit_where_it_does_not(code: str) -> None:
    process = start(code, 1)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert said(process, 10) == ["asked", "forced"]


def test_a_second_signal_ends_it_at_once_and_two_in_a_row_are_one() -> None:
    process = start(FOREVER, 60)
    for pause in (0.1, 1.2, 0.0):
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        time.sleep(pause)
    assert said(process, 10) == ["asked", "forced"]


def test_nohup_stays_in_force() -> None:
    code = f"signal.signal(signal.SIGHUP, signal.SIG_IGN)\n{BEGIN.format(seconds=1)}{FOREVER}"
    process = start(code, 60)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert process.poll() is None
    process.kill()
    process.communicate()
