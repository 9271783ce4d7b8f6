// Waveform -> log-mel spectrogram, ragged batches, float32 or int16 samples.
#pragma once

#include <cstdint>
#include <vector>

#include "fft.h"

namespace muomni {

enum class Padding { causal, reflect };
enum class Log { natural, whisper };

struct MelPlan {
    // window: (n_fft,) already centred in n_fft; filters: (n_mels, n_fft / 2 + 1), dense, zeros included.
    MelPlan(int n_fft, int hop_length, std::vector<float> window, const float* filters, int n_mels);

    int n_fft, hop_length, n_mels;
    std::vector<float> window;
    std::vector<FftStage> stages;    // complex FFT of n_fft / 2
    std::vector<float> unpack;       // (n_fft / 2 + 1, 2): exp(-2 pi i k / n_fft)
    std::vector<int> band_begin;     // first bin of each band
    std::vector<int> band_offset;    // (n_mels + 1,) into weights
    std::vector<float> weights;      // non-zero filter weights, band after band
};

struct Ragged {
    const int64_t* cu_samples;  // (n_clips + 1,)
    const int64_t* cu_frames;   // (n_clips + 1,)
    int64_t n_clips;
};

// out: (cu_frames[n_clips], n_mels) float32. The caller has checked every offset and length.
template <typename Sample>
void log_mel(const MelPlan& plan, const Sample* waveform, const Ragged& ragged, Padding padding, Log log,
             float floor, int n_threads, float* out);

}  // namespace muomni
