"""Drawing synthetic rows from released generators."""
