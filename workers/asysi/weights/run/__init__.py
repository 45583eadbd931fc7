"""From an address to tables and a page: plan, download, analysis, and checks of what was written."""
