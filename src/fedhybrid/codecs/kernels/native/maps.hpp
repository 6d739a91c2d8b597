// Maps as block averages in bfloat16 plus the rest in few bits. Included once for each level.

INLINE int64_t blocks_of(int64_t length, int64_t block) { return (length + block - 1) / block; }

// Walks over one map, row by row, with the averages spread over the columns again: a window that moves along.
constexpr int64_t kWindow = 1024;

struct Walk {
    const BFloat16* averages;  // of the map
    int64_t width, block, across;
    int64_t at = 0, column = 0, line = 0, row_of_line = 0;  // a line is a row of blocks
    int64_t window_line = -1, begin = 0, end = 0;
    float values[kWindow + 16];

    Walk(const BFloat16* of_map, int64_t columns, int64_t side)
        : averages(of_map), width(columns), block(side), across(blocks_of(columns, side)) {}

    INLINE void fill() {
        window_line = line, begin = column;
        end = column + kWindow < width ? column + kWindow : width;
        int64_t number = column / block, stop = (number + 1) * block;
        for (int64_t c = column; c < end; c = stop, stop += block, ++number) {
            F average = all(load_one(averages + line * across + number));
            for (int64_t i = c; i < stop && i < end; i += LANES) store(values + (i - begin), average);  // and too far
        }
    }
    // The averages from here on, as many as `ready`.
    INLINE const float* here() {
        if (line != window_line || column < begin || column >= end) fill();
        return values + (column - begin);
    }
    INLINE int64_t ready(int64_t wanted) const { return end - column < wanted ? end - column : wanted; }
    INLINE void advance(int64_t count) {
        at += count, column += count;
        if (column < width) return;
        column = 0;
        if (++row_of_line == block) row_of_line = 0, ++line;
    }
};

template <class T>
INLINE void subtract(const T* a, const float* b, float* out, int64_t count) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) store(out + i, load(a + i) - load(b + i));
    for (; i < count; ++i) out[i] = load_one(a + i) - b[i];
}
template <class T>
INLINE void add(const float* a, const float* b, T* out, int64_t count) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) store(out + i, load(a + i) + load(b + i));
    for (; i < count; ++i) store_one(out + i, a[i] + b[i]);
}

// Averages of one row of blocks, `rows` rows high, some columns at a time.
template <class T>
static void average(const T* x, int64_t width, int64_t rows, int64_t block, BFloat16* out) {
    float sums[kWindow], pending = 0;
    int64_t inside = 0;  // columns of the block so far
    for (int64_t begin = 0; begin < width; begin += kWindow) {
        int64_t count = width - begin < kWindow ? width - begin : kWindow, i = 0;
        for (; i + LANES <= count; i += LANES) {
            F sum = load(x + begin + i);
            for (int64_t r = 1; r < rows; ++r) sum += load(x + r * width + begin + i);
            store(sums + i, sum);
        }
        for (; i < count; ++i) {
            sums[i] = load_one(x + begin + i);
            for (int64_t r = 1; r < rows; ++r) sums[i] += load_one(x + r * width + begin + i);
        }
        for (i = 0; i < count;) {
            int64_t stop = i + block - inside < count ? i + block - inside : count;
            inside += stop - i;
            for (; i + 8 <= stop; i += 8) {  // few additions that wait for each other
                const float* s = sums + i;
                pending += ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]));
            }
            for (; i < stop; ++i) pending += sums[i];
            if (inside == block || begin + i == width) {
                store_one(out++, pending / (float)(inside * rows));
                pending = 0, inside = 0;
            }
        }
    }
}

struct MapParts {
    BFloat16* averages;
    uint8_t* numbers;
    BFloat16 *scale, *low;
};

INLINE MapParts map_parts(const Maps& job, int64_t map) {
    int64_t each = blocks_of(job.height, job.block) * blocks_of(job.width, job.block);
    int64_t number_bytes = (job.height * job.width * job.bits + 7) / 8;
    uint8_t* numbers = job.code + job.maps * each * 2;
    BFloat16* scales = (BFloat16*)(numbers + job.maps * number_bytes);  // may lie at an odd address: bytes are copied
    return {(BFloat16*)job.code + map * each, numbers + map * number_bytes, scales + map, scales + job.maps + map};
}

// The nearest numbers of 16 bits on one side, so that the range that they describe covers the real one.
INLINE uint16_t bfloat_below(float x) {
    uint32_t bits = as<uint32_t>(x), cut = bits >> 16;
    return (uint16_t)(x < 0 && (bits & 0xffffu) ? cut + 1 : cut);
}

// The range of what is left beside the averages, which are written on the way.
template <class T>
INLINE Extremes<kNoGates> range_of_rest(const T* x, const Maps& job, BFloat16* averages) {
    Extremes<kNoGates> found(0, 0);
    Walk walk(averages, job.width, job.block);
    for (int64_t row = 0; row < job.height; row += job.block) {
        int64_t rows = job.height - row < job.block ? job.height - row : job.block;
        average(x + row * job.width, job.width, rows, job.block, averages + walk.line * walk.across);
        for (const int64_t stop = (row + rows) * job.width; walk.at < stop;) {
            const float* up = walk.here();
            const T* line = x + walk.at;
            int64_t count = walk.ready(job.width), i = 0;
            for (; i + 2 * LANES <= count; i += 2 * LANES) {
                found.see(load(line + i) - load(up + i), 0);
                found.see(load(line + i + LANES) - load(up + i + LANES), 1);
            }
            for (; i + LANES <= count; i += LANES) found.see(load(line + i) - load(up + i), 0);
            for (; i < count; ++i) found.see(all(load_one(line + i) - up[i]), 0);
            walk.advance(count);
        }
    }
    return found;
}

template <class T>
static bool encode_map(const Maps& given, int64_t map) {
    const Maps job = given;
    const int64_t size = job.height * job.width;
    const T* x = (const T*)job.elements + map * size;
    MapParts to = map_parts(job, map);
    float lowest, highest;
    const Extremes<kNoGates> found = range_of_rest(x, job, to.averages);
    found.finish(lowest, highest);
    if (found.suspicious() && !all_finite(x, size)) return false;
    if (!(highest - lowest < kInfinity)) return false;  // what is left beside an average can be twice as large
    const int bits = job.bits, levels = (1 << bits) - 1;
    uint16_t low = bfloat_below(lowest);
    float start = as<float>((uint32_t)low << 16);
    uint16_t scale = bfloat_below((float)((double)levels / ((double)highest - (double)start + (double)job.epsilon)));
    write(to.low, low), write(to.scale, scale);
    ToNumbers s = to_numbers(0, 0, 0, levels, job.stochastic);
    s.low = start, s.inverse = as<float>((uint32_t)scale << 16) * kFixed;
    Random random = random_of(job.seed, map);
    Walk walk(to.averages, job.width, job.block);
    float buffer[kTile];
    bool well = true;
    for (uint8_t* numbers = to.numbers; walk.at < size; numbers += kTile * bits / 8) {
        int64_t wanted = size - walk.at < kTile ? size - walk.at : kTile;
        for (int64_t filled = 0; filled < wanted;) {
            const float* up = walk.here();
            int64_t count = walk.ready(wanted - filled);
            subtract(x + walk.at, up, buffer + filled, count);
            filled += count, walk.advance(count);
        }
        if (wanted == kTile)
            well &= encode_tile_of(bits, job.stochastic, buffer, numbers, s, random);
        else
            encode_rest_of(bits, job.stochastic, buffer, wanted, numbers, s, random.key);
    }
    return well;
}

template <class T>
static bool decode_map(const Maps& given, int64_t map) {
    const Maps job = given;
    const int64_t size = job.height * job.width;
    T* x = (T*)job.elements + map * size;
    MapParts from = map_parts(job, map);
    float scale = as<float>((uint32_t)read<uint16_t>(from.scale) << 16);
    float low = as<float>((uint32_t)read<uint16_t>(from.low) << 16);
    const FromNumbers s = from_numbers(low, scale > 0 ? 1.0f / scale : 0.0f, kLargest);
    Walk walk(from.averages, job.width, job.block);
    float buffer[kTile];
    bool well = true;
    for (const uint8_t* numbers = from.numbers; walk.at < size; numbers += kTile * job.bits / 8) {
        int64_t wanted = size - walk.at < kTile ? size - walk.at : kTile;
        if (wanted == kTile)
            well &= decode_tile_of(job.bits, numbers, s, buffer);
        else
            decode_rest_of(job.bits, numbers, wanted, s, buffer);
        for (int64_t used = 0; used < wanted;) {
            const float* up = walk.here();
            int64_t count = walk.ready(wanted - used);
            add(buffer + used, up, x + walk.at, count);
            used += count, walk.advance(count);
        }
    }
    return well;
}

template <class T>
static bool encode_maps(const Maps& job, int64_t first, int64_t last) {
    bool well = true;
    for (int64_t map = first; map < last && well; ++map) well = encode_map<T>(job, map);
    return well;
}
template <class T>
static bool decode_maps(const Maps& job, int64_t first, int64_t last) {
    bool well = true;
    for (int64_t map = first; map < last && well; ++map) well = decode_map<T>(job, map);
    return well;
}

BY_TYPE(maps_encode, encode_maps, Maps)
BY_TYPE(maps_decode, decode_maps, Maps)
