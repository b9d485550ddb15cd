"""From records to pictures and pages. Imported on use: drawing needs matplotlib, pages jinja2."""
