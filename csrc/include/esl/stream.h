// A CUDA stream, for headers that know no CUDA.
#pragma once

struct CUstream_st;

namespace esl {

using Stream = CUstream_st*;  // cudaStream_t; null is the default stream

}  // namespace esl
