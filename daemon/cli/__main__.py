"""Lets `python -m daemon.cli` run the errata command."""

from daemon.cli.main import main

main()
