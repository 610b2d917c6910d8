"""A generator's report, as a page or as JSON."""
