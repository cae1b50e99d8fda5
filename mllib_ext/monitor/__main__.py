"""Watch and steer runs from a terminal.

python -m mllib_ext.monitor show RUN_DIR
python -m mllib_ext.monitor ctl RUN_DIR set stepSize=0.01
python -m mllib_ext.monitor serve RUNS_DIR
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import json
import math
import sys
import time
from typing import Any

import pandas as pd

from mllib_ext.monitor.controls import COMMANDS, Command
from mllib_ext.monitor.directory import run_directory
from mllib_ext.monitor.run import Run, find_runs, parsed, read_run

# Rows of a table that fit a screen.
LINES = 20


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m mllib_ext.monitor",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    actions = parser.add_subparsers(dest="action", required=True)
    show = actions.add_parser("show", help="print a run, or the list of runs below a directory")
    show.add_argument("path", metavar="RUN_DIR")
    show.add_argument("--last", type=int, default=LINES, metavar="N", help="rounds to print")
    show.set_defaults(work=_show)
    ctl = actions.add_parser("ctl", help=f"send a command: {', '.join(COMMANDS)}")
    ctl.add_argument("path", metavar="RUN_DIR")
    ctl.add_argument("command", choices=COMMANDS)
    ctl.add_argument(
        "values",
        nargs="*",
        metavar="VALUE",
        help="NAME=VALUE of set; the name of a checkpoint, the reason to stop, a note's text",
    )
    ctl.add_argument(
        "--timeout", type=float, default=60.0, metavar="SECONDS", help="how long to wait for it"
    )
    ctl.set_defaults(work=_ctl)
    serve = actions.add_parser("serve", help="serve a page of the runs below a directory")
    serve.add_argument("path", metavar="RUNS_DIR")
    serve.add_argument("--host", default="127.0.0.1", help="the address to listen at")
    serve.add_argument("--port", type=_port, default=0, help="0 takes one that is free")
    serve.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="as that of a proxy"
    )
    serve.set_defaults(work=_serve)
    return parser


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, found {text!r}")
    return int(text)


def main(argv: list[str] | None = None) -> int:
    """Do what the command line asks; the exit code: 0, 1 (refused, or no such run), 2 (misused)."""
    options = parser().parse_args(argv)
    try:
        return int(options.work(options))
    except (ImportError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


# --- show ----------------------------------------------------------------------------------------


def _show(options: argparse.Namespace) -> int:
    paths = find_runs(options.path)
    if not paths:
        raise FileNotFoundError(f"{options.path}: expected a run directory, found no run.json")
    if paths == [options.path]:
        print(told(read_run(options.path), options.last))
    else:
        print(table_of_runs(paths))
    return 0


def told(run: Run, last: int = LINES) -> str:
    """A run in words and its last rounds as a table."""
    params = ", ".join(f"{name}={value!r}" for name, value in run.params.items())
    lines = [f"{run.estimator}  {run.state}  {_clock(run.description['started'])}", params, ""]
    rounds = run.rounds
    if len(rounds):
        lines.append(_table(rounds.tail(last)))
    for event in run.actions.to_dict("records"):
        values = ", ".join(f"{name}={value!r}" for name, value in event["values"].items())
        what = event["command"] if event["event"] == "command" else "change"
        words = f"{_clock(event['time'])}  round {event['iteration']}: {what} {values}".rstrip()
        if event["event"] == "command":
            words += f"  {event['status']}, from {event['origin']}"
            if event["status"] == "refused":
                words += f": {event['reason']}"
        lines.append(words)
    end = run.end
    if end:
        why = end.get("error") or f"{end.get('reason')} after {end.get('n_iter')} iterations"
        lines.append(f"{_clock(end['time'])}  {end['state']}: {why}")
    return "\n".join(lines)


def table_of_runs(paths: list[str]) -> str:
    """One line a run."""
    rows = []
    for path in paths:
        run = read_run(path)
        rounds = run.rounds
        rows.append(
            {
                "run": path,
                "estimator": run.estimator.rpartition(".")[2],
                "state": run.state,
                "rounds": len(rounds),
                "loss": rounds["loss"].iloc[-1] if len(rounds) else math.nan,
            }
        )
    return pd.DataFrame(rows).to_string(index=False, float_format="%.6g", na_rep="")


def _table(rounds: pd.DataFrame) -> str:
    """The columns of rounds that are numbers, and not those that are nothing or always the same."""
    columns = ["start"] if rounds["start"].nunique() > 1 else []
    columns += ["iteration", "loss", "gradient_norm", "step_size", "seconds", "latency", "compute"]
    columns += ["driver", "bytes_up"]
    known = {*rounds.columns[: list(rounds.columns).index("passes") + 1], *columns, "skew"}
    own = [c for c in rounds.columns if c not in known and not c.startswith("settings.")]
    columns += [c for c in own if pd.api.types.is_numeric_dtype(rounds[c])]
    shown = rounds[columns].apply(pd.to_numeric, errors="coerce").dropna(axis=1, how="all")
    return shown.to_string(index=False, float_format="%.6g", na_rep="")


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


# --- serve ---------------------------------------------------------------------------------------


def _serve(options: argparse.Namespace) -> int:
    from mllib_ext.monitor.server import Directory, Server

    runs = Directory(options.path)
    with (
        Server(runs, host=options.host, port=options.port, hosts=options.allow_host) as server,
        contextlib.suppress(KeyboardInterrupt),
    ):
        print(f"{len(runs())} runs at {server.url}  (Ctrl-C ends)", flush=True)
        server.wait()
    return 0


# --- ctl -----------------------------------------------------------------------------------------


def _ctl(options: argparse.Namespace) -> int:
    run = read_run(options.path)
    if run.state not in ("starting", "running", "paused"):
        raise ValueError(f"{options.path}: expected a run that goes on, found one {run.state}")
    command = Command(
        options.command,
        _values(options.command, options.values),
        origin=f"ctl: {getpass.getuser()}",
    )
    directory = run_directory(options.path)
    position = directory.read(0)[1]
    directory.send(f"{time.time_ns():020d}-{command.key}", command.text())
    deadline = time.monotonic() + options.timeout
    while time.monotonic() < deadline:
        text, position = directory.read(position)
        for event in parsed(text):
            if event.get("key") == command.key:
                print(f"{event['status']} after round {event['iteration']}")
                if event["status"] == "refused":
                    print(f"error: {event['reason']}", file=sys.stderr)
                return int(event["status"] == "refused")
        time.sleep(max(0.05, directory.look_seconds / 4))
    raise TimeoutError(
        f"expected an answer within {options.timeout:g} s, found none: the round goes on, and the "
        "command waits for its end"
    )


def _values(command: str, words: list[str]) -> dict[str, Any]:
    """The values of a command from the words of a command line."""
    if command == "set":
        values = {}
        for word in words:
            name, equals, text = word.partition("=")
            if not equals:
                raise ValueError(f"set: expected NAME=VALUE, found {word!r}")
            values[name] = _value(text)
        return values
    names = list(COMMANDS[command])
    if not words:
        return {}
    if not names:
        raise ValueError(f"{command}: expected nothing after it, found {' '.join(words)!r}")
    return {names[0]: " ".join(words)}


def _value(text: str) -> Any:
    """A number where the text is one."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, int | float) and not isinstance(value, bool) else text


if __name__ == "__main__":
    sys.exit(main())
