"""Networks only: no training code, no files."""
