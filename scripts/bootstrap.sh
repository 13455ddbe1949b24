# Make .venv and build netsonde into it; sourced by scripts/up and scripts/test.
#
# usage: GROUP=run|dev; . scripts/bootstrap.sh
#
# `run` installs what netsonde needs, `dev` also what its checks and tests need. Nothing is done
# when nothing changed: a stamp in .venv holds the checksum of what was built. Everything is said on
# standard error, because standard output belongs to the command that follows.

# The caller has changed to the repository's root and set -eu. (POSIX `.` passes no arguments.)
VENV=.venv

say() { echo "netsonde: $*" >&2; }
die() { say "$*"; exit 2; }

# Whether $1 is a Python this user may execute, new enough for us.
is_python() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

# Whether $1 can also make an environment and compile against its headers.
can_build() {
    "$1" -c '
import ensurepip, pathlib, sys, sysconfig, venv
sys.exit(not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists())' >/dev/null 2>&1
}

# Every interpreter worth trying, the caller's own choice first.
interpreters() {
    [ -z "${NETSONDE_PYTHON:-}" ] || { echo "$NETSONDE_PYTHON"; return; }
    names='python3 python3.14 python3.13 python3.12 python3.11'
    for name in $names; do
        command -v "$name" || true
    done
    for directory in /usr/local/bin /usr/bin "$HOME"/.pyenv/versions/*/bin; do
        for name in $names; do
            [ ! -x "$directory/$name" ] || echo "$directory/$name"
        done
    done
}

# One line that installs the missing packages ($*: compiler, headers, python), as this host says it.
package_line() {
    apt='' dnf='' apk='' pacman='' zypper=''
    for missing in "$@"; do
        case $missing in
        compiler) apt="$apt gcc libc6-dev" dnf="$dnf gcc" apk="$apk gcc musl-dev linux-headers" \
            pacman="$pacman gcc" zypper="$zypper gcc" ;;
        headers) apt="$apt python3-dev python3-venv" dnf="$dnf python3-devel" \
            apk="$apk python3-dev" pacman="$pacman python" zypper="$zypper python3-devel" ;;
        python) apt="$apt python3" dnf="$dnf python3" apk="$apk python3" \
            pacman="$pacman python" zypper="$zypper python311" ;;
        esac
    done
    if command -v apt-get >/dev/null; then echo "apt-get install -y$apt"
    elif command -v dnf >/dev/null; then echo "dnf install -y$dnf"
    elif command -v apk >/dev/null; then echo "apk add$apk"
    elif command -v pacman >/dev/null; then echo "pacman -S --noconfirm$pacman"
    elif command -v zypper >/dev/null; then echo "zypper install -y$zypper"
    else echo "install a C compiler and Python 3.11 or newer with its headers and venv"
    fi
}

# Set PYTHON to an interpreter that can build, or end with the one line that helps.
find_python() {
    newest='' PYTHON=''
    for candidate in $(interpreters); do
        is_python "$candidate" || continue
        newest=${newest:-$candidate}
        if can_build "$candidate"; then PYTHON=$candidate; break; fi
    done
    missing=''
    [ -n "$newest" ] || missing='python headers'
    [ -z "$newest" ] || [ -n "$PYTHON" ] || missing='headers'
    command -v "${CC:-cc}" >/dev/null || missing="$missing compiler"
    [ -n "$missing" ] || return 0
    # shellcheck disable=SC2086 (a list of words)
    die "cannot build here (missing:$(printf ' %s' $missing)); run: $(package_line $missing)"
}

# The checksum of everything the build depends on, and of the checkout's place.
stamp() { { pwd; cat pyproject.toml setup.py scripts/bootstrap.sh ext/*; } | cksum; }

pip_install() {
    "$VENV/bin/python" -m pip --disable-pip-version-check install --quiet "$@" >&2 ||
        die "installing failed (above); fix what it names and run this again"
}

build() {
    find_python
    [ -w . ] || die "$PWD is not writable for $(id -un): clone the repository as this user"
    if ! is_python "$VENV/bin/python"; then
        say "making $VENV with $PYTHON"
        rm -rf "$VENV" && "$PYTHON" -m venv "$VENV" ||
            die "cannot make $PWD/$VENV; remove it, or clone the repository as $(id -un)"
        pip_install --upgrade 'pip>=25.1'
    fi
    say "building the native modules and installing what they need (a minute or two, once)"
    pip_install --editable .
    [ "$GROUP" = run ] || pip_install --group dev
}

want="$(stamp)"
if ! is_python "$VENV/bin/python" || [ "$(cat "$VENV/.built-$GROUP" 2>/dev/null)" != "$want" ]; then
    build
    # A run environment inside a dev one is up to date too.
    echo "$want" >"$VENV/.built-run"
    [ "$GROUP" = run ] || echo "$want" >"$VENV/.built-dev"
fi
