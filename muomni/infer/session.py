"""A session: turns of text, pictures and clips in, text and speech out; also `say` and `transcribe`."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from muomni.data.spoken import as_words
from muomni.data.template import Turn
from muomni.data.text import Tokenizer
from muomni.data.wordings import SAY
from muomni.errors import UserError
from muomni.infer.conversation import Conversation, Said
from muomni.infer.engine import Engine
from muomni.infer.inputs import Clip, Picture, read_clip, read_picture
from muomni.infer.loading import load_model
from muomni.infer.sampling import Sampler, Sampling
from muomni.infer.speech import SpeechStream, pieces
from muomni.infer.stream import Reply
from muomni.infer.turn import Prompt, TurnStream
from muomni.models.omni import OmniModel
from muomni.tokens import EOS

MAX_NEW_TOKENS = 96
"""Default length of an answer, tokens."""
SPEECH_TEMPERATURE = 0.2
"""Default temperature of the Talker: of 0 to 0.7 the one that is understood best (docs/LOG.md)."""
CHARACTERS_A_FRAME = 0.75
"""Of a text that is said in pieces: few speakers are slower than that (9.4 characters a second)."""
SPEECH_TOP_K = 64
"""Codes the Talker chooses from."""


class RequestError(UserError, ValueError):
    """A request that asks for nothing, or for what cannot be done."""


def load(root: Path | str, *, device: str | torch.device | None = None) -> Session:
    """The model a run's stages make up, ready to talk.

    root: the directory holding tokenizer.json and one directory a stage.
    device: where to run; by default CUDA when there is one, otherwise the CPU.
    Raises CheckpointError (a stage that is missing, unfinished, corrupt or of another size), TokenizerError.
    """
    chosen = torch.device(device) if device else torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, tokenizer, notes = load_model(Path(root))
    return Session(model.to(chosen), tokenizer, notes=notes)


class Session:
    """One conversation with one model. Not for use from several threads at once."""

    def __init__(self, model: OmniModel, tokenizer: Tokenizer, *, notes: tuple[str, ...] = ()) -> None:
        """Start with nothing said; the model is put in eval mode. notes: what `load` had to pass over."""
        self.engine, self.tokenizer, self.notes = Engine(model), tokenizer, notes
        self.config = model.config
        self.reset()

    def reset(self) -> None:
        """Forget the conversation."""
        self._conversation = Conversation(self.config)
        self._cache = self.engine.new_cache()
        self._current: TurnStream | None = None

    def turn(
        self,
        text: str | None = None,
        *,
        image: Picture | Sequence[Picture] | None = None,
        audio: Clip | Sequence[Clip] | None = None,
        speak: bool = True,
        max_new_tokens: int = MAX_NEW_TOKENS,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        speech_temperature: float = SPEECH_TEMPERATURE,
        voice: str | None = None,
        seed: int = 0,
    ) -> Reply:
        """One whole turn; `stream` with the same arguments gives the same text and samples piece by piece.

        image: one picture or several; audio: one clip or several, each at most max_audio_samples long.
        temperature, top_k, top_p, min_p, repetition_penalty: of the text, temperature 0 is greedy; see `Sampling`.
        speech_temperature: of the speech codes.
        voice: one of `voices`, None for the first.
        Raises RequestError for nothing said and an unknown voice, MediaError, TokenBudgetError, SamplingError.
        """
        stream = self.stream(
            text, image=image, audio=audio, speak=speak, max_new_tokens=max_new_tokens,
            temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty,
            speech_temperature=speech_temperature, voice=voice, seed=seed,
        )  # fmt: skip
        for _ in stream:
            pass
        return stream.reply

    def stream(
        self,
        text: str | None = None,
        *,
        image: Picture | Sequence[Picture] | None = None,
        audio: Clip | Sequence[Clip] | None = None,
        speak: bool = True,
        max_new_tokens: int = MAX_NEW_TOKENS,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        speech_temperature: float = SPEECH_TEMPERATURE,
        voice: str | None = None,
        seed: int = 0,
    ) -> TurnStream:
        """A turn as it happens: an iterator of Chunk(text, pcm), whose `reply` is whole at its end.

        The prompt is checked, encoded and prefilled by this call; decoding happens as chunks are asked for.
        The next turn, or `close`, ends a stream that was not used up: what was said is remembered.
        Arguments and errors as in `turn`.
        """
        started = time.perf_counter()
        if max_new_tokens < 1:
            raise RequestError(f"max_new_tokens: expected at least 1, got {max_new_tokens}.")
        writing = self._sampler(
            Sampling(
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                min_p=min_p,
                repetition_penalty=repetition_penalty,
            ),
            seed=seed,
            n_ids=self.tokenizer.vocab_size,
        )
        speech = self._speech(speech_temperature, seed, voice=self._voice(voice)) if speak else None
        said = self._read(text, _listed(image), _listed(audio))
        self._settle()
        prompt = self._prefill(said, max_new_tokens, started)
        self._current = TurnStream(self.engine, self.tokenizer, prompt, sampler=writing, speech=speech)
        return self._current

    def transcribe(self, audio: Clip) -> str:
        """What is said in a clip (greedy CTC): lower-case words. The conversation is not touched.

        Raises MediaError, TokenBudgetError for a clip longer than max_audio_samples.
        """
        return self.engine.spell(read_clip(audio, self.config))

    def say(
        self,
        text: str,
        *,
        temperature: float = SPEECH_TEMPERATURE,
        top_k: int | None = SPEECH_TOP_K,
        voice: str | None = None,
        voice_from: Clip | None = None,
        seed: int = 0,
    ) -> np.ndarray:
        """Speak a text: float32 samples in [-1, 1] at mel.sample_rate. The conversation is not touched.

        Numbers are read as English ones. A long text is said in pieces, cut behind sentences where that is enough. The
        same text, settings and seed give the same samples.
        voice: one of `voices`, None for the first. voice_from: a recording of whoever is to be imitated, as far as that
        goes: only the mean spectrum of a voice is taken from it.
        Raises RequestError for an empty text, an unknown voice, or two of them; MediaError; TokenBudgetError for a
        recording that is too long. Warns of a piece that the Talker says so slowly that its end is cut.
        """
        if voice is not None and voice_from is not None:
            raise RequestError("voice: give a name or a recording, not both.")
        told = self._voice(voice) if voice_from is None else self._voice_of(voice_from)
        parts: list[np.ndarray] = []
        room = int(CHARACTERS_A_FRAME * self.config.max_audio_tokens)
        for i, piece in enumerate(pieces(" ".join(as_words(text).split()), room)):
            ids = self.tokenizer.encode(piece)
            states, embeds = self.engine.spoken_states(self.tokenizer.encode(SAY + piece), ids)
            speech = self._speech(temperature, seed + i, top_k=top_k, voice=told)
            for state, embed, token in zip(states, embeds, ids, strict=True):
                parts.append(speech.text(state, embed, self.tokenizer.spell(token)))
            speech.end()
            while speech.ready:
                parts.append(speech.frame())
            parts.append(speech.flush())
            if not speech.finished:
                seconds = self.config.max_audio_samples / self.config.mel.sample_rate
                warnings.warn(f"say: {piece!r} is cut after {seconds:.2f} s.", stacklevel=2)
        if not parts:
            raise RequestError("text: nothing to say; give some text.")
        return np.concatenate(parts)

    def _sampler(self, sampling: Sampling, *, seed: int, n_ids: int | None = None) -> Sampler:
        forbidden = self.engine.forbidden(n_ids, allowed=(EOS,)) if n_ids is not None else ()
        return Sampler(sampling, seed=seed, device=self.engine.device, forbidden=forbidden)

    def _speech(
        self, temperature: float, seed: int, *, voice: torch.Tensor, top_k: int | None = SPEECH_TOP_K
    ) -> SpeechStream:
        sampler = self._sampler(Sampling(temperature=temperature, top_k=top_k), seed=seed)
        return SpeechStream(self.engine.model, sampler, max_frames=self.config.max_audio_tokens, voice=voice)

    @property
    def voices(self) -> list[str]:
        """Names of the voices it was trained on, the most frequent one first."""
        return self.engine.model.talker.voices.known()

    @torch.inference_mode()
    def _voice(self, name: str | None) -> torch.Tensor:
        known = self.voices
        if name is not None and name not in known:
            raise RequestError(f"voice: {name!r} is not known; there are {', '.join(known) or 'none'}.")
        return self.engine.model.talker.voice(name or next(iter(known), None))

    @torch.inference_mode()
    def _voice_of(self, clip: Clip) -> torch.Tensor:
        frames = read_clip(clip, self.config).unflatten(1, (self.config.codec.factor, -1)).flatten(0, 1)
        return self.engine.model.talker.voice(log_mel=frames.to(self.engine.device))

    def _read(self, text: str | None, pictures: Sequence[Picture], clips: Sequence[Clip]) -> Said:
        ids = self.tokenizer.encode(text) if text else []
        if not (ids or pictures or clips):
            raise RequestError("turn: nothing was said; give text, image or audio.")
        images = [read_picture(picture, self.config) for picture in pictures]
        frames = [read_clip(clip, self.config) for clip in clips]
        return Said(
            turn=Turn(text=ids, n_images=len(images), clips=[len(f) for f in frames]),
            images=self.engine.see(torch.cat(images)) if images else None,
            clips=torch.cat([self.engine.hear(f) for f in frames]) if frames else None,
        )

    def _settle(self) -> None:
        """Write the last turn's answer into the conversation, whether its stream was used up or not."""
        if self._current is not None:
            self._current.close()
            self._conversation.answer(self._current.ids)
            self._current = None

    def _prefill(self, said: Said, max_new_tokens: int, started: float) -> Prompt:
        forgotten = self._conversation.ask(said, reserve=max_new_tokens)
        if forgotten:
            # What is left attended to what is forgotten, so it is computed anew.
            self._cache.reset()
        document = self._conversation.document()
        images, clips = self._conversation.features()
        known = self._cache.longest
        hidden = self.engine.extend(
            self.engine.embed(document, images, clips)[known:], document.positions[known:], self._cache
        )
        room = self.config.max_seq_len - len(document) - 1
        return Prompt(
            cache=self._cache,
            hidden=hidden[-1],
            position=int(document.positions[-1].max()) + 1,
            max_new_tokens=min(max_new_tokens, room),
            truncated=forgotten,
            started=started,
        )


def _listed(value: object) -> Sequence:
    """One item or several, as a sequence; files, bytes, arrays and pictures are one item."""
    if value is None:
        return ()
    return value if isinstance(value, list | tuple) else (value,)
