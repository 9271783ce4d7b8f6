// Waveform -> log-mel spectrogram, ragged batches, float32 or int16 samples.
#pragma once

#include <cstdint>

#include "simd.h"

namespace muomni {

enum class Padding { causal, reflect };
enum class Log { natural, whisper };

struct MelPlan {
    const MelTables& tables;
    int hop_length;
    Padding padding;
    Log log;
    float floor;
    const SimdLevel& level;

    // Samples a frame reaches back before frame * hop_length.
    int64_t lead() const { return padding == Padding::causal ? tables.view.n_fft - hop_length : tables.view.n_fft / 2; }
    int64_t frames(int64_t n_samples) const {
        return n_samples / hop_length + (padding == Padding::causal && n_samples % hop_length != 0);
    }
};

struct Ragged {
    const int64_t* cu_samples;  // (n_clips + 1,)
    const int64_t* cu_frames;   // (n_clips + 1,)
    int64_t n_clips;
};

// out: (cu_frames[n_clips], n_mels) float32. The caller has checked every offset and length.
// Returns the first clip that holds a sample that is not finite (or too large to square), else -1.
template <typename Sample>
int64_t log_mel(const MelPlan& plan, const Sample* waveform, const Ragged& ragged, int n_threads, float* out);

}  // namespace muomni
