"""``python ARGUMENTS`` with torch and this package imported already, which is most of what a small command takes.

A server, one for each pytest, imports them once and forks itself for every command. What is started instead of the
command, also by mpirun, is a process that hands its arguments, folder, environment and standard streams to the server,
passes on the signals that it gets, and ends as the command ends. If it is killed, so is the command. Only what an
import decides, from environment variables for instance, is decided by that of the server.
"""

import json
import os
import select
import signal
import socket
import sys

#: Signals that are passed on.
PASSED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def ask(path: str, arguments: list[str]) -> None:
    """Let the server run a command, and end as it ends."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server.connect(path)
    for number in PASSED:
        signal.signal(number, lambda number, _: server.send(bytes([number])))
    request = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}
    socket.send_fds(server, [json.dumps(request).encode()], [0, 1, 2])
    status = int.from_bytes(server.recv(4), "little")
    if os.WIFSIGNALED(status):
        if os.WTERMSIG(status) != signal.SIGKILL:
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.waitstatus_to_exitcode(status))


def serve(path: str) -> dict:
    """Fork for every command, until standard input ends. Returns in the process of a command, with what it is asked."""
    import gc

    import scipy.integrate  # parts that some commands load
    import scipy.ndimage
    import scipy.optimize
    import scipy.spatial  # noqa: F401
    import torch._dynamo  # noqa: F401 (which the first optimiser imports)

    import hpc_kjko.cli.file_verbs
    import hpc_kjko.cli.inspect_verb
    import hpc_kjko.cli.run_verbs
    import hpc_kjko.post.analysis  # noqa: F401

    assert "mpi4py.MPI" not in sys.modules and len(os.listdir("/proc/self/task")) == 1
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen(64)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    gc.freeze()  # else every command would look through all of torch for garbage when it ends: a second
    print("ready", flush=True)
    while listener in select.select([listener, sys.stdin], [], [])[0]:
        client = listener.accept()[0]
        if os.fork() == 0:  # a process that waits for the command
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            message, streams, _, _ = socket.recv_fds(client, 2**18, 3)
            command = os.fork()
            if command == 0:
                client.close()
                return {**json.loads(message), "streams": streams}
            _wait(client, command, os.pidfd_open(command), streams)
        client.close()
    os._exit(0)


def _wait(client: socket.socket, command: int, ended: int, streams: list[int]) -> None:
    for stream in (0, 1, 2, *streams):  # else whoever reads the command's output would wait for this process, too
        os.close(stream)
    while ended not in select.select([client, ended], [], [])[0]:
        told = client.recv(1)
        os.kill(command, told[0] if told else signal.SIGKILL)
        if not told:
            break
    status = os.waitpid(command, 0)[1]
    client.send(status.to_bytes(4, "little"))
    while client.recv(1):  # a signal that was passed on too late; closed with one unread, the socket is "reset by peer"
        pass
    os._exit(0)


def become(arguments: list[str], folder: str, environment: dict[str, str], streams: list[int]) -> None:
    """Go on as ``python ARGUMENTS``."""
    import runpy

    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    text = {"encoding": sys.stdout.encoding, "errors": sys.stdout.errors, "closefd": False}
    sys.stdin = sys.__stdin__ = open(0, **text)
    sys.stdout = sys.__stdout__ = open(1, "w", **text)
    sys.stderr = sys.__stderr__ = open(2, "w", **{**text, "errors": "backslashreplace"}, buffering=1)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.executable = os.path.join(os.path.dirname(sys.argv[1]), "python")  # what the command starts is as quick
    sys.argv = arguments
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        sys.path[0] = folder
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = os.path.dirname(os.path.abspath(arguments[0]))
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    become(**serve(sys.argv[1]))
