#!/bin/sh
# Errata from nothing: environment, model, a feed of corrections, edited weights, a rollback and back.
#
#   sh deploy/quickstart.sh           keeps watching the sample feed until Ctrl-C
#   sh deploy/quickstart.sh --once    ends when the sample feed is drained
#
# Everything is in this folder: .venv, .errata, errata.toml. deploy/install.sh explains ERRATA_PYTHON and ERRATA_TORCH.
set -eu
cd "$(dirname "$0")/.."
# shellcheck source=deploy/install.sh
. deploy/install.sh

case "${1:-}" in
-h | --help)
    sed -n '2,7s/^# \{0,1\}//p' deploy/quickstart.sh
    exit 0
    ;;
esac

install_errata gpu,gguf,embedded
if [ ! -e errata.toml ]; then
    cp deploy/errata.example.toml errata.toml
    say "wrote errata.toml, which names the sample feed"
fi
exec .venv/bin/errata tour "$@"
