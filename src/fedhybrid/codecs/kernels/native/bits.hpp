// Tensors of 0 and one other value in one bit an element. Included once for each level.
//
// A tile is 512 elements and 64 bytes for every element size: bit k of element-sized lane l is element k * lanes + l.

template <class W>
struct Lanes {
    typedef W Type __attribute__((vector_size(4 * LANES)));
};

template <class W>
static bool encode_bits(const Bits& job, int64_t first, int64_t last) {
    typedef typename Lanes<W>::Type V;
    constexpr int lanes = 64 / (int)sizeof(W), parts = 16 / LANES, width = lanes / parts, depth = 8 * (int)sizeof(W);
    const W value = (W)job.value;
    bool third = false;
    for (int64_t tile = first; tile < last; ++tile) {
        const W* x = (const W*)job.elements + tile * kBitTile;
        uint8_t* code = job.code + tile * (kBitTile / 8);
        int64_t count = job.numel - tile * kBitTile;
        if (count >= kBitTile) {
            V bad = {};
            for (int part = 0; part < parts; ++part) {
                V word = {};
#pragma GCC unroll 8
                for (int k = 0; k < depth; ++k) {
                    V v = read<V>(x + k * lanes + part * width);
                    word = v != 0 ? word | (W)((W)1 << k) : word;
                    bad |= v != 0 ? v ^ value : v;
                }
                write(code + part * LANES * 4, word);
            }
            uint64_t any = 0;
            for (int i = 0; i < LANES / 2; ++i) any |= read<uint64_t>((const char*)&bad + 8 * i);
            third |= any != 0;
        } else {
            for (int64_t i = 0; i < (count + 7) / 8; ++i) code[i] = 0;
            for (int64_t i = 0; i < count; ++i) {
                third |= x[i] != 0 && x[i] != value;
                code[i / 8] |= (uint8_t)((x[i] != 0) << (i % 8));
            }
        }
    }
    return !third;
}

template <class W>
static bool decode_bits(const Bits& job, int64_t first, int64_t last) {
    typedef typename Lanes<W>::Type V;
    constexpr int lanes = 64 / (int)sizeof(W), parts = 16 / LANES, width = lanes / parts, depth = 8 * (int)sizeof(W);
    const W value = (W)job.value;
    for (int64_t tile = first; tile < last; ++tile) {
        W* x = (W*)job.elements + tile * kBitTile;
        const uint8_t* code = job.code + tile * (kBitTile / 8);
        int64_t count = job.numel - tile * kBitTile;
        if (count >= kBitTile) {
            for (int part = 0; part < parts; ++part) {
                V word = read<V>(code + part * LANES * 4);
#pragma GCC unroll 8
                for (int k = 0; k < depth; ++k)
                    write(x + k * lanes + part * width, (V)((word & (W)((W)1 << k)) != 0) & value);
            }
        } else {
            for (int64_t i = 0; i < count; ++i) x[i] = code[i / 8] >> (i % 8) & 1 ? value : (W)0;
        }
    }
    return true;
}

#define BY_SIZE(name, function)                                      \
    static bool name(const Bits& job, int64_t first, int64_t last) { \
        switch (job.element_bytes) {                                 \
            case 1: return function<uint8_t>(job, first, last);      \
            case 2: return function<uint16_t>(job, first, last);     \
            case 4: return function<uint32_t>(job, first, last);     \
            case 8: return function<uint64_t>(job, first, last);     \
        }                                                            \
        return false;                                                \
    }
BY_SIZE(bits_encode, encode_bits)
BY_SIZE(bits_decode, decode_bits)
