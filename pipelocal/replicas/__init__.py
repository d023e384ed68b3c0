"""Replicas: several ranks that train the same stage, each on its own rows."""
