"""What split training is made of: cuts, what they cost, which to take, and the server's half."""

from fedhybrid.methods.splitting.checkpoints import Segment, best_segments, cheap_segments
from fedhybrid.methods.splitting.choice import earlier_cut, fastest_cut, refined_cut
from fedhybrid.methods.splitting.cuts import Cut, device_half, possible_cuts, tensors_by_part
from fedhybrid.methods.splitting.importance import first_watch, importance_of, quiet_parts, watched
from fedhybrid.methods.splitting.layers import Layer, known_layers, latency_s, layers_of, memory_bytes, server_s
from fedhybrid.methods.splitting.server import ServerHalf, exchange_bytes

__all__ = [
    "Cut",
    "Layer",
    "Segment",
    "ServerHalf",
    "best_segments",
    "cheap_segments",
    "device_half",
    "earlier_cut",
    "exchange_bytes",
    "fastest_cut",
    "first_watch",
    "importance_of",
    "known_layers",
    "latency_s",
    "layers_of",
    "memory_bytes",
    "possible_cuts",
    "quiet_parts",
    "refined_cut",
    "server_s",
    "tensors_by_part",
    "watched",
]
