// Rows of [outer, rows, cols] elements, each with its own width and range. Included once for each level.

// Walks over one row's elements, a tile at a time.
template <class T>
struct RowCursor {
    T* at;
    int64_t left_in_segment, left, cols, jump;

    RowCursor(T* elements, const Rows& job, int64_t row)
        : at(elements + row * job.cols),
          left_in_segment(job.cols),
          left(job.outer * job.cols),
          cols(job.cols),
          jump((job.rows - 1) * job.cols) {}

    INLINE int64_t segment(int64_t wanted) const { return wanted < left_in_segment ? wanted : left_in_segment; }
    INLINE void advance(int64_t count) {
        at += count, left -= count, left_in_segment -= count;
        if (!left_in_segment) at += jump, left_in_segment = cols;
    }
    INLINE void take(float* buffer, int64_t count) {
        for (int64_t done = 0; done < count;) {
            int64_t now = segment(count - done);
            copy(at, buffer + done, now);
            advance(now), done += now;
        }
    }
    INLINE void put(const float* buffer, int64_t count) {
        for (int64_t done = 0; done < count;) {
            int64_t now = segment(count - done);
            copy(buffer + done, at, now);
            advance(now), done += now;
        }
    }
};

template <class T>
static bool range_rows(const Rows& job, int64_t first, int64_t last) {
    const T* elements = (const T*)job.elements;
    bool finite = true;
    if (job.cols < LANES && (last - first) * job.cols >= LANES) {  // along the rows instead
        for (int64_t row = first; row < last; ++row) job.low[row] = kInfinity, job.high[row] = -kInfinity;
        for (int64_t o = 0; o < job.outer; ++o) {
            const T* x = elements + (o * job.rows + first) * job.cols;
            int64_t row = first;
            if (job.cols == 1)
                for (; row + LANES <= last; row += LANES, x += LANES) {
                    F v = load(x), bad = v * 0.0f;
                    write(job.low + row, smaller(v, read<F>(job.low + row)));
                    write(job.high + row, larger(v, read<F>(job.high + row)));
                    for (int lane = 0; lane < LANES; ++lane) finite &= bad[lane] == 0.0f;
                }
            for (; row < last; ++row)
                for (int64_t c = 0; c < job.cols; ++c, ++x) {
                    float v = load_one(x);
                    finite &= v * 0.0f == 0.0f;
                    job.low[row] = v < job.low[row] ? v : job.low[row];
                    job.high[row] = v > job.high[row] ? v : job.high[row];
                }
        }
        return finite;
    }
    for (int64_t row = first; row < last; ++row) {
        Extremes<kNoGates> found(0, 0);
        for (int64_t o = 0; o < job.outer; ++o) found.look(elements + (o * job.rows + row) * job.cols, job.cols);
        found.finish(job.low[row], job.high[row]);
        if (!found.suspicious()) continue;
        for (int64_t o = 0; o < job.outer; ++o)
            finite &= all_finite(elements + (o * job.rows + row) * job.cols, job.cols);
    }
    return finite;
}

INLINE ToNumbers to_row(const Rows& job, int64_t row) {
    return to_numbers(job.low[row], job.step[row], 0, (1 << job.bits[row]) - 1, job.stochastic);
}
INLINE FromNumbers from_row(const Rows& job, int64_t row) {
    return from_numbers(job.low[row], job.step[row], kLargest);
}

// What is not above 0 becomes smaller than any range, in place.
INLINE void sink(float* x, int64_t count) {
    const float lowest = -__builtin_inff();
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        F v = load(x + i);
        store(x + i, v > 0 ? v : F{} + lowest);
    }
    for (; i < count; ++i) x[i] = x[i] > 0 ? x[i] : lowest;
}

template <class T>
static bool encode_row(const Rows& job, int64_t row) {
    const ToNumbers s = to_row(job, row);
    const int bits = job.bits[row];
    Random random = random_of(job.seed, row);
    RowCursor<T> cursor((T*)job.elements, job, row);
    uint8_t* code = job.code + job.offsets[row];
    float buffer[kTile];
    bool well = true;
    for (; cursor.left >= kTile; code += kTile * bits / 8) {
        const float* x = buffer;
        if (cursor.left_in_segment >= kTile && !job.positive)
            x = tile_of(cursor.at, buffer), cursor.advance(kTile);
        else
            cursor.take(buffer, kTile);
        if (job.positive) sink(buffer, kTile);
        well &= encode_tile_of(bits, job.stochastic, x, code, s, random);
    }
    int64_t rest = cursor.left;
    cursor.take(buffer, rest);
    if (job.positive) sink(buffer, rest);
    encode_rest_of(bits, job.stochastic, buffer, rest, code, s, random.key);
    return well;
}

template <class T>
static bool decode_row(const Rows& job, int64_t row) {
    const FromNumbers s = from_row(job, row);
    const int bits = job.bits[row];
    RowCursor<T> cursor((T*)job.elements, job, row);
    const uint8_t* code = job.code + job.offsets[row];
    float buffer[kTile];
    bool well = true;
    for (; cursor.left >= kTile; code += kTile * bits / 8) {
        if (cursor.left_in_segment >= kTile) {
            well &= decode_tile_of(bits, code, s, place_of(cursor.at, buffer));
            put_tile(buffer, cursor.at), cursor.advance(kTile);
        } else {
            well &= decode_tile_of(bits, code, s, buffer);
            cursor.put(buffer, kTile);
        }
    }
    int64_t rest = cursor.left;
    decode_rest_of(bits, code, rest, s, buffer);
    cursor.put(buffer, rest);
    return well;
}

// Where elements of one row are never neighbours: sixteen rows at a time, by way of a buffer in which they are.
constexpr int64_t kAbreast = 16;
struct Abreast {
    float lines[kAbreast][kTile + 16];

    template <class T>
    INLINE void take(const T* x, int64_t rows, int64_t count) {
        int64_t o = 0;
        for (; o + LANES <= count; o += LANES)
            for (int64_t r = 0; r < kAbreast; r += LANES) {
                F square[LANES];
#pragma GCC unroll 16
                for (int i = 0; i < LANES; ++i) square[i] = load(x + (o + i) * rows + r);
                transpose(square);
#pragma GCC unroll 16
                for (int i = 0; i < LANES; ++i) store(lines[r + i] + o, square[i]);
            }
        for (; o < count; ++o)
            for (int64_t r = 0; r < kAbreast; ++r) lines[r][o] = load_one(x + o * rows + r);
    }
    template <class T>
    INLINE void put(T* x, int64_t rows, int64_t count) const {
        int64_t o = 0;
        for (; o + LANES <= count; o += LANES)
            for (int64_t r = 0; r < kAbreast; r += LANES) {
                F square[LANES];
#pragma GCC unroll 16
                for (int i = 0; i < LANES; ++i) square[i] = load(lines[r + i] + o);
                transpose(square);
#pragma GCC unroll 16
                for (int i = 0; i < LANES; ++i) store(x + (o + i) * rows + r, square[i]);
            }
        for (; o < count; ++o)
            for (int64_t r = 0; r < kAbreast; ++r) store_one(x + o * rows + r, lines[r][o]);
    }
};

template <class T>
static bool encode_abreast(const Rows& job, int64_t row) {
    ToNumbers s[kAbreast];
    Random random[kAbreast];
    for (int64_t r = 0; r < kAbreast; ++r) s[r] = to_row(job, row + r), random[r] = random_of(job.seed, row + r);
    Abreast now;
    bool well = true;
    for (int64_t o = 0; o < job.outer; o += kTile) {
        int64_t count = job.outer - o < kTile ? job.outer - o : kTile;
        now.take((const T*)job.elements + o * job.rows + row, job.rows, count);
        for (int64_t r = 0; r < kAbreast; ++r) {
            int bits = job.bits[row + r];
            uint8_t* code = job.code + job.offsets[row + r] + o * bits / 8;
            if (job.positive) sink(now.lines[r], count);
            if (count == kTile)
                well &= encode_tile_of(bits, job.stochastic, now.lines[r], code, s[r], random[r]);
            else
                encode_rest_of(bits, job.stochastic, now.lines[r], count, code, s[r], random[r].key);
        }
    }
    return well;
}

template <class T>
static bool decode_abreast(const Rows& job, int64_t row) {
    Abreast now;
    bool well = true;
    for (int64_t o = 0; o < job.outer; o += kTile) {
        int64_t count = job.outer - o < kTile ? job.outer - o : kTile;
        for (int64_t r = 0; r < kAbreast; ++r) {
            int bits = job.bits[row + r];
            const uint8_t* code = job.code + job.offsets[row + r] + o * bits / 8;
            const FromNumbers s = from_row(job, row + r);
            if (count == kTile)
                well &= decode_tile_of(bits, code, s, now.lines[r]);
            else
                decode_rest_of(bits, code, count, s, now.lines[r]);
        }
        now.put((T*)job.elements + o * job.rows + row, job.rows, count);
    }
    return well;
}

// The last sixteen rows may overlap those before: the same bytes are written twice.
template <class T>
static bool encode_rows(const Rows& job, int64_t first, int64_t last) {
    bool well = true, abreast = job.cols == 1 && last - first >= kAbreast;
    if (abreast)
        for (int64_t row = first; row < last; row += kAbreast)
            well &= encode_abreast<T>(job, row + kAbreast <= last ? row : last - kAbreast);
    else
        for (int64_t row = first; row < last; ++row) well &= encode_row<T>(job, row);
    return well;
}
template <class T>
static bool decode_rows(const Rows& job, int64_t first, int64_t last) {
    bool well = true, abreast = job.cols == 1 && last - first >= kAbreast;
    if (abreast)
        for (int64_t row = first; row < last; row += kAbreast)
            well &= decode_abreast<T>(job, row + kAbreast <= last ? row : last - kAbreast);
    else
        for (int64_t row = first; row < last; ++row) well &= decode_row<T>(job, row);
    return well;
}

BY_TYPE(rows_range, range_rows, Rows)
BY_TYPE(rows_encode, encode_rows, Rows)
BY_TYPE(rows_decode, decode_rows, Rows)
