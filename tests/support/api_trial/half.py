"""One listener's half of a trial: a control plane of its own, and Schemathesis before it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from netsonde import wire
from netsonde.server.openapi import AGENT, OPERATOR
from support.api_trial import exceptions
from support.api_trial.furnish import TOKEN, Agent, furnished

ROOT = Path(__file__).resolve().parents[3]
LISTENERS = (AGENT, OPERATOR)
FIRST_PHASES = "examples,coverage,fuzzing,stateful"
LATER_PHASES = "fuzzing,stateful"  # the others ask the same each time
QUICK: Sequence[str] = ("--phases=examples,coverage,fuzzing", "--max-examples=2", "--no-shrink")
STOP_S = 30.0
LOG_CHARS = 20_000  # of a log that is shown
EXAMPLES_MIN, EXAMPLES_MAX = 30, 150  # of each operation in one round


class TrialError(Exception):
    """There is no trial: its control plane did not start, or did not stop."""


@dataclass(slots=True)
class Half:
    """The trial of one listener's calls: how far it is, and what it found."""

    listener: str
    directory: Path
    seed: int
    is_quick: bool = False
    rounds: int = 0
    findings: list[str] = field(default_factory=list)

    @property
    def requests(self) -> int:
        """How many requests have been made, also while they are."""
        counts = self.directory.glob("*.count")
        return sum(int(one.read_text("ascii") or 0) for one in counts)

    def operations(self) -> list[str]:
        """Return the names of the calls that are put."""
        paths = document_of(self.listener)["paths"].values()
        return [operation["operationId"] for item in paths for operation in item.values()]

    def run(self, wanted: int) -> None:
        """Make at least as many requests as are wanted, or stop at what is found."""
        with _server(self.directory) as urls:
            agent = furnished(urls)
            while not self.findings and (self.rounds == 0 or self.requests < wanted):
                self._round(urls[self.listener], agent, wanted - self.requests)
        if "Traceback" in (said := _log(self.directory)):
            self.findings.append(f"the control plane's log:\n{said[-LOG_CHARS:]}")

    def _round(self, url: str, agent: Agent, wanted: int) -> None:
        environment = os.environ | {
            "SCHEMATHESIS_HOOKS": "support.api_trial.hooks",
            "NETSONDE_TRIAL_AGENT": str(agent.agent_id),
            "NETSONDE_TRIAL_COUNT": str(self.directory / f"{self.rounds}.count"),
        }
        is_operator = self.listener == OPERATOR
        headers = {"Authorization": f"Bearer {TOKEN}"} if is_operator else agent.headers
        before = self.requests
        done = subprocess.run(
            [
                *self._command(url, wanted),
                *(f"--header={name}:{value}" for name, value in headers.items()),
            ],
            cwd=self.directory, env=environment, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self.rounds += 1
        if done.returncode:
            self.findings.append(done.stdout)
        elif self.requests == before:
            self.findings.append(f"no request was made:\n{done.stdout}")

    def _command(self, url: str, wanted: int) -> list[str]:
        document, settings = self.directory / "document.json", self.directory / "settings.toml"
        document.write_text(json.dumps(document_of(self.listener)), "utf-8")
        settings.write_text(exceptions.settings(), "utf-8")
        command = [
            str(Path(sys.executable).parent / "schemathesis"),
            f"--config-file={settings}", "run", str(document), f"--url={url}",
            "--checks=all", f"--seed={self.seed + self.rounds}", "--no-color",
            "--generation-database=none", "--continue-on-failure",
        ]  # fmt: skip
        if self.is_quick:
            return [*command, *QUICK]
        phases = LATER_PHASES if self.rounds else FIRST_PHASES
        examples = min(max(EXAMPLES_MIN, wanted // len(self.operations())), EXAMPLES_MAX)
        return [*command, f"--phases={phases}", f"--max-examples={examples}"]


@contextmanager
def _server(directory: Path) -> Iterator[Mapping[str, str]]:
    """Run a control plane with a database of its own."""
    (directory / "token").write_text(TOKEN, "ascii")
    log = (directory / "server.log").open("wb")
    with log, subprocess.Popen(
        [sys.executable, "-m", "support.api_trial.server_program", str(directory)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
    ) as process:  # fmt: skip
        try:
            yield _urls(process.stdout, directory)
        finally:
            _stop(process, directory)


def _stop(process: subprocess.Popen[str], directory: Path) -> None:
    try:
        process.communicate(timeout=STOP_S)  # it stops with its stdin
    except subprocess.TimeoutExpired:
        process.kill()
        raise TrialError(f"the control plane did not stop:\n{_log(directory)}") from None


def _log(directory: Path) -> str:
    return (directory / "server.log").read_text("utf-8", "replace")


def _urls(said: IO[str] | None, directory: Path) -> Mapping[str, str]:
    line = said.readline() if said else ""
    if not line:
        raise TrialError(f"there is no control plane to try:\n{_log(directory)}")
    urls: dict[str, str] = json.loads(line)
    return urls


def document_of(listener: str) -> dict[str, Any]:
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
