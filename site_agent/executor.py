"""The site executor: takes tasks from this site's SuperNode and runs the installed ClientApp, never code that arrives.

One long-lived parent imports the heavy libraries once and forks a child for each task, which forks the worker that touches records.
It replaces Flower's SuperExec and its ClientApp process at a SuperNode started with ``--isolation process``. flwr internals used here are pinned by
``flwr==1.41.*`` and a contract test.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import hashlib
import importlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.app.error import Error
from flwr.app.message import remove_content_from_message
from flwr.cli.build import build_fab_from_disk
from flwr.common.constant import ErrorCode, SubStatus
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.auth import load_superexec_auth_secret
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

from medsynx import logs
from medsynx.flower_processes import SITE
from medsynx.flower_records import app_folder
from site_agent.client_app import app
from site_agent.policy import SiteFolder

log = logging.getLogger("medsynx.executor")
POLL_SECONDS = 0.3
CHILD_SECONDS = 3600  #: a worker that takes longer is killed; its step stays charged
#: Children at once. One may hang for a minute: the objects of a message never come when its run was ended while they were on their way, and a run
#: that was started again must not wait for that.
TASKS = 8
MOST_OF_A_HEAD = 2**16  #: bytes; a message without its content takes some hundred
PR_SET_PDEATHSIG = 1


def own_app_hash() -> str:
    """SHA-256 of the FAB this release builds; a run with any other FAB is refused."""
    return hashlib.sha256(build_fab_from_disk(app_folder())).hexdigest()


def _client(address: str, token: str) -> RuntimeHttpClient:
    return RuntimeHttpClient.from_server_address(
        server_address=address,
        insecure=True,  # the SuperNode's loopback port
        root_certificates=None,
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name="flwr-clientapp"),
            RuntimeTokenHttpInterceptor(token),
        ],
        retry_invoker=make_simple_http_retry_invoker(),
    )


@dataclass(frozen=True)
class Task:
    """A task that a child has. ``note`` is a file in memory for both: the message's head, once the child has pulled it."""

    token: str
    note: int

    @staticmethod
    def taken(token: str) -> Task:
        """A task of which nothing is known yet."""
        return Task(token, os.memfd_create("task"))

    def message(self) -> Message | None:
        """The message without content, if it was pulled."""
        head = os.pread(self.note, MOST_OF_A_HEAD, 0)
        return message_from_proto(ProtoMessage.FromString(head)) if head else None


def run_task(address: str, task: Task, own_hash: str) -> None:
    """Inside the child: pull one task, have it answered by a process of its own, and say so when that one failed or was killed.

    A failure is told by its code alone, and at once: the coordinator need not wait for its deadline, nor the SuperNode for heartbeats.
    """
    client = _client(address, task.token)
    message, context, run, fab = pull_task_input(client)
    os.pwrite(task.note, message_to_proto(remove_content_from_message(message)).SerializeToString(), 0)
    received = hashlib.sha256(fab.content).hexdigest()
    error, reason = ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "site-failed"
    if received != run.fab_hash or received != own_hash:
        log.warning("run %s carries app %s, this site runs %s only", run.run_id, received[:16], own_hash[:16])
        error, reason = ErrorCode.INVALID_FAB, "app not installed at this site"
        answered = False
    else:
        worker = _forked(lambda: _answer(_client(address, task.token), message, context))
        heartbeat = HeartbeatSender(make_task_heartbeat_fn_http(client))
        heartbeat.start()
        answered = _wait(worker, CHILD_SECONDS)
        heartbeat.stop()
    if answered:
        push_task_output(client, context, SubStatus.COMPLETED, "")
    else:
        _fail(client, message, context, error, reason)
    client.close()


def speak_for(address: str, task: Task) -> None:
    """Inside a child: what another one that was killed would have said of its task, had it outlived its worker."""
    if message := task.message():
        client, said = _client(address, task.token), message.metadata
        context = Context(said.run_id, said.dst_node_id, {}, RecordDict(), {})
        _fail(client, message, context, ErrorCode.CLIENT_APP_CRASHED, "site-failed")
        client.close()


def _fail(client: RuntimeHttpClient, message: Message, context: Context, error: int, reason: str) -> None:
    push_message(client, Message(Error(code=error, reason=reason), reply_to=message), context)
    push_task_output(client, None, SubStatus.FAILED, reason)


def _answer(client: RuntimeHttpClient, message: Message, context: Context) -> None:
    """Run the installed app, never the one that arrived, and push its reply. One worker computes at a time: memory is for one."""
    with (Path(os.environ[SITE]) / "executor.lock").open("a") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)  # let go by the kernel, however a worker ends
        reply = app(message=message, context=context)
    push_message(client, reply, context)
    client.close()


def _forked(work: Callable[[], None]) -> int:
    """Do something in a child that dies with this process; its process id."""
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() == parent:  # else the parent died in between
                work()
                code = 0
        except BaseException:
            log.exception("task failed")
        finally:
            logging.shutdown()
            os._exit(code)
    return child


def _wait(child: int, seconds: float) -> bool:
    """Whether a child ended well, within so many seconds; it is killed afterwards."""
    until = time.monotonic() + seconds
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > until:
            log.error("task took more than %s seconds, killed", seconds)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return False
        time.sleep(0.05)
    return ended[1] == 0


def serve(site_dir: Path, address: str, secret_file: Path) -> None:
    """Take tasks for ever. A SuperNode that is away is waited for."""
    for module in _heavy(SiteFolder(site_dir)):
        importlib.import_module(module)
    own_hash = own_app_hash()
    secret = load_superexec_auth_secret(secret_file=str(secret_file)) or b""
    acquire = frozenset({"/flwr.proto.Runtime/AcquireTask"})
    client = RuntimeHttpClient.from_server_address(
        server_address=address,
        insecure=True,
        root_certificates=None,
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name="SuperExec"),
            SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=acquire),
        ],
    )
    log.info("ready: site %s, app %s", site_dir.name, own_hash[:16])
    children: dict[int, Task] = {}
    while True:
        answer: Any = None
        for child, failed in _ended(children).items():
            task = children.pop(child)
            if failed:
                log.error("the process of a task was killed or failed")
                _forked(partial(speak_for, address, task))
            os.close(task.note)
        try:
            if len(children) < TASKS:
                answer = client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP]))
        except Exception as away:  # the SuperNode is starting, restarting or gone; the supervisor restarts it
            log.debug("no SuperNode: %s", type(away).__name__)
        if answer is not None and answer.token:
            task = Task.taken(answer.token)
            children[_forked(partial(run_task, address, task, own_hash))] = task
        else:
            time.sleep(POLL_SECONDS)


def _ended(children: Collection[int]) -> dict[int, bool]:
    """Children that have ended, and whether badly. Others that have ended are let go."""
    out = {}
    with suppress(ChildProcessError):  # no child is left
        while (ended := os.waitpid(-1, os.WNOHANG)) != (0, 0):
            out[ended[0]] = ended[1] != 0
    return {child: failed for child, failed in out.items() if child in children}


def _heavy(folder: SiteFolder) -> list[str]:
    """What to import once in the parent, by the families this site allows."""
    common = ["pandas", "opendp.prelude", "dp_accounting.pld", "scipy.special", "site_agent.service"]
    return common + (["medsynx.generators.dp_gan_training"] if "dp-gan" in folder.policy().limits.families else [])


def main() -> None:
    """``python -m site_agent.executor --dir SITE --runtime-api-address HOST:PORT --secret-file F``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--runtime-api-address", required=True)
    parser.add_argument("--secret-file", type=Path, required=True)
    args = parser.parse_args()
    logs.start(sys.stdout)
    os.environ[SITE] = str(args.dir.resolve())
    serve(args.dir, args.runtime_api_address, args.secret_file)


if __name__ == "__main__":
    main()
