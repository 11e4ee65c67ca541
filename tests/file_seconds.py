"""How long the longest files of tests take, by the path from the root: they are started first.

Processor seconds of `make test` on two cores, their child processes included. A file that is not
here, or whose time has changed, costs nothing but a worse order.
"""

from __future__ import annotations

SECONDS = {
    "tests/ray/search/test_results.py": 50,
    "tests/ray/test_cluster.py": 20,
    "tests/infra/test_up.py": 110,
    "tests/ray/test_retrain.py": 61,
    "tests/orchestrator/control/test_kills.py": 13,
    "tests/ray/test_train_command.py": 15,
    "tests/orchestrator/cluster/test_contract.py": 30,
    "tests/end_to_end/test_real_models.py": 115,
    "tests/jobs/train/test_method_runs.py": 67,
    "tests/jobs/train/test_sharded_runs.py": 60,
    "tests/jobs/train/test_loop.py": 50,
    "tests/storage/test_faults_s3.py": 41,
    "tests/jobs/train/test_tasks_of_runs.py": 28,
    "tests/zoo/test_zoo.py": 25,
    "tests/jobs/retrain/test_warm_start.py": 22,
    "tests/jobs/train/test_first_evaluation.py": 18,
}
