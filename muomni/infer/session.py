"""A session: turns of text, pictures, clips and films in, text and speech out; speak, transcribe, describe, read."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from muomni.data.media import read_text
from muomni.data.spoken import as_words
from muomni.data.template import Turn
from muomni.data.text import Tokenizer
from muomni.data.wordings import SAY, wordings
from muomni.infer import hub, inputs, pretrained, shipped
from muomni.infer.conversation import Conversation, Said
from muomni.infer.engine import Engine
from muomni.infer.history import Trained
from muomni.infer.inputs import Clip, FilmSource, Picture, read_clip, read_film, read_picture, read_recording
from muomni.infer.lane import NO_SAMPLES, Lane
from muomni.infer.loading import load_model
from muomni.infer.model_card import Card
from muomni.infer.quiet import quiet_pieces
from muomni.infer.request import SPEECH_TEMPERATURE, SPEECH_TOP_K, RequestError, TurnSettings
from muomni.infer.rows import Lease
from muomni.infer.sampling import Sampling
from muomni.infer.speech import BYTES_A_FRAME, SpeechStream, pieces
from muomni.infer.stream import Audio, Reply
from muomni.infer.turn import Answering, Begun, TurnStream
from muomni.models.thinker import Weights


def load(
    path_or_name: Path | str,
    *,
    device: str | torch.device | None = None,
    weights: Weights = "float32",
    n_rows: int = 8,
) -> Session:
    """The model a run's stages make up, or the finished one that `Session.save_pretrained` wrote, ready to talk.

    path_or_name: the directory holding tokenizer.json and one directory a stage, or the finished model's; or the name
    of a model that comes with the package: "nano".
    device: where to run; by default CUDA when there is one, otherwise the CPU.
    weights, n_rows: as in `Engine`.
    Raises CheckpointError (a stage that is missing, unfinished, corrupt or of another size; a file of a finished model
    that is missing or damaged), TokenizerError.
    """
    chosen = torch.device(device) if device else torch.device("cuda" if torch.cuda.is_available() else "cpu")
    root = shipped.find(path_or_name)
    loaded = pretrained.load(root) if pretrained.is_pretrained(root) else load_model(root)
    engine = Engine(
        loaded.model.to(chosen), n_ids=loaded.tokenizer.vocab_size, n_rows=n_rows, weights=weights
    )
    notes = loaded.notes
    if weights == "int8" and engine.unpacked:
        notes = (*notes, f"weights: int8 is not used everywhere: {engine.unpacked}.")
    return Session(engine, loaded.tokenizer, notes=notes, history=loaded.history)


def from_pretrained(
    path_or_repo_id: Path | str,
    *,
    revision: str | None = None,
    local_files_only: bool = False,
    device: str | torch.device | None = None,
    weights: Weights = "float32",
    n_rows: int = 8,
) -> Session:
    """A finished model's directory, or OWNER/NAME on the Hugging Face hub, ready to talk.

    revision: a branch, tag or commit there; local_files_only: take what is in the hub's cache and ask no server.
    device, weights, n_rows: as in `load`. Nothing but the files of the format is fetched, and no code is run.
    Raises HubError (also when huggingface_hub is not installed), and what `load` raises.
    """
    path = Path(path_or_repo_id)
    if not path.is_dir():
        path = hub.download(str(path_or_repo_id), revision=revision, local_files_only=local_files_only)
    return load(path, device=device, weights=weights, n_rows=n_rows)


class Session:
    """One conversation with one model. It and all others with that model are for one thread."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        *,
        notes: tuple[str, ...] = (),
        history: tuple[Trained, ...] = (),
    ) -> None:
        """Start with nothing said. notes: what `load` had to pass over; history: what the model was trained on."""
        self.engine, self.tokenizer, self.notes, self.history = engine, tokenizer, notes, history
        self.config = engine.config
        self._lease = Lease()
        self._conversation = Conversation(self.config, max_positions=engine.max_positions)
        self._current: Answering | None = None

    def reset(self) -> None:
        """Forget the conversation."""
        self._settle()
        self._conversation = Conversation(self.config, max_positions=self.engine.max_positions)
        if self._lease.row is not None:
            self.engine.decoder.cut(self._lease.row, 0)

    def another(self) -> Session:
        """A conversation of its own with the same model; answers that go on at the same time share its steps.

        All conversations of one model belong to one thread: they take turns there, chunk by chunk.
        """
        return Session(self.engine, self.tokenizer, history=self.history)

    def save_pretrained(
        self, directory: Path | str, *, dtype: pretrained.Stored = "float32", card: Card | None = None
    ) -> Path:
        """Write the model, without the conversation, as one directory that `load` and `from_pretrained` read.

        A model that is there is replaced, hidden files stay. dtype: float16 halves the size. card: what the
        model card says besides what is known. Raises CheckpointError where anything else is, OSError for a full disk.
        """
        finished = pretrained.Finished(
            model=self.engine.model, tokenizer=self.tokenizer, history=self.history
        )
        return pretrained.save(finished, Path(directory), dtype=dtype, card=card)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        token: str | None = None,
        dtype: pretrained.Stored = "float32",
        card: Card | None = None,
    ) -> str:
        """Upload what `save_pretrained` writes to OWNER/NAME on the Hugging Face hub; the repository's address.

        private: of a repository that is made by this; token: by default the one that `hf auth login` keeps.
        Raises HubError, also when huggingface_hub is not installed.
        """
        hub.check_repo_id(repo_id)
        with tempfile.TemporaryDirectory() as folder:
            saved = self.save_pretrained(Path(folder, "model"), dtype=dtype, card=card)
            return hub.push(saved, repo_id, private=private, token=token)

    def chat(
        self,
        text: str | None = None,
        *,
        image: Picture | Sequence[Picture] | None = None,
        audio: Clip | Sequence[Clip] | None = None,
        video: FilmSource | Sequence[FilmSource] | None = None,
        **settings: Any,
    ) -> Reply:
        """One whole turn; `stream` with the same arguments gives the same text and samples piece by piece.

        image: one picture or several; audio: one clip or several, each at most max_audio_samples long;
        video: one film or several; up to eight frames of each are seen, evenly spaced, and its sound is heard for
        max_audio_samples: a warning and `Reply.unheard` tell what is not. No stage trains on films: to the model one is
        pictures and a clip that are told apart by time. settings: of `TurnSettings`.
        Raises RequestError for nothing said and an unknown voice, MediaError, TokenBudgetError, SamplingError,
        BusyError when too many other conversations are being answered.
        """
        stream = self.stream(text, image=image, audio=audio, video=video, **settings)
        for _ in stream:
            pass
        return stream.reply

    def stream(
        self,
        text: str | None = None,
        *,
        image: Picture | Sequence[Picture] | None = None,
        audio: Clip | Sequence[Clip] | None = None,
        video: FilmSource | Sequence[FilmSource] | None = None,
        **settings: Any,
    ) -> TurnStream:
        """A turn as it happens: an iterator of Chunk(text, pcm), whose `reply` is whole at its end.

        The prompt is checked, encoded and prefilled by this call; decoding happens as chunks are asked for.
        The next turn, `close` or `stop` ends a stream that was not used up: what was said is remembered.
        Arguments and errors as in `chat`.
        """
        started = time.perf_counter()
        how = TurnSettings(**settings)
        voice = self._voice(how.voice)
        said = self._read(text, *map(inputs.listed, (image, audio, video)))
        self._settle()
        turns, begun = self._conversation.turns, False
        try:
            answer = self._begin(said, how, started)
            speech = self._speech(how.speaking, how.seed, voice=voice) if how.speak else None
            self._current = Answering(
                self.engine, self.tokenizer, answer, stops=how.stops, loops=how.loops, speech=speech
            )
            begun = True
        finally:
            if not begun:
                # As if nothing had been asked.
                self._conversation.turns = turns
                self.engine.vacate(self._lease.row)
        return TurnStream(self._current)

    def describe(
        self, image: Picture | None = None, *, video: FilmSource | None = None, max_new_tokens: int = 96
    ) -> str:
        """A sentence about a picture or a film, asked for as in training. The conversation is not touched.

        Raises RequestError for none or both of them, MediaError, TokenBudgetError, and BusyError as `chat` does.
        """
        if (image is None) == (video is None):
            raise RequestError("describe: give an image or a video, one of them.")
        return self._asked(wordings("caption", "train")[0], max_new_tokens, image=image, video=video)

    def read(self, image: Picture, *, max_new_tokens: int = 96) -> str:
        """The words in a picture, as well as it was trained to. The conversation is not touched.

        Raises MediaError, and BusyError as `chat` does.
        """
        return self._asked(wordings("read", "train")[0], max_new_tokens, image=image)

    def transcribe(self, audio: Clip) -> str:
        """What is said in a recording (greedy CTC): lower-case words. The conversation is not touched.

        Longer than max_audio_samples, it is heard in pieces, cut where it is quiet. At most 64 MiB of float PCM, 2**24
        samples of all channels: 17 min 28 s mono at 16 kHz, 3 min 10 s stereo at 44.1 kHz. Raises MediaError.
        """
        waveform = read_recording(audio, self.config)
        heard = (
            self.engine.spell(read_clip(piece, self.config))
            for piece in quiet_pieces(
                waveform, self.config.mel.sample_rate, most=self.config.max_audio_samples
            )
        )
        return " ".join(text for text in heard if text)

    def speak(self, text: str, **settings: Any) -> Audio:
        """Speak a text, all of it; settings and errors as in `speak_stream`, which gives the same samples."""
        said = self.speak_stream(text, **settings)
        return Audio(np.concatenate([NO_SAMPLES, *said]), self.config.mel.sample_rate)

    def speak_stream(
        self,
        text: str,
        *,
        temperature: float = SPEECH_TEMPERATURE,
        top_k: int | None = SPEECH_TOP_K,
        voice: str | None = None,
        voice_from: Clip | None = None,
        seed: int = 0,
    ) -> Iterator[np.ndarray]:
        """Speak a text while it is being listened to: samples as they come. The conversation is not touched.

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
        how = Sampling(temperature=temperature, top_k=top_k)
        room = int(BYTES_A_FRAME * self.config.max_audio_tokens)
        parts = pieces(" ".join(as_words(read_text(text, name="text", may_be_blank=True)).split()), room)
        if not parts:
            raise RequestError("text: nothing to say; give some text.")
        return (pcm for i, part in enumerate(parts) for pcm in self._spoken(part, how, seed + i, voice=told))

    def _spoken(self, piece: str, how: Sampling, seed: int, *, voice: torch.Tensor) -> Iterator[np.ndarray]:
        """One piece of a text, frame by frame."""
        ids = self.tokenizer.encode(piece)
        states, embeds = self.engine.spoken_states(self.tokenizer.encode(SAY + piece), ids)
        speech, lane = self._speech(how, seed, voice=voice)
        try:
            for state, embed, token in zip(states, embeds, ids, strict=True):
                speech.add(state, embed, self.tokenizer.spell(token))
            speech.end()
            while speech.ready:
                yield speech.frame()
            yield speech.flush()
        finally:
            self.engine.put_back(lane)
        if not speech.finished:
            seconds = self.config.max_audio_samples / self.config.mel.sample_rate
            warnings.warn(f"speak: {piece!r} is cut after {seconds:.2f} s.", stacklevel=2)

    def _speech(self, how: Sampling, seed: int, *, voice: torch.Tensor) -> tuple[SpeechStream, Lane]:
        lane = self.engine.borrow(how, seed=seed)
        return SpeechStream(self.engine.model.talker.script, lane, voice=voice), lane

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

    def _asked(self, wording: str, max_new_tokens: int, **media: Any) -> str:
        return self.another().chat(wording, speak=False, max_new_tokens=max_new_tokens, **media).text

    def _read(
        self,
        text: str | None,
        pictures: Sequence[Picture],
        clips: Sequence[Clip],
        films: Sequence[FilmSource],
    ) -> Said:
        ids = self.tokenizer.encode(read_text(text, name="text", may_be_blank=True)) if text else []
        if not (ids or pictures or clips or films):
            raise RequestError("turn: nothing was said; give text, image, audio or video.")
        # Before anything is read: so many pictures never fit, whatever is in them.
        self._conversation.check(Turn(text=ids, n_images=len(pictures), clips=[1] * len(clips)))
        images = [read_picture(picture, self.config) for picture in pictures]
        frames = [read_clip(clip, self.config) for clip in clips]
        seen = [read_film(film, self.config) for film in films]
        turn = Turn(
            text=ids, n_images=len(images), clips=[len(f) for f in frames], films=[one.film for one in seen]
        )
        self._conversation.check(turn)
        unheard = sum(one.unheard for one in seen)
        if unheard:
            seconds = self.config.max_audio_samples / self.config.mel.sample_rate
            warnings.warn(
                f"video: of its sound the first {seconds:.2f} s are heard, {unheard:.2f} s are not.",
                stacklevel=4,
            )
        # As the template writes them: films behind pictures and clips.
        images += [one.images for one in seen]
        frames += [one.sound for one in seen if one.sound is not None]
        heard = [self.engine.hear(own) for own in frames]
        turn = replace(turn, heard=self.tokenizer.encode_batch([own.text for own in heard]))
        self._conversation.check(turn)
        return Said(
            turn=turn,
            images=self.engine.see(torch.cat(images)) if images else None,
            clips=torch.cat([own.features for own in heard]) if heard else None,
            unheard=unheard,
        )

    def _settle(self) -> None:
        """Write the last turn's answer into the conversation, whether its stream was used up or not."""
        if self._current is not None:
            self._current.close()
            self._current.settled = True
            self._conversation.answer(self._current.ids)
            if self._lease.row is not None:
                # Tokens that were written and not asked for, or not heard.
                self.engine.decoder.cut(self._lease.row, self._current.length)
            self._current = None

    def _begin(self, said: Said, how: TurnSettings, started: float) -> Begun:
        """Make room in the conversation, prefill what the cache does not hold, and choose the first token."""
        decoder, kept = self.engine.decoder, self._lease.row is not None
        row = self.engine.rows.take(self._lease)
        if not kept:
            decoder.cut(row, 0)
        forgotten = self._conversation.ask(said, reserve=how.max_new_tokens)
        if forgotten:
            # What is left attended to what is forgotten, so it is computed anew.
            decoder.cut(row, 0)
        document = self._conversation.document()
        images, clips = self._conversation.features()
        known = int(decoder.cache.used[row])
        embeds = self.engine.embed(document, images, clips)
        hidden = decoder.prefill(row, embeds[known:], document.positions[known:])
        place = int(document.positions[-1].max()) + 1
        # The EOS behind the answer needs a place too.
        room = min(self.config.max_seq_len - len(document), self.engine.max_positions - place) - 1
        ticket = self.engine.batch.join(
            row,
            hidden[-1],
            place,
            sampling=how.writing,
            seed=how.seed,
            max_new_tokens=how.max_new_tokens,
            room=room,
        )
        return Begun(
            ticket=ticket, lease=self._lease, length=len(document), truncated=forgotten, started=started,
            unheard=said.unheard,
        )  # fmt: skip
