"""How cost grows: with records, with apps, with nodes on this machine, and by a model beyond it."""
