"""Tables, figures and one page, from Records alone.

`tables.py` writes Markdown and terminal tables, `figures.py` draws, `page.py` puts both into one
HTML file. Import them by name: only the last two load matplotlib.
"""
