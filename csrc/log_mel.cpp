// Waveform -> log-mel: LANES frames at once, taken from any clip of the batch; the real FFT of n_fft points is
// a complex FFT of half the length; the mel matrix is applied by its non-zeros only.
#include "log_mel.h"

#include <algorithm>
#include <cmath>
#include <thread>

namespace muomni {

MelPlan::MelPlan(int n_fft_, int hop_length_, std::vector<float> window_, const float* filters, int n_mels_)
    : n_fft(n_fft_), hop_length(hop_length_), n_mels(n_mels_), window(std::move(window_)), stages(plan_fft(n_fft_ / 2)) {
    const int bins = n_fft / 2 + 1;
    for (int k = 0; k < bins; ++k) push_root(unpack, k, n_fft);
    band_offset.push_back(0);
    for (int band = 0; band < n_mels; ++band) {
        const float* row = filters + static_cast<size_t>(band) * bins;
        int first = 0, last = bins;
        while (first < bins && row[first] == 0.0f) ++first;
        while (last > first && row[last - 1] == 0.0f) --last;
        band_begin.push_back(first);
        weights.insert(weights.end(), row + first, row + last);
        band_offset.push_back(static_cast<int>(weights.size()));
    }
}

namespace {

struct Scratch {
    explicit Scratch(const MelPlan& plan)
        : a_re(half(plan)), a_im(half(plan)), b_re(half(plan)), b_im(half(plan)),
          power(static_cast<size_t>(plan.n_fft / 2 + 1) * LANES), mel(static_cast<size_t>(plan.n_mels) * LANES) {}
    static size_t half(const MelPlan& plan) { return static_cast<size_t>(plan.n_fft / 2) * LANES; }
    std::vector<float> a_re, a_im, b_re, b_im, power, mel;
};

// Even samples to the real, odd samples to the imaginary part of one lane, windowed.
template <typename Sample>
void load_frame(const MelPlan& plan, const Sample* clip, int64_t n_samples, int64_t start, Padding padding, int lane,
                Scratch& s) {
    constexpr float scale = sizeof(Sample) == 2 ? 1.0f / 32768.0f : 1.0f;
    const bool inside = start >= 0 && start + plan.n_fft <= n_samples;
    for (int n = 0; n < plan.n_fft; ++n) {
        int64_t at = start + n;
        float value = 0.0f;
        if (inside) {
            value = static_cast<float>(clip[at]) * scale;
        } else {
            if (padding == Padding::reflect) {
                if (at < 0) at = -at;
                if (at >= n_samples) at = 2 * (n_samples - 1) - at;
            }
            if (at >= 0 && at < n_samples) value = static_cast<float>(clip[at]) * scale;
        }
        float* part = n % 2 ? s.a_im.data() : s.a_re.data();
        part[static_cast<size_t>(n / 2) * LANES + lane] = value * plan.window[n];
    }
}

MUOMNI_CLONES
void transform(const MelPlan& plan, Log log, float floor, Scratch& s) {
    const int half = plan.n_fft / 2;
    const bool in_b = fft(plan.stages, s.a_re.data(), s.a_im.data(), s.b_re.data(), s.b_im.data());
    const float* re = in_b ? s.b_re.data() : s.a_re.data();
    const float* im = in_b ? s.b_im.data() : s.a_im.data();
    for (int k = 0; k <= half; ++k) {
        // X[k] = (Z[k] + conj Z[-k]) / 2 - i / 2 * exp(-2 pi i k / n) * (Z[k] - conj Z[-k])
        const float c = plan.unpack[2 * k], d = plan.unpack[2 * k + 1];
        const float *zr = re + static_cast<size_t>(k % half) * LANES, *zi = im + static_cast<size_t>(k % half) * LANES;
        const size_t mirror = static_cast<size_t>((half - k) % half) * LANES;
        const float *yr = re + mirror, *yi = im + mirror;
        float* power = s.power.data() + static_cast<size_t>(k) * LANES;
        for (int l = 0; l < LANES; ++l) {
            const float even_re = 0.5f * (zr[l] + yr[l]), even_im = 0.5f * (zi[l] - yi[l]);
            const float odd_re = 0.5f * (zi[l] + yi[l]), odd_im = -0.5f * (zr[l] - yr[l]);
            const float x = even_re + odd_re * c - odd_im * d, y = even_im + odd_re * d + odd_im * c;
            power[l] = x * x + y * y;
        }
    }
    const float unit = log == Log::whisper ? 0.4342944819032518f : 1.0f;
    for (int band = 0; band < plan.n_mels; ++band) {
        float sum[LANES] = {};
        const float* power = s.power.data() + static_cast<size_t>(plan.band_begin[band]) * LANES;
        for (int w = plan.band_offset[band]; w < plan.band_offset[band + 1]; ++w, power += LANES) {
            const float weight = plan.weights[w];
            for (int l = 0; l < LANES; ++l) sum[l] += weight * power[l];
        }
        float* mel = s.mel.data() + static_cast<size_t>(band) * LANES;
        for (int l = 0; l < LANES; ++l) mel[l] = unit * natural_log(sum[l] > floor ? sum[l] : floor);
    }
}

template <typename Sample>
void run_blocks(const MelPlan& plan, const Sample* waveform, const Ragged& ragged, Padding padding, Log log,
                float floor, int64_t first_block, int64_t last_block, float* out) {
    Scratch scratch(plan);
    const int64_t total = ragged.cu_frames[ragged.n_clips];
    const int64_t lead = padding == Padding::causal ? plan.n_fft - plan.hop_length : plan.n_fft / 2;
    for (int64_t block = first_block; block < last_block; ++block) {
        const int64_t begin = block * LANES, end = std::min<int64_t>(begin + LANES, total);
        int64_t clip = std::upper_bound(ragged.cu_frames, ragged.cu_frames + ragged.n_clips + 1, begin) - ragged.cu_frames - 1;
        for (int64_t frame = begin; frame < end; ++frame) {
            while (frame >= ragged.cu_frames[clip + 1]) ++clip;
            const int64_t n_samples = ragged.cu_samples[clip + 1] - ragged.cu_samples[clip];
            const int64_t start = (frame - ragged.cu_frames[clip]) * plan.hop_length - lead;
            load_frame(plan, waveform + ragged.cu_samples[clip], n_samples, start, padding,
                       static_cast<int>(frame - begin), scratch);
        }
        transform(plan, log, floor, scratch);
        for (int64_t frame = begin; frame < end; ++frame)
            for (int band = 0; band < plan.n_mels; ++band)
                out[frame * plan.n_mels + band] = scratch.mel[static_cast<size_t>(band) * LANES + (frame - begin)];
    }
}

// Whisper's scale: nothing more than 8 below the clip's maximum, then (x + 4) / 4.
void whisper_scale(const MelPlan& plan, const Ragged& ragged, float* out) {
    for (int64_t clip = 0; clip < ragged.n_clips; ++clip) {
        float* begin = out + ragged.cu_frames[clip] * plan.n_mels;
        float* end = out + ragged.cu_frames[clip + 1] * plan.n_mels;
        if (begin == end) continue;
        const float lowest = *std::max_element(begin, end) - 8.0f;
        for (float* x = begin; x != end; ++x) *x = (std::max(*x, lowest) + 4.0f) * 0.25f;
    }
}

}  // namespace

template <typename Sample>
void log_mel(const MelPlan& plan, const Sample* waveform, const Ragged& ragged, Padding padding, Log log, float floor,
             int n_threads, float* out) {
    const int64_t blocks = (ragged.cu_frames[ragged.n_clips] + LANES - 1) / LANES;
    const int64_t workers = std::max<int64_t>(1, std::min<int64_t>(n_threads, blocks));
    std::vector<std::thread> threads;
    for (int64_t w = 1; w < workers; ++w)
        threads.emplace_back([&, w] {
            run_blocks(plan, waveform, ragged, padding, log, floor, blocks * w / workers, blocks * (w + 1) / workers, out);
        });
    run_blocks(plan, waveform, ragged, padding, log, floor, 0, blocks / workers, out);
    for (std::thread& thread : threads) thread.join();
    if (log == Log::whisper) whisper_scale(plan, ragged, out);
}

template void log_mel<float>(const MelPlan&, const float*, const Ragged&, Padding, Log, float, int, float*);
template void log_mel<int16_t>(const MelPlan&, const int16_t*, const Ragged&, Padding, Log, float, int, float*);

}  // namespace muomni
