"""Built from spec/ by `make generate`; never edited."""
