"""The site's Flower ClientApp: a message in, the service's answer out. Which site it is comes from the environment, never from a message."""

from __future__ import annotations

import os
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from medsynx.flower_processes import SITE
from medsynx.flower_records import reply_to_records, request_from_records
from medsynx.wire import Reply
from site_agent.service import SiteService

app = ClientApp()


@app.query("step")
def step(message: Message, context: Context) -> Message:
    """Answer one step."""
    try:
        request = request_from_records(message.content)
    except (ValueError, KeyError, TypeError):
        return Message(reply_to_records(Reply(refusal="step-not-planned")), reply_to=message)
    reply = SiteService.open(Path(os.environ[SITE])).answer(request)
    return Message(reply_to_records(reply), reply_to=message)
