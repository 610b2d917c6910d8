"""The coordinator's console: a Textual app over the REST API alone."""
