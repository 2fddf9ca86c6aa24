// WEIR_BOTH marks functions of the device that tests run on the host.
#pragma once

#if defined(__CUDACC__)
#define WEIR_BOTH __host__ __device__
#else
#define WEIR_BOTH
#endif
