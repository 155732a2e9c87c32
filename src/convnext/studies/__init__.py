"""Studies: many networks under one recipe, over seeds, with a table, figures and a page."""
