"""Which process is which, and whose time is counted."""

import os
import subprocess
import sys

import pytest

from benchmarks.page import table
from benchmarks.processes import OTHER, Work, part_of


@pytest.mark.parametrize(
    ("command", "part"),
    [
        ("/usr/lib/chromium/chromium --type=renderer --lang=en", "browser: renderer"),
        ("chromium --type=utility --utility-sub-type=audio.mojom.AudioService", "browser: AudioService"),
        ("/usr/lib/chromium/chromium --headless --no-sandbox", "browser: main"),
        ("ray::ServeReplica:seedvc:Ingress.handle_request", "replica: Ingress"),
        ("ray::ServeController.listen_for_change", "ray: ServeController"),
        ("/x/site-packages/ray/core/src/ray/raylet/raylet --raylet_socket_name=/tmp/s", "ray: raylet"),
        ("/x/site-packages/ray/core/src/ray/gcs/gcs_server --log_dir=/tmp", "ray: gcs_server"),
        ("python -u /x/site-packages/ray/_private/log_monitor.py --session-dir=/tmp", "ray: _private/log_monitor"),
        ("python -m benchmarks.page", OTHER),
    ],
)
def test_a_command_line_tells_the_part(command: str, part: str) -> None:
    assert part_of(command) == part


def test_the_work_of_a_process_below_this_one_is_counted() -> None:
    busy = "import os\nwhile sum(os.times()[:2]) < 0.3: pass\nprint(flush=True)\ninput()"
    work = Work({os.getpid(): sum(os.times()[:2])})
    with subprocess.Popen([sys.executable, "-c", busy], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdin is not None
        process.stdout.readline()
        spent_s = work.spent_s()
        process.stdin.write(b"\n")
    assert spent_s[OTHER] >= 0.28, "it had worked for 0.3 s, give or take a tick"


def test_the_table_has_sums_of_groups() -> None:
    text = table({"idle": {"ray: raylet": 0.01}, "in_call": {"ray: raylet": 0.02, "ray: gcs_server": 0.03}})
    assert [line.split() for line in text.splitlines()] == [
        ["cores", "idle", "in_call"],
        ["ray", "0.01", "0.05"],
        ["gcs_server", "0.000", "0.030"],
        ["raylet", "0.010", "0.020"],
    ]
