#!/bin/sh
# Installs what the tests need and runs all checks; every stage runs, the summary comes last.
#
#   sh deploy/test.sh                  everything, as .ci/run does
#   sh deploy/test.sh --quick          without the tests that are marked slow
#   sh deploy/test.sh --coverage       everything, and which lines it ran: a third longer
#   sh deploy/test.sh --guarantees     only the suites behind GUARANTEES.md, whole: up to 30 minutes
#   sh deploy/test.sh tests/daemon -x  further arguments are pytest's
#
# ERRATA_MODEL_PATH      folder of SmolLM2-135M-Instruct; made in .errata/models when missing
# ERRATA_TEST_NO_APT=1   never call apt-get
# deploy/install.sh explains ERRATA_PYTHON and ERRATA_TORCH.
set -eu
cd "$(dirname "$0")/.."
# shellcheck source=deploy/install.sh
. deploy/install.sh

whole= # neither a part of the tests nor a quick run
case "$*" in '' | --coverage) whole=1 ;; esac

case "${1:-}" in
-h | --help)
    sed -n '2,13s/^# \{0,1\}//p' deploy/test.sh
    exit 0
    ;;
--quick)
    shift
    set -- -m 'not slow' "$@"
    ;;
--coverage)
    shift
    set -- --cov=daemon --cov=workers --cov-report=term "$@"
    ;;
esac

failed=0
summary=
guarantees=
if [ "${1:-}" = --guarantees ]; then
    shift
    guarantees=1
fi

# Runs one stage, also after a failed one, and notes its result.
stage() {
    title=$1
    shift
    printf '\n== %s\n' "$title"
    began=$(date +%s)
    result=ok
    "$@" || result=FAILED
    [ "$result" = ok ] || failed=1
    summary="$summary$(printf '%-14s %-6s %4d s' "$title" "$result" $(($(date +%s) - began)))
"
}

has_postgres() {
    command -v postgres >/dev/null && return
    for found in /usr/lib/postgresql/*/bin/postgres; do
        [ -x "$found" ] && return
    done
    return 1
}

# Servers that some tests start for themselves. Without them these tests are skipped with the reason.
system_packages() {
    missing=
    command -v redis-server >/dev/null || missing="$missing redis-server"
    command -v strace >/dev/null || missing="$missing strace"
    command -v promtool >/dev/null || missing="$missing prometheus"
    command -v systemd-analyze >/dev/null || missing="$missing systemd"
    command -v amtool >/dev/null || missing="$missing prometheus-alertmanager"
    command -v chromium >/dev/null || missing="$missing chromium"
    has_postgres || missing="$missing postgresql"
    [ -n "$missing" ] || return 0
    sudo=
    if [ "$(id -u)" -ne 0 ]; then
        sudo='sudo -n'
    fi
    # packages may start services, so without root or CI nothing is installed
    if [ -n "${ERRATA_TEST_NO_APT:-}" ] || ! command -v apt-get >/dev/null ||
        { [ -n "$sudo" ] && { [ -z "${CI:-}" ] || ! $sudo true 2>/dev/null; }; }; then
        say "not here:$missing; their tests are skipped (apt-get install$missing)"
        return 0
    fi
    say "installing$missing"
    # shellcheck disable=SC2086 # lists of words
    with_progress .venv/apt.log $sudo sh -c "apt-get update -qq &&
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends$missing" ||
        say "apt-get failed; the tests of$missing are skipped"
}

install_errata gpu,gguf,embedded,dev,postgres
system_packages

ERRATA_MODEL_PATH=${ERRATA_MODEL_PATH:-$PWD/.errata/models/smollm2-135m-instruct}
HF_HUB_OFFLINE=1
export ERRATA_MODEL_PATH HF_HUB_OFFLINE
bin=$PWD/.venv/bin

"$bin/python" -m workers.models.fetch "$ERRATA_MODEL_PATH" &
fetching=$!

# two processes of one thread each: more would starve the servers that tests start; the tests of a file stay together
beside='--numprocesses 2 --dist loadfile --no-loadscope-reorder'
OMP_NUM_THREADS=1
export OMP_NUM_THREADS

if [ -n "$guarantees" ]; then
    stage model wait "$fetching"
    ERRATA_TEST_GUARANTEES=1
    export ERRATA_TEST_GUARANTEES
    # shellcheck disable=SC2086 # a list of words
    stage guarantees "$bin/python" -m pytest $beside tests/e2e tests/crash tests/broker tests/model tests/daemon/feeds \
        tests/security tests/documents/test_guarantees.py tests/daemon/scheduling/test_scheduler.py tests/daemon/core/ledger/test_upgrade.py \
        tests/workers/serving/test_openai.py "$@"
    printf '\n%s' "$summary"
    exit "$failed"
fi

# Two stages run beside the tests, which often wait: types, and the numerics tests with sums in another order, as on a
# processor that torch has no faster kernels for, since no result may depend on that.
"$bin/mypy" >.venv/mypy.log 2>&1 &
typing=$!
summing=
if [ -n "$whole" ]; then
    ATEN_CPU_CAPABILITY=default "$bin/python" -m pytest -q -p no:cacheprovider tests/numerics >.venv/sums.log 2>&1 &
    summing=$!
fi

# Waits for a process, prints its output, which is in a file, and returns its exit status.
ended() {
    status=0
    wait "$2" || status=$?
    cat "$1"
    return "$status"
}

stage 'ruff check' "$bin/ruff" check --quiet .
stage 'ruff format' "$bin/ruff" format --check --quiet .
stage imports "$bin/lint-imports"
stage model wait "$fetching"
# shellcheck disable=SC2086 # a list of words
stage pytest "$bin/python" -m pytest $beside "$@"
[ -z "$summing" ] || stage 'other sums' ended .venv/sums.log "$summing"
stage mypy ended .venv/mypy.log "$typing"

printf '\n%s' "$summary"
exit "$failed"
