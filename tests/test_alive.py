"""Whether a process is there: this one, one that ended, one whose number was given away, one of another host."""

import json
import os
import subprocess
import sys

from muomni.alive import identity, is_alive


def test_this_process_is_alive_and_a_later_one_of_its_number_is_not_it() -> None:
    me = identity()
    assert me["pid"] == os.getpid()
    assert is_alive(me) is True
    assert is_alive({**me, "since": -1}) is False


def test_a_process_that_ended_is_not_alive_whether_it_was_waited_for_or_not() -> None:
    code = (
        "import json; from muomni.alive import identity; print(json.dumps(identity()), flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        other = json.loads(process.stdout.readline())
        assert is_alive(other) is True
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert is_alive(other) is False, "a zombie"
        process.wait()
    assert is_alive(other) is False


def test_of_another_host_or_of_nobody_nothing_is_known() -> None:
    assert is_alive({**identity(), "host": "elsewhere"}) is None
    assert is_alive({}) is None
    assert is_alive({**identity(), "pid": "17"}) is None
    assert is_alive({**identity(), "pid": 0}) is None
    assert is_alive({**identity(), "pid": 10**20}) is None
