"""What is known of each site from the runs."""
