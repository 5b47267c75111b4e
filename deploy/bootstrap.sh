# Makes the virtual environment from a hashed lock. Sourced by deploy/up and tests/run, run by nobody.
#
# bootstrap LOCK   LOCK is "requirements" (to run) or "requirements-dev" (to test).
#
# Sets $checkout and $venv (WAYBILL_VENV, else .venv in the checkout). Does nothing when a stamp says that
# the environment was made from this very lock; begins anew when an earlier run was interrupted.
# Works with bash 3.2 (macOS) and an empty environment.

checkout=$(cd -P "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${WAYBILL_VENV:-$checkout/.venv}
case $venv in /*) ;; *) venv=$PWD/$venv ;; esac

say() { printf 'waybill: %s\n' "$*" >&2; }
fail() {
    say "$*"
    exit 2
}

is_root() { [ "$(id -u)" = 0 ]; }
may_apt() { is_root && command -v apt-get >/dev/null 2>&1; }
apt_install() {
    say "installing $* (apt-get)"
    { apt-get update -qq || true; } >&2
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >&2 </dev/null
}

# A Python of 3.11 or newer that really runs (a pyenv shim may not).
find_python() {
    local candidate
    for candidate in ${WAYBILL_PYTHON:-} python3 python3.13 python3.12 python3.11 python3.14 python \
        /usr/bin/python3 /usr/local/bin/python3 /opt/homebrew/bin/python3; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            "$candidate" -c 'import sys; print(sys.executable)'
            return 0
        fi
    done
    return 1
}

# The system's certificates count for uv as they do for pip: company proxies have their own.
export UV_SYSTEM_CERTS=${UV_SYSTEM_CERTS:-1} UV_NATIVE_TLS=${UV_NATIVE_TLS:-1}

find_uv() {
    command -v uv 2>/dev/null && return 0
    [ -x "${HOME:-/nonexistent}/.local/bin/uv" ] && echo "$HOME/.local/bin/uv"
}

# What the environment is made from. One stamp per lock: the dev lock holds the other one's pins too.
stamp_of() {
    local python=$1 lock=$2
    cat "$checkout/deploy/$lock.lock" "$checkout/pyproject.toml" "$python" | "$python" -c \
        'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read() + repr(sys.argv[1:]).encode()).hexdigest())' \
        "$checkout" "$venv"
}

is_current() {
    local stamp
    stamp=$(stamp_of "$1" "$2") || return 1
    [ -x "$venv/bin/python" ] && [ "$(cat "$venv/.waybill-$2" 2>/dev/null)" = "$stamp" ]
}

make_empty_venv() {
    local python=$1 uv=$2
    if [ -d "$venv" ] && [ ! -e "$venv/.waybill" ] && [ -n "$(ls -A "$venv" 2>/dev/null)" ]; then
        [ -x "$venv/bin/python" ] || fail "$venv exists and is no virtual environment: set WAYBILL_VENV"
        say "using the virtual environment $venv, which is yours"
        return 0
    fi
    mkdir -p "$venv" 2>/dev/null || fail "cannot write $venv: set WAYBILL_VENV to a directory that you own"
    [ -w "$venv" ] || fail "cannot write $venv: set WAYBILL_VENV to a directory that you own"
    rm -rf "${venv:?}"/* "$venv"/.waybill-*
    : >"$venv/.waybill"
    if [ -n "$uv" ] && "$uv" venv -q --allow-existing --python "$python" "$venv" >&2; then
        return 0
    fi
    if ! "$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then
        local package
        package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
        may_apt || fail "$python lacks the module venv: install it (sudo apt-get install $package), then start again"
        apt_install "$package" || fail "apt-get could not install $package"
    fi
    "$python" -m venv "$venv" >&2 || fail "$python -m venv $venv failed"
}

install_lock() {
    local uv=$1 lock=$2 requirements=$checkout/deploy/$2.lock
    local editable=(--no-deps --no-build-isolation -e "$checkout")
    if [ -n "$uv" ]; then
        local with_uv=("$uv" pip install -q --python "$venv/bin/python")
        if "${with_uv[@]}" --require-hashes -r "$requirements" >&2 && "${with_uv[@]}" "${editable[@]}" >&2; then
            return 0
        fi
        say "uv did not succeed, trying pip"
        "$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$venv/bin/python" -m ensurepip >&2 || return 1
    fi
    local with_pip=("$venv/bin/python" -m pip install -q --disable-pip-version-check --no-input)
    is_root && with_pip+=(--root-user-action=ignore)
    "${with_pip[@]}" --require-hashes -r "$requirements" >&2 && "${with_pip[@]}" "${editable[@]}" >&2
}

bootstrap() {
    local lock=$1 python uv
    if ! python=$(find_python); then
        may_apt || fail "Python 3.11 or newer is needed (sudo apt-get install python3 python3-venv); set WAYBILL_PYTHON to name one"
        apt_install python3 python3-venv || fail "apt-get could not install python3"
        python=$(find_python) || fail "this system's python3 is older than 3.11: install a newer one and set WAYBILL_PYTHON"
    fi
    is_current "$python" "$lock" && return 0
    [ "$lock" = requirements ] && is_current "$python" requirements-dev && return 0
    uv=$(find_uv) || uv=
    mkdir -p "$(dirname "$venv")" 2>/dev/null || fail "cannot write $venv: set WAYBILL_VENV to a directory that you own"
    (
        if command -v flock >/dev/null 2>&1 && : 2>/dev/null >>"$venv.lock"; then
            exec 9>>"$venv.lock"
            flock 9 # a second bootstrap waits for the first, then finds its stamp
            is_current "$python" "$lock" && exit 0
        fi
        say "setting up $venv with $python${uv:+ and uv} (once; a few minutes at most)"
        make_empty_venv "$python" "$uv"
        install_lock "$uv" "$lock" || fail "could not install deploy/$lock.lock: see above, then start again"
        stamp_of "$python" "$lock" >"$venv/.waybill-$lock.new"
        mv "$venv/.waybill-$lock.new" "$venv/.waybill-$lock"
    ) || exit $?
}
