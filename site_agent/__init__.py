"""What runs inside a hospital: ingestion, policy, ledger, and the one door through which anything leaves."""
