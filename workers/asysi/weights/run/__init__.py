"""From an address to tables and a page: plan, download, analysis, and checks of the written files."""
