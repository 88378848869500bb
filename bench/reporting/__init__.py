"""The report: what the parts found, what machine found it, what got slower since the baseline; as HTML and Markdown."""
