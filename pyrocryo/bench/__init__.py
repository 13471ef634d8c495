"""What the toolkit costs beside what else one could run: ratios measured side by side."""
