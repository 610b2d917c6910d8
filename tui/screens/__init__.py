"""Whole screens: sign in, the main view, dialogs."""
