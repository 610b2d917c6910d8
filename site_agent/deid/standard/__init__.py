"""PS3.15 Annex E as data: `ps315.json`, written by `build.py`, read by `profile.py`."""
