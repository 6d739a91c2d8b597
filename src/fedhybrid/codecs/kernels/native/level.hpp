// All kernels at one level. The file that includes this has set LANES, LEVEL and the processor's features.
#include "jobs.hpp"

namespace {

#define BY_TYPE(name, function, Job)                                     \
    static bool name(const Job& job, int64_t first, int64_t last) {      \
        switch (job.type) {                                              \
            case kFloat32: return function<float>(job, first, last);     \
            case kBFloat16: return function<BFloat16>(job, first, last); \
            case kFloat16: return function<Float16>(job, first, last);   \
        }                                                                \
        return false;                                                    \
    }

#include "vectors.hpp"
#include "tiles.hpp"
#include "groups.hpp"
#include "rows.hpp"
#include "maps.hpp"
#include "bits.hpp"

}  // namespace

#define NAME_OF(level) #level
#define LEVEL_TABLE(level)                                                                               \
    extern const Level level##_level;                                                                    \
    const Level level##_level = {NAME_OF(level), groups_encode, groups_decode, rows_range,  rows_encode, \
                                 rows_decode,    maps_encode,   maps_decode,   bits_encode, bits_decode};
#define LEVEL_TABLE_OF(level) LEVEL_TABLE(level)
LEVEL_TABLE_OF(LEVEL)
