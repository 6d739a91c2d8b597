// What Python calls: chooses the level once, and shares the items of a job among threads.
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#include <cstring>

#include "jobs.hpp"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

#if defined(__x86_64__)
bool has_f16c() {  // not every compiler's __builtin_cpu_supports knows it
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

const Level* best() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        return &avx512_level;
    if (__builtin_cpu_supports("avx2") && has_f16c()) return &avx2_level;
#endif
    return &base_level;
}

const Level* level = best();

constexpr int64_t kLeastElements = 1 << 15;  // of one thread's share: less is not worth waking it

// Items are dealt in equal runs; no result depends on how.
template <class Job>
bool shared(bool (*function)(const Job&, int64_t, int64_t), const Job& job, int64_t items, int64_t numel,
            int32_t threads) {
    int64_t shares = numel / kLeastElements < threads ? numel / kLeastElements : threads;
    if (shares > items) shares = items;
    if (shares <= 1) return function(job, 0, items);
    int32_t failures = 0;
#pragma omp parallel for num_threads(shares) schedule(static) reduction(+ : failures)
    for (int64_t share = 0; share < shares; ++share)
        failures += !function(job, items * share / shares, items * (share + 1) / shares);
    return failures == 0;
}

int64_t over(int64_t count, int64_t each) { return (count + each - 1) / each; }

}  // namespace

// Of the structures in jobs.hpp; library.py asks for the same.
EXPORT int32_t fedhybrid_layout() { return 2; }

// A lower level than the best, for tests; "" is the best. Says whether this processor has it.
EXPORT int32_t fedhybrid_use_level(const char* name) {
    const Level* known[] = {
        &base_level,
#if defined(__x86_64__)
        &avx2_level,
        &avx512_level,
#endif
    };
    const Level* highest = best();
    if (!*name) return level = highest, 1;
    for (const Level* candidate : known) {
        if (!std::strcmp(candidate->name, name)) return level = candidate, 1;
        if (candidate == highest) break;
    }
    return 0;
}

EXPORT int32_t fedhybrid_groups_encode(const Groups* job, int32_t threads) {
    return shared(level->groups_encode, *job, over(job->numel, job->group * kRun), job->numel, threads);
}
EXPORT int32_t fedhybrid_groups_decode(const Groups* job, int32_t threads) {
    return shared(level->groups_decode, *job, over(job->numel, job->group * kRun), job->numel, threads);
}
EXPORT int32_t fedhybrid_rows_range(const Rows* job, int32_t threads) {
    return shared(level->rows_range, *job, job->rows, job->outer * job->rows * job->cols, threads);
}
EXPORT int32_t fedhybrid_rows_encode(const Rows* job, int32_t threads) {
    return shared(level->rows_encode, *job, job->rows, job->outer * job->rows * job->cols, threads);
}
EXPORT int32_t fedhybrid_rows_decode(const Rows* job, int32_t threads) {
    return shared(level->rows_decode, *job, job->rows, job->outer * job->rows * job->cols, threads);
}
EXPORT int32_t fedhybrid_maps_encode(const Maps* job, int32_t threads) {
    return shared(level->maps_encode, *job, job->maps, job->maps * job->height * job->width, threads);
}
EXPORT int32_t fedhybrid_maps_decode(const Maps* job, int32_t threads) {
    return shared(level->maps_decode, *job, job->maps, job->maps * job->height * job->width, threads);
}
EXPORT int32_t fedhybrid_bits_encode(const Bits* job, int32_t threads) {
    return shared(level->bits_encode, *job, over(job->numel, kBitTile), job->numel, threads);
}
EXPORT int32_t fedhybrid_bits_decode(const Bits* job, int32_t threads) {
    return shared(level->bits_decode, *job, over(job->numel, kBitTile), job->numel, threads);
}
