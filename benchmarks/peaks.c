/* What one core of this machine can do at most: products and sums in registers, and bytes read from buffers of several
 * sizes. Prints one line of JSON. Rates are the best of several trials, because whatever else the machine does only
 * takes away from them. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#if defined(__x86_64__)
#include <immintrin.h>
#define REGISTER "+v"
#elif defined(__aarch64__)
#include <arm_neon.h>
#define REGISTER "+w"
#endif

#if defined(__AVX512F__)
#define WIDTH 64
#elif defined(__AVX2__)
#define WIDTH 32
#else
#define WIDTH 16
#endif
/* Enough sums at a time to hide the latency of one (4 or 5 cycles, 2 a cycle), few enough for 16 registers. */
#define SUMS 12
#define TRIALS 100
#define TRIAL_SECONDS 0.001

typedef float floats __attribute__((vector_size(WIDTH)));
typedef uint64_t words __attribute__((vector_size(WIDTH)));

/* Seconds that this thread computed: waiting for a processor is none of them. */
static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return time.tv_sec + 1e-9 * time.tv_nsec;
}

/* Nothing is known of the operands after this, so that no product moves out of the loop. */
#define OPAQUE(value) __asm__ volatile("" : REGISTER(value))

/* Arrays of sums live in registers only where the loops over them are gone. */
#define EACH(i, count) _Pragma("GCC unroll 16") for (int i = 0; i < count; i++)

static volatile float float_sink;
static volatile int32_t int_sink;
static volatile uint64_t word_sink;

static double float_work(long rounds) {
    floats sums[SUMS] = {0}, a = {0}, b = {0};
    for (long round = 0; round < rounds; round++) {
        OPAQUE(a);
        OPAQUE(b);
        EACH(i, SUMS) sums[i] += a * b;
        EACH(i, SUMS) OPAQUE(sums[i]);
    }
    EACH(i, SUMS) float_sink = sums[i][0];
    return 2.0 * SUMS * (WIDTH / 4) * rounds;
}

#if defined(__AVX512VNNI__) && defined(__AVX512F__)
#define INT8 "vpdpbusd, 512 bits"
#define LANES 64
typedef __m512i ints;
#define ZERO _mm512_setzero_si512()
#define DOT(sum, a, b) _mm512_dpbusd_epi32(sum, a, b)
#define FIRST(sum) _mm_cvtsi128_si32(_mm512_castsi512_si128(sum))
#elif defined(__AVXVNNI__)
#define INT8 "vpdpbusd, 256 bits"
#define LANES 32
typedef __m256i ints;
#define ZERO _mm256_setzero_si256()
#define DOT(sum, a, b) _mm256_dpbusd_avx_epi32(sum, a, b)
#define FIRST(sum) _mm_cvtsi128_si32(_mm256_castsi256_si128(sum))
#elif defined(__AVX2__)
#define INT8 "vpmaddubsw, vpmaddwd, vpaddd"
#define LANES 32
typedef __m256i ints;
#define ZERO _mm256_setzero_si256()
#define DOT(sum, a, b) \
    _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1)))
#define FIRST(sum) _mm_cvtsi128_si32(_mm256_castsi256_si128(sum))
#elif defined(__ARM_FEATURE_DOTPROD)
#define INT8 "sdot"
#define LANES 16
typedef int32x4_t ints;
#define ZERO vdupq_n_s32(0)
#define DOT(sum, a, b) vdotq_s32(sum, vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b))
#define FIRST(sum) vgetq_lane_s32(sum, 0)
#endif

#ifdef INT8
static double int_work(long rounds) {
    ints sums[SUMS], a = ZERO, b = ZERO;
    EACH(i, SUMS) sums[i] = ZERO;
    for (long round = 0; round < rounds; round++) {
        OPAQUE(a);
        OPAQUE(b);
        EACH(i, SUMS) sums[i] = DOT(sums[i], a, b);
        EACH(i, SUMS) OPAQUE(sums[i]);
    }
    EACH(i, SUMS) int_sink = FIRST(sums[i]);
    return 2.0 * SUMS * LANES * rounds;
}
#endif

static const words *buffer;
static long buffer_words;

static double read_work(long rounds) {
    words sums[8] = {0};
    for (long round = 0; round < rounds; round++) {
        for (long i = 0; i < buffer_words; i += 8)
            EACH(j, 8) sums[j] ^= buffer[i + j];
        EACH(j, 8) OPAQUE(sums[j]);
    }
    EACH(j, 8) word_sink = sums[j][0];
    return (double)rounds * buffer_words * WIDTH;
}

/* Work per second: the best trial. */
static double rate(double (*work)(long)) {
    long rounds = 1;
    double begun, taken, best = 0.0;
    for (;;) {
        begun = now();
        work(rounds);
        taken = now() - begun;
        if (taken > TRIAL_SECONDS) break;
        rounds *= 2;
    }
    for (int trial = 0; trial < TRIALS; trial++) {
        begun = now();
        double done = work(rounds);
        taken = now() - begun;
        if (done / taken > best) best = done / taken;
    }
    return best;
}

int main(void) {
    printf("{\"width_bits\": %d, \"float_ops\": %.6g, ", 8 * WIDTH, rate(float_work));
#ifdef INT8
    printf("\"int8\": \"%s\", \"int8_ops\": %.6g, ", INT8, rate(int_work));
#else
    printf("\"int8\": null, \"int8_ops\": null, ");
#endif
    printf("\"bandwidth\": [");
    for (long bytes = 16L << 10; bytes <= 128L << 20; bytes *= 2) {
        void *memory = aligned_alloc(4096, bytes);
        if (memory == NULL) return 1;
        memset(memory, 1, bytes);
        buffer = memory;
        buffer_words = bytes / WIDTH;
        printf("%s[%ld, %.6g]", bytes == 16L << 10 ? "" : ", ", bytes, rate(read_work));
        free(memory);
    }
    printf("]}\n");
    return 0;
}
