"""How benchmarks show what they found: tables in markdown, pictures, and notes that say where the numbers are from."""

from showing.note import machine, note_name, write_note
from showing.picture import draw_memory
from showing.tables import exactness_table, memory_table

__all__ = ["draw_memory", "exactness_table", "machine", "memory_table", "note_name", "write_note"]
