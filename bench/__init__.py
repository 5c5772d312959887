"""An honest comparison with what else one could use: see bench/README.md. It measures, and is never imported."""
