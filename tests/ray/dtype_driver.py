"""Ask every machine of a cluster for its dtype, as the driver of a run on several machines does."""

from __future__ import annotations

import json

import ray

from jobs.plan.dtype_choice import ProbeShape
from jobs.train.cluster.settle_dtype import ask_nodes
from jobs.train.driver import connect_ray

if __name__ == "__main__":
    connect_ray()
    nodes = [node for node in ray.nodes() if node["Alive"]]
    answers = ask_nodes(nodes, ProbeShape(tokens=64, rows=256, columns=128), on_gpu=False)
    choices = {name: choice and choice.dtype for name, choice in answers.items()}
    print("answers", json.dumps(choices))
