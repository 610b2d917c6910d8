"""The authenticated REST API: one folder a resource. Serves bundles without torch, flwr or synthcity."""
