"""A small bank on hiveio: accounts, statements, page visits and fee quotes."""
