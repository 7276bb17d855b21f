"""Ledgers in the loops of other libraries: ``integrations.lightning`` and ``integrations.transformers``.

Each needs its library (the extras ``lightning`` and ``transformers``); nothing of them is imported here.
"""
