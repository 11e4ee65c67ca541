"""A child that does what it should not, as the location of its request says, within its limits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from orchestrator.control.looking.child_limits import apply_limits, drop_rights
from orchestrator.control.looking.look_protocol import LookAnswer, LookRequest

MODULE = "tests.orchestrator.control.misbehaving_child"


def main() -> None:
    request = LookRequest.model_validate_json(sys.stdin.buffer.read())
    drop_rights(request.account)
    apply_limits(request.limits)
    location = request.location or request.spec["data"]["train"]
    action = location.rpartition("/")[2]
    if action == "allocate":
        bytearray(20 << 30)
    elif action == "loop":
        while True:
            pass
    elif action == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif action == "flood":
        for _ in range(100):
            sys.stdout.write("nonsense" * 2**16)
    elif action == "complain":
        sys.exit("a library failed")
    elif action == "unknown_key":
        sys.stdout.write('{"fingerprint": "abc", "reject_everything": true}')
    elif action == "start_others":
        process = subprocess.Popen(["sleep", "1000"], stdout=subprocess.DEVNULL)
        sys.stdout.write(LookAnswer(unchecked=f"{process.pid} of {os.getpgrp()}").model_dump_json())
    elif action == "describe":
        names = " ".join(sorted(os.environ))
        ids = f"{os.getuid()} {os.getgid()} {os.getgroups()}"
        text = f"{names} | {ids} | {os.listdir()}"
        sys.stdout.write(LookAnswer(unchecked=text).model_dump_json())
    else:
        # A pipe with a name: until somebody writes to it.
        sys.stdout.write(LookAnswer(fingerprint=Path(location).read_text()).model_dump_json())


if __name__ == "__main__":
    main()
