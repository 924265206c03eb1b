"""The rows of the published tables, each with its settings, and the ablation study: run, measured, told side by side.

Imports the packages of the extra ``train`` in all modules but ``rows``.
"""
