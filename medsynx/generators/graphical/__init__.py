"""Discrete graphical models from noisy tables: junction tree, estimation, selection, sampling. Numpy only; knows nothing of sites or budgets."""
