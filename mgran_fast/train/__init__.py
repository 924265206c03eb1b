"""Training MA. Wants the extra ``train``: pip install 'mgran_fast[train]'."""
