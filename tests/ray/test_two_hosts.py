"""Two hosts in network namespaces: what a run sends between them, and that nothing stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from infra.two_hosts.hosts import ROOT, start_ray_hosts
from infra.two_hosts.measure import run_spec
from infra.two_hosts.namespaces import INTERFACE, PREFIX, Link, create_network, explain_unavailable
from tests.tiny import label_rows, tiny_chat_model, tiny_spec, write_spec

REFUSED = explain_unavailable()
pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]
hosts_here = pytest.mark.skipif(REFUSED is not None, reason=str(REFUSED))
SCRIPT = [sys.executable, "-m", "infra.two_hosts"]
WORKERS = 4
SENDS = """
import socket, sys, time
here, there, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
if count == 0:
    listener = socket.create_server((here, 5555))
    print("ready", flush=True)
    taken, _ = listener.accept()
    while taken.recv(1 << 20):
        pass
    taken.sendall(b"!")
else:
    began = time.monotonic()
    with socket.create_connection((there, 5555)) as other:
        other.sendall(bytes(count))
        other.shutdown(socket.SHUT_WR)
        other.recv(1)
    print(time.monotonic() - began)
"""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    tiny_chat_model(tmp_path / "model")
    label_rows(tmp_path / "train.jsonl", 60)
    changes = {
        "model": {"task": "sequence-classification"},
        "data": {"format": "classification", "packing": False},
        # Enough numbers that headers and Ray's own words are small beside them.
        "method": {"density": 0.5, "rank": 16, "sparse_share": 0.5},
        "train": {"steps": 20, "batch_size": 8, "checkpoint_every": 1000},
        "cluster": {"workers": WORKERS},
    }
    return write_spec(tmp_path / "spec.yaml", tiny_spec(tmp_path, **changes))


@pytest.mark.long
@hosts_here
def test_between_two_hosts_travel_the_gradients_of_the_adapter_and_little_else(spec):
    with start_ray_hosts(2) as cluster:
        run = run_spec(cluster, spec)
        assert run.exit_code == 0, run.log.read_text()
    plan = run.runs.read_json("plan.json")
    assert [stage.stage for stage in run.stages] == ["sparse", "low-rank"]
    for traffic, stage in zip(run.stages, plan["stages"], strict=True):
        ring = 2 * (WORKERS - 1) / WORKERS * 4 * (stage["trainable"] + plan["head"])
        assert traffic.steps == 10
        assert ring <= traffic.bytes_per_step <= 2 * ring
    assert run.before_steps > 0
    assert run.total >= run.before_steps + 10 * run.stages[0].least
    _assert_no_hosts(os.getpid())


@hosts_here
def test_the_counter_is_the_one_of_the_hosts_own_interface():
    with create_network(2) as hosts:
        _send(hosts, 1_000_000)
        path = f"/sys/class/net/{INTERFACE}/statistics/tx_bytes"
        own = subprocess.check_output(hosts[0].build_command("cat", path), text=True)
        assert int(own) == hosts[0].read_sent_bytes()


@hosts_here
def test_the_bytes_of_every_frame_are_counted_with_its_headers():
    with create_network(2, Link(mtu=1500)) as hosts:
        before = hosts[0].read_sent_bytes()
        _send(hosts, 1_000_000)
        # 66 bytes of Ethernet, IP and TCP for each 1448 of ours.
        assert hosts[0].read_sent_bytes() - before > 1_000_000 * (1448 + 66) / 1448


@hosts_here
def test_a_rate_is_the_rate_of_the_link():
    with create_network(2, Link(rate="40mbit")) as hosts:
        seconds = _send(hosts, 5_000_000)
    # A second, less the 64 KB that may burst, and more on a machine that is busy.
    assert 0.9 <= seconds < 5


@hosts_here
def test_a_script_that_is_terminated_leaves_no_host(spec):
    script = subprocess.Popen([*SCRIPT, str(spec)], cwd=ROOT, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while not Path(f"/var/run/netns/{PREFIX}{script.pid}-1").exists():
        assert script.poll() is None
        assert time.monotonic() < until
    script.send_signal(signal.SIGTERM)
    assert script.wait(timeout=60) == 128 + signal.SIGTERM
    _assert_no_hosts(script.pid)


def test_where_no_hosts_can_be_made_one_line_says_why(tmp_path):
    done = subprocess.run(
        [*SCRIPT, "jobs/examples/chat.yaml"],
        cwd=ROOT,
        env={"PATH": str(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert line.startswith("two_hosts: ")


def _send(hosts, count: int) -> float:
    """Seconds until `count` bytes are over from the first host to the second."""
    local, remote = hosts
    words = (sys.executable, "-c", SENDS)
    receiver = subprocess.Popen(
        remote.build_command(*words, remote.address, local.address, "0"),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert receiver.stdout is not None
    assert receiver.stdout.readline() == "ready\n"
    command = local.build_command(*words, local.address, remote.address, str(count))
    took = float(subprocess.check_output(command, text=True))
    receiver.communicate(timeout=20)
    return took


def _assert_no_hosts(owner: int) -> None:
    namespaces = subprocess.check_output(["ip", "netns", "list"], text=True)
    assert f"{PREFIX}{owner}-" not in namespaces
    assert f"{PREFIX}{owner}" not in " ".join(os.listdir("/sys/class/net"))
    assert not list(Path("/tmp").glob(f"{PREFIX}{owner}-*"))
