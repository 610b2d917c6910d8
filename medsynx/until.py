"""Until when: the times people give on a command line."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from medsynx.errors import MedsynxError

UNITS = {"m": "minutes", "h": "hours", "d": "days", "": "days"}


def until(text: str, now: datetime | None = None) -> datetime:
    """The moment ``text`` means: ``90`` or ``90d`` days, ``24h`` hours, ``30m`` minutes from now, or the end of a date ``2027-01-31`` (UTC).

    Raises:
        MedsynxError: ``request-invalid`` for anything else, and for a moment that is past.
    """
    now, text = now or datetime.now(UTC), text.strip().lower()
    wrong = MedsynxError(
        "request-invalid", f"{text[:40]!r} is no time ahead", hint="Give days (90), hours (24h) or a date (2027-01-31)."
    )
    try:
        if span := re.fullmatch(r"(\d{1,5})([mhd]?)", text):
            moment = now + timedelta(**{UNITS[span[2]]: int(span[1])})
        else:
            moment = datetime.fromisoformat(text).replace(tzinfo=UTC) + timedelta(days=1)
    except (ValueError, OverflowError):
        raise wrong from None
    if moment <= now:
        raise wrong
    return moment
