"""One self-contained HTML page of a report: tables, charts and pictures in one file that loads nothing."""
