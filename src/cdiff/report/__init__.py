"""The report of a sweep: one HTML page, and its table as CSV, Markdown and LaTeX.

    study = read_study(paths)                 what lies on the disk: runs, scores, curves, pictures
    tables = make_tables(study)               one row a run, one row a setting
    figures = make_figures(study, tables)     SVG, in the page's own colours
    write_page(folder / "report.html", ...)   everything inside one file

`cdiff.tasks.report` puts these in order. Nothing here loads a model.
"""
