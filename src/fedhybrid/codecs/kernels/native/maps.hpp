// Maps as block averages in bfloat16 plus the rest in few bits. Included once for each level.

INLINE int64_t blocks_of(int64_t length, int64_t block) { return (length + block - 1) / block; }

// The averages of one row of blocks, spread over the columns again: a window that moves with the reader.
constexpr int64_t kWindow = 1024;

struct Spread {
    const BFloat16* averages;  // of one map
    int64_t width, block, across;
    int64_t row_of_blocks = -1, begin = 0, end = 0;
    float values[kWindow + 16];

    Spread(const BFloat16* of_map, int64_t columns, int64_t side)
        : averages(of_map), width(columns), block(side), across(blocks_of(columns, side)) {}

    INLINE const float* at(int64_t row, int64_t column) {
        if (row / block != row_of_blocks || column < begin || column >= end) {
            row_of_blocks = row / block, begin = column;
            end = column + kWindow < width ? column + kWindow : width;
            const BFloat16* line = averages + row_of_blocks * across;
            for (int64_t c = column; c < end;) {
                int64_t number = c / block, stop = (number + 1) * block;
                float average = load_one(line + number);
                stop = stop < end ? stop : end;
                for (; c < stop; c += LANES) store(values + (c - begin), all(average));  // the next one writes over it
                c = stop;
            }
        }
        return values + (column - begin);
    }
    INLINE int64_t ready(int64_t column) const { return end - column; }
};

INLINE void subtract(const float* a, const float* b, float* out, int64_t count) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) store(out + i, load(a + i) - load(b + i));
    for (; i < count; ++i) out[i] = a[i] - b[i];
}
template <class T> INLINE void subtract(const T* a, const float* b, float* out, int64_t count) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) store(out + i, load(a + i) - load(b + i));
    for (; i < count; ++i) out[i] = load_one(a + i) - b[i];
}
template <class T> INLINE void add(const float* a, const float* b, T* out, int64_t count) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) store(out + i, load(a + i) + load(b + i));
    for (; i < count; ++i) store_one(out + i, a[i] + b[i]);
}

// Averages of one row of blocks, `rows` rows high, some columns at a time.
template <class T> static void average(const T* x, int64_t width, int64_t rows, int64_t block, BFloat16* out) {
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

template <class T> static bool encode_map(const Maps& job, int64_t map) {
    const int64_t width = job.width, size = job.height * width;
    const T* x = (const T*)job.elements + map * size;
    MapParts to = map_parts(job, map);
    Spread spread(to.averages, width, job.block);
    Extremes<kNoGates> found(0, 0);
    for (int64_t row = 0; row < job.height; row += job.block) {
        int64_t rows = job.height - row < job.block ? job.height - row : job.block;
        average(x + row * width, width, rows, job.block, to.averages + row / job.block * spread.across);
        for (int64_t r = row; r < row + rows; ++r)
            for (int64_t c = 0; c < width;) {
                const float* up = spread.at(r, c) - c;
                int64_t end = c + spread.ready(c);
                for (int way = 0; c + LANES <= end; c += LANES, way ^= 1)
                    found.see(load(x + r * width + c) - load(up + c), way);
                for (; c < end; ++c) found.see(all(load_one(x + r * width + c) - up[c]), 0);
            }
    }
    float lowest, highest;
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
    bool well = true;
    float buffer[kTile];
    uint8_t* numbers = to.numbers;
    int64_t row = 0, column = 0;
    for (int64_t done = 0; done < size;) {
        int64_t wanted = size - done < kTile ? size - done : kTile;
        for (int64_t filled = 0; filled < wanted;) {
            const float* up = spread.at(row, column);
            int64_t now = spread.ready(column) < wanted - filled ? spread.ready(column) : wanted - filled;
            subtract(x + row * width + column, up, buffer + filled, now);
            filled += now, column += now;
            if (column == width) column = 0, ++row;
        }
        if (wanted == kTile) well &= encode_tile_of(bits, job.stochastic, buffer, numbers, s, random);
        else encode_rest_of(bits, job.stochastic, buffer, wanted, numbers, s, random.key);
        numbers += kTile * bits / 8, done += wanted;
    }
    return well;
}

template <class T> static bool decode_map(const Maps& job, int64_t map) {
    const int64_t width = job.width, size = job.height * width;
    T* x = (T*)job.elements + map * size;
    MapParts from = map_parts(job, map);
    Spread spread(from.averages, width, job.block);
    float scale = as<float>((uint32_t)read<uint16_t>(from.scale) << 16);
    float low = as<float>((uint32_t)read<uint16_t>(from.low) << 16);
    FromNumbers s = from_numbers(low, scale > 0 ? 1.0f / scale : 0.0f, kLargest);
    float buffer[kTile];
    bool well = true;
    const uint8_t* numbers = from.numbers;
    int64_t row = 0, column = 0;
    for (int64_t done = 0; done < size;) {
        int64_t wanted = size - done < kTile ? size - done : kTile;
        if (wanted == kTile) well &= decode_tile_of(job.bits, numbers, s, buffer);
        else decode_rest_of(job.bits, numbers, wanted, s, buffer);
        for (int64_t used = 0; used < wanted;) {
            const float* up = spread.at(row, column);
            int64_t now = spread.ready(column) < wanted - used ? spread.ready(column) : wanted - used;
            add(buffer + used, up, x + row * width + column, now);
            used += now, column += now;
            if (column == width) column = 0, ++row;
        }
        numbers += kTile * job.bits / 8, done += wanted;
    }
    return well;
}

template <class T> static bool encode_maps(const Maps& job, int64_t first, int64_t last) {
    bool well = true;
    for (int64_t map = first; map < last && well; ++map) well = encode_map<T>(job, map);
    return well;
}
template <class T> static bool decode_maps(const Maps& job, int64_t first, int64_t last) {
    bool well = true;
    for (int64_t map = first; map < last && well; ++map) well = decode_map<T>(job, map);
    return well;
}

BY_TYPE(maps_encode, encode_maps, Maps)
BY_TYPE(maps_decode, decode_maps, Maps)
