"""De-identification: turns a hospital's files into files a privacy officer can sign for. Read `engine.py` first."""
