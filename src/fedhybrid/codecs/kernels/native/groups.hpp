// Groups of elements in 8, 4 or 2 bits between the group's smallest and largest value, gates kept if asked. Included
// once for each level.

struct GroupParts {  // where a group's parts lie in the code
    uint8_t *numbers, *range, *low_plane, *high_plane;
};

INLINE GroupParts parts_of(const Groups& job, int64_t item, int64_t count) {
    int64_t number_bytes = job.group * job.bits / 8;
    uint8_t* ranges = job.code + count * number_bytes;
    uint8_t* plane = ranges + 8 * count + item * (job.group / 8);
    bool low = job.low > -kInfinity, high = job.high < kInfinity;
    GroupParts parts = {job.code + item * number_bytes, ranges + 8 * item, nullptr, nullptr};
    if (low) parts.low_plane = plane;
    if (high) parts.high_plane = plane + (low ? (job.numel + 7) / 8 : 0);
    return parts;
}

// Planes behind the last whole tile, the first element in the lowest bit.
static void encode_planes(const float* x, int64_t count, const GroupParts& to, const ToNumbers& s) {
    for (int64_t i = 0; i < count; ++i) {
        int bit = (int)(i % 8);
        if (to.low_plane) to.low_plane[i / 8] = (uint8_t)((bit ? to.low_plane[i / 8] : 0) | (x[i] > s.gate_low) << bit);
        if (to.high_plane)
            to.high_plane[i / 8] = (uint8_t)((bit ? to.high_plane[i / 8] : 0) | (x[i] >= s.gate_high) << bit);
    }
}
static void decode_planes(float* x, int64_t count, const GroupParts& from, const FromNumbers& s) {
    for (int64_t i = 0; i < count; ++i) {
        if (from.low_plane) {
            if (from.low_plane[i / 8] >> (i % 8) & 1)
                x[i] = x[i] > s.inside_low ? x[i] : s.inside_low;
            else
                x[i] = x[i] < s.outside_low ? x[i] : s.outside_low;
        }
        if (from.high_plane) {
            if (from.high_plane[i / 8] >> (i % 8) & 1)
                x[i] = x[i] > s.outside_high ? x[i] : s.outside_high;
            else
                x[i] = x[i] < s.inside_high ? x[i] : s.inside_high;
        }
    }
}

template <int BITS, int GATES>
INLINE int32_t base_of(const Groups& job) {
    return is_clamped(GATES) && job.low > -kInfinity;
}
template <int BITS, int GATES>
INLINE int32_t intervals_of(const Groups& job) {
    int32_t levels = (1 << BITS) - 1;
    return is_clamped(GATES) ? levels - (job.low > -kInfinity) - (job.high < kInfinity) : levels;
}
INLINE float step_of(float low, float high, int32_t intervals) {
    float span = high - low, n = (float)intervals;
    return span < kInfinity ? span / n : high / n - low / n;
}

INLINE int64_t count_of(const Groups& job, int64_t item) {
    int64_t left = job.numel - item * job.group;
    return left < job.group ? left : job.group;
}

struct Measured {
    float low, high;
    bool finite;
};

template <int GATES, class T>
INLINE Measured measure_here(const Groups& job, int64_t item, const T* x) {
    Extremes<GATES> found(job.low, job.high);
    found.look(x, count_of(job, item));
    Measured range;
    found.finish(range.low, range.high);
    range.finite = !found.suspicious() || all_finite(x, count_of(job, item));
    if (range.low > range.high) range.low = range.high = 0;  // nothing between the gates
    return range;
}

template <int GATES>
INLINE Measured measure(const Groups& job, int64_t item, const float* x) {
    return measure_here<GATES>(job, item, x);
}
template <int GATES, class T>
__attribute__((noinline)) static Measured measure(const Groups& job, int64_t item, const T* x) {
    return measure_here<GATES>(job, item, x);
}

template <int BITS, bool STOCHASTIC, int GATES, class T>
INLINE void encode_group(const Groups& job, int64_t item, GroupParts to, const Measured& range, Random& random) {
    int64_t count = count_of(job, item);
    const T* x = (const T*)job.elements + item * job.group;
    write(to.range, range.low), write(to.range + 4, range.high);
    int32_t intervals = intervals_of<BITS, GATES>(job);
    float step = step_of(range.low, range.high, intervals);
    ToNumbers s = to_numbers(range.low, step, base_of<BITS, GATES>(job), intervals, STOCHASTIC);
    s.gate_low = job.low, s.gate_high = job.high;
    float buffer[kTile];
    uint8_t* numbers = to.numbers;
    for (; count >= kTile; count -= kTile, x += kTile, numbers += kTile * BITS / 8) {
        const float* tile = tile_of(x, buffer);
        if (sizeof(T) == 4 && s.factor == 1.0f)
            encode_tile<BITS, STOCHASTIC, GATES, false, false>(tile, numbers, to.low_plane, to.high_plane, s, random);
        else if (s.factor == 1.0f)
            encode_usual_tile<BITS, STOCHASTIC, GATES>(tile, numbers, to.low_plane, to.high_plane, s, random);
        else
            encode_any_tile<BITS, STOCHASTIC, GATES>(tile, numbers, to.low_plane, to.high_plane, s, random);
        if (to.low_plane) to.low_plane += kTile / 8;
        if (to.high_plane) to.high_plane += kTile / 8;
    }
    if (count) {
        copy(x, buffer, count);
        encode_rest<BITS, STOCHASTIC, GATES>(buffer, count, numbers, s, random.key + ((uint64_t)(item % kRun) << 32));
        numbers += (count * BITS + 7) / 8;
        if (has_planes(GATES)) encode_planes(buffer, count, to, s);
        for (uint8_t* end = to.numbers + job.group * BITS / 8; numbers < end; ++numbers) *numbers = 0;
    }
}

template <int BITS, int GATES, class T>
INLINE void decode_group(const Groups& job, int64_t item, GroupParts from) {
    int64_t count = count_of(job, item);
    T* x = (T*)job.elements + item * job.group;
    float low = read<float>(from.range), high = read<float>(from.range + 4);
    int32_t intervals = intervals_of<BITS, GATES>(job);
    FromNumbers s = from_numbers(low, step_of(low, high, intervals), high);
    s.inside_low = job.inside_low, s.outside_low = job.outside_low;
    s.inside_high = job.inside_high, s.outside_high = job.outside_high;
    if (is_clamped(GATES)) {
        s.base = base_of<BITS, GATES>(job);
        if (s.base) s.on_low = 0;
        if (job.high < kInfinity) s.on_high = (1 << BITS) - 1;
    }
    float buffer[kTile];
    const uint8_t* numbers = from.numbers;
    for (; count >= kTile; count -= kTile, x += kTile, numbers += kTile * BITS / 8) {
        decode_tile<BITS, GATES>(numbers, from.low_plane, from.high_plane, s, place_of(x, buffer));
        put_tile(buffer, x);
        if (from.low_plane) from.low_plane += kTile / 8;
        if (from.high_plane) from.high_plane += kTile / 8;
    }
    if (count) {
        decode_rest<BITS, GATES>(numbers, count, s, buffer);
        if (has_planes(GATES)) decode_planes(buffer, count, from, s);
        copy(buffer, x, count);
    }
}

// Items are runs of kRun groups, which share their generators. The jobs are copied, because compilers must expect that
// a write of bytes changes what they are given by reference.
template <int BITS, bool STOCHASTIC, int GATES, class T>
static bool encode_all(const Groups& given, int64_t first, int64_t last) {
    const Groups job = given;
    const int64_t count = (job.numel + job.group - 1) / job.group;
    const int64_t begin = first * kRun, end = last * kRun < count ? last * kRun : count;
    if (begin >= end) return true;
    Random random = {};
    Measured now = {}, next = {};
    for (int64_t ahead = begin; ahead <= end; ++ahead) {  // one ahead, so that no group waits for its own range
        if (ahead < end) next = measure<GATES>(job, ahead, (const T*)job.elements + ahead * job.group);
        if (!next.finite) return false;
        const int64_t item = ahead - 1;
        if (STOCHASTIC && ahead % kRun == 1) random = random_of(job.seed, item);
        if (ahead > begin) encode_group<BITS, STOCHASTIC, GATES, T>(job, item, parts_of(job, item, count), now, random);
        now = next;
    }
    return true;
}
template <int BITS, int GATES, class T>
static bool decode_all(const Groups& given, int64_t first, int64_t last) {
    const Groups job = given;
    const int64_t count = (job.numel + job.group - 1) / job.group;
    const int64_t end = last * kRun < count ? last * kRun : count;
    for (int64_t item = first * kRun; item < end; ++item)
        decode_group<BITS, GATES, T>(job, item, parts_of(job, item, count));
    return true;
}

template <int BITS, bool STOCHASTIC, class T>
static bool encode_gated(const Groups& job, int64_t first, int64_t last) {
    bool low_alone = job.low > -kInfinity && job.high == kInfinity;
    switch (job.gates) {
        case kClamped:
            return low_alone ? encode_all<BITS, STOCHASTIC, kClampedLow, T>(job, first, last)
                             : encode_all<BITS, STOCHASTIC, kClamped, T>(job, first, last);
        case kPlanes:
            return low_alone ? encode_all<BITS, STOCHASTIC, kPlaneLow, T>(job, first, last)
                             : encode_all<BITS, STOCHASTIC, kPlanes, T>(job, first, last);
    }
    return encode_all<BITS, STOCHASTIC, kNoGates, T>(job, first, last);
}
template <int BITS, class T>
static bool decode_gated(const Groups& job, int64_t first, int64_t last) {
    bool low_alone = job.low > -kInfinity && job.high == kInfinity;
    switch (job.gates) {
        case kClamped:
            return low_alone ? decode_all<BITS, kClampedLow, T>(job, first, last)
                             : decode_all<BITS, kClamped, T>(job, first, last);
        case kPlanes:
            return low_alone ? decode_all<BITS, kPlaneLow, T>(job, first, last)
                             : decode_all<BITS, kPlanes, T>(job, first, last);
    }
    return decode_all<BITS, kNoGates, T>(job, first, last);
}
template <class T>
static bool encode_groups(const Groups& job, int64_t first, int64_t last) {
    switch (job.bits * 2 + (job.stochastic != 0)) {
        case 4: return encode_gated<2, false, T>(job, first, last);
        case 5: return encode_gated<2, true, T>(job, first, last);
        case 8: return encode_gated<4, false, T>(job, first, last);
        case 9: return encode_gated<4, true, T>(job, first, last);
        case 16: return encode_gated<8, false, T>(job, first, last);
        case 17: return encode_gated<8, true, T>(job, first, last);
    }
    return false;
}
template <class T>
static bool decode_groups(const Groups& job, int64_t first, int64_t last) {
    switch (job.bits) {
        case 2: return decode_gated<2, T>(job, first, last);
        case 4: return decode_gated<4, T>(job, first, last);
        case 8: return decode_gated<8, T>(job, first, last);
    }
    return false;
}

BY_TYPE(groups_encode, encode_groups, Groups)
BY_TYPE(groups_decode, decode_groups, Groups)
