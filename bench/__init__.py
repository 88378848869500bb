"""The bench suite: `micro` (hot paths beside what they wrap), `load` (a node under load), `scale` (how cost grows).

`report` puts their results together.
"""
