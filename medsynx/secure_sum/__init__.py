"""Adding vectors of several sites so that only the total means anything. No transport, no files."""
