"""The laboratory: many networks under one recipe, over seeds, as one table, figures and a page."""
