"""Tables, plots and HTML pages from records of runs. Imported on use: plots need matplotlib, pages jinja2.

gather.py                                    runs of any name, made a study
statistics.py  table.py                      means and tests over seeds; a row per method, paired by seed
text.py  formats.py                          one table as text, Markdown; all of a comparison, also LaTeX, CSV, JSON
words.py                                     the sentences on a study's page
palette.py  plots.py  svg.py                 colours, plots, plots as SVG
curves.py  pictures.py                       the curves of a run; images embedded in a page
parts.py  templates/                         what pages share; their templates
page.py  run_page.py  audit_page.py          the pages of a study, a run and an audit
card.py                                      the README of an exported student
"""
