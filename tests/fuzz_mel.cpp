// Fuzzes csrc/ without Python: random log-mel, fused, downsampling and row-wise calls, their results checked against a DFT in
// double precision and against each other. tests/fuzz.sh builds it with sanitizers.
// fuzz_mel [cases = 200000] [seed = 0] [first case = 0]: a case depends on the seed and its number alone.
#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#include "fused.h"
#include "fuzz_case.h"
#include "fuzz_downsample.h"
#include "fuzz_decode.h"
#include "fuzz_rows.h"
#include "log_mel.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

using namespace muomni;

namespace fuzz {

// One frame in double precision: what its powers are and how far float arithmetic may be from them.
struct Frame {
    const Case& c;
    std::vector<double> windowed;
    int prime = 2;       // the largest factor of n_fft
    double error = 0.0;  // of an amplitude

    template <typename Sample>
    Frame(const Case& c, const Exact<Sample>& wave, int64_t frame) : c(c) {
        const auto behind = std::upper_bound(c.cu_frames.begin(), c.cu_frames.end(), frame);
        const int64_t clip = behind - c.cu_frames.begin() - 1;
        double energy = 0.0;
        for (int n = 0; n < c.n_fft; ++n) {
            const double x = sample_at(c, wave, clip, frame - c.cu_frames[clip], n);
            windowed.push_back(x * c.window[static_cast<size_t>(n)]);
            energy += windowed.back() * windowed.back();
        }
        for (int n = c.n_fft; n > prime;) n % prime == 0 ? n /= prime : ++prime;
        // Rounding errors spread over all bins in proportion to the root of the energy, not to a bin's own amplitude;
        // a direct sum over a prime adds up more of them than a butterfly does.
        error = (12.0 + 0.25 * prime) * EPSILON * std::sqrt(energy);
    }

    // Those of a periodic signal do not average out: they are in proportion to its largest amplitude, which takes the
    // whole spectrum to find.
    void allow_for_peak() {
        double largest = 0.0;
        for (size_t k = 0; k <= windowed.size() / 2; ++k) largest = std::max(largest, power(k));
        error = std::max(error, (4.0 + 0.1 * prime) * EPSILON * std::sqrt(largest));
    }

    double power(size_t bin) const {
        const std::vector<double>& roots = roots_of_unity(c.n_fft);
        const size_t size = windowed.size();
        double re = 0.0, im = 0.0;
        for (size_t n = 0, turn = 0; n < size; ++n, turn = turn + bin < size ? turn + bin : turn + bin - size) {
            re += windowed[n] * roots[turn];
            im += windowed[n] * roots[turn + size];
        }
        return re * re + im * im;
    }

    double mel(int64_t band) const {
        double sum = 0.0;
        for (size_t k = 0, bins = windowed.size() / 2 + 1; k < bins; ++k) {
            const float weight = c.filters[static_cast<size_t>(band) * bins + k];
            if (weight != 0.0f) sum += weight * power(k);
        }
        return sum;
    }

    // Whether ln(max(mel, floor)) is what `log` may be. With every amplitude X off by `error`, a band sum w |X|^2 is
    // off by at most 2 error sqrt(sum w * mel) + error^2 sum w (Cauchy and Schwarz).
    bool allows(int64_t band, double mel, double log, double error) const {
        double weight = 0.0, terms = 0.0;
        for (int64_t k = 0, bins = c.n_fft / 2 + 1; k < bins; ++k) {
            weight += c.filters[static_cast<size_t>(band * bins + k)];
            terms += c.filters[static_cast<size_t>(band * bins + k)] != 0.0f;
        }
        const double underflow = 1e-36 * (1.0 + weight);
        const double off = error * (2.0 * std::sqrt(weight * mel) + error * weight) + mel * terms * EPSILON + underflow;
        const double floor = c.floor, rounding = 1e-6 + 2e-7 * std::abs(log);
        return log >= std::log(std::max(mel - off, floor)) - rounding &&
               log <= std::log(std::max(mel + off, floor)) + rounding;
    }

    void require(int64_t band, double mel, double log, const char* what, double times = 1.0) {
        if (allows(band, mel, log, times * error)) return;
        allow_for_peak();
        if (!allows(band, mel, log, times * error)) fail(what);
    }

    static const std::vector<double>& roots_of_unity(int n_fft) {
        static std::vector<std::vector<double>> known(1'025);
        std::vector<double>& roots = known[static_cast<size_t>(n_fft)];
        for (int n = static_cast<int>(roots.size()); n < 2 * n_fft; ++n)
            roots.push_back(n < n_fft ? std::cos(2.0 * PI * n / n_fft) : std::sin(2.0 * PI * (n - n_fft) / n_fft));
        return roots;
    }
};

template <typename T>
void require_equal(const Exact<T>& found, const Exact<T>& expected, const char* what) {
    if (found.size != expected.size || std::memcmp(found.data, expected.data, sizeof(T) * found.size) != 0) fail(what);
}

// The mean of eight frames may take one logarithm of a product instead of eight: it differs in the last bits.
bool is_near(float x, float expected) { return std::abs(x - expected) <= 2e-6f + 3e-7f * std::abs(expected); }
bool is_near(uint16_t x, uint16_t expected) {  // to one unit more
    const float a = Bfloat16::wide(x), b = Bfloat16::wide(expected);
    return std::abs(a - b) <= 2e-6f + std::abs(b) / 128.0f;
}

template <typename Sample, typename Out>
void check_fused(Random& random, const Case& c, const MelPlan& plan, const Exact<Sample>& wave,
                 const Exact<float>& frames, int64_t bad_clip, int n_threads) {
    const int64_t factor = random.one_in(4) ? 8 : random.one_in(20) ? random.between(17, 70) : random.between(1, 16);
    const Pool pool = random.pick({Pool::mean, Pool::max, Pool::stack});
    const std::vector<int64_t> cu_rows = row_offsets(c.cu_frames, factor);
    const Groups groups{c.cu_frames.data(), cu_rows.data(), c.n_clips(), c.n_mels, factor};
    const int64_t size = cu_rows.back() * c.n_mels * (pool == Pool::stack ? factor : 1);
    const auto compute = [&](int threads) {
        Exact<Out> out(size, random.below(4));
        if (log_mel_downsample(plan, wave.data, c.ragged(), groups, pool, threads, out.data) != bad_clip)
            fail("log_mel_downsample names the wrong clip");
        return out;
    };
    const Exact<Out> found = compute(n_threads);
    if (bad_clip >= 0) return;
    if (n_threads > 1) require_equal(compute(1), found, "threads change log_mel_downsample");
    Exact<float> rows(size);
    downsample<Float32>(frames.data, groups, pool, rows.data);
    Exact<Out> expected(size);
    for (int64_t i = 0; i < size; ++i)
        if constexpr (std::is_same_v<Out, float>)
            expected.data[i] = rows.data[i];
        else
            expected.data[i] = bits_of(static_cast<float>(nearest<Bfloat16>(rows.data[i]))) >> 16;
    if (pool == Pool::mean && factor == 8 && plan.log == Log::natural) {
        for (int64_t i = 0; i < size; ++i)
            if (!is_near(found.data[i], expected.data[i])) fail("log_mel_downsample: a mean of eight is off");
        return;
    }
    require_equal(found, expected, "log_mel_downsample is not log_mel and downsample");
}

// (max(log10, maximum of the clip - 8) + 4) / 4 of what the natural logarithm gave.
void check_whisper(const Case& c, const Exact<float>& natural, const Exact<float>& found) {
    for (int64_t clip = 0; clip < c.n_clips(); ++clip) {
        const int64_t first = c.cu_frames[clip] * c.n_mels, last = c.cu_frames[clip + 1] * c.n_mels;
        if (first == last) continue;
        const double unit = std::log10(std::exp(1.0));
        const double lowest = unit * *std::max_element(natural.data + first, natural.data + last) - 8.0;
        for (int64_t i = first; i < last; ++i) {
            const double expected = (std::max(unit * natural.data[i], lowest) + 4.0) / 4.0;
            if (!(std::abs(found.data[i] - expected) <= 2e-6 + 2e-7 * std::abs(expected)))
                fail("Whisper's scale is off");
        }
    }
}

template <typename Sample>
void check_levels(Random& random, const Case& c, const Exact<Sample>& wave, const std::vector<Exact<float>>& outs) {
    const int64_t n_frames = c.cu_frames.back();
    if (n_frames == 0) return;
    const int64_t chosen = random.below(n_frames);
    Frame frame(c, wave, chosen);
    for (int64_t left = std::min(c.n_mels, 6); left > 0; --left) {
        const int64_t band = random.below(c.n_mels);
        const double mel = frame.mel(band);
        for (const Exact<float>& out : outs)
            frame.require(band, mel, out.data[chosen * c.n_mels + band], "a band is not the DFT's");
    }
    for (size_t level = 1; level < outs.size(); ++level)
        for (int64_t i = 0; i < n_frames * c.n_mels; ++i) {
            const float a = outs[0].data[i], b = outs[level].data[i];
            if (std::abs(a - b) <= 1e-5f) continue;
            Frame other(c, wave, i / c.n_mels);
            other.require(i % c.n_mels, std::exp(static_cast<double>(a)), b, "two instruction sets disagree", 2.0);
        }
}

// The same frames by themselves, with other threads, and while another thread runs too: bit for bit.
template <typename Sample>
void check_independence(Random& random, const Case& c, const MelPlan& plan, const Exact<Sample>& wave,
                        const Exact<float>& expected) {
    const auto again = [&](int n_threads) {
        Exact<float> out(expected.size, random.below(16));
        if (log_mel(plan, wave.data, c.ragged(), n_threads, out.data) != -1) fail("a clip turned bad");
        require_equal(out, expected, "threads change the result");
    };
    if (random.one_in(4)) again(static_cast<int>(random.between(1, 4)));
    if (random.one_in(100)) {
        std::vector<Exact<float>> outs;
        for (int i = 0; i < 3; ++i) outs.emplace_back(expected.size);
        std::vector<std::thread> threads;
        for (Exact<float>& out : outs)
            threads.emplace_back([&] { log_mel(plan, wave.data, c.ragged(), 2, out.data); });
        for (std::thread& thread : threads) thread.join();
        for (const Exact<float>& out : outs) require_equal(out, expected, "concurrent calls change the result");
    }
    if (c.n_clips() == 0 || !random.one_in(4)) return;
    const int64_t clip = random.below(c.n_clips()), first = c.cu_samples[clip], begin = c.cu_frames[clip];
    const std::array<int64_t, 2> samples{0, c.cu_samples[clip + 1] - first}, frames{0, c.cu_frames[clip + 1] - begin};
    Exact<Sample> alone(samples[1]);
    std::copy(wave.data + first, wave.data + first + samples[1], alone.data);
    Exact<float> out(frames[1] * c.n_mels), same(out.size);
    std::copy(expected.data + begin * c.n_mels, expected.data + begin * c.n_mels + out.size, same.data);
    log_mel(plan, alone.data, {samples.data(), frames.data(), 1}, 1, out.data);
    require_equal(out, same, "a clip alone has other frames");
}

template <typename Sample>
void run_case(Random& random) {
    const Case c = make_case(random);
    describe("n_fft %d hop %d n_mels %d %s floor %g clips %d samples %d %s", c.n_fft, c.hop, c.n_mels,
             c.padding == Padding::causal ? "causal" : "reflect", static_cast<double>(c.floor),
             static_cast<int>(c.n_clips()), static_cast<int>(c.cu_samples.back()),
             std::is_same_v<Sample, float> ? "float32" : "int16");
    const Exact<Sample> wave = make_waveform<Sample>(random, c);
    const std::vector<SimdLevel>& levels = simd_levels();
    const size_t chosen = static_cast<size_t>(random.below(static_cast<int64_t>(levels.size())));
    // Fewer frames than csrc/blocks.h gives a thread are not shared.
    const bool threads = random.one_in(c.cu_frames.back() >= 256 ? 2 : 10);
    const int n_threads = threads ? static_cast<int>(random.between(2, 4)) : 1;
    const int64_t bad_clip = expected_bad_clip(c, wave);
    MelTables tables(c.n_fft, c.window.data(), c.filters.data(), c.n_mels);
    const auto plan_of = [&](size_t level, Log log) {
        return MelPlan{tables, c.hop, c.padding, log, c.floor, levels[level]};
    };
    const auto compute = [&](size_t level, Log log) {
        Exact<float> out(c.cu_frames.back() * c.n_mels, random.below(16));
        const MelPlan plan = plan_of(level, log);
        if (log_mel(plan, wave.data, c.ragged(), level == chosen ? n_threads : 1, out.data) != bad_clip)
            fail("log_mel names the wrong clip");
        if (bad_clip < 0 && !std::all_of(out.data, out.data + out.size, [](float x) { return std::isfinite(x); }))
            fail("a value is not finite or not written");
        return out;
    };
    std::vector<Exact<float>> outs;
    for (size_t level = 0; level < levels.size(); ++level) outs.push_back(compute(level, Log::natural));
    if (bad_clip < 0) {
        check_levels(random, c, wave, outs);
        check_independence(random, c, plan_of(chosen, Log::natural), wave, outs[chosen]);
    }
    Exact<float> frames = std::move(outs[chosen]);
    const Log log = random.one_in(3) ? Log::whisper : Log::natural;
    if (log == Log::whisper) {
        Exact<float> scaled = compute(chosen, Log::whisper);
        if (bad_clip < 0) check_whisper(c, frames, scaled);
        frames = std::move(scaled);
    }
    const MelPlan plan = plan_of(chosen, log);
    if (random.one_in(2))
        check_fused<Sample, float>(random, c, plan, wave, frames, bad_clip, n_threads);
    else
        check_fused<Sample, uint16_t>(random, c, plan, wave, frames, bad_clip, n_threads);
}

}  // namespace fuzz

int main(int argc, char** argv) {
    const auto argument = [&](int at, int64_t otherwise) { return argc > at ? std::atoll(argv[at]) : otherwise; };
    const int64_t n_cases = argument(1, 200'000), seed = argument(2, 0), first = argument(3, 0);
#if defined(__SANITIZE_ADDRESS__)
    __asan_set_death_callback([] { fuzz::print_case(); });
#endif
    const auto start = std::chrono::steady_clock::now();
    for (int64_t i = first; i < first + n_cases; ++i) {
        fuzz::Random random = fuzz::begin_case(seed, i);
        if (random.one_in(3))
            fuzz::run_case<int16_t>(random);
        else
            fuzz::run_case<float>(random);
        fuzz::check_downsample(random);
        fuzz::check_rows(random);
        fuzz::check_decode(random);
    }
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    std::string levels;
    for (const muomni::SimdLevel& level : muomni::simd_levels()) levels += std::string(" ") + level.name;
    std::printf("fuzz_mel: %lld cases, seed %lld, levels%s: no findings, %.1f s, %.0f cases/s\n",
                static_cast<long long>(n_cases), static_cast<long long>(seed), levels.c_str(), seconds,
                static_cast<double>(n_cases) / seconds);
}
