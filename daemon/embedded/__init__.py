"""Run everything on one machine: supervisor, child processes and a private Redis server."""
