"""Keeps the SuperLink's nodes and the coordinator's roster equal to the server's list of enrolled sites.

A key that appears in the list is registered, one that is gone from it (revoked, left, rotated) is unregistered; other sites' nodes are not touched.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import httpx

from medsynx import logs
from medsynx.errors import MedsynxError
from strategies.control import Control
from strategies.registry import Registry

log = logging.getLogger("medsynx.members")
POLL_SECONDS = 2.0


def reconcile(control: Control, enrolled: Mapping[str, bytes]) -> dict[str, int]:
    """Register and unregister until the SuperLink's nodes are those enrolled.

    Args:
        enrolled: site -> node key (PEM).

    Returns:
        Site -> node id, for the coordinator's roster. A key the SuperLink does not take (it takes each once, for good) is left out and logged.
    """
    wanted = {key: site for site, key in enrolled.items()}
    roster = {}
    for node, key in control.nodes().items():
        if key in wanted:
            roster[wanted[key]] = node
        else:
            control.unregister(node)
            log.info("node %s is no enrolled site's any more", node)
    for site in sorted(enrolled.keys() - roster.keys()):
        try:
            roster[site] = control.register(site, enrolled[site])
        except (httpx.HTTPError, ValueError) as error:
            log.error("site %s: its key was not taken (%s)", site, type(error).__name__)
        else:
            log.info("site %s is registered", site)
    return dict(sorted(roster.items()))


def write_roster(folder: Path, roster: Mapping[str, int]) -> None:
    """``roster.json`` of the coordinator's folder: whom a run asks."""
    text = json.dumps({site: str(node) for site, node in roster.items()})
    target = folder / "roster.json"
    if not target.exists() or target.read_text("utf-8") != text:
        part = target.with_suffix(".part")
        part.write_text(text, "utf-8")
        part.replace(target)


def follow(folder: Path, control: Control) -> None:
    """Follow the server's list for ever. While server or SuperLink are away everything stays as it is."""
    registry = Registry.configured(folder / "registry.json")
    if not registry.url:  # no list is not an empty list
        raise MedsynxError("federation-unreachable", f"{folder / 'registry.json'} does not name the server")
    trouble = ""
    while True:
        before, trouble = trouble, ""
        try:
            write_roster(folder, reconcile(control, registry.enrolled()))
        except (httpx.HTTPError, OSError, ValueError, KeyError, TypeError, AttributeError) as away:
            status = f" {away.response.status_code}" if isinstance(away, httpx.HTTPStatusError) else ""
            trouble = f"{type(away).__name__}{status}"
        if trouble != before:
            log.warning("the list of sites cannot be followed: %s", trouble) if trouble else log.info("followed again")
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
