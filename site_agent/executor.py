"""The site executor: takes tasks from this site's SuperNode and runs the installed ClientApp, never code that arrives.

One long-lived parent imports the heavy libraries once and forks a child for each task. Replaces Flower's SuperExec and its ClientApp process at
a SuperNode started with ``--isolation process``. flwr internals used here are pinned by ``flwr==1.41.*`` and a contract test.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import importlib
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from flwr.app import Message
from flwr.app.error import Error
from flwr.cli.build import build_fab_from_disk
from flwr.common.constant import ErrorCode, SubStatus
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

from medsynx.flower_processes import SITE
from medsynx.flower_records import app_folder
from site_agent.client_app import app
from site_agent.policy import SiteFolder

log = logging.getLogger("medsynx.executor")
POLL_SECONDS = 0.3
CHILD_SECONDS = 3600  #: a task that takes longer is killed; its step stays charged
PR_SET_PDEATHSIG = 1


def own_app_hash() -> str:
    """SHA-256 of the FAB this release builds; a run with any other FAB is refused."""
    return hashlib.sha256(build_fab_from_disk(app_folder())).hexdigest()


def run_task(address: str, token: str, own_hash: str) -> None:
    """Inside the child: pull one task, run the installed app on it, push the reply. A failure is told by its code alone."""
    client = RuntimeHttpClient.from_server_address(
        server_address=address,
        insecure=True,  # the SuperNode's loopback port
        root_certificates=None,
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name="flwr-clientapp"),
            RuntimeTokenHttpInterceptor(token),
        ],
        retry_invoker=make_simple_http_retry_invoker(),
    )
    heartbeat = HeartbeatSender(make_task_heartbeat_fn_http(client))
    heartbeat.start()
    message, context, reply = None, None, None
    status, details = SubStatus.FAILED, "site-failed"
    try:
        message, context, run, fab = pull_task_input(client)
        received = hashlib.sha256(fab.content).hexdigest()
        if received != run.fab_hash or received != own_hash:
            log.warning("run %s carries app %s, this site runs %s only", run.run_id, received[:16], own_hash[:16])
            details = "app not installed at this site"
            reply = Message(Error(code=ErrorCode.INVALID_FAB, reason=details), reply_to=message)
        else:
            reply = app(message=message, context=context)
            status, details = SubStatus.COMPLETED, ""
    except Exception:
        log.exception("task failed")
        if message is not None:
            reply = Message(Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason="site-failed"), reply_to=message)
    finally:
        if reply is not None and context is not None:
            push_message(client, reply, context)
        push_task_output(client, context, status, details)
        heartbeat.stop()
        client.close()


def _fork(address: str, token: str, own_hash: str) -> None:
    """Run one task in a child and wait for it, no longer than :data:`CHILD_SECONDS`."""
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() == parent:  # else the parent died in between
                run_task(address, token, own_hash)
                code = 0
        except BaseException:
            log.exception("task could not be answered")
        finally:
            logging.shutdown()
            os._exit(code)
    until = time.monotonic() + CHILD_SECONDS
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > until:
            log.error("task took more than %s seconds, killed", CHILD_SECONDS)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return
        time.sleep(0.05)


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
    while True:
        answer: Any = None
        try:
            answer = client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP]))
        except Exception as away:  # the SuperNode is starting, restarting or gone; the supervisor restarts it
            log.debug("no SuperNode: %s", type(away).__name__)
        if answer is not None and answer.token:
            _fork(address, answer.token, own_hash)
        else:
            time.sleep(POLL_SECONDS)


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
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(asctime)s %(name)s %(message)s")
    os.environ[SITE] = str(args.dir.resolve())
    serve(args.dir, args.runtime_api_address, args.secret_file)


if __name__ == "__main__":
    main()
