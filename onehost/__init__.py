"""A whole federation on one machine: `simulate` in one process, `demo` with the real ones."""
