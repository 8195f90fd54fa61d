# shellcheck shell=sh
# Sourced by quickstart.sh and test.sh, in the root of the checkout:
#
#   install_errata EXTRAS   makes .venv and installs the project into it, editable; does nothing when
#                           the extras are installed and pyproject.toml and deploy/constraints.txt are unchanged
#
# ERRATA_PYTHON   the Python (3.11 or newer) to use; without it the first that fits.
# ERRATA_TORCH    the requirement for torch instead of the one in deploy/constraints.txt. On a GPU machine set
#                 ERRATA_TORCH=torch (its index's ordinary wheel brings CUDA) or a build, for example
#                 ERRATA_TORCH='torch==2.13.0+cu130' with PIP_EXTRA_INDEX_URL as the index of that build.
#                 The same way, with +cpu, spares a machine without a GPU the gigabytes of CUDA.

say() { printf 'errata: %s\n' "$*" >&2; }

die() {
    say "error: $*"
    exit 1
}

# Prints a Python that is new enough and can make environments. 3.12 and 3.11 come first: for them
# there is a Redis server in a wheel, so that a machine without Redis needs nothing from apt.
find_python() {
    seen=
    for candidate in ${ERRATA_PYTHON:-python3.12 python3.11 python3.13 python3}; do
        "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || continue
        seen=$candidate
        "$candidate" -c 'import ensurepip, venv' >/dev/null 2>&1 || continue
        command -v "$candidate"
        return
    done
    if [ -n "$seen" ]; then
        die "$seen cannot make environments; on Debian and Ubuntu: apt-get install python3-venv"
    fi
    die "Python 3.11 or newer is needed (apt-get install python3 python3-venv, or set ERRATA_PYTHON)"
}

# Runs a long command with its output in a file, and prints its newest line every ten seconds.
with_progress() {
    log=$1
    shift
    "$@" >"$log" 2>&1 &
    running=$!
    trap 'kill "$running" 2>/dev/null; exit 130' INT TERM
    seconds=0
    while kill -0 "$running" 2>/dev/null; do
        sleep 1
        seconds=$((seconds + 1))
        if [ $((seconds % 10)) -eq 0 ]; then
            say "  $seconds s: $(tail -n 1 "$log" | sed 's/^ *//' | cut -c 1-70)"
        fi
    done
    status=0
    wait "$running" || status=$?
    trap - INT TERM
    if [ "$status" -ne 0 ]; then
        tail -n 20 "$log" >&2
        say "all of it is in $log"
    fi
    return "$status"
}

# What an installation depends on, as one word.
fingerprint() {
    {
        cat pyproject.toml deploy/constraints.txt
        printf '%s\n' "${ERRATA_TORCH:-}"
    } | sha256sum | cut -d ' ' -f 1
}

# Whether .venv has these extras, installed from files with this fingerprint.
is_installed() {
    [ -f .venv/errata-installed ] || return 1
    read -r stamp has <.venv/errata-installed || return 1
    [ "$stamp" = "$1" ] || return 1
    for extra in $(printf '%s' "$2" | tr , ' '); do
        case ",$has," in
        *",$extra,"*) ;;
        *) return 1 ;;
        esac
    done
}

install_errata() {
    extras=$1
    if ! .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
        python=$(find_python) || exit 1
        say "making .venv with $python"
        rm -rf .venv
        "$python" -m venv .venv || die "the environment cannot be made; apt-get install python3-venv may help"
    fi
    wanted=$(fingerprint)
    if is_installed "$wanted" "$extras"; then
        return
    fi
    constraints=deploy/constraints.txt
    if [ -n "${ERRATA_TORCH:-}" ]; then
        constraints=.venv/constraints.txt
        grep -v '^torch==' deploy/constraints.txt >"$constraints"
    fi
    say "installing into .venv; the first time this takes a minute or two"
    # not compiled: of the dependencies' modules only a small part is ever imported
    with_progress .venv/install.log .venv/bin/python -m pip install --no-input --disable-pip-version-check \
        --no-compile --progress-bar off --constraint "$constraints" ${ERRATA_TORCH:+"$ERRATA_TORCH"} \
        --editable ".[$extras]" || die "the installation failed"
    printf '%s %s\n' "$wanted" "$extras" >.venv/errata-installed
}
