"""The shared language of MedSynX: studies, codes, privacy, plans, families, bundles. Imports no torch, flwr or fastapi."""

__version__ = "0.1.0"
