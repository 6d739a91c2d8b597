"""How benchmarks show what they found: tables in markdown, pictures, and notes that say where the numbers are from."""

from showing.claims import claims_table
from showing.curves import draw_curves
from showing.fleets import fleets_table
from showing.methods import draw_methods, methods_table
from showing.note import RESULTS, machine, note_name, write_note
from showing.overhead import overhead_table
from showing.picture import draw_memory
from showing.tables import activations_table, codecs_table, exactness_table, memory_table, training_table

__all__ = [
    "RESULTS",
    "activations_table",
    "claims_table",
    "codecs_table",
    "draw_curves",
    "draw_memory",
    "draw_methods",
    "exactness_table",
    "fleets_table",
    "machine",
    "memory_table",
    "methods_table",
    "note_name",
    "overhead_table",
    "training_table",
    "write_note",
]
