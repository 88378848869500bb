"""The bench suite: `micro` (hot paths beside what they wrap), `load` (a real node), `scale` (how cost grows), `report`."""
