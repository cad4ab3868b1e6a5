"""Viscous Burgers' equation on a circle, solved by SciPy: u_t + u u_x = viscosity u_xx, x in [0, 2 pi).

Waves steepen into shocks that viscosity keeps smooth, so the later state depends on the first one nonlinearly.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft, rfft, rfftfreq
from scipy.integrate import solve_ivp

Field = NDArray[np.float64]


def random_states(count: int, points: int, chance: np.random.Generator) -> Field:
    """Smooth random fields [count, points] of mean 0 and deviation 1: eight waves, the longer the larger."""
    waves = np.arange(1, 9)
    amplitudes = chance.normal(size=(2, count, len(waves))) / waves**1.5
    x = 2 * np.pi * np.arange(points) / points
    fields = amplitudes[0] @ np.cos(np.outer(waves, x)) + amplitudes[1] @ np.sin(np.outer(waves, x))
    return np.asarray(fields / fields.std(axis=1, keepdims=True))


def solve(first: Field, times: Field, viscosity: float) -> Field:
    """The fields at `times` (rising, from the first state's on), [count, times, points], from `first` [count, points].

    Derivatives are spectral, with the upper third of the waves cut off where products would alias. Viscosity is in the
    variable (an integrating factor), so that what is left to the Runge-Kutta steps is not stiff.
    """
    count, points = first.shape
    waves = rfftfreq(points, 1 / points)
    kept = waves < points / 3

    def change(time: float, state: NDArray[Any]) -> NDArray[Any]:
        decay = np.exp(-viscosity * waves**2 * time)
        u = irfft(state.reshape(count, -1) * decay, points)
        return np.asarray(-0.5j * waves * kept * rfft(u**2) / np.where(kept, decay, 1)).ravel()

    solution = solve_ivp(change, (0, times[-1]), (rfft(first) * kept).ravel(), t_eval=times, rtol=1e-4, atol=1e-4)
    if not solution.success:
        raise RuntimeError(f"SciPy's solver gave up: {solution.message}")
    states = solution.y.reshape(count, -1, len(times)).swapaxes(1, 2)
    return np.asarray(irfft(states * np.exp(-viscosity * np.outer(times, waves**2)), points))
