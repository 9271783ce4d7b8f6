"""The parts of the omni model: thinker, vision, audio, codec, talker, vocoder, and what joins them."""
