"""Reports: the verdict, and its rendering as JSON, HTML, Markdown and terminal text."""
