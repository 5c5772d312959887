"""What tests stand on: a broker and a ledger of their own, and the project's scripts as real processes."""
