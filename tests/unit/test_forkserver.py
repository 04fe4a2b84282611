"""Commands that the tests start quickly (tests/forkserver.py) are what they would be as processes of their own."""

import os
import signal
import subprocess
import time

import pytest
from conftest import command, environment, quick

TELLS = """
import atexit, json, os, signal, sys
atexit.register(print, "at the end")
signals = [str(signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGCHLD)]
streams = [(s.encoding, s.errors, s.isatty(), s.line_buffering) for s in (sys.stdin, sys.stdout, sys.stderr)]
argv = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
environment = {name: value for name, value in os.environ.items() if name != "_"}
print(json.dumps([__name__, argv, sys.path[0], os.getcwd(), sorted(environment.items()), signals, streams]), input())
print("and an error", file=sys.stderr)
"""


def ended(line, folder, **options):
    env = {**environment(), "MARK": "κ"}
    env.pop("PYTHONUNBUFFERED", None)
    return subprocess.run(line, cwd=folder, env=env, text=True, capture_output=True, timeout=60, **options)


@pytest.mark.parametrize(
    "ending", ["sys.exit(7)", "sys.exit('a sentence')", "raise ValueError('so')", "os.abort()", ""]
)
@pytest.mark.parametrize("named", [["tells.py"], ["-m", "tells"]], ids=" ".join)
def test_what_it_sees_and_how_it_ends(named, ending, tmp_path):
    (tmp_path / "tells.py").write_text(TELLS + ending)
    first, second = (ended(way(*named, "an argument", "κ"), tmp_path, input="a line\n") for way in (command, quick))
    assert (first.returncode, first.stdout) == (second.returncode, second.stdout)
    assert first.stderr.splitlines()[-1:] == second.stderr.splitlines()[-1:]
    if ending != "os.abort()":
        assert "a line" in second.stdout and "and an error" in second.stderr and "at the end" in second.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGKILL])
def test_signals_reach_it(number, tmp_path):
    (tmp_path / "waits.py").write_text(
        "import os, time\nfrom pathlib import Path\nPath('begun').write_text(str(os.getpid()))\ntime.sleep(100)\n"
    )
    process = subprocess.Popen(quick("waits.py"), cwd=tmp_path, env=environment(), stderr=subprocess.PIPE)
    begun, deadline = tmp_path / "begun", time.monotonic() + 60
    while not (begun.exists() and begun.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(timeout=20) == -number
    while os.path.exists(f"/proc/{begun.read_text()}"):
        assert time.monotonic() < deadline
        time.sleep(0.01)


ENDED = """
import os, select, signal, socket, sys, time
sys.path.append(sys.argv[1])
import forkserver
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
ours.send(bytes([signal.SIGTERM]))
if os.fork() == 0:
    ours.close()
    command = os.fork()
    if command == 0:
        os._exit(7)
    ended = os.pidfd_open(command)
    select.select([ended], [], [])
    forkserver._wait(theirs, command, ended, [])
theirs.close()
time.sleep(0.2)
print(os.waitstatus_to_exitcode(int.from_bytes(ours.recv(4), "little")))
"""


def test_a_signal_that_comes_too_late_does_not_hide_how_it_ended(tmp_path):
    """As when mpirun ends a rank that is ending by itself."""
    process = ended(command("-c", ENDED, os.path.dirname(__file__) + "/.."), tmp_path)
    assert (process.returncode, process.stdout, process.stderr) == (0, "7\n", "")
