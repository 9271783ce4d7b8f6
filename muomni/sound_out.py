"""Sound to the loudspeaker while it is being made, by the optional package sounddevice (PortAudio)."""

from __future__ import annotations

import importlib
import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import numpy as np

from muomni.errors import UserError

LOOK_SECONDS = 0.05
"""How often a wait looks whether it is to end."""


class SoundError(UserError, RuntimeError):
    """There is no way to play sound here."""


class Speaker:
    """The default sound device. PortAudio's own thread asks for samples, so that `write` never waits."""

    def __init__(self, sample_rate: int) -> None:
        """Open it, mono. Raises SoundError without the package, its library, or a device that takes sample_rate."""
        try:
            sounddevice: Any = importlib.import_module("sounddevice")
        except ImportError:
            raise SoundError(
                "play: needs the package sounddevice; run `pip install 'muomni[play]'`, or write a file with --out."
            ) from None
        except OSError as error:
            raise SoundError(
                f"play: {error}; install PortAudio (libportaudio2), or write a file with --out."
            ) from None
        self._rate, self._lock, self._silent = sample_rate, threading.Lock(), threading.Event()
        self._waiting: deque[np.ndarray] = deque()
        self._n_played = 0
        self._silent.set()
        try:
            self._stream = sounddevice.OutputStream(
                samplerate=sample_rate, channels=1, dtype="float32", callback=self._fill
            )
            self._stream.start()
        except sounddevice.PortAudioError as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise SoundError(
                f"play: no sound device can be used ({reason}); attach one, or write a file with --out."
            ) from None

    def begin(self) -> None:
        """Forget what is waiting and count from zero: another answer begins."""
        with self._lock:
            self._waiting.clear()
            self._n_played = 0
            self._silent.set()

    def write(self, pcm: np.ndarray) -> None:
        """Play (n_samples,) float32 in [-1, 1] after what is waiting."""
        if len(pcm):
            with self._lock:
                self._waiting.append(np.array(pcm, np.float32))
                self._silent.clear()

    def wait(self, stopped: Callable[[], bool] = lambda: False) -> None:
        """Until all is played, or `stopped` says so: what is waiting is then forgotten."""
        while not self._silent.wait(LOOK_SECONDS):
            if stopped():
                break
        with self._lock:
            self._waiting.clear()
            self._silent.set()

    @property
    def played_seconds(self) -> float:
        """How much has been heard since `begin`: what the device took, less what is still on its way."""
        return max(0.0, self._n_played / self._rate - float(self._stream.latency))

    def close(self) -> None:
        """Let the device play what it took, and give it back."""
        self._stream.stop()
        self._stream.close()

    def __enter__(self) -> Self:
        """Open already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def _fill(self, out: np.ndarray, n_frames: int, time: Any, status: Any) -> None:
        """Called by PortAudio: out (n_frames, 1) is to be filled, with silence where nothing is waiting."""
        with self._lock:
            done = 0
            while self._waiting and done < n_frames:
                first = self._waiting[0]
                n = min(len(first), n_frames - done)
                out[done : done + n, 0] = first[:n]
                if n < len(first):
                    self._waiting[0] = first[n:]
                else:
                    self._waiting.popleft()
                done += n
            out[done:, 0] = 0.0
            self._n_played += done
            if not self._waiting:
                self._silent.set()
