"""A whole cluster, its chain and an application on one machine, for development."""
