"""Keeps the SuperLink's nodes and the coordinator's roster equal to the server's list of sites.

A key that appears in the list is registered. One is unregistered when the server still names its site and says that it was revoked, has left or has
another key. A site the server does not name at all stays as it is: the SuperLink takes a key once, for good, so that a wrong or empty server would
shut every hospital out for ever.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import httpx

from medsynx import files, logs
from medsynx.errors import MedsynxError
from strategies.control import Control
from strategies.registry import Listed, Registry

log = logging.getLogger("medsynx.members")
POLL_SECONDS = 2.0
TROUBLE = "members.trouble"  #: file of the coordinator's folder: why the list is not followed; empty while it is


def reconcile(control: Control, listed: Mapping[str, Listed], before: Mapping[str, int]) -> dict[str, int]:
    """Register and unregister what the server's list asks for.

    Args:
        before: site -> node id, the coordinator's roster so far: whose node it is when its key is in no list any more.

    Returns:
        Site -> node id, for the coordinator's roster; sites the list does not name stay in it. A key the SuperLink does not take (it takes each once,
        for good) is left out and logged.
    """
    owners = {entry.key: site for site, entry in listed.items()}
    known, roster = {node: site for site, node in before.items()}, {}
    for node, key in control.nodes().items():
        site = owners.get(key) or known.get(node)
        if site is not None and (site not in listed or listed[site] == (key, True)):
            roster[site] = node
        elif site is not None:
            control.unregister(node)
            log.info("node %s is not site %s any more", node, site)
    for site in sorted(s for s, entry in listed.items() if entry.enrolled and s not in roster):
        try:
            roster[site] = control.register(site, listed[site].key)
        except (httpx.HTTPError, ValueError) as error:
            log.error("site %s: its key was not taken (%s)", site, type(error).__name__)
        else:
            log.info("site %s is registered", site)
    return dict(sorted(roster.items()))


def read_roster(folder: Path) -> dict[str, int]:
    """``roster.json`` of the coordinator's folder; there is none before the first hospital has joined."""
    file = folder / "roster.json"
    return {site: int(node) for site, node in json.loads(file.read_text("utf-8") if file.exists() else "{}").items()}


def write_roster(folder: Path, roster: Mapping[str, int]) -> None:
    """``roster.json`` of the coordinator's folder: whom a run asks."""
    text = json.dumps({site: str(node) for site, node in roster.items()})
    target = folder / "roster.json"
    if not target.exists() or target.read_text("utf-8") != text:
        files.write(target, text)


def follow_once(folder: Path, control: Control) -> str:
    """Make nodes and roster those of the server's list; returns what is in the way, empty when nothing is. Everything stays as it is then.

    Where the server is, and the token, are read each time: ``medsynx coordinator connect`` is heard without a restart.
    """
    try:
        server = Registry.configured(folder / "registry.json")
        if not server.url:  # no list is not an empty list
            return "registry.json does not name the server; run `medsynx coordinator connect`"
        listed = server.listed()
        roster = reconcile(control, listed, read_roster(folder))
        write_roster(folder, roster)
    except httpx.HTTPStatusError as refused:
        status = refused.response.status_code
        remedy = (
            "; the token has expired or was withdrawn: run `medsynx server token create --days 366`, then `medsynx coordinator connect`"
            if status in (401, 403) and refused.request.url.path == "/enrolment/sites"
            else ""
        )
        return f"{refused.request.url.path} was answered {status}{remedy}"
    except (httpx.HTTPError, OSError, ValueError, KeyError, TypeError, AttributeError) as away:
        return type(away).__name__
    if unnamed := ", ".join(sorted(roster.keys() - listed.keys())):
        return f"the server does not name {unnamed}: kept; is the server of registry.json the right one?"
    return ""


def follow(folder: Path, control: Control) -> None:
    """Follow the server's list for ever. While server or SuperLink are away everything stays as it is."""
    if not Registry.configured(folder / "registry.json").url:
        raise MedsynxError("federation-unreachable", f"{folder / 'registry.json'} does not name the server")
    before: str | None = None  # what an earlier process wrote may be over
    while True:
        if (trouble := follow_once(folder, control)) != before:
            with suppress(OSError):  # no room: the log has it
                files.write(folder / TROUBLE, trouble)
            log.error("the list of sites is not followed: %s", trouble) if trouble else log.info("the list is followed")
        before = trouble
        time.sleep(POLL_SECONDS)


def main() -> None:
    """``python -m strategies.members --dir COORDINATOR --superlink HOST:PORT --ca FILE``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--superlink", required=True)
    parser.add_argument("--ca", type=Path, required=True)
    args = parser.parse_args()
    logs.start(sys.stdout)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    follow(args.dir, Control(args.superlink, args.ca))


if __name__ == "__main__":
    main()
