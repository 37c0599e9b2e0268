"""Results for people: terminals, tables, plots."""
