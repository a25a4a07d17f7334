// In a file of its own: the header changes with every source, and pybind11 is slow to compile.
#include "rnn_ext_source_digest.h"

extern const char* const source_digest;
const char* const source_digest = RNN_EXT_SOURCE_DIGEST;
