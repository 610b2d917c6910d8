"""Judging synthetic data: fidelity, utility, the federated evaluation, the release gate and the report."""
