/* For floats and for doubles; what there is for doubles alone. */

#define WORKING F32
#define REAL float
#define BITS uint32_t
#define SOME floats
#define WIDENED widened
#include "modes.h"
#undef WORKING
#undef REAL
#undef BITS
#undef SOME
#undef WIDENED

#define WORKING F64
#define REAL double
#define BITS uint64_t
#define SOME doubles
#define WIDENED doubled
#include "modes.h"
#undef WORKING
#undef REAL
#undef BITS
#undef SOME
#undef WIDENED

#include "smooth.h"
