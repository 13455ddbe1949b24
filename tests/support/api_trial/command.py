"""`scripts/dev.py api`: put every call of docs/openapi.json to a control plane."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netsonde import wire
from netsonde.server.openapi import AGENT, OPERATOR

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
SETTINGS = HERE / "schemathesis.toml"
TOKEN = "a-token-of-a-trial-only"
AGENT_KEY = "a" * 32
FULL_REQUESTS = 20_000
QUICK_REQUESTS = 600
QUICK_SEED = 20
PHASES = "examples,coverage,fuzzing,stateful"
OK, FOUND = 0, 1
LISTENERS = (AGENT, OPERATOR)


def parser() -> argparse.ArgumentParser:
    """Make the parser; it ends wrong arguments with status 2."""
    made = argparse.ArgumentParser(prog="dev.py api", description=__doc__)
    made.add_argument("--requests", type=_positive, default=FULL_REQUESTS, metavar="N",
                      help=f"how many requests, at least ({FULL_REQUESTS})")  # fmt: skip
    made.add_argument("--quick", action="store_true",
                      help="as much as fits in 45 s, with a fixed seed")  # fmt: skip
    made.add_argument("--seed", type=_positive, metavar="S", help="what draws the requests")
    made.add_argument("--only", choices=LISTENERS, help="one of the two APIs")
    return made


def _positive(text: str) -> int:
    value = int(text)
    if value <= 0:
        raise ValueError(text)
    return value


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of Schemathesis over one listener."""

    requests: int
    status: int


def main(arguments: Sequence[str]) -> int:
    """Run the trials; return 1 when one of them found something."""
    chosen = parser().parse_args(arguments)
    wanted = QUICK_REQUESTS if chosen.quick else chosen.requests
    seed = chosen.seed or (QUICK_SEED if chosen.quick else time.time_ns() % 2**31)
    listeners = [chosen.only] if chosen.only else [*LISTENERS]
    made, is_found = 0, False
    with tempfile.TemporaryDirectory() as directory, _server(Path(directory)) as urls:
        for listener in listeners:
            trial = _tried(Path(directory), urls, listener, seed, wanted, chosen.quick)
            made += trial.requests
            is_found = is_found or trial.status != 0
    print(f"api: {made} requests, {'findings: see above' if is_found else 'no findings'}")
    return FOUND if is_found else OK


@contextmanager
def _server(directory: Path) -> Iterator[Mapping[str, str]]:
    """Run a control plane with a database of its own."""
    (directory / "token").write_text(TOKEN, "ascii")
    log = (directory / "server.log").open("wb")
    with log, subprocess.Popen(
        [sys.executable, "-m", "support.api_trial.server_program", str(directory)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdin is not None
        line = process.stdout.readline()
        if not line:
            sys.exit(f"dev.py api: no server: {(directory / 'server.log').read_text()}")
        try:
            yield json.loads(line)
        finally:
            process.stdin.close()
            process.wait(30)
            said = (directory / "server.log").read_text("utf-8", "replace")
            if "Traceback" in said:
                print(said[-20_000:], file=sys.stderr)


def _tried(
    directory: Path, urls: Mapping[str, str], listener: str, seed: int, wanted: int, is_quick: bool
) -> Trial:
    agent = _registered(urls[AGENT])
    document = directory / f"{listener}.json"
    document.write_text(json.dumps(_of_listener(listener)), "utf-8")
    counted = directory / f"{listener}.count"
    headers = (
        {"Authorization": f"Bearer {TOKEN}"}
        if listener == OPERATOR
        else {"X-Agent-Id": str(agent["agent_id"]), "X-Agent-Token": agent["auth_token"]}
    )
    command = [
        str(Path(sys.executable).parent / "schemathesis"),
        f"--config-file={SETTINGS}", "run", str(document), f"--url={urls[listener]}",
        f"--phases={PHASES}", f"--seed={seed}", "--no-color", "--generation-database=none",
        "--continue-on-failure",
        f"--max-examples={max(1, wanted // (2 * len(json.loads(document.read_text())['paths'])))}",
        *(f"--header={name}:{value}" for name, value in headers.items()),
    ]  # fmt: skip
    if is_quick:
        command += ["--no-shrink"]
    environment = os.environ | {
        "SCHEMATHESIS_HOOKS": "support.api_trial.hooks",
        "NETSONDE_TRIAL_AGENT": str(agent["agent_id"]),
        "NETSONDE_TRIAL_COUNT": str(counted),
    }
    status = subprocess.run(command, cwd=directory, env=environment, check=False).returncode
    return Trial(int(counted.read_text("ascii")) if counted.exists() else 0, status)


def _registered(url: str) -> dict[str, Any]:
    request = urllib.request.Request(
        f"{url}/v1/agents/register",
        wire.encode({"hostname": "trial", "agent_key": AGENT_KEY}),
        {"Content-Type": "application/json", "Netsonde-Protocol": "1"},
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        registered: dict[str, Any] = json.load(response)
        return registered


def _of_listener(listener: str) -> dict[str, Any]:
    """Return the part of the document that one listener answers, streams left out.

    A token is needed there: the trial's server has a token file.
    """
    document: dict[str, Any] = json.loads((ROOT / "docs" / "openapi.json").read_text("utf-8"))
    paths = {}
    for path, item in document["paths"].items():
        kept = {
            method: _without_streams(operation)
            for method, operation in item.items()
            if listener in operation["x-listener"] and not path.endswith("/stream")
        }
        if kept:
            paths[path] = kept
    document["paths"] = paths
    del document["servers"]
    return document


def _without_streams(operation: dict[str, Any]) -> dict[str, Any]:
    operation.pop("servers")
    operation["security"] = [one for one in operation["security"] if one]
    operation["parameters"] = [
        one
        for one in operation["parameters"]
        if one["name"] != "first_line"  # of a stream
    ]
    for body in (operation.get("requestBody", {}), *operation["responses"].values()):
        body.get("content", {}).pop(wire.NDJSON, None)
    return operation
