"""What runs at the coordinator: rounds, aggregation, publication, and Flower underneath."""
