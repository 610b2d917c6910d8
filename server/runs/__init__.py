"""How runs go, as told by the coordinator."""
