"""Which window a client gets, and which tensors in it: what the server works out from costs, importance and memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

from fedhybrid.methods.elastic.choosing import choose_tensors
from fedhybrid.methods.elastic.names import choice_name
from fedhybrid.methods.elastic.windows import next_window
from fedhybrid.models.exits import Layout, exit_names
from fedhybrid.protocols import Costs, Quote

__all__ = ["Offer", "Offers", "Rules"]

_TRIES = 4  # to choose fewer tensors where the step takes longer than its tensors' seconds say
_QUANTUM = 1e-3  # of the time: by so much a step may be longer


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How a method of this kind chooses.

    Attributes:
        window: Whether there is a window that slides; else every client has the whole depth before it.
        contiguous: Whether windows do not overlap (FedEL-C).
        beta: Weight of a client's own importance, the rest is that of the last round's change.
        time_ratio: Time of a step, as a share of the fastest kind of device's whole step.
        whole_probe: Whether importance is asked for through the whole depth, before the window slides.
        overrun: Whether a part of which not even the forward pass is done in time is trained all the same.
    """

    window: bool
    contiguous: bool
    beta: float
    time_ratio: float
    whole_probe: bool
    overrun: bool


@dataclass(frozen=True, kw_only=True)
class Offer:
    """A submodel for one client: its name, what its step costs there, and the window (first and last part)."""

    submodel: str
    quote: Quote
    window: tuple[int, int]
    trained: tuple[str, ...]


@final
@dataclass(frozen=True, kw_only=True)
class Offers:
    """Works out what clients are offered in one round; remembers nothing."""

    rules: Rules
    layout: Layout
    costs: Costs

    @cached_property
    def limit_s(self) -> float:
        """Seconds that a step may take, the same for all clients."""
        return self.rules.time_ratio * min(self.costs.step_seconds())

    def probe(self, client: int, before: tuple[int, int]) -> Offer | None:
        """The client's next window and what it is probed by; None where the client can hold the probe of none.

        A window that the client cannot hold begins later, at the next part and so on; if it cannot hold the last part
        alone, the window slides on.

        Args:
            client: Its number.
            before: Last part of its window before, 0 if there was none, and the lowest in which a tensor was chosen.
        """
        last, lowest = before
        for _ in range(self.layout.last if self.rules.window else 1):
            first, last = self._next(client, last, lowest)
            if self.rules.whole_probe:
                trained, ends = self.layout.within(1, self.layout.last), self.layout.last
                quote = self.costs.quote(client, choice_name(self.layout, "probe", ends, trained))
                name = choice_name(self.layout, "probe", ends, trained)
                return Offer(submodel=name, quote=quote, window=(first, last), trained=trained) if quote.fits else None
            held = self._held_probe(client, first, last)
            if held is not None:
                return held
            lowest = last
        return None

    def training(
        self, client: int, window: tuple[int, int], values: Mapping[str, float], *, probe: str
    ) -> Offer | None:
        """The tensors of the window that are worth most and keep to time and memory; None where nothing can be held.

        Where nothing keeps to the time it is the quickest tensor of the last part that has some.

        Args:
            client: Its number.
            window: First and last part.
            values: Importance of each tensor in it.
            probe: The submodel in which all of the window gets gradients: the source of seconds.
        """
        first, last = window
        inside = set(self.layout.within(first, last))
        whole, own = self.costs.tensor_times(client), self.costs.tensor_times(client, probe)
        names = [name for name in whole.names if name in inside]
        ends = exit_names(last)
        fixed_s = own.forward_s + sum(own.weight_s.get(name, 0.0) + own.pass_s.get(name, 0.0) for name in ends)
        weight_s, pass_s = [whole.weight_s[n] for n in names], [whole.pass_s[n] for n in names]
        wanted = [values.get(name, 0.0) for name in names]
        left_s, offer = self.limit_s - fixed_s, None
        for _ in range(_TRIES):
            chosen = [names[j] for j in choose_tensors(wanted, weight_s, pass_s, left_s)]
            offer = self._held(client, window, chosen or self._quickest(names, whole.weight_s))
            if offer is None or len(chosen) < 2:
                break
            over_s = offer.quote.step_s - self.limit_s * (1 + _QUANTUM)
            if over_s <= 0:
                break
            left_s -= over_s
        return offer

    def block_s(self, client: int) -> list[float]:
        """Seconds of the gradients and updates of each part on this client, without the forward pass."""
        times = self.costs.tensor_times(client)
        seconds = [0.0] * self.layout.last
        for name, part in self.layout.params.items():
            seconds[part - 1] += times.weight_s.get(name, 0.0) + times.pass_s.get(name, 0.0)
        return seconds

    def _next(self, client: int, last: int, lowest: int) -> tuple[int, int]:
        """The window after that one; it ends earlier where its forward pass would not be done in time.

        Where even one part more is too far, the slide begins again; there the shortest window is taken even if late.
        """
        if not self.rules.window:
            return 1, self.layout.last
        blocks = self.block_s(client)
        for done in (last, 0) if 0 < last < self.layout.last else (0,):
            first, end = next_window(blocks, self.limit_s, last=done, lowest=lowest, contiguous=self.rules.contiguous)
            for nearer in range(end, done, -1):
                if self.rules.overrun or self._in_time(client, (first, nearer)):
                    return first, nearer
        return 1, min(self.layout.params.values())

    def _in_time(self, client: int, window: tuple[int, int]) -> bool:
        """Whether the forward pass and one tensor of the last part with tensors keep to the time."""
        first, last = window
        own = self.costs.tensor_times(client, self.probe_name(window))
        ends = exit_names(last)
        fixed_s = own.forward_s + sum(own.weight_s.get(name, 0.0) + own.pass_s.get(name, 0.0) for name in ends)
        inside = set(self.layout.within(first, last))
        return any(fixed_s + own.weight_s[name] <= self.limit_s for name in own.names if name in inside)

    def probe_name(self, window: tuple[int, int]) -> str:
        """The submodel in which all of a window gets gradients."""
        return choice_name(self.layout, "probe", window[1], self.layout.within(*window))

    def _quickest(self, names: Sequence[str], weight_s: Mapping[str, float]) -> list[str]:
        highest = max(self.layout.params[name] for name in names)
        return [min((n for n in names if self.layout.params[n] == highest), key=lambda n: weight_s[n])]

    def _held_probe(self, client: int, first: int, last: int) -> Offer | None:
        for begin in range(first, last + 1):
            trained = self.layout.within(begin, last)
            if trained:
                name = choice_name(self.layout, "probe", last, trained)
                quote = self.costs.quote(client, name)
                if quote.fits:
                    return Offer(submodel=name, quote=quote, window=(begin, last), trained=trained)
        return None

    def _held(self, client: int, window: tuple[int, int], chosen: Sequence[str]) -> Offer | None:
        """The most of the chosen tensors that the client can hold: the first ones are left out; None if it is none."""
        found, fewest, most = None, 1, len(chosen)
        count = most  # the whole choice first: it nearly always fits
        while fewest <= most:
            trained = tuple(chosen[len(chosen) - count :])
            name = choice_name(self.layout, "train", window[1], trained)
            quote = self.costs.quote(client, name)
            if quote.fits:
                found, fewest = Offer(submodel=name, quote=quote, window=window, trained=trained), count + 1
            else:
                most = count - 1
            count = (fewest + most + 1) // 2
        return found
