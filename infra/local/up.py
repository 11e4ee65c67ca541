"""`make up`: brings the whole up on this machine, part by part, and says where everything is."""

from __future__ import annotations

import argparse
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from infra.local import parts as known
from infra.local.down import end_parts, without_scratch
from infra.local.home import (
    RAY,
    ROOT,
    SERVICE,
    STORAGE,
    STORE,
    Busy,
    Home,
    private,
    s3_environment,
)
from infra.local.parts import Part
from infra.local.processes import alive, free_port, start, started
from infra.local.state import State, read_state, write_state

TICK_S = 0.2
ORDER = (STORAGE, RAY, SERVICE)
PREFERRED = {RAY: ("dashboard", 8265), SERVICE: ("service", 8321)}
SEAWEED = ("master", "volume", "filer", "s3")
APART = 10_000
"""Each port of SeaweedFS has a second one so much higher."""
LAST_LINES = 12


class NotUp(Exception):
    """A part did not come up; its message says what to read."""


class Whole:
    """One local whole while it is brought up."""

    def __init__(self, home: Home, cpus: int) -> None:
        self._home, self._cpus = home, cpus
        self._state = read_state(home.state) or State()
        self._begun: list[str] = []

    def up(self) -> dict[str, int]:
        """Starts what does not run; ends what it started if one of them fails. The ports."""
        self._prepare()
        try:
            for name in ORDER:
                self._bring_up(self._part(name))
        except BaseException:
            self._undo()
            raise
        return self._state.ports

    def _prepare(self) -> None:
        """Ends what is left of dead parts, and settles ports and folders for the living ones."""
        moved = False
        for name in ORDER:
            if alive(self._state.parts.get(name)) and not moved:
                continue
            # What is left of it: a Ray without its head. Or it looks for others where they are not.
            self._keep(end_parts(self._state, [name]))
            ports = _ports(name, self._state.ports)
            moved = moved or any(self._state.ports.get(key) != ports[key] for key in ports)
            self._keep(self._state.with_ports(**ports))
        scratch = self._state.scratch
        if scratch is None or not Path(scratch).is_dir():
            # For its owner alone: Ray makes its own folder writable for all.
            scratch = tempfile.mkdtemp(prefix="slora-up-", dir="/tmp")
        self._keep(replace(self._state, scratch=scratch))
        (Path(scratch) / "tmp").mkdir(exist_ok=True)
        private(self._home.config, known.config_text(self._home, self._state.ports))

    def _part(self, name: str) -> Part:
        ports = self._state.ports
        if name == STORAGE:
            return known.storage(self._home, ports)
        if name == SERVICE:
            return known.service(self._home, ports)
        assert self._state.scratch is not None
        return known.ray(self._home, ports, Path(self._state.scratch), self._cpus)

    def _bring_up(self, part: Part) -> None:
        if alive(self._state.parts.get(part.name)):
            print(f"{part.about:10} runs already", flush=True)
            self._wait(part, None)
            return
        print(f"{part.about:10} starts …", end="", flush=True)
        since = time.monotonic()
        self._home.log(part.name).unlink(missing_ok=True)
        self._begun.append(part.name)
        process = start(
            part.command,
            environment=part.environment,
            mark=f"{self._state.mark}-{part.name}",
            log=self._home.log(part.name),
            cwd=ROOT,
        )
        self._keep(self._state.with_part(part.name, started(process.pid)))
        self._wait(part, process)
        print(f" ready after {time.monotonic() - since:.1f} s", flush=True)

    def _wait(self, part: Part, process: subprocess.Popen[bytes] | None) -> None:
        until = time.monotonic() + part.start_s
        while not part.answers():
            if process is not None and process.poll() is not None:
                raise NotUp(self._why(part, f"ended with {process.returncode}"))
            if time.monotonic() > until:
                raise NotUp(self._why(part, f"does not answer after {part.start_s:.0f} s"))
            time.sleep(TICK_S)

    def _why(self, part: Part, problem: str) -> str:
        log = self._home.log(part.name)
        last = log.read_text(errors="replace").strip().splitlines()[-LAST_LINES:]
        return "\n".join([f"{part.about} {problem}. Its log is {log}; it ends:", *last])

    def _undo(self) -> None:
        print(f"\nending what was started: {', '.join(self._begun) or 'nothing'}", flush=True)
        # Whoever presses Ctrl-C again wants the end that is already under way.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            state = end_parts(self._state, reversed(self._begun))
            self._keep(state if state.parts else without_scratch(state))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def _keep(self, state: State) -> None:
        self._state = state
        write_state(self._home.state, state)


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 all answer, 3 one part does not or others are at work here, 130 on Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m infra.local.up", description=__doc__)
    parser.add_argument("--state", type=Path, default=ROOT / ".cache/up", help="default: .cache/up")
    parser.add_argument("--cpus", type=int, default=os.cpu_count() or 1, help="that Ray has")
    asked = parser.parse_args(arguments)
    home = Home(asked.state.resolve())
    home.make()
    try:
        with home.alone():
            ports = Whole(home, asked.cpus).up()
    except (NotUp, Busy) as wrong:
        print(wrong, file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        return 130
    _tell(home, ports)
    return 0


def _tell(home: Home, ports: dict[str, int]) -> None:
    url = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
    words = {
        **s3_environment(home, url["s3"]),
        "SLORA_SERVICE": url["service"],
        "SLORA_TOKEN_FILE": str(home.service_token),
    }
    slora = _short(Path(known.program("slora")))
    private(home.environment, exports(words))
    print(f"""
service    {url["service"]}   its administrator's token: {_short(home.service_token)}
Ray        {url["dashboard"]}   its token: {_short(home.ray_token)}
storage    {url["s3"]}   {STORE}, keys in {_short(home.credentials)}
logs       {_short(home.log("service").parent)}

Try:
    . {_short(home.environment)}
    {slora} submit jobs/examples/chat.yaml --set store={STORE} --follow   # `make demo` has its data
    {slora} runs
    {slora} adapters list --store {STORE}

`make down` ends it; what was made stays.""")


def exports(words: Mapping[str, str]) -> str:
    """For a shell to read."""
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in words.items())


def _short(path: Path) -> str:
    with suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)


def _ports(part: str, before: dict[str, int]) -> dict[str, int]:
    """The part's ports: those of last time if they are free, or others."""
    if part == STORAGE:
        return _seaweed_ports(before)
    name, preferred = PREFERRED[part]
    return {name: free_port(before.get(name, preferred))}


def _seaweed_ports(before: dict[str, int]) -> dict[str, int]:
    """Four, each free 10,000 higher too."""
    found = {name: before[name] for name in SEAWEED if name in before and _both_free(before[name])}
    while len(found) < len(SEAWEED):
        port = random.randrange(20_000, 30_000)
        if port not in found.values() and _both_free(port):
            found[next(name for name in SEAWEED if name not in found)] = port
    return found


def _both_free(port: int) -> bool:
    return free_port(port) == port and free_port(port + APART) == port + APART


if __name__ == "__main__":
    # Like Ctrl-C, so that what was begun is ended.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sys.exit(main())
