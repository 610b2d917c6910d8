"""How hospitals join: invitations, and the sites that took them up."""
