"""The stage table: every stage of the cascade as one row of plain data. Start at stage.py."""
