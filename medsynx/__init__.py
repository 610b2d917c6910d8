"""The shared language of MedSynX: studies, codes, privacy, plans, families, bundles. Imports no torch, flwr or fastapi."""

__version__ = "0.1.0"
IMPLEMENTATION_UID = (
    "2.25.302041970217489912276351822061345701209"  #: of every DICOM file that MedSynX writes; a UUID drawn once
)
