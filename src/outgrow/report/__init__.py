"""Tables, plots and HTML pages from records of runs. Imported on use: plots need matplotlib, pages jinja2."""
