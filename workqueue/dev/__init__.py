"""What development needs and no worker uses: a private broker, a cluster, a PostgreSQL, and the demo."""
