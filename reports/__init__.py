"""Reports computed from records: tables, pictures, one page of HTML and one of Markdown."""
