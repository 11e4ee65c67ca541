"""`make up`: start the local stack, component by component, and print its addresses."""

from __future__ import annotations

import argparse
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from infra.local import components
from infra.local.components import Component
from infra.local.down import remove_scratch, stop_components
from infra.local.paths import (
    RAY,
    ROOT,
    SERVICE,
    SERVING,
    STORAGE,
    STORE,
    StackBusy,
    StackPaths,
    build_s3_environment,
    write_private,
)
from infra.local.pip_environment import EnvironmentNotMade
from infra.local.processes import find_free_port, is_alive, read_identity, start_process
from infra.local.project_identities import add_projects, find_missing_projects, list_projects
from infra.local.serving_environment import make_serving_environment
from infra.local.state import StackState, read_state, write_state

TICK_S = 0.2
START_ORDER = (STORAGE, RAY, SERVICE)
PREFERRED_PORTS = {
    RAY: ("dashboard", 8265),
    SERVICE: ("service", 8321),
    SERVING: ("serving", 8330),
}
DEMO_MODEL = ROOT / ".cache/models/smollm2-135m-instruct"
SEAWEED_PORTS = ("master", "volume", "filer", "s3")
GRPC_PORT_OFFSET = 10_000
"""Distance of the gRPC port that belongs to each port of SeaweedFS."""
LAST_LINES = 12
PROJECT_READERS = (SERVICE, STORAGE)
"""Components that read the projects when they start, in the order in which they stop."""
PROJECT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")


class ComponentNotReady(Exception):
    """A component did not start; the message contains the end of its log."""


class LocalStack:
    """The local stack, while it is started."""

    def __init__(
        self,
        paths: StackPaths,
        cpus: int,
        projects: Sequence[str] = (),
        served_model: Path | None = None,
    ) -> None:
        """`served_model`: the folder of the base that a vLLM server answers with, if any."""
        self._paths, self._cpus, self._projects = paths, cpus, projects
        self._served_model = served_model
        self._order = START_ORDER if served_model is None else (*START_ORDER, SERVING)
        self._state = read_state(paths.state) or StackState()
        self._started: list[str] = []

    def start(self) -> dict[str, int]:
        """Start the components that do not run, and return the ports. Stop them if one fails."""
        self._prepare()
        try:
            for name in self._order:
                self._start_component(self._make_component(name))
        except BaseException:
            self._stop_started()
            raise
        return self._state.ports

    def _prepare(self) -> None:
        """Stop the remains of dead components, and choose ports and folders."""
        moved = False
        if self._projects and (missing := find_missing_projects(self._paths, self._projects)):
            # Stopped first: after a crash in between, the next start reads what was added.
            self._save_state(stop_components(self._state, PROJECT_READERS))
            add_projects(self._paths, missing)
        if self._served_model is not None and "serving" not in self._state.ports:
            # It reads the endpoint when it starts.
            self._save_state(stop_components(self._state, [SERVICE]))
        for name in self._order:
            if is_alive(self._state.components.get(name)) and not moved:
                continue
            # It may be a Ray without its head, or know the old port of another component.
            self._save_state(stop_components(self._state, [name]))
            ports = _choose_ports(name, self._state.ports)
            moved = moved or any(self._state.ports.get(key) != ports[key] for key in ports)
            self._save_state(self._state.with_ports(**ports))
        scratch = self._state.scratch
        if scratch is None or not Path(scratch).is_dir():
            # Accessible to its owner only: Ray makes its own folder in it writable for all.
            scratch = tempfile.mkdtemp(prefix="slora-up-", dir="/tmp")
        self._save_state(replace(self._state, scratch=scratch))
        (Path(scratch) / "tmp").mkdir(exist_ok=True)
        write_private(self._paths.config, components.format_config(self._paths, self._state.ports))

    def _make_component(self, name: str) -> Component:
        ports = self._state.ports
        if name == STORAGE:
            return components.make_storage(self._paths, ports)
        if name == SERVICE:
            return components.make_service(self._paths, ports)
        if name == SERVING:
            assert self._served_model is not None
            _prepare_demo_model(self._served_model)
            python = make_serving_environment()
            return components.make_serving(self._paths, ports, python, self._served_model)
        assert self._state.scratch is not None
        return components.make_ray(self._paths, ports, Path(self._state.scratch), self._cpus)

    def _start_component(self, component: Component) -> None:
        if is_alive(self._state.components.get(component.name)):
            print(f"{component.label:10} is already running", flush=True)
            self._wait_until_ready(component, None)
            return
        print(f"{component.label:10} starting …", end="", flush=True)
        started_at = time.monotonic()
        self._paths.log_file(component.name).unlink(missing_ok=True)
        self._started.append(component.name)
        process = start_process(
            component.command,
            environment=component.environment,
            mark=f"{self._state.mark}-{component.name}",
            log=self._paths.log_file(component.name),
            cwd=ROOT,
        )
        self._save_state(self._state.with_component(component.name, read_identity(process.pid)))
        self._wait_until_ready(component, process)
        print(f" ready after {time.monotonic() - started_at:.1f} s", flush=True)

    def _wait_until_ready(
        self, component: Component, process: subprocess.Popen[bytes] | None
    ) -> None:
        deadline = time.monotonic() + component.start_timeout_s
        while not component.is_ready():
            if process is not None and process.poll() is not None:
                raise ComponentNotReady(
                    self._describe_failure(component, f"exited with code {process.returncode}")
                )
            if time.monotonic() > deadline:
                raise ComponentNotReady(
                    self._describe_failure(
                        component, f"is not ready after {component.start_timeout_s:.0f} s"
                    )
                )
            time.sleep(TICK_S)

    def _describe_failure(self, component: Component, problem: str) -> str:
        log = self._paths.log_file(component.name)
        last = log.read_text(errors="replace").strip().splitlines()[-LAST_LINES:]
        return "\n".join([f"{component.label} {problem}. The end of its log, {log}:", *last])

    def _stop_started(self) -> None:
        print(f"\nstopping {', '.join(self._started) or 'nothing'}", flush=True)
        # A second Ctrl-C must not interrupt the cleanup that the first one has started.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            state = stop_components(self._state, reversed(self._started))
            self._save_state(state if state.components else remove_scratch(state))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def _save_state(self, state: StackState) -> None:
        self._state = state
        write_state(self._paths.state, state)


def main(arguments: list[str] | None = None) -> int:
    """Exit with 0 if all is ready, 3 if a component fails or the stack is locked, 130 on Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m infra.local.up", description=__doc__)
    parser.add_argument("--state", type=Path, default=ROOT / ".cache/up", help="default: .cache/up")
    parser.add_argument("--cpus", type=int, default=os.cpu_count() or 1, help="CPUs of Ray")
    parser.add_argument(
        "--project",
        action="append",
        default=[],
        type=_check_project,
        metavar="NAME",
        help="give this project S3 credentials of its own; may be repeated",
    )
    parser.add_argument(
        "--serving",
        nargs="?",
        type=_check_model,
        const=DEMO_MODEL,
        metavar="MODEL",
        help="start a vLLM server of this folder too; default: the model of `make demo`",
    )
    options = parser.parse_args(arguments)
    paths = StackPaths(options.state.resolve())
    paths.create()
    try:
        with paths.lock():
            ports = LocalStack(paths, options.cpus, options.project, options.serving).start()
    except (ComponentNotReady, EnvironmentNotMade, StackBusy) as error:
        print(error, file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        return 130
    _print_summary(paths, ports)
    return 0


def _check_project(name: str) -> str:
    if not PROJECT.fullmatch(name) or name == "default":
        problem = f"{name[:80]!a} can't have credentials of its own"
        raise argparse.ArgumentTypeError(f"{problem}: use letters, digits, _ and -, not default")
    return name


def _prepare_demo_model(model: Path) -> None:
    """Unpack the model of `make demo` if it is asked for and missing."""
    if model == DEMO_MODEL and not (model / "config.json").is_file():
        subprocess.run([sys.executable, ROOT / "infra/demo/prepare.py", "chat"], check=True)


def _check_model(path: str) -> Path:
    folder = Path(path).resolve()
    if not (folder / "config.json").is_file():
        raise argparse.ArgumentTypeError(f"{folder} has no config.json: name a model's folder")
    return folder


def _print_summary(paths: StackPaths, ports: dict[str, int]) -> None:
    urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
    variables = {
        **build_s3_environment(paths, urls["s3"]),
        "SLORA_SERVICE": urls["service"],
        "SLORA_TOKEN_FILE": str(paths.service_token),
    }
    slora = _format_path(Path(components.find_program("slora")))
    write_private(paths.environment, format_exports(variables))
    print(f"""
service    {urls["service"]}   admin token: {_format_path(paths.service_token)}
Ray        {urls["dashboard"]}   token: {_format_path(paths.ray_token)}
storage    {urls["s3"]}   {STORE}, credentials: {_format_path(paths.credentials)}
{_describe_serving(paths, urls)}logs       {_format_path(paths.log_file("service").parent)}
{_describe_projects(paths)}
Try:
    . {_format_path(paths.environment)}
    {slora} submit jobs/examples/chat.yaml --set store={STORE} --follow   # data: `make demo`
    {slora} runs
    {slora} adapters list --store {STORE}

`make down` stops it and keeps all data.""")


def _describe_serving(paths: StackPaths, urls: Mapping[str, str]) -> str:
    """Return the line of the model server, if one runs."""
    state = read_state(paths.state)
    if state is None or not is_alive(state.components.get(SERVING)):
        return ""
    return f"vLLM       {urls['serving']}   key: {_format_path(paths.serving_key)}\n"


def _describe_projects(paths: StackPaths) -> str:
    """Return a line for each project with credentials of its own."""
    return "".join(
        f"project    {name}   {STORE}/projects/{name}, credentials: {_format_path(file)}\n"
        for name, file in list_projects(paths).items()
    )


def format_exports(variables: Mapping[str, str]) -> str:
    """Format variables as export commands of a shell."""
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())


def _format_path(path: Path) -> str:
    with suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)


def _choose_ports(component: str, previous: dict[str, int]) -> dict[str, int]:
    """Return the ports of a component: the previous ones if they are free, otherwise others."""
    if component == STORAGE:
        return _choose_seaweed_ports(previous)
    name, preferred = PREFERRED_PORTS[component]
    return {name: find_free_port(previous.get(name, preferred))}


def _choose_seaweed_ports(previous: dict[str, int]) -> dict[str, int]:
    """Return four ports whose gRPC ports are free too."""
    ports = {
        name: previous[name]
        for name in SEAWEED_PORTS
        if name in previous and _is_pair_free(previous[name])
    }
    while len(ports) < len(SEAWEED_PORTS):
        port = random.randrange(20_000, 30_000)
        if port not in ports.values() and _is_pair_free(port):
            ports[next(name for name in SEAWEED_PORTS if name not in ports)] = port
    return ports


def _is_pair_free(port: int) -> bool:
    return (
        find_free_port(port) == port
        and find_free_port(port + GRPC_PORT_OFFSET) == port + GRPC_PORT_OFFSET
    )


if __name__ == "__main__":
    # Like Ctrl-C, so that the started components are stopped.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sys.exit(main())
